"""Several short trainings at once, each by the engine in a process of its own, and what each has learnt."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from engine.events import CheckpointSaved, Event, Failed, RunFinished, RunStarted, StepFinished
from engine.run_folder import RunFolder, whole_file
from knowledge.answers import PlainError
from knowledge.config import TrainingConfig
from wizard.follow import POLL_SECONDS, Follower
from wizard.launch import end_process, engine_environment, start_engine
from wizard.narrator import Sentence

EXAMINE = ("-m", "engine.pocket.examine")
"""What Python is asked to run in order to measure network files of the pocket model."""
LEARNT = "learnt.json"


class _Unseen:
    """A view for runs that are shown together and not one by one."""

    def tell(self, event: Event, line: str) -> None: ...
    def say(self, sentence: Sentence) -> None: ...


@dataclass
class Trial:
    """One training of several: where it stands while it runs, and afterwards what it gave."""

    name: str
    label: str
    config: TrainingConfig
    run: RunFolder | None = None
    follower: Follower | None = None
    examining: bool = False
    curve: list[tuple[int, Mapping[str, float]]] = field(default_factory=list)
    """Losses on pictures that were not trained on, by step; step 0 is the base model."""

    @property
    def done(self) -> bool:
        return bool(self.curve)

    def events(self) -> list[Event]:
        return list(self.run.events()) if self.run else []

    def figures(self) -> dict[str, float]:
        """What a lesson compares: the losses at the end, and what the events tell of the way there."""
        events = self.events()
        steps = [event for event in events if isinstance(event, StepFinished)]
        later = [step.loss for step in steps[len(steps) // 2 :]]
        started = next(event for event in events if isinstance(event, RunStarted))
        file = [event for event in events if isinstance(event, CheckpointSaved)][-1]
        return {
            **self.curve[-1][1],
            "training_loss": statistics.fmean(later),
            "loss_spread": statistics.pstdev(later),
            "steps": len(steps),
            "views": sum(step.images for step in steps),
            "trained": started.trainable_parameters,
            "file_bytes": file.bytes,
            "seconds_per_step": statistics.median(step.seconds for step in steps),
        }


def finish(trials: Sequence[Trial], at_once: int, look: Callable[[], None]) -> None:
    """Train and measure all of them, `at_once` at a time and each on one core; `look` is called now and then.

    Raises PlainError when one fails; then, and on Ctrl-C, none of them goes on.
    """
    over = threading.Event()
    with ThreadPoolExecutor(at_once) as pool:
        futures = [pool.submit(_finish, trial, over) for trial in trials if not trial.done]
        try:
            while not all(future.done() for future in futures):
                look()
                _raise(futures)
                time.sleep(POLL_SECONDS)
            _raise(futures)
            look()
        finally:
            over.set()


def _raise(futures: Iterable[Future[None]]) -> None:
    for future in futures:
        if future.done():
            future.result()


def _finish(trial: Trial, over: threading.Event) -> None:
    if over.is_set():
        return
    trial.run = RunFolder.create(trial.config)
    trial.follower = Follower(trial.run)
    process = start_engine(trial.run, threads=1)
    view = _Unseen()
    try:
        while process.poll() is None and not over.wait(POLL_SECONDS):
            trial.follower.look(view)  # type: ignore[arg-type]
    finally:
        if process.poll() is None:
            end_process(process)
    if over.is_set():
        return
    trial.follower.look(view)  # type: ignore[arg-type]
    ended = trial.follower.ended
    if not isinstance(ended, RunFinished):
        why = f"{ended.cause} {ended.remedy}" if isinstance(ended, Failed) else "Its process was ended from outside."
        raise PlainError(f"The training “{trial.label}” did not finish. {why}")
    trial.examining = True
    trial.curve = examined(trial.run)
    trial.examining = False


def examined(run: RunFolder) -> list[tuple[int, Mapping[str, float]]]:
    """Losses by step, measured on every network file of the run and kept in its folder as learnt.json."""
    kept = run.path / LEARNT
    if kept.exists():
        return [(step, found) for step, found in json.loads(kept.read_text(encoding="utf-8"))]
    curve = _examined(run)
    with whole_file(kept) as partial:
        partial.write_text(json.dumps(curve), encoding="utf-8")
    return curve


def _examined(run: RunFolder) -> list[tuple[int, Mapping[str, float]]]:
    """The same, measured in a process of its own: it needs torch."""
    saved = {e.step: run.path / e.path for e in run.events() if isinstance(e, CheckpointSaved) and e.kind == "network"}
    files = [str(path.absolute()) for path in saved.values()]
    answer = subprocess.run(
        [sys.executable, *EXAMINE, *files],
        capture_output=True,
        text=True,
        check=False,
        env=engine_environment(threads=1),
    )
    if answer.returncode:
        last = answer.stderr.strip().splitlines()[-1:] or ["it ended without a word"]
        raise PlainError(f"What {run.path} has learnt cannot be measured: {last[0]}")
    return list(zip([0, *saved], json.loads(answer.stdout), strict=True))
