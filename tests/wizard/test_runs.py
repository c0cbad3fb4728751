"""Runs seen from another terminal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from engine.events import Failed, RunFinished, to_line
from engine.run_folder import RunFolder
from knowledge.answers import PlainError
from knowledge.config import TrainingConfig, with_values
from wizard.follow import Tail, all_runs, find_run
from wizard.runs import GLANCE_BYTES, glance, runs, save, state_of, stop, watch

FAKE_ENGINE = Path(__file__).parent / "fake_engine.py"


@pytest.fixture
def new_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")

    def make(name="fox", events=()):
        run = RunFolder.create(with_values(TrainingConfig(), {"output.name": name}))
        with run.event_log() as log:
            for event in events:
                log.write(event)
        return run

    return make


@pytest.fixture
def training(tmp_path):
    """Starts the fake engine in a run, as another terminal would have; ended with the test."""
    started = []

    def begin(run, events, **plan):
        told = tmp_path / "told.jsonl"
        told.write_text("\n".join(map(to_line, events)), encoding="utf-8")
        environment = {
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "FAKE_ENGINE": json.dumps({"events": str(told), **plan}),
        }
        process = subprocess.Popen(
            [sys.executable, str(FAKE_ENGINE), str(run.path)], env=environment, stderr=subprocess.DEVNULL
        )
        started.append(process)
        while run.process() is None and process.poll() is None:
            time.sleep(0.02)
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait()


def invoke(command, *arguments):
    answer = CliRunner().invoke(command, arguments, standalone_mode=False, catch_exceptions=False)
    return answer.return_value, answer.stdout


# Reading along


def test_a_tail_gives_every_line_once_and_half_ones_when_they_are_whole(tmp_path):
    path = tmp_path / "events.jsonl"
    tail = Tail(path)
    assert tail.read() == []
    path.write_bytes(b"one\ntw")
    assert tail.read() == ["one"]
    with path.open("ab") as file:
        file.write("o ä".encode()[:-1])
    assert tail.read() == []
    with path.open("ab") as file:
        file.write("ä".encode()[-1:] + b"\nthree\n")
    assert tail.read() == ["two ä", "three"]


def test_a_glance_at_a_long_run_sees_its_beginning_and_its_end(new_run, story):
    run = new_run(events=story([0.1] * 4000))
    assert (run.path / "events.jsonl").stat().st_size > 2 * GLANCE_BYTES
    progress, at = glance(run)
    assert (progress.total_steps, progress.step) == (4000, 4000)
    assert isinstance(progress.ended, RunFinished)
    assert at > 0


@pytest.mark.parametrize("steps", [1, 100, 600, 900])
def test_a_glance_agrees_with_reading_everything(new_run, story, steps):
    run = new_run(events=story([0.1] * steps))
    assert glance(run)[0].step == steps


# The list


def test_the_list_tells_how_every_run_ended(new_run, story):
    new_run("whole", story([0.1] * 5))
    new_run(
        "paused",
        [
            *story([0.1] * 5, total_steps=9, finished=False),
            RunFinished(reason="stopped", step=5, total_steps=9, seconds=1, network=""),
        ],
    )
    new_run(
        "broken", [*story([0.1] * 3, total_steps=9, finished=False), Failed(cause="x", remedy="y", phase="training")]
    )
    new_run("dark", story([0.1] * 2, total_steps=9, finished=False))
    assert {run.name: state_of(run).state for run in all_runs()} == {
        "whole": "finished",
        "paused": "stopped",
        "broken": "failed",
        "dark": "cut",
    }
    code, text = invoke(runs)
    assert code == 0
    for part in ("whole", "paused", "broken", "dark", "5 of 9", "finished"):
        assert part in text
    _, document = invoke(runs, "--json")
    assert {run["name"]: run["step"] for run in json.loads(document)["runs"]} == {
        "whole": 5,
        "paused": 5,
        "broken": 3,
        "dark": 2,
    }


def test_an_empty_folder_says_how_to_begin(new_run, tmp_path):
    (tmp_path / "runs").mkdir()
    assert "There are no runs in runs" in invoke(runs)[1]


def test_an_unknown_run_names_the_nearest(new_run):
    new_run("my-fox")
    with pytest.raises(PlainError, match='Did you mean "my-fox"'):
        find_run("my-fix")
    assert find_run("runs/my-fox").name == find_run("my-fox").name == "my-fox"


# Watching and stopping


def test_watching_shows_what_was_and_what_comes(new_run, training, story):
    run = new_run()
    training(run, story([0.1] * 60), pause=0.01)
    code, text = invoke(watch, "fox")
    assert code == 0
    assert "Finished: 60 steps" in text
    assert "Your LoRA is ready." in text


def test_watching_with_json_gives_every_event_from_the_first(new_run, story):
    events = story([0.1] * 10)
    new_run(events=events)
    code, text = invoke(watch, "fox", "--json")
    assert code == 0
    assert text.splitlines() == [to_line(event) for event in events]


def test_watching_a_run_that_was_cut_says_so(new_run, story):
    new_run(events=story([0.1] * 10, total_steps=20, finished=False))
    code, text = invoke(watch, "fox")
    assert code == 1
    assert "ended without saying why" in text


def test_watching_a_run_that_never_began_is_an_error(new_run):
    new_run()
    with pytest.raises(PlainError, match="nobody is training"):
        invoke(watch, "fox")


def test_leaving_does_not_end_the_training(new_run, training, story):
    run = new_run()
    process = training(run, story([0.1] * 1000), pause=0.02)
    watcher = subprocess.Popen(
        [sys.executable, "-m", "wizard.cli", "watch", "fox"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        text=True,
    )
    watcher.stdout.readline()
    watcher.send_signal(signal.SIGINT)
    text, _ = watcher.communicate(timeout=20)
    assert watcher.returncode == 0
    assert "The training goes on" in text
    assert process.poll() is None


def test_stopping_waits_until_it_is_saved_and_says_how_to_go_on(new_run, training, story):
    run = new_run()
    training(run, story([0.1] * 1000), pause=0.01)
    code, text = invoke(stop, "fox")
    assert code == 0
    assert "lora-wizard resume fox" in " ".join(text.split())
    assert run.process() is None
    assert state_of(run).state == "stopped"


def test_stopping_what_does_not_run_is_an_error(new_run, story):
    new_run(events=story([0.1] * 5))
    with pytest.raises(PlainError, match="not being trained now"):
        invoke(stop, "fox")


def test_saving_waits_until_it_is_saved_and_the_training_goes_on(new_run, training, story):
    run = new_run()
    process = training(run, story([0.1] * 1000), pause=0.01)
    code, text = invoke(save, "fox")
    assert code == 0
    assert "fox-step" in text
    assert "The training goes on" in " ".join(text.split())
    assert list(run.checkpoints.glob("*.safetensors"))
    assert process.poll() is None


def test_saving_what_does_not_run_is_an_error(new_run, story):
    new_run(events=story([0.1] * 5))
    with pytest.raises(PlainError, match="nothing new to save"):
        invoke(save, "fox")


@pytest.mark.parametrize(
    "command", [("runs",), ("train", "--help"), ("watch", "nothing"), ("demo", "--help")], ids=" ".join
)
def test_looking_at_runs_never_imports_torch(tmp_path, command):
    program = (
        "import sys; from wizard.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'matplotlib', 'diffusers')))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program, *command],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        check=False,
    )
    assert answer.returncode == 0
