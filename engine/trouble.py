"""What went wrong, in words for a person who did nothing wrong: the cause, and what to do about it."""

from __future__ import annotations

import errno
import math
import traceback

from engine.events import Failed, Phase
from knowledge.answers import PlainError
from knowledge.config import TrainingConfig

PHASE_WORDS: dict[Phase, str] = {
    "loading": "loading the base model",
    "caching": "preparing the pictures",
    "training": "training",
    "validating": "measuring held-out pictures",
    "sampling": "drawing samples",
    "saving": "saving",
}


class NotANumberError(Exception):
    """The loss or the gradient is no longer a number; nothing that was learnt after this point means anything."""

    def __init__(self, loss: float, gradient_norm: float) -> None:
        super().__init__(f"loss {loss}, gradient norm {gradient_norm}")
        self.loss, self.gradient_norm = loss, gradient_norm


def failed(problem: Exception, phase: Phase, step: int, config: TrainingConfig) -> Failed:
    """The event that tells of a problem which ended the run in this phase, after `step` finished updates."""
    cause, remedy = _words(problem, phase, step, config)
    report = "".join(traceback.format_exception(problem))
    return Failed(cause=cause, remedy=remedy, phase=phase, step=step, traceback=report)


def _words(problem: Exception, phase: Phase, step: int, config: TrainingConfig) -> tuple[str, str]:
    if isinstance(problem, PlainError):
        return str(problem), "Put that right and start again."
    if isinstance(problem, NotANumberError):
        return _not_a_number(problem, step), _remedy_for_not_a_number(config)
    if out_of_memory(problem):
        return f"There was not enough memory while {PHASE_WORDS[phase]}.", _remedy_for_memory(phase, config)
    if isinstance(problem, OSError) and problem.errno == errno.ENOSPC:
        return f"The disk is full; it filled up while {PHASE_WORDS[phase]}.", "Free some space, then resume the run."
    if isinstance(problem, OSError):
        return f"A file could not be used while {PHASE_WORDS[phase]}: {problem}", "Put that right, then resume the run."
    return (
        f"This program ran into an error that it does not know while {PHASE_WORDS[phase]}: "
        f"{type(problem).__name__}: {problem}",
        "That is a fault of the program, not yours. Please report it together with the file engine.log of the run.",
    )


def out_of_memory(problem: Exception) -> bool:
    """Whether the GPU or the computer had no memory left; on the CPU torch says so only in words."""
    words = str(problem).lower()
    return isinstance(problem, MemoryError) or (
        isinstance(problem, RuntimeError) and ("out of memory" in words or "can't allocate memory" in words)
    )


def _not_a_number(problem: NotANumberError, step: int) -> str:
    what = "gradient" if math.isfinite(problem.loss) else "loss"
    return (
        f"The {what} of step {step + 1} is not a number any more: the network has run away. "
        "What was saved before this step is not touched."
    )


def _remedy_for_not_a_number(config: TrainingConfig) -> str:
    optimizer = config.optimizer
    if config.memory.precision == "fp16":
        return (
            'memory.precision is fp16, whose numbers end at 65504. Set it to "bf16" (newer GPUs) or "fp32"; '
            f"if that does not help, lower optimizer.learning_rate from {optimizer.learning_rate:g}."
        )
    return (
        f"optimizer.learning_rate is {optimizer.learning_rate:g}, most likely too high here: "
        f"try {optimizer.learning_rate / 5:g}."
    )


def _remedy_for_memory(phase: Phase, config: TrainingConfig) -> str:
    """The change that saves most for the least harm, out of those that this config has not made yet."""
    schedule, memory, dataset = config.schedule, config.memory, config.dataset
    if phase == "sampling":
        return "Set sampling.width and sampling.height smaller, or leave sampling.prompts empty; then resume the run."
    if memory.precision == "fp32":
        return 'Set memory.precision to "bf16": it halves the memory of the base model.'
    if not memory.gradient_checkpointing:
        return "Turn memory.gradient_checkpointing on: about a third slower, for far less memory."
    if schedule.batch_size > 1:
        accumulation = schedule.gradient_accumulation_steps * schedule.batch_size
        return (
            f"Set schedule.batch_size to 1 (it is {schedule.batch_size}) and schedule.gradient_accumulation_steps to "
            f"{accumulation}: the same training, one picture at a time."
        )
    if config.network.train_text_encoder:
        return "Turn network.train_text_encoder off and memory.cache_text_encoder_outputs on."
    return f"Lower dataset.resolution (it is {dataset.resolution}) or network.rank (it is {config.network.rank})."
