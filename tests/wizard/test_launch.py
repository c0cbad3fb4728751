"""The engine runs as a process of its own; whatever happens to it, the wizard has words for it and nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine.events import Failed, RunFinished, RunStarted, to_line
from engine.run_folder import RunFolder
from knowledge.answers import PlainError
from knowledge.config import DatasetFolder, TrainingConfig, with_values
from knowledge.rules import Finding
from wizard import autopsy, launch
from wizard.autopsy import Machine, death, lower_memory
from wizard.launch import anchored, assigned, attend, ready_to_resume, refuse_another_network
from wizard.progress import JsonView, Progress

FAKE_ENGINE = Path(__file__).parent / "fake_engine.py"


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = with_values(TrainingConfig(), {"output.name": "fox", "dataset.trigger_word": "zwq"})
    return RunFolder.create(config)


@pytest.fixture
def engine(tmp_path, monkeypatch, story, losses):
    """Prepares the fake engine: the events of 40 steps, then how it ends."""

    def prepare(events=None, *, finished=True, steps=40, **plan):
        told = events or story(losses(lambda share: 0.1, steps, 1), finished=finished)
        (tmp_path / "told.jsonl").write_text("\n".join(map(to_line, told)), encoding="utf-8")
        monkeypatch.setattr(launch, "ENGINE", (str(FAKE_ENGINE),))
        monkeypatch.setenv("FAKE_ENGINE", json.dumps({"events": str(tmp_path / "told.jsonl"), **plan}))
        return told

    return prepare


# A run that goes well


def test_a_run_that_goes_well_ends_with_charts_and_what_to_do(run, engine, capsys):
    engine()
    assert attend(run) == 0
    said = capsys.readouterr().out
    assert "Your LoRA is ready." in said
    assert "zwq" in said
    for name in ("loss.png", "learning-rate.png", "report.html"):
        assert (run.path / name).is_file()
    assert "some library says something" in (run.path / "engine.log").read_text()
    assert "some library" not in said


def test_with_json_the_events_are_passed_on_as_they_were_written(run, engine, capsys):
    told = engine()
    assert attend(run, as_json=True) == 0
    assert capsys.readouterr().out.splitlines() == [to_line(event) for event in told]


# A run that does not


def test_a_killed_engine_is_told_in_words_and_written_down(run, engine, capsys):
    engine(finished=False, then="kill")
    assert attend(run) == 1
    said = capsys.readouterr().out
    assert "ended from outside (signal 9)" in said
    assert "the 40 steps are lost. To start again: lora-wizard train" in " ".join(said.split())
    last = list(run.events())[-1]
    assert isinstance(last, Failed)
    assert (last.step, last.phase) == (40, "training")


def test_a_crash_is_told_with_its_last_words_and_no_traceback(run, engine, capsys):
    engine(finished=False, then="crash")
    assert attend(run) == 1
    captured = capsys.readouterr()
    assert "Its last words: RuntimeError: the sky has fallen" in captured.out
    assert "Traceback" not in captured.out + captured.err


def test_debug_shows_the_traceback(run, engine, capsys):
    engine(finished=False, then="crash")
    assert attend(run, debug=True) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_a_segmentation_fault_points_to_the_doctor(run, engine, capsys):
    engine(finished=False, then="segfault")
    assert attend(run) == 1
    assert "lora-wizard doctor" in capsys.readouterr().out


def test_an_engine_that_never_begins_is_told_too(run, monkeypatch, capsys):
    monkeypatch.setattr(launch, "ENGINE", ("-c", "import sys; sys.exit('There is no model.')"))
    assert attend(run) == 1
    said = capsys.readouterr().out
    assert "There is no model." in said
    assert "nothing is lost" in said


def test_with_json_a_death_is_the_last_event(run, engine, capsys):
    engine(finished=False, then="kill")
    assert attend(run, as_json=True) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["event"] == "failed"


def test_a_failure_that_the_engine_tells_itself_is_shown_once(run, engine, capsys, story):
    failed = Failed(
        cause="The loss of step 41 is not a number any more.", remedy="Try 2e-5.", phase="training", step=40
    )
    engine([*story([0.1] * 40, total_steps=80, finished=False), failed], then="crash")
    assert attend(run) == 1
    said = capsys.readouterr().out
    assert said.count("not a number") == 1
    assert "Try 2e-5." in said
    assert "sky" not in said


def test_the_word_about_memory_needs_evidence(run):
    def cause(returncode, kills):
        return death(run, returncode, Machine(0), Machine(kills), Progress()).cause

    assert "ran out of memory" in cause(-9, 1)
    assert "ran out of memory" not in cause(-9, 0)
    assert "asked to end" in cause(-15, 0)


def test_a_full_disk_is_named_when_the_engine_could_not(run, monkeypatch):
    monkeypatch.setattr(autopsy.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    assert "disk" in death(run, 1, Machine(None), Machine(None), Progress()).cause


def test_advice_on_memory_names_only_what_can_still_be_done():
    config = with_values(
        TrainingConfig(),
        {"memory.gradient_checkpointing": True, "memory.precision": "bf16", "schedule.batch_size": 4},
    )
    assert lower_memory(config) == "Lower schedule.batch_size from 4 to 1 or close other programs."


def test_a_fault_in_showing_leaves_the_training_alone_and_says_so(run, engine, monkeypatch):
    class Broken(JsonView):
        def tell(self, event, line):
            raise RuntimeError("no more paint")

    engine(steps=300, pause=0.01)
    monkeypatch.setattr(launch, "choose_view", lambda *_, **__: Broken())
    with pytest.raises(PlainError, match=r"no more paint.*training goes on"):
        attend(run)
    assert run.process() is not None
    os.kill(run.process(), signal.SIGKILL)


# Ctrl-C, in a real terminal


DRIVER = """
import sys
from engine.run_folder import RunFolder
from wizard import launch
launch.ENGINE = ({engine!r},)
sys.exit(launch.attend(RunFolder({run!r})))
"""


@pytest.fixture
def terminal(run):
    pexpect = pytest.importorskip("pexpect")
    if sys.platform == "win32":
        pytest.skip("pexpect.spawn needs a pseudo-terminal of Unix")
    children = []

    def open_terminal():
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "TERM": "xterm-256color"}
        environment.pop("NO_COLOR", None)
        program = DRIVER.format(engine=str(FAKE_ENGINE), run=str(run.path))
        child = pexpect.spawn(
            sys.executable, ["-c", program], env=environment, dimensions=(24, 80), encoding="utf-8", timeout=30
        )
        children.append(child)
        return child

    yield open_terminal
    for child in children:
        child.close(force=True)
    if run.process():
        os.kill(run.process(), signal.SIGKILL)


def test_ctrl_c_saves_and_stops_and_says_how_to_go_on(run, engine, terminal):
    engine(steps=2000, pause=0.01)
    child = terminal()
    child.expect("step [1-9][0-9]* of 2,000")
    child.sendintr()
    child.expect("Saving and stopping")
    child.expect("lora-wizard resume")
    child.wait()
    assert child.exitstatus == 130
    assert run.states()
    last = list(run.events())[-1]
    assert isinstance(last, RunFinished)
    assert last.reason == "stopped"


def test_ctrl_c_twice_ends_at_once(run, engine, terminal):
    engine(steps=2000, pause=0.01, then="hang")
    child = terminal()
    child.expect("step [1-9][0-9]* of 2,000")
    child.sendintr()
    child.expect("Saving and stopping")
    child.sendintr()
    child.expect("Nothing had been saved yet")
    child.wait()
    assert child.exitstatus == 130
    assert run.process() is None


def test_ctrl_c_before_the_first_step_ends_at_once(run, engine, terminal):
    engine(pause=3.0)
    child = terminal()
    child.expect("Loading")
    child.sendintr()
    child.expect("nothing is lost")
    child.wait()
    assert child.exitstatus == 130


def test_a_closed_terminal_leaves_the_training_alone(run, engine, terminal):
    told = engine(steps=200, pause=0.005)
    child = terminal()
    child.expect("step [1-9][0-9]* of 200")
    child.close(force=True)
    deadline = time.monotonic() + 20
    while run.process() is not None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(list(run.events())) == len(told)


# Before the start


def test_a_blocked_config_does_not_start(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    class Blocked:
        config = TrainingConfig()
        plan = None
        findings = (Finding("too-big", "blocks", "It cannot fit.", ("network.rank",), {"network.rank": 8}),)

    assert launch.train_situation(Blocked()) == 3
    assert "--set network.rank=8" in capsys.readouterr().err
    assert launch.train_situation(Blocked(), as_json=True) == 3
    assert json.loads(capsys.readouterr().out)["exit_code"] == 3
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"base_model.path": "nowhere.safetensors"}, "base_model.path is nowhere.safetensors, and nothing is there"),
        ({"base_model.vae": "nowhere.safetensors"}, "base_model.vae is nowhere.safetensors, and nothing is there"),
        ({"network.start_from": "nowhere.safetensors"}, "network.start_from is nowhere.safetensors, and there is no"),
        ({"dataset.folders": ({"path": ".", "masks": "nowhere"},)}, "nowhere"),
    ],
)
def test_what_is_not_there_is_named_before_a_run_has_a_folder(tmp_path, monkeypatch, changes, said):
    monkeypatch.chdir(tmp_path)

    class Lacking:
        config = with_values(TrainingConfig(), changes)
        findings = ()

    with pytest.raises(PlainError, match=said):
        launch.train_situation(Lacking())
    assert not (tmp_path / "runs").exists()


def test_a_run_keeps_absolute_paths_so_that_it_can_go_on_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    config = with_values(
        TrainingConfig(),
        {
            "dataset.folders": (DatasetFolder(path="pictures", repeats=3), DatasetFolder(path="more", masks="masks")),
            "base_model.path": "model",
            "base_model.vae": "somebody/vae",
        },
    )
    kept = anchored(config)
    assert kept.dataset.folders == (
        DatasetFolder(path=str(tmp_path / "pictures"), repeats=3),
        DatasetFolder(path=str(tmp_path / "more"), masks=str(tmp_path / "masks")),
    )
    assert kept.base_model.vae == "somebody/vae"  # no file here: a name, left as it is
    assert kept.base_model.path == str(tmp_path / "model")
    assert anchored(with_values(config, {"base_model.path": "pocket"})).base_model.path == "pocket"


def test_what_set_says_is_checked_together():
    assert assigned(TrainingConfig(), ("network.rank=32",)).network.rank == 32
    with pytest.raises(PlainError, match=r"network\.rank is 0"):
        assigned(TrainingConfig(), ("network.rank=0",))


@pytest.mark.parametrize(
    "change",
    [
        {"network.rank": 8},
        {"optimizer.name": "lion"},
        {"ema.decay": 0.9},
        {"memory.precision": "bf16", "memory.full_half": True},
        {"memory.fused_backward": True, "optimizer.maximum_gradient_norm": 0.0},
    ],
)
def test_what_a_state_belongs_to_cannot_change_inside_a_run(change):
    before, after = TrainingConfig(), with_values(TrainingConfig(), change)
    with pytest.raises(PlainError, match="cannot change inside a run: its state belongs to"):
        refuse_another_network(before, after)
    refuse_another_network(before, with_values(before, {"optimizer.learning_rate": 1.0, "memory.precision": "bf16"}))


def test_a_finished_run_an_empty_one_and_a_running_one_cannot_be_gone_on_with(run, engine, story):
    with pytest.raises(PlainError, match="before anything was saved"):
        ready_to_resume(run)
    with run.event_log() as log:
        for event in story([0.1] * 5):
            log.write(event)
    with pytest.raises(PlainError, match="is finished: 5 steps are done"):
        ready_to_resume(run)
    sleeper = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import time; from engine.run_folder import RunFolder\n"
            f"with RunFolder({str(run.path)!r}).claimed():\n print(flush=True); time.sleep(60)",
        ],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    try:
        sleeper.stdout.readline()
        with pytest.raises(PlainError, match="being trained already"):
            ready_to_resume(run)
    finally:
        sleeper.kill()
        sleeper.wait()


def test_without_its_tracker_a_run_is_neither_begun_nor_gone_on_with(run, story, monkeypatch):
    with run.event_log() as log:
        for event in story([0.1] * 5, finished=False):
            log.write(event)
    with run.new_state(5) as state:
        (state / "state.pt").write_bytes(b"state")
    monkeypatch.setattr(launch, "attend", lambda *_, **__: pytest.fail("the engine was started"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    config = with_values(run.config(), {"logging.tracker": "tensorboard"})
    with pytest.raises(PlainError, match="tensorboard is not installed"):
        launch.train_situation(SimpleNamespace(config=config, plan=None, findings=()))
    assert list(run.path.parent.iterdir()) == [run.path]
    resume = [str(run.path), "--set", "logging.tracker=tensorboard"]
    with pytest.raises(PlainError, match="tensorboard is not installed"):
        launch.resume.main(resume, standalone_mode=False)
    assert run.config().logging.tracker == "none"


def test_resume_shows_the_whole_course_and_counts_only_its_own_time(run, engine, capsys, story, losses):
    """20 steps before; then RunStarted says that it goes on after them."""
    from dataclasses import replace

    before = story(losses(lambda share: 0.1, 20, 1), total_steps=40, finished=False)
    with run.event_log() as log:
        for event in before:
            log.write(event)
        log.write(RunFinished(reason="stopped", step=20, total_steps=40, seconds=1, network=""))
    with run.new_state(20) as state:
        (state / "state.pt").write_bytes(b"state")
    ready_to_resume(run)
    events = story(losses(lambda share: 0.1, 40, 2))
    events = [replace(event, first_step=21) if isinstance(event, RunStarted) else event for event in events]
    engine(events)
    assert attend(run, resume=True) == 0
    said = capsys.readouterr().out
    assert said.startswith("Loading the base model.\n")
    assert "\nGoing on after step 20; 20 steps to go.\nTraining begins.\n" in said
    assert "Stopped" not in said
    assert isinstance(list(run.events())[-1], RunFinished)


def test_the_engine_is_ours_and_not_a_folder_of_that_name(tmp_path, run):
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "__init__.py").write_text("raise SystemExit('not ours')")
    answer = subprocess.run(
        [sys.executable, "-m", "engine", "--help"],
        env=launch.engine_environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    assert "config.toml" in answer.stdout


def test_the_newest_file_is_offered_where_no_state_was_saved(run, story):
    from wizard.outcome import way_on

    (run.checkpoints / "fox-000001.safetensors").write_bytes(b"x")
    assert "can be used, but the training cannot go on" in way_on(run, 10)[0]
