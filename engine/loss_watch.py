"""Watches the loss of a run, update by update, for the two ways in which training breaks down."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, replace
from typing import Any

EXPLODED = 3.0
"""Times the average so far; chance alone did that in 0 of 1,650 runs of skewed noise."""
BEYOND_CHANCE = 6.0
"""Standard errors above the average so far."""
WINDOW = 20
"""Losses averaged to notice a jump; so many updates may be spoilt before it shows."""


@dataclass
class Running:
    """Mean and variance of values that come one by one (Welford 1962): the long past need not be summed again."""

    size: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> None:
        self.size += 1
        change = value - self.mean
        self.mean += change / self.size
        self.squares += change * (value - self.mean)

    @property
    def deviation(self) -> float:
        return math.sqrt(self.squares / max(1, self.size - 1))


class TrainingBrokeError(Exception):
    """Nothing that was learnt in the last updates means anything; the messages say what was seen."""


class NotANumberError(TrainingBrokeError):
    """The loss or the gradient is no longer a number."""

    def __init__(self, loss: float, gradient_norm: float) -> None:
        super().__init__(f"loss {loss}, gradient norm {gradient_norm}")
        self.loss, self.gradient_norm = loss, gradient_norm


class ExplodedError(TrainingBrokeError):
    """The loss has risen far above what it was, by more than chance explains."""

    def __init__(self, recent: float, before: float) -> None:
        super().__init__(f"loss {recent} on average over {WINDOW} steps, {before} before")
        self.recent, self.before = recent, before


class LossWatch:
    """Remembers the losses so far; its memory is part of a state, so that a resumed run watches as an unbroken one."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self._past = Running()

    def check(self, loss: float, gradient_norm: float, *, norm_may_overflow: bool = False) -> None:
        """Judge one update's mean loss and gradient norm before it is made. Raises NotANumberError or ExplodedError.

        With `norm_may_overflow` (fp16: the scaler then skips the update and scales less) only the loss must be finite.
        """
        if not math.isfinite(loss) or not (norm_may_overflow or math.isfinite(gradient_norm)):
            raise NotANumberError(loss, gradient_norm)
        losses, past = self._with(loss)
        if past.size < 2 * WINDOW:
            return
        recent, before = sum(losses) / WINDOW, past.mean
        by_chance = past.deviation / math.sqrt(WINDOW)
        if recent > EXPLODED * before and recent > before + BEYOND_CHANCE * by_chance:
            raise ExplodedError(recent, before)

    def take_in(self, loss: float) -> None:
        """Remember the loss of an update that was made; one that was not is computed again, and counts once."""
        self._recent, self._past = self._with(loss)

    def _with(self, loss: float) -> tuple[deque[float], Running]:
        """What would be remembered after this loss."""
        past = replace(self._past)
        if len(self._recent) == WINDOW:
            past.add(self._recent[0])
        return deque([*self._recent, loss], maxlen=WINDOW), past

    def state_dict(self) -> dict[str, Any]:
        return {"recent": list(self._recent), "past": [self._past.size, self._past.mean, self._past.squares]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._recent = deque(state["recent"], maxlen=WINDOW)
        self._past = Running(*state["past"])
