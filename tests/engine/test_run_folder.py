from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from engine import run_folder
from engine.events import PhaseStarted, Warned
from engine.run_folder import RunFolder, whole_file
from knowledge.answers import PlainError
from knowledge.config import OutputSettings, TrainingConfig


@pytest.fixture
def config(tmp_path):
    return TrainingConfig(output=OutputSettings(name="toy", folder=str(tmp_path / "runs")))


def test_every_run_gets_a_folder_of_its_own(config):
    names = [RunFolder.create(config).name for _ in range(3)]
    assert names == ["toy", "toy-2", "toy-3"]


def test_the_config_is_read_back_as_it_was(config):
    run = RunFolder.create(config)
    assert RunFolder.open(run.path).config() == config
    assert all(folder.is_dir() for folder in (run.samples, run.checkpoints, run.state))


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(PlainError, match="is not the folder of a run"):
        RunFolder.open(tmp_path)


def test_runs_cannot_be_kept_in_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PlainError, match=r"output\.folder"):
        RunFolder.create(TrainingConfig(output=OutputSettings(folder=str(tmp_path / "file"))))


def test_events_are_read_back_and_half_a_line_is_passed_over(config):
    run = RunFolder.create(config)
    first, second = PhaseStarted(phase="loading"), Warned(message="ümlaut\u2028", parameters=("seed",))
    with run.event_log() as log:
        log.write(first)
        log.write(second)
        assert list(run.events()) == [first, second]  # before the file is closed
    file = run.path / "events.jsonl"
    with file.open("a") as end:
        end.write('{"event": "step_fin')
    assert list(run.events()) == [first, second]
    with run.event_log() as log:
        log.write(first)
    assert list(run.events()) == [first, second, first]
    assert len(file.read_text(encoding="utf-8").split("\n")) == 4


def test_a_whole_last_line_without_its_newline_is_kept(config):
    run = RunFolder.create(config)
    event = PhaseStarted(phase="loading")
    with run.event_log() as log:
        log.write(event)
    file = run.path / "events.jsonl"
    file.write_bytes(file.read_bytes().rstrip(b"\n"))
    with run.event_log() as log:
        log.write(event)
    assert list(run.events()) == [event, event]


def test_requests_are_made_seen_and_answered(config):
    run = RunFolder.create(config)
    assert not run.requested()
    run.request()
    assert run.requested()
    assert not run.requested("save")
    run.answer()
    assert not run.requested()


def test_two_states_are_kept_and_the_newest_comes_first(config):
    run = RunFolder.create(config)
    for step in (5, 10, 100, 1_000_000):
        with run.new_state(step) as folder:
            (folder / "weights").write_text(str(step))
    assert [state.name for state in run.states()] == ["step-1000000", "step-000100"]
    assert [(state / "weights").read_text() for state in run.states()] == ["1000000", "100"]


def test_a_state_that_was_not_finished_does_not_count(config):
    run = RunFolder.create(config)
    with run.new_state(1) as folder:
        (folder / "weights").write_text("whole")
    with suppress(RuntimeError), run.new_state(2) as folder:
        (folder / "weights").write_text("half")
        raise RuntimeError
    assert [state.name for state in run.states()] == ["step-000001"]
    assert [path.name for path in run.state.iterdir()] == ["step-000001"]


def test_what_counts_as_saved_is_on_the_disk_before_it_counts(config, monkeypatch):
    """A power cut right after a rename would otherwise leave a name over nothing."""
    run, done = RunFolder.create(config), []
    replace = Path.replace
    monkeypatch.setattr(run_folder, "_to_disk", lambda path: done.append("content"))
    monkeypatch.setattr(run_folder, "_folder_to_disk", lambda path: done.append("names"))
    monkeypatch.setattr(Path, "replace", lambda path, to: done.append("renamed") or replace(path, to))
    with run.new_state(1) as state:
        (state / "state.pt").write_bytes(b"state")
    assert done == ["content", "renamed", "names"]
    done.clear()
    with whole_file(run.path / "file") as partial:
        partial.write_text("all of it")
    assert done == ["content", "renamed", "names"]


def test_the_same_step_may_be_saved_again(config):
    run = RunFolder.create(config)
    for content in ("first", "second"):
        with run.new_state(7) as folder:
            (folder / "weights").write_text(content)
    assert [(state / "weights").read_text() for state in run.states()] == ["second"]


def test_a_process_killed_while_it_saves_leaves_the_states_before(config):
    run = RunFolder.create(config)
    with run.new_state(1) as folder:
        (folder / "weights").write_text("whole")
    program = (
        "import os, sys; from engine.run_folder import RunFolder\n"
        "with RunFolder(sys.argv[1]).new_state(2) as folder:\n"
        "    (folder / 'weights').write_text('half'); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", program, str(run.path)], check=False).returncode == 9
    assert [state.name for state in run.states()] == ["step-000001"]
    with run.new_state(2) as folder:
        (folder / "weights").write_text("whole")
    assert sorted(path.name for path in run.state.iterdir()) == ["step-000001", "step-000002"]


def test_one_process_at_a_time_trains_in_a_folder(config):
    run = RunFolder.create(config)
    program = (
        "import sys; from engine.run_folder import RunFolder\n"
        "with RunFolder(sys.argv[1]).claimed(): print('claimed', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", program, str(run.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "claimed\n"
    assert run.process() == other.pid
    with pytest.raises(PlainError, match="trained already"), run.claimed():
        pass
    other.kill()
    other.communicate()
    assert run.process() is None
    with run.claimed():
        assert run.process() == os.getpid()
    assert run.process() is None


def test_a_clock_that_is_set_does_not_end_a_run(config):
    run = RunFolder.create(config)
    with run.claimed():
        number, started = (run.path / "process").read_text().split()
        (run.path / "process").write_text(f"{number} {float(started) + 1}")
        assert run.process() == os.getpid()
        (run.path / "process").write_text(f"{number} {float(started) + 60}")
        assert run.process() is None


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    file = tmp_path / "network.bin"
    with whole_file(file) as partial:
        partial.write_text("first")
    with suppress(RuntimeError), whole_file(file) as partial:
        partial.write_text("sec")
        raise RuntimeError
    assert file.read_text() == "first"
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(PlainError, match=r"network\.bin cannot be written"), whole_file(tmp_path / "a" / "network.bin"):
        (tmp_path / "a" / "network.bin").write_text("no such folder")


def test_two_computers_that_write_one_file_do_not_write_into_each_others(tmp_path: Path):
    with whole_file(tmp_path / "a") as one, whole_file(tmp_path / "a") as other:
        assert one != other  # though both processes may have the same number
        one.write_text("one")
        other.write_text("other")
    assert (tmp_path / "a").read_text() == "one"
