from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
from short_runs import ROOT, Configure

from engine.__main__ import main
from engine.events import PhaseStarted, StepFinished, Validated
from engine.run_folder import RunFolder
from engine.trackers import FOLDER, figures, require_tracker
from knowledge.answers import PlainError, quoted

SECRET = "0123456789abcdef0123456789abcdef01234567"


def trained(run: RunFolder, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "engine", str(run.path)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_figures_are_those_of_the_event():
    step = StepFinished(
        step=3, epoch=1, loss=0.5, learning_rate={"unet": 1e-4}, gradient_norm=2.0, seconds=0.1, images=2
    )
    assert figures(step) == {
        "loss": 0.5,
        "gradient_norm": 2.0,
        "seconds_per_step": 0.1,
        "learning_rate/unet": 1e-4,
    }
    assert figures(Validated(step=3, epoch=1, loss=0.25, images=1, seconds=1.0)) == {"validation_loss": 0.25}
    assert figures(PhaseStarted(phase="saving")) == {}


def test_tensorboard_is_told_every_step_and_every_validation(configure: Configure):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = RunFolder.create(configure(logging={"tracker": "tensorboard"}, validation={"share": 0.2, "every_epochs": 1}))
    done = trained(run)
    assert done.returncode == 0, done.stderr
    (file,) = (run.path / FOLDER).rglob("events.out.tfevents.*")
    told = EventAccumulator(str(file.parent))
    told.Reload()
    steps = [event for event in run.events() if isinstance(event, StepFinished)]
    losses = told.Scalars("loss")
    assert [scalar.step for scalar in losses] == [event.step for event in steps]
    assert [scalar.value for scalar in losses] == pytest.approx([event.loss for event in steps], rel=1e-6)
    assert told.Scalars("learning_rate/unet")[0].value == pytest.approx(1e-2)
    assert len(told.Scalars("validation_loss")) == sum(isinstance(event, Validated) for event in run.events())


def test_no_tracker_writes_nothing(configure: Configure):
    run = RunFolder.create(configure(schedule={"maximum_steps": 1}))
    assert trained(run).returncode == 0
    assert not (run.path / FOLDER).exists()


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_weights_and_biases_keeps_a_run_offline_and_no_secret_in_it(configure: Configure):
    run = RunFolder.create(configure(logging={"tracker": "wandb"}, schedule={"maximum_steps": 1}))
    done = trained(run, WANDB_MODE="offline", WANDB_API_KEY=SECRET)
    assert done.returncode == 0, done.stderr + (run.path / "engine.log").read_text()
    assert list((run.path / FOLDER).rglob("*.wandb"))
    for file in run.path.rglob("*"):
        assert not file.is_file() or SECRET.encode() not in file.read_bytes(), file


def test_a_tracker_that_is_not_there_is_refused_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name in ("tensorboard", "wandb"):
        with pytest.raises(PlainError, match=f"the package {name} is not installed") as error:
            require_tracker(name)
        # The pip of this very Python: another one would install it where no run looks.
        assert f"{quoted(sys.executable)} -m pip install {name};" in str(error.value)
    require_tracker("none")


def test_an_engine_without_its_tracker_does_not_begin(configure: Configure, monkeypatch, capsys):
    run = RunFolder.create(configure(logging={"tracker": "tensorboard"}))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main([str(run.path)]) == 1
    assert "the package tensorboard is not installed" in capsys.readouterr().err
    assert not (run.path / "events.jsonl").exists()


def test_weights_and_biases_without_a_key_is_refused_unless_offline(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with pytest.raises(PlainError, match="nobody is logged in"):
        require_tracker("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    require_tracker("wandb")
