"""What processes that train together do when one of them fails: it tells the others why, and all of them end.

A process that waits for another's gradients cannot be called back, so each has a thread that looks for such word.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil

from engine.events import Failed, from_line, to_line
from engine.run_folder import RunFolder, whole_file

LOOK_SECONDS = 0.3
"""How often the others are looked after."""
WORD_SECONDS = 5.0
"""How long a process whose connection broke waits for the word of the one that broke it."""
CONNECTION = ("torch.distributed", "torch/distributed", "gloo", "nccl", "connection closed", "connection reset")
"""What the traceback of a process tells whose only trouble is that another one is gone."""


class Together:
    """This process among those that a launcher started together; `rank` is its number, 0 that of the one that tells."""

    def __init__(self, run: RunFolder, rank: int) -> None:
        self.run, self.rank = run, rank
        self._since = _launched_at()
        self._ended = threading.Event()

    def look_out(self, end: Callable[[Failed], None]) -> None:
        """From now on, should another process fail, call `end` with its word, from a thread of its own."""
        threading.Thread(target=self._look, args=(end,), name="others", daemon=True).start()

    def tell(self, failed: Failed) -> Failed:
        """Let the others know why this process ends; what to say of it: the first cause, not what came of it."""
        self._ended.set()
        if any(word in failed.traceback.lower() for word in CONNECTION):
            waited = threading.Event()
            for _ in range(int(WORD_SECONDS / LOOK_SECONDS)):
                if (first := self._word()) is not None:
                    return first
                waited.wait(LOOK_SECONDS)
            failed = replace(
                failed,
                cause="Another of the processes that train together ended without a word.",
                remedy="Where memory runs out, the system ends a process so; engine.log in the run's folder may say "
                "more. Resume the run to go on from its newest state.",
            )
        with whole_file(self._file(self.rank)) as partial:
            partial.write_text(to_line(failed), encoding="utf-8")
        return failed

    def _look(self, end: Callable[[Failed], None]) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            if (failed := self._word()) is not None:
                end(failed)

    def _word(self) -> Failed | None:
        """What the process said that failed first; words from before this launch do not count."""
        said = []
        for file in self.run.path.glob("failed-*.json"):
            try:
                changed = file.stat().st_mtime
                if file != self._file(self.rank) and changed >= self._since:
                    said.append((changed, from_line(file.read_text(encoding="utf-8"))))
            except (OSError, ValueError):
                continue
        first = min(said, key=lambda word: word[0])[1] if said else None
        return first if isinstance(first, Failed) else None

    def _file(self, rank: int) -> Path:
        return self.run.path / f"failed-{rank}.json"

    def clear(self) -> None:
        """Take away what earlier launches left."""
        for file in self.run.path.glob("failed-*.json"):
            if file.stat().st_mtime < self._since:
                file.unlink(missing_ok=True)


def group_size() -> int:
    """How many processes the launcher started together; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _launched_at() -> float:
    """When the launcher began, in seconds since 1970."""
    parent = psutil.Process().parent()
    return parent.create_time() if parent else 0.0
