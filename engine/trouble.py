"""What went wrong, in words for a person who did nothing wrong: the cause, and what to do about it."""

from __future__ import annotations

import errno
import json
import math
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from engine.events import Failed, Phase
from engine.loss_watch import WINDOW, ExplodedError, NotANumberError, TrainingBrokeError
from knowledge.answers import PlainError
from knowledge.config import TrainingConfig
from knowledge.parameters import number

PHASE_WORDS: dict[Phase, str] = {
    "loading": "loading the base model",
    "caching": "preparing the pictures",
    "training": "training",
    "validating": "measuring held-out pictures",
    "sampling": "drawing samples",
    "saving": "saving",
}


class ElsewhereError(Exception):
    """Another of the processes that train together met trouble, which it has told as `failed`."""

    def __init__(self, failed: Failed, *, memory_ended: bool = False) -> None:
        super().__init__(failed.cause)
        self.failed, self.memory_ended = failed, memory_ended


def failed(
    problem: Exception,
    phase: Phase,
    step: int,
    config: TrainingConfig,
    *,
    good_step: int = 0,
    room: Mapping[str, Any] | None = None,
) -> Failed:
    """The event that tells of a problem which ended the run in this phase, after `step` finished updates.

    `good_step` is where the newest state stands, 0 without one; `room` are the settings that would need less memory.
    """
    if isinstance(problem, ElsewhereError):
        remedy = _remedy_for_memory(config, room or {}, good_step) if problem.memory_ended else problem.failed.remedy
        return replace(problem.failed, step=step, remedy=remedy, changes=dict(room or {}))
    cause, remedy = _words(problem, phase, step, config, good_step, room or {})
    report = "".join(traceback.format_exception(problem))
    return Failed(cause=cause, remedy=remedy, phase=phase, step=step, traceback=report, changes=dict(room or {}))


def _words(
    problem: Exception, phase: Phase, step: int, config: TrainingConfig, good_step: int, room: Mapping[str, Any]
) -> tuple[str, str]:
    again = "resume the run" if good_step else "start again"
    if isinstance(problem, PlainError):
        return str(problem), f"Put that right, then {again}."
    if isinstance(problem, TrainingBrokeError):
        return _what_broke(problem, step), f"{_likely_cause(problem, config)} {_way_back(config, good_step)}"
    if out_of_memory(problem):
        return f"There was not enough memory while {PHASE_WORDS[phase]}.", _remedy_for_memory(config, room, good_step)
    if isinstance(problem, OSError) and problem.errno == errno.ENOSPC:
        return f"The disk is full; it filled up while {PHASE_WORDS[phase]}.", f"Free some space, then {again}."
    if isinstance(problem, OSError):
        return f"A file could not be used while {PHASE_WORDS[phase]}: {problem}", f"Put that right, then {again}."
    return (
        f"This program ran into an error that it does not know while {PHASE_WORDS[phase]}: "
        f"{type(problem).__name__}: {problem}",
        "That is a fault of the program, not yours. Please report it together with the file engine.log of the run.",
    )


def out_of_memory(problem: Exception) -> bool:
    """Whether the GPU or the computer had no memory left; on the CPU torch says so only in words."""
    if isinstance(problem, ElsewhereError):
        return problem.memory_ended
    words = str(problem).lower()
    return isinstance(problem, MemoryError) or (
        isinstance(problem, RuntimeError) and ("out of memory" in words or "can't allocate memory" in words)
    )


def _what_broke(problem: TrainingBrokeError, step: int) -> str:
    if isinstance(problem, ExplodedError):
        return (
            f"The loss has jumped: {problem.recent:.3g} on average over the last {WINDOW} steps up to step "
            f"{step + 1:,}, {problem.before:.3g} before. The network has run away."
        )
    not_finite = isinstance(problem, NotANumberError) and math.isfinite(problem.loss)
    what = "gradient" if not_finite else "loss"
    return f"The {what} of step {step + 1:,} is not a number any more: the network has run away."


STRONG_PULL = 4
"""network.alpha over network.rank from which the pull itself is under suspicion."""


@dataclass(frozen=True)
class Suspect:
    """A setting that makes training break down: when it is likely, and what is said of it."""

    likely: Callable[[TrainingConfig, TrainingBrokeError], bool]
    words: Callable[[TrainingConfig], str]


SUSPECTS = (
    Suspect(
        lambda config, problem: config.memory.precision == "fp16" and isinstance(problem, NotANumberError),
        lambda config: (
            "memory.precision is fp16, whose numbers end at 65504: the likely cause. "
            'Set it to "bf16" (newer GPUs) or "fp32"; if that does not help, lower optimizer.learning_rate.'
        ),
    ),
    Suspect(
        lambda config, _: (
            not config.network.ranks_in_start and config.network.alpha > STRONG_PULL * config.network.rank
        ),
        lambda config: (
            f"network.alpha ({config.network.alpha:g}) is {config.network.alpha / config.network.rank:,.0f} times "
            f"network.rank ({config.network.rank}) and multiplies all that is learnt by that: the likely cause. "
            f"Set it to {config.network.rank} in a new run."
        ),
    ),
    Suspect(
        lambda config, _: (
            config.optimizer.name in number("optimizer.name.self_paced") and config.optimizer.learning_rate > 1
        ),
        lambda config: (
            f"{config.optimizer.name} finds the learning rate itself, and optimizer.learning_rate multiplies it by "
            f"{config.optimizer.learning_rate:g}: the likely cause. Set it to 1."
        ),
    ),
    Suspect(
        lambda config, _: not config.optimizer.maximum_gradient_norm,
        lambda config: (
            "optimizer.maximum_gradient_norm is 0, so that nothing held a single large gradient back: the likely "
            f"cause. Set it to 1; if that does not help, lower optimizer.learning_rate from "
            f"{config.optimizer.learning_rate:g}."
        ),
    ),
    Suspect(
        lambda config, _: True,
        lambda config: (
            f"optimizer.learning_rate is {config.optimizer.learning_rate:g}, most likely too high here: "
            f"try {config.optimizer.learning_rate / 5:g}."
        ),
    ),
)
"""The likeliest first; the last one always is."""


def _likely_cause(problem: TrainingBrokeError, config: TrainingConfig) -> str:
    return next(suspect.words(config) for suspect in SUSPECTS if suspect.likely(config, problem))


def _way_back(config: TrainingConfig, good_step: int) -> str:
    if not good_step:
        keeps = "" if config.saving.state_every_epochs else " saving.state_every_epochs would keep some on the way."
        return f"No state had been kept by then: start a new run.{keeps}"
    return (
        f"The run is back at step {good_step:,}, the last good state. To go on from there with another value: "
        f"lora-wizard resume {config.output.name} --set optimizer.learning_rate={config.optimizer.learning_rate / 5:g}"
    )


def _remedy_for_memory(config: TrainingConfig, room: Mapping[str, Any], good_step: int) -> str:
    if room:
        made = ", ".join(f"{name} = {json.dumps(value)}" for name, value in room.items())
        go_on = "The run can go on with it from the last step." if good_step else "Start again with it."
        return f"The smallest change that needs less: {made}. {go_on}"
    network = config.network
    rank = "start from a file of smaller ranks" if network.ranks_in_start else f"network.rank (it is {network.rank})"
    return (
        f"Everything that leaves the run as it is has been tried. In a new run, lower dataset.resolution (it is "
        f"{config.dataset.resolution}) or {rank}."
    )
