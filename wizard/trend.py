"""What the losses of a run bear to be said of them.

The loss of a diffusion model is noisy: every step draws new noise and new timesteps, so a single value means nothing
and even averages wander. A trend is one only when chance would hardly make it (Welch's t above `SURE`), and otherwise
nothing can be told.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

SURE = 3.5  # t above which we speak of a trend: about one false word in 2,000 looks
ENOUGH_STEPS = 60  # below this the thirds that are compared hold fewer than 20 losses each


@dataclass(frozen=True)
class Sample:
    """Mean and its standard error of some losses."""

    mean: float
    error: float
    size: int

    @classmethod
    def of(cls, losses: Sequence[float]) -> Sample:
        mean = sum(losses) / len(losses)
        variance = sum((loss - mean) ** 2 for loss in losses) / max(1, len(losses) - 1)
        return cls(mean, math.sqrt(variance / len(losses)), len(losses))


def welch_t(before: Sample, after: Sample) -> float:
    """Welch's t of the difference of two means (Welch 1947); positive when `after` is the larger."""
    error = math.hypot(before.error, after.error)
    if error == 0:
        return math.copysign(math.inf, after.mean - before.mean) if after.mean != before.mean else 0.0
    return (after.mean - before.mean) / error


@dataclass(frozen=True)
class Trend:
    """What the losses bear: their direction, and the thirds that show it."""

    direction: Literal["falling", "steadily falling", "rising", "unclear"]
    thirds: tuple[Sample, Sample, Sample]


def trend(losses: Sequence[float]) -> Trend | None:
    """The trend of the losses of consecutive steps, comparing the first with the last third; None if they are too few.

    "steadily falling" asks besides that each third lies below the one before, by more than chance alone likely makes.
    """
    finite = [loss for loss in losses if math.isfinite(loss)]
    if len(finite) < ENOUGH_STEPS:
        return None
    third = len(finite) // 3
    thirds = (Sample.of(finite[:third]), Sample.of(finite[third:-third]), Sample.of(finite[-third:]))
    change = welch_t(thirds[0], thirds[2])
    if change > SURE:
        return Trend("rising", thirds)
    if change < -SURE:
        steadily = all(welch_t(before, after) < -2 for before, after in pairwise(thirds))
        return Trend("steadily falling" if steadily else "falling", thirds)
    return Trend("unclear", thirds)
