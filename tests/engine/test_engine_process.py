"""The engine as a process: its lines, its exit codes, and how it is stopped from outside."""

import json
import signal
import subprocess
import sys
from pathlib import Path

from short_runs import ROOT, Configure, run_to_end, same, weights

from engine.events import (
    Failed,
    RunFinished,
    StepFinished,
    from_line,
)
from engine.run_folder import RunFolder


def engine(run: RunFolder, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "engine", str(run.path), *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_process_tells_events_and_nothing_else(configure: Configure):
    run = RunFolder.create(configure())
    process = engine(run)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, (run.path / "engine.log").read_text()
    assert err == ""
    events = [from_line(line) for line in out.splitlines()]
    assert isinstance(events[-1], RunFinished)
    assert [json.loads(line) for line in out.splitlines()] == [
        json.loads(line) for line in (run.path / "events.jsonl").read_text().splitlines()
    ]


def test_ctrl_c_saves_and_ends_with_130_and_resume_finishes(configure: Configure):
    straight, _ = run_to_end(configure(schedule={"epochs": 10}))
    run = RunFolder.create(configure(schedule={"epochs": 10}))
    process = engine(run)
    assert process.stdout is not None
    for line in process.stdout:
        if isinstance(from_line(line), StepFinished):
            process.send_signal(signal.SIGINT)
            break
    rest = [from_line(line) for line in process.stdout]
    assert process.wait(timeout=60) == 130
    assert isinstance(rest[-1], RunFinished)
    assert rest[-1].reason == "stopped"
    process = engine(run, "--resume")
    process.communicate(timeout=120)
    assert process.returncode == 0
    # The process computes on as many threads as the tests do, so that sums are the same to the bit.
    assert same(weights(run), weights(straight))


def test_a_stop_request_ends_the_process_with_0(configure: Configure):
    run = RunFolder.create(configure(schedule={"epochs": 60}))  # soon over where nobody listens
    process = engine(run)
    assert process.stdout is not None
    for line in process.stdout:
        if isinstance(from_line(line), StepFinished):
            run.request("stop")
            break
    rest = [from_line(line) for line in process.stdout]
    assert process.wait(timeout=60) == 0
    assert rest[-1].reason == "stopped"  # type: ignore[attr-defined]
    assert not run.requested("stop")


def test_a_failure_is_an_event_with_cause_and_remedy_and_exit_code_1(configure: Configure, tmp_path: Path):
    missing = tmp_path / "gone.safetensors"
    run = RunFolder.create(configure(base_model={"path": str(missing)}))
    process = engine(run)
    out, err = process.communicate(timeout=60)
    last = from_line(out.splitlines()[-1])
    assert process.returncode == 1
    assert err == ""
    assert isinstance(last, Failed)
    assert str(missing) in last.cause
    assert last.remedy


def test_importing_the_engine_and_its_events_does_not_import_torch():
    program = "import engine, engine.events, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0
