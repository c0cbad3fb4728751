"""python -m engine RUN_FOLDER [--resume]: train what its config.toml says; events go to stdout and events.jsonl.

Exit codes: 0 done, or stopped because it was asked to; 1 failed; 2 wrong use; 130 stopped by a signal.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TextIO

from engine.events import Event, Failed, Phase, PhaseStarted, SettingsChanged, StepFinished, to_line
from engine.run_folder import RunFolder, step_of
from engine.together import ALONE, Together
from engine.trackers import Tracker, require_tracker
from engine.trouble import ElsewhereError, failed, out_of_memory
from knowledge.answers import PlainError


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m engine", description="Train what a run folder's config.toml says.")
    parser.add_argument("run_folder", type=Path)
    parser.add_argument("--resume", action="store_true", help="go on from the newest state")
    options = parser.parse_args(arguments)
    try:
        run, together = RunFolder.open(options.run_folder), Together.as_launched()
        if not together.leads:
            return _help(run, together)
        require_tracker(run.config().logging.tracker)
        with run.claimed():
            return _train(run, options.resume, together)
    except PlainError as problem:
        sys.stderr.write(f"{problem}\n")
        return problem.exit_code


def _train(run: RunFolder, resume: bool, together: Together) -> int:
    signals = _remembered_signals()
    run.answer("stop")
    exit_code = 0
    stdout = _own_stdout(run.path / "engine.log")
    tracker = Tracker(run.config().logging.tracker, run)
    with run.event_log() as log:

        def end(failed: Failed) -> None:
            log.write(failed)
            os._exit(1)  # this process waits for one that will never answer

        for event in _events(run, resume, lambda: bool(signals) or run.requested("stop"), together, end):
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
    together.part()
    return exit_code or (130 if signals else 0)


def _help(run: RunFolder, together: Together) -> int:
    """Train beside the first process, which alone decides and writes; here one can only wish to stop."""
    signals = _remembered_signals()
    exit_code = 0
    for event in _events(run, False, lambda: bool(signals), together, lambda _: os._exit(1)):
        if isinstance(event, Failed):
            sys.stderr.write(f"{event.cause}\n{event.traceback}\n")
            exit_code = 1
    together.part()
    return exit_code


def _remembered_signals() -> list[int]:
    """The requests to stop that the system passes on, from now on as they come; the second one ends the process."""
    signals: list[int] = []

    def remember(number: int, _: FrameType | None) -> None:
        if signals:  # the second time there is no waiting
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        signals.append(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, remember)
    return signals


def _events(
    run: RunFolder,
    resume: bool,
    should_stop: Callable[[], bool],
    together: Together = ALONE,
    end: Callable[[Failed], None] = lambda failed: None,
) -> Iterator[Event]:
    """The run's events; a problem that ends it becomes the last of them.

    `end` is called from a thread should this process wait for another one that has failed.
    """
    from knowledge.config import with_values

    phase: Phase = "loading"
    step = 0
    config = run.config()
    while True:
        try:
            together.look_out(run, end)
            config, resume = together.decided(lambda: (run.config(), resume))  # noqa: B023  (called at once)
            from engine.train import train  # seconds of imports, after the first signs of life

            for event in train(config, run, resume=resume, should_stop=should_stop, together=together):
                if isinstance(event, PhaseStarted):
                    phase = event.phase
                if isinstance(event, StepFinished):
                    step = event.step
                yield event
            together.gathered(None)  # where it is heard of what the first process met while it saved
            return
        except Exception as met:  # whatever it was, the user hears of it in words
            from engine.recovery import release_memory, room_for

            problem = together.share(met, failed(met, phase, step, config), memory_ended=out_of_memory(met))
            phase = problem.failed.phase if isinstance(problem, ElsewhereError) else phase
            changes, effects = together.decided(
                lambda: room_for(config, phase) if out_of_memory(problem) else ({}, ())  # noqa: B023
            )
            states = run.states()
            good_step = step_of(states[0]) if states else 0
            told = failed(problem, phase, step, config, good_step=good_step, room=changes)
            del problem  # which holds the failed run
        release_memory()  # only here, where nothing holds the failed run any more, nor the file that found no room
        if not (changes and config.memory.make_room) or together.cut_off:
            yield told
            return
        if together.leads:
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
