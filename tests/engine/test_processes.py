"""Several processes on one computer, as `accelerate launch` starts them with the arguments that the wizard writes."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from short_runs import PICTURES, ROOT, Configure

from engine.events import Failed, PictureSkipped, RunFinished, RunStarted, StepFinished, from_line
from engine.run_folder import RunFolder
from wizard.group import ENGINE_MODULE, Group, launch_arguments

LAUNCH = ("-m", "accelerate.commands.launch", *launch_arguments(Group(processes=2), 0, "fp32"))


def launched(run: RunFolder, *arguments: str, program: tuple[str, ...] = ENGINE_MODULE) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *LAUNCH, *program, str(run.path), *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def log_of(run: RunFolder) -> str:
    return (run.path / "engine.log").read_text() if Path(run.path / "engine.log").exists() else ""


def events_of(run: RunFolder, kind: type) -> list[Any]:
    return [event for event in run.events() if isinstance(event, kind)]


def test_two_processes_stop_together_and_leave_a_state(configure: Configure):
    run = RunFolder.create(configure(schedule={"epochs": 500, "gradient_accumulation_steps": 1}))
    process = launched(run)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("{") and isinstance(from_line(line), StepFinished):
            run.request("stop")
            break
    process.communicate(timeout=120)
    assert process.returncode == 0
    assert events_of(run, RunFinished)[-1].reason == "stopped"
    assert run.states()


BREAKS = """
import os, sys
from pathlib import Path
from engine import train
from engine.__main__ import main
if os.environ["RANK"] == "1":
    compute, calls = train.loss_per_image, []
    def breaks(*arguments):
        calls.append(1)
        if len(calls) == 2:
            next(Path(PICTURES).glob("*.png")).write_bytes(b"")
        if len(calls) == 8:
            WHAT
        return compute(*arguments)
    train.loss_per_image = breaks
sys.exit(main())
"""
"""The engine, in whose second process a picture breaks, and then something worse happens."""


@pytest.mark.parametrize(
    ("what", "cause", "goes_on"),
    [
        ('raise OSError(5, "the second one\'s disk is gone")', "the second one's disk is gone", True),
        ("os.kill(os.getpid(), 9)", "Another of the processes that train together ended without a word", False),
    ],
)
def test_one_process_that_fails_ends_all_with_its_cause_and_the_run_can_go_on(
    configure, tmp_path, what, cause, goes_on
):
    pictures = tmp_path / "pictures"
    shutil.copytree(PICTURES, pictures)
    config = configure(
        dataset={"folders": [{"path": str(pictures)}]},
        memory={"cache_latents": False},
        saving={"state_every_epochs": 1},
        schedule={"epochs": 6, "gradient_accumulation_steps": 1},
    )
    run = RunFolder.create(config)
    (tmp_path / "breaks.py").write_text(BREAKS.replace("PICTURES", repr(str(pictures))).replace("WHAT", what))
    begun = time.monotonic()
    process = launched(run, program=(str(tmp_path / "breaks.py"),))
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert time.monotonic() - begun < 100  # nobody waits for the one that is gone
    (failed,) = events_of(run, Failed)
    assert cause in failed.cause, output + log_of(run)
    assert len(events_of(run, PictureSkipped)) == 1  # whichever of the two met it
    if goes_on:
        process = launched(run, "--resume")
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output + log_of(run)
        assert events_of(run, RunFinished)[-1].reason == "completed"
        assert [event.first_step > 1 for event in events_of(run, RunStarted)] == [False, True]
