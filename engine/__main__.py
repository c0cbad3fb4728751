"""python -m engine RUN_FOLDER [--resume]: train what its config.toml says; events go to stdout and events.jsonl.

Exit codes: 0 done, or stopped because it was asked to; 1 failed; 2 wrong use; 130 stopped by a signal.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TextIO

from engine.events import Event, Failed, Phase, PhaseStarted, SettingsChanged, StepFinished, to_line
from engine.run_folder import RunFolder, step_of
from engine.together import Together, group_size
from engine.trackers import Tracker, require_tracker
from knowledge.answers import PlainError


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m engine", description="Train what a run folder's config.toml says.")
    parser.add_argument("run_folder", type=Path)
    parser.add_argument("--resume", action="store_true", help="go on from the newest state")
    options = parser.parse_args(arguments)
    try:
        run = RunFolder.open(options.run_folder)
        require_tracker(run.config().logging.tracker)
        if int(os.environ.get("RANK", "0")) > 0:
            return _help(run, options.resume)
        with run.claimed():
            return _train(run, options.resume)
    except PlainError as problem:
        sys.stderr.write(f"{problem}\n")
        return problem.exit_code


def _train(run: RunFolder, resume: bool) -> int:
    signals: list[int] = []

    def remember(number: int, _: FrameType | None) -> None:
        if signals:  # the second time there is no waiting
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        signals.append(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, remember)
    run.answer("stop")
    exit_code = 0
    stdout = _own_stdout(run.path / "engine.log")
    together = Together(run, 0) if group_size() > 1 else None
    tracker = Tracker(run.config().logging.tracker, run)
    with run.event_log() as log:

        def end(failed: Failed) -> None:
            log.write(failed)
            os._exit(1)  # this process waits for one that will never answer

        if together:
            together.clear()
            together.look_out(end)
        for event in _events(run, resume, lambda: bool(signals) or run.requested("stop")):
            if isinstance(event, Failed) and together:
                event = together.tell(event)
            log.write(event)
            tracker.hear(event)
            try:
                stdout.write(to_line(event) + "\n")
                stdout.flush()
            except BrokenPipeError:  # whoever watched is gone; the run goes on, and events.jsonl has it all
                stdout = Path(os.devnull).open("w")  # noqa: SIM115  (open until the process ends)
            if isinstance(event, Failed):
                exit_code = 1
    tracker.finish()
    run.answer("stop")
    return exit_code or (130 if signals else 0)


def _help(run: RunFolder, resume: bool) -> int:
    """Train beside the first process, which alone writes and is asked; a problem is told by whoever meets it first."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the first process says when to stop
    exit_code = 0
    together = Together(run, int(os.environ["RANK"]))
    together.look_out(lambda _: os._exit(1))
    for event in _events(run, resume, lambda: False):
        if isinstance(event, Failed):
            together.tell(event)
            sys.stderr.write(f"{event.cause}\n{event.traceback}\n")
            exit_code = 1
    return exit_code


def _events(run: RunFolder, resume: bool, should_stop: object) -> Iterator[Event]:
    """The run's events; a problem that ends it becomes the last of them."""
    from knowledge.config import with_values

    phase: Phase = "loading"
    step = 0
    while True:
        config = run.config()
        try:
            from engine.train import train  # seconds of imports, after the first signs of life

            for event in train(config, run, resume=resume, should_stop=should_stop):  # type: ignore[arg-type]
                if isinstance(event, PhaseStarted):
                    phase = event.phase
                if isinstance(event, StepFinished):
                    step = event.step
                yield event
            return
        except Exception as problem:  # whatever it was, the user hears of it in words
            from engine.recovery import room_for
            from engine.trouble import failed, out_of_memory

            changes, effects = room_for(config, phase) if out_of_memory(problem) else ({}, ())
            states = run.states()
            good_step = step_of(states[0]) if states else 0
            end = failed(problem, phase, step, config, good_step=good_step, room=changes)
        from engine.recovery import release_memory

        release_memory()  # only here, where nothing holds the failed run any more, nor the file that found no room
        # Processes that train together begin anew together: whoever started them does that.
        if not (changes and config.memory.make_room) or group_size() > 1:
            yield end
            return
        run.change_config(with_values(config, changes))
        yield SettingsChanged(phase=phase, step=step, changes=changes, effects=effects)
        resume = True


def _own_stdout(log: Path) -> TextIO:
    """Standard output for events alone: whatever libraries print, in any language, goes to the log file."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8", newline="\n")
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    return events


if __name__ == "__main__":
    sys.exit(main())
