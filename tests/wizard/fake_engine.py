"""Stands in for `python -m engine` where a test needs an engine that dies, hangs or fails on command.

FAKE_ENGINE holds JSON: `events` (a file of event lines to tell), `pause` (seconds between them), `then`: how it ends.
It keeps to the contract of the run folder: claims it, appends events, saves when asked to, and ends when asked to stop.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from engine.events import RunFinished, RunStarted, StepFinished, from_line
from engine.run_folder import RunFolder

plan = json.loads(os.environ["FAKE_ENGINE"])
run = RunFolder.open(sys.argv[1])
sys.stderr.write("some library says something\n")


def die() -> None:
    then = plan.get("then", "end")
    if then == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if then == "crash":
        sys.stderr.write("Traceback (most recent call last):\nRuntimeError: the sky has fallen\n")
        os._exit(1)
    if then == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if then == "hang":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            time.sleep(1)


with run.claimed(), run.event_log() as log:
    step = total = 0
    for line in Path(plan["events"]).read_text(encoding="utf-8").splitlines():
        event = from_line(line)
        if isinstance(event, RunStarted):
            total = event.total_steps
        if "--resume" in sys.argv and isinstance(event, StepFinished) and event.step <= 20:
            continue
        log.write(event)
        time.sleep(plan.get("pause", 0.0))
        if isinstance(event, StepFinished):
            step = event.step
            if run.requested("save"):
                run.checkpoints.mkdir(exist_ok=True)
                (run.checkpoints / f"fox-step{step:06d}.safetensors").write_bytes(b"network")
                run.answer("save")
            if run.requested("stop"):
                if plan.get("then") == "hang":
                    die()
                with run.new_state(step) as state:
                    (state / "state.pt").write_bytes(b"state")
                log.write(RunFinished(reason="stopped", step=step, total_steps=total, seconds=1.0, network=""))
                sys.exit(0)
    die()
