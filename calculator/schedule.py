"""The learning-rate curve. The engine hands the very function below to its scheduler, so the preview is the run."""

from __future__ import annotations

import math
from collections.abc import Callable

from knowledge.config import Scheduler, ScheduleSettings

POLYNOMIAL_END = 1e-4
"""What a polynomial schedule ends at, as a share of the rate: kohya's 1e-7 over AdamW's own default rate 1e-3."""


def learning_rate_multiplier(settings: ScheduleSettings, step: int, total_steps: int) -> float:
    """The share of the full learning rate that update number `step`, counted from 0, uses."""
    warmup = length(settings.warmup, total_steps)
    if settings.scheduler in COURSES:
        return COURSES[settings.scheduler](settings, step, warmup, total_steps)
    if step < warmup:
        return step / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    share = SHAPES[settings.scheduler](min(progress, 1.0), settings)
    return _above(settings.minimum_ratio, share)


def full_learning_rate(rate: float, settings: ScheduleSettings) -> float:
    """What the schedule's share is taken of: `rate`, or one where the schedule gives the whole rate itself."""
    return 1.0 if settings.scheduler == "adafactor" else rate


def length(value: float, total_steps: int) -> int:
    """A number of updates that is given as such, or below 1 as a share of the run."""
    return int(value * total_steps) if value < 1 else int(value)


def _linear(progress: float, settings: ScheduleSettings) -> float:
    return 1.0 - progress


def _cosine(progress: float, settings: ScheduleSettings) -> float:
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))


def _cosine_with_restarts(progress: float, settings: ScheduleSettings) -> float:
    """Loshchilov & Hutter 2016 (arXiv:1608.03983), equation 5, cycles of equal length."""
    return 0.0 if progress >= 1.0 else max(0.0, 0.5 * (1.0 + math.cos(math.pi * (settings.cycles * progress % 1.0))))


def _polynomial(progress: float, settings: ScheduleSettings) -> float:
    share: float = (1.0 - POLYNOMIAL_END) * (1.0 - progress) ** settings.power + POLYNOMIAL_END
    return share


def _rex(progress: float, settings: ScheduleSettings) -> float:
    """Chen et al. 2021 (arXiv:2107.04197), equation 1: slow at first, fast at the end."""
    return (1.0 - progress) / (0.5 + 0.5 * (1.0 - progress))


SHAPES: dict[Scheduler, Callable[[float, ScheduleSettings], float]] = {
    "constant": lambda progress, settings: 1.0,
    "linear": _linear,
    "cosine": _cosine,
    "cosine_with_restarts": _cosine_with_restarts,
    "polynomial": _polynomial,
    "rex": _rex,
}
"""The share of the rate for progress 0 to 1 after the warm-up."""


def _warmup_stable_decay(settings: ScheduleSettings, step: int, warmup: int, total_steps: int) -> float:
    """Hu et al. 2024 (arXiv:2404.06395): up in a line, level, down in a cosine over the last `decay` updates."""
    decay = length(settings.decay, total_steps)
    begin = total_steps - decay
    if step < warmup:
        share = step / warmup
    elif step < begin:
        share = 1.0
    else:
        share = _cosine(min((step - begin) / max(1, decay), 1.0), settings)
    return _above(settings.minimum_ratio, share)


def _adafactor(settings: ScheduleSettings, step: int, warmup: int, total_steps: int) -> float:
    """Adafactor's relative step, Shazeer & Stern 2018 (arXiv:1804.04235), section 8: a rate, not a share of one.

    Adafactor multiplies it by each tensor's own size while its argument scale_parameter is on.
    """
    begin = 1e-6 * (step + 1) if settings.warmup_init else 1e-2
    rate = min(begin, 1.0 / math.sqrt(step + 1))
    return rate * step / warmup if step < warmup else rate


COURSES: dict[Scheduler, Callable[[ScheduleSettings, int, int, int], float]] = {
    "warmup_stable_decay": _warmup_stable_decay,
    "adafactor": _adafactor,
}
"""Schedules that are more than one shape after the warm-up: their share by settings, step, warm-up and length."""


def _above(minimum: float, share: float) -> float:
    """The share squeezed between the minimum and 1."""
    return share * (1.0 - minimum) + minimum
