"""How far a tool has come, told to whoever watches."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with (done, total) after each piece of work: a tensor, a layer, some bytes."""


def no_progress(done: int, total: int) -> None:
    """Progress that nobody watches."""
