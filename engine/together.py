"""Processes that train one run together: they meet at set places of it, and what one of them met there all have met.

The first process decides and writes; the others hear of it at the next meeting. Only while gradients are exchanged can
nobody come to a meeting: who fails then leaves word in the run folder, for which each process has a thread that looks.
A process alone is a group of one, for which all this is nothing.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

from engine.events import Failed, from_line, to_line
from engine.run_folder import RunFolder, whole_file
from engine.trouble import ElsewhereError

LOOK_SECONDS = 0.3
"""How often word of the others is looked for."""
WORD_SECONDS = 5.0
"""How long a process whose connection broke waits for the word of the one that broke it."""
FIRST_WAITS = timedelta(minutes=30)
"""How long the first process waits for the others, which do the same work as it does."""
OTHERS_WAIT = timedelta(hours=6)
"""How long they wait for the first one, which meanwhile may draw many samples."""
CONNECTION = ("torch.distributed", "torch/distributed", "gloo", "nccl", "connection closed", "connection reset")
"""What the traceback of a process tells whose only trouble is that another one is gone."""

Brought = TypeVar("Brought")


@dataclass(frozen=True)
class _Word:
    """What one process says at a meeting: what was asked of it, or the trouble that kept it from that."""

    value: Any = None
    trouble: Failed | None = None
    memory_ended: bool = False


class Together:
    """This process among those that a launcher started together; `rank` is its number, 0 that of the one that leads."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size
        self.cut_off = False
        """Whether this process cannot come to meetings any more."""
        self._meeting_place: Any = None
        self._folder: RunFolder | None = None
        self._launch = ""
        self._ended = threading.Event()

    @classmethod
    def as_launched(cls) -> Together:
        """What the launcher of this process told it; a group of one without a launcher."""
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))

    @property
    def leads(self) -> bool:
        return self.rank == 0

    @property
    def name(self) -> str:
        """What this process is called where several are spoken of."""
        return f"process {self.rank + 1} of {self.size} (on {socket.gethostname()})"

    # Meetings, to which all come

    def gathered(self, mine: Brought) -> list[Brought]:
        """What each process brings, in the order of their numbers, once all are here.

        Raises ElsewhereError when another one comes with trouble instead.
        """
        if self.size == 1:
            return [mine]
        words = self._meet(_Word(mine))
        for word in words:
            if word.trouble is not None:
                raise ElsewhereError(word.trouble, memory_ended=word.memory_ended)
        return [word.value for word in words]

    def decided(self, decide: Callable[[], Brought]) -> Brought:
        """What the first process finds; the others wait for it and take it over. Who is cut off finds it alone."""
        if self.size == 1 or self.cut_off:
            return decide()
        return self.gathered(decide() if self.leads else None)[0]  # type: ignore[return-value]

    def wished(self, *wishes: bool) -> list[bool]:
        """Which of these wishes any process has; all hear the same, or some would wait for ever."""
        return [any(each) for each in zip(*self.gathered(wishes), strict=True)]

    def share(self, problem: Exception, failed: Failed, *, memory_ended: bool) -> Exception:
        """Tell the others what this process met; the problem that all end or go on with, of several the first one's."""
        if self.size == 1 or isinstance(problem, ElsewhereError):
            return problem
        if not self.leads:
            failed = replace(failed, cause=f"In {self.name}: {failed.cause}")
        if not self.cut_off:
            with suppress(Exception):  # without a connection there is the folder
                words = self._meet(_Word(trouble=failed, memory_ended=memory_ended))
                number, first = next((number, word) for number, word in enumerate(words) if word.trouble is not None)
                if number == self.rank:
                    return problem
                assert first.trouble is not None
                return ElsewhereError(first.trouble, memory_ended=first.memory_ended)
        return self._leave_word(problem, failed)

    def part(self) -> None:
        """Wait until all have done what they had to do, because a launcher ends the others when one has failed."""
        self._ended.set()
        if self.size > 1 and not self.cut_off:
            with suppress(Exception):
                self._meet(_Word())

    def _meet(self, word: _Word) -> list[_Word]:
        import torch.distributed as dist

        met: list[Any] = [None] * self.size
        try:
            if self._meeting_place is None:
                self._meeting_place = _meeting_place(FIRST_WAITS if self.leads else OTHERS_WAIT)
            dist.all_gather_object(met, word, group=self._meeting_place)
        except Exception:
            self.cut_off = True
            raise
        return met

    # Word in the run folder, where nobody can come to a meeting

    def look_out(self, run: RunFolder, end: Callable[[Failed], None]) -> None:
        """From now on, should another process leave word of its failure, call `end` with it, from a thread.

        It can be left in `run`, under a name that no earlier launch used: the clocks of computers differ.
        """
        if self.size == 1 or self._launch:
            return
        self._launch = self.decided(lambda: secrets.token_hex(4))
        self._folder = run
        if self.leads:
            for earlier in run.path.glob("failed-*.json"):
                earlier.unlink(missing_ok=True)
        threading.Thread(target=self._look, args=(end,), name="others", daemon=True).start()

    @contextmanager
    def exchange(self) -> Iterator[None]:
        """While it lasts the processes wait for each other's gradients, and nobody comes to a meeting."""
        try:
            yield
        except Exception:
            self.cut_off = self.size > 1
            raise

    def _leave_word(self, problem: Exception, failed: Failed) -> Exception:
        """Let the others know why this process ends; the first cause, which may be the word of another one."""
        self._ended.set()
        if any(word in failed.traceback.lower() for word in CONNECTION):
            waited = threading.Event()
            for _ in range(int(WORD_SECONDS / LOOK_SECONDS)):
                if (first := self._word()) is not None:
                    return ElsewhereError(first)
                waited.wait(LOOK_SECONDS)
            failed = replace(
                failed,
                cause="Another of the processes that train together ended without a word.",
                remedy="Where memory runs out, the system ends a process so; engine.log in the run's folder may say "
                "more. Resume the run to go on from its newest state.",
            )
            problem = ElsewhereError(failed)
        if self._folder is not None:
            with whole_file(self._file(self.rank)) as partial:
                partial.write_text(to_line(failed), encoding="utf-8")
        return problem

    def _look(self, end: Callable[[Failed], None]) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            if (failed := self._word()) is not None:
                end(failed)

    def _word(self) -> Failed | None:
        """What another process of this launch left word of; the first one's of several."""
        for rank in range(self.size):
            if rank != self.rank and self._folder is not None:
                with suppress(OSError, ValueError):
                    failed = from_line(self._file(rank).read_text(encoding="utf-8"))
                    if isinstance(failed, Failed):
                        return failed
        return None

    def _file(self, rank: int) -> Any:
        assert self._folder is not None
        return self._folder.path / f"failed-{self._launch}-{rank}.json"


ALONE = Together()


def _meeting_place(patience: timedelta) -> Any:
    """Connections between the processors of all processes, apart from those that carry gradients between cards."""
    import torch.distributed as dist

    from engine.processes import join

    join()
    return dist.new_group(backend="gloo", timeout=patience)
