"""A run in sentences that a beginner understands. No sentence says more than the numbers bear."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from engine.events import (
    CheckpointSaved,
    Event,
    Failed,
    PhaseStarted,
    PictureSkipped,
    RunFinished,
    RunStarted,
    SampleSaved,
    SettingsChanged,
    StepFinished,
    Validated,
    Warned,
)
from engine.trouble import PHASE_WORDS
from wizard.trend import trend
from wizard.verdict import WORSE
from wizard.words import count, duration, number, size

Tone = Literal["plain", "good", "warning", "bad"]

LOOKS = (0.25, 0.5, 0.75, 1.0)  # shares of the run at which the loss is judged
FIRST_STEPS = 10  # steps after which the speed is told and zero gradients are called what they are
SLOWED_DOWN = 3.0


@dataclass(frozen=True)
class Sentence:
    """One thing worth knowing, said at `step` (0 before the first)."""

    text: str
    step: int = 0
    tone: Tone = "plain"


def trend_sentence(losses: Sequence[float], step: int, told: str = "", *, samples: bool = True) -> Sentence | None:
    """What may be said of the losses up to `step`; None when there are too few of them to say anything.

    `told` is the direction that was told before: the same again is said in fewer words. `samples` tells whether there
    are any to judge by.
    """
    found = trend(losses)
    if found is None:
        return None
    first, middle, last = (number(third.mean) for third in found.thirds)
    steps = found.thirds[0].size
    if found.direction == told and "falling" in told:
        return Sentence(f"The loss went on falling; the last {steps} steps average {last}.", step, "good")
    words: dict[str, tuple[str, Tone]] = {
        "steadily falling": (
            f"The loss falls steadily: {first}, {middle}, {last} on average in three equal stretches. It learns.",
            "good",
        ),
        "falling": (
            f"The loss has fallen from {first} (first {steps} steps) to {last} (last {steps}): "
            "more than chance explains, so it learns.",
            "good",
        ),
        "rising": (
            f"The loss has risen from {first} (first {steps} steps) to {last} (last {steps}): "
            "more than chance explains. Often the learning rate is too high. "
            "If the newest samples look burnt, stop and halve it.",
            "warning",
        ),
        "unclear": (
            f"The loss averages {last} and shows no trend beyond chance. That is common: each step draws new noise, "
            f"which hides slow learning. {'Judge by the samples' if samples else 'Try the file to judge it'}.",
            "plain",
        ),
    }
    text, tone = words[found.direction]
    return Sentence(text, step, tone)


PHASES = {
    "loading": "Loading the base model.",
    "caching": "Preparing the pictures once, so that every step is faster.",
    "training": "Training begins.",
}
"""Phases worth a sentence the first time they begin; drawing and saving tell of themselves when they are done."""


@dataclass
class Narrator:
    """Hears the events of a run in order and answers with the sentences worth saying. Holds what it has heard."""

    total_steps: int = 0
    first_step: int = 0
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    phases: set[str] = field(default_factory=set)
    said: set[str] = field(default_factory=set)
    samples: Counter[int] = field(default_factory=Counter)
    first_samples: int | None = None
    held_out: dict[int, float] = field(default_factory=dict)
    state_step: int = 0
    zero_gradients: int = 0
    direction: str = ""

    def hear(self, event: Event) -> list[Sentence]:
        """The sentences that this event gives rise to, often none."""
        match event:
            case RunStarted():
                return self._run_started(event)
            case PhaseStarted():
                return self._phase_started(event)
            case StepFinished():
                return self._step_finished(event)
            case SampleSaved():
                return self._sample_saved(event)
            case Validated():
                return self._validated(event)
            case CheckpointSaved():
                return self._checkpoint_saved(event)
            case Warned():
                return [Sentence(event.message, len(self.losses), "warning")]
            case PictureSkipped():
                return [_skipped(event)]
            case SettingsChanged():
                return [_changed(event)]
            case Failed():
                return [Sentence(event.cause, event.step, "bad"), Sentence(event.remedy, event.step)]
            case RunFinished():
                return self._run_finished(event)
        return []

    def _once(self, name: str) -> bool:
        if name in self.said:
            return False
        self.said.add(name)
        return True

    def _run_started(self, event: RunStarted) -> list[Sentence]:
        resumed = event.first_step > 1
        self.total_steps, self.first_step = event.total_steps, event.first_step
        self.seconds.clear()
        if resumed:
            del self.losses[event.first_step - 1 :]  # steps after the last state are done again
            self.held_out = {step: loss for step, loss in self.held_out.items() if step < event.first_step}
            left = event.total_steps - event.first_step + 1
            return [Sentence(f"Going on after step {event.first_step - 1:,}; {count(left, 'step')} to go.")]
        return [
            Sentence(
                f"Teaching {count(event.images, 'picture')} to {count(event.trainable_parameters, 'new weight')} on "
                f"{event.device}: {count(event.total_steps, 'step')}, {count(event.epochs, 'epoch')}."
            )
        ]

    def _phase_started(self, event: PhaseStarted) -> list[Sentence]:
        if event.phase == "loading" and "training" in self.phases:  # another engine goes on
            self.phases.clear()
        if event.phase not in PHASES or event.phase in self.phases:
            return []
        self.phases.add(event.phase)
        return [Sentence(PHASES[event.phase])]

    def _step_finished(self, event: StepFinished) -> list[Sentence]:
        said: list[Sentence] = []
        if not math.isfinite(event.loss):
            if self._once("not finite"):
                said.append(
                    Sentence(
                        f"At step {event.step:,} the loss is no longer a number: the weights have broken down.",
                        event.step,
                        "bad",
                    )
                )
            return said
        self.losses.append(event.loss)
        self.seconds.append(event.seconds)
        said += self._gradients(event) + self._speed(event) + self._rate(event)
        return said + self._look(event)

    def _gradients(self, event: StepFinished) -> list[Sentence]:
        self.zero_gradients = self.zero_gradients + 1 if event.gradient_norm == 0 else 0
        if self.zero_gradients == FIRST_STEPS and self._once("zero gradients"):
            return [
                Sentence(
                    f"For {FIRST_STEPS} steps the gradients have been exactly zero: nothing is being learnt.",
                    event.step,
                    "bad",
                )
            ]
        return []

    def _speed(self, event: StepFinished) -> list[Sentence]:
        if len(self.seconds) == FIRST_STEPS + 1:
            step_seconds = _median(self.seconds[1:])  # the first step also warms up
            left = step_seconds * (self.total_steps - event.step)
            if left < 5:
                return []
            return [
                Sentence(
                    f"A step takes {duration(step_seconds)}, so the training takes about {duration(left)} more. "
                    "The loss will jump from step to step; that is normal, only its average says something.",
                    event.step,
                )
            ]
        if len(self.seconds) >= 5 * FIRST_STEPS:
            usual = _median(self.seconds[1 : 3 * FIRST_STEPS])
            recent = _median(self.seconds[-FIRST_STEPS:])
            if recent > SLOWED_DOWN * usual and self._once("slow"):
                return [
                    Sentence(
                        f"Steps now take {duration(recent)} instead of {duration(usual)}. Either another program is "
                        "using this computer, or memory has run full and spills into something slower.",
                        event.step,
                        "warning",
                    )
                ]
        return []

    def _rate(self, event: StepFinished) -> list[Sentence]:
        self.rates.append(max(event.learning_rate.values(), default=0.0))
        warming_up = len(self.rates) > 4 and all(a < b for a, b in pairwise(self.rates[:4]))
        if warming_up and self.rates[-1] <= self.rates[-2] and self._once("warm-up"):
            peak = self.rates[-2]
            return [
                Sentence(f"The warm-up is over: the learning rate has reached its full {number(peak)}.", event.step)
            ]
        return []

    def _look(self, event: StepFinished) -> list[Sentence]:
        if event.step not in {math.ceil(share * self.total_steps) for share in LOOKS}:
            return []
        found = trend(self.losses)
        said = trend_sentence(self.losses, event.step, self.direction, samples=bool(self.samples))
        if found is None or said is None or (found.direction == self.direction == "unclear"):
            return []
        self.direction = found.direction
        return [said]

    def _sample_saved(self, event: SampleSaved) -> list[Sentence]:
        self.samples[event.step] += 1
        if self.first_samples is None:
            self.first_samples = event.step
        if self.samples[event.step] > 1:
            return []
        if event.step == 0:
            return [Sentence("Drawing the base model's own pictures first, to compare with later.")]
        if event.step == self.first_samples:
            return [Sentence(f"Drawing the first sample pictures, after step {event.step:,}.", event.step)]
        if not self._once("same prompts"):
            return [Sentence(f"Drawing samples after step {event.step:,}.", event.step)]
        earlier = "the base model's" if self.first_samples == 0 else f"those of step {self.first_samples:,}"
        return [
            Sentence(
                f"Drawing samples after step {event.step:,}: same prompts and seeds as {earlier}, "
                "so every difference is what was learnt.",
                event.step,
            )
        ]

    def _validated(self, event: Validated) -> list[Sentence]:
        self.held_out[event.step] = event.loss
        before = {step: loss for step, loss in self.held_out.items() if step < event.step}
        if not before:
            return [
                Sentence(
                    f"The base model's loss on {count(event.images, 'held-out picture')} is {number(event.loss)}; "
                    "as long as it falls, what is learnt holds for new pictures too.",
                    event.step,
                )
            ]
        best = min(before, key=lambda step: before[step])
        if event.loss > before[best] * (1 + WORSE):
            if not self._once("held-out loss rises"):
                return []
            return [
                Sentence(
                    f"On held-out pictures the loss is {number(event.loss)}; it was {number(before[best])} after step "
                    f"{best:,}. If it goes on rising, your pictures are being learnt by heart.",
                    event.step,
                    "warning",
                )
            ]
        self.said.discard("held-out loss rises")
        if event.step < self.total_steps and event.loss > before[best] * (1 - WORSE):
            return []
        return [Sentence(f"On held-out pictures the loss is {number(event.loss)}.", event.step)]

    def _checkpoint_saved(self, event: CheckpointSaved) -> list[Sentence]:
        if event.kind == "state":
            self.state_step = event.step
            return []
        what = "the finished LoRA" if event.final else f"the LoRA as it is after step {event.step:,}"
        said = [Sentence(f"Saved {what}: {event.path} ({size(event.bytes)}).", event.step)]
        if event.final and event.applications:
            said.append(Sentence(readers(event.applications), event.step))
        return said

    def _run_finished(self, event: RunFinished) -> list[Sentence]:
        if event.reason == "stopped":
            return [
                Sentence(
                    f"Stopped after step {event.step:,} of {event.total_steps:,}. Everything so far is saved.",
                    event.step,
                )
            ]
        done, here, spent = count(event.step, "step"), event.step + 1 - (self.first_step or 1), duration(event.seconds)
        how = f" in {spent}" if here == event.step else f", the last {here:,} of them in {spent}" if here else ""
        return [Sentence(f"Finished: {done}{how}.", event.step, "good")]


def _skipped(event: PictureSkipped) -> Sentence:
    return Sentence(
        f"{event.path} cannot be read any more ({event.reason.rstrip('.')}). The training goes on without it.",
        event.step,
        "warning",
    )


def _changed(event: SettingsChanged) -> Sentence:
    made = ", ".join(f"{name} = {json.dumps(value)}" for name, value in event.changes.items())
    return Sentence(
        f"Memory ran out while {PHASE_WORDS[event.phase]}. Changed as little as helps, and going on after step "
        f"{event.step:,}: {made}. {' '.join(event.effects)}".rstrip(),
        event.step,
        "warning",
    )


def narrate(events: Iterable[Event]) -> list[Sentence]:
    """All sentences of a run, from its events in order."""
    narrator = Narrator()
    return [sentence for event in events for sentence in narrator.hear(event)]


def readers(applications: Mapping[str, str]) -> str:
    """Which programs read a network file, as one or two sentences."""
    exact = [name for name, verdict in applications.items() if verdict == "yes"]
    others = [f"{name} {verdict.partition(': ')[2]}" for name, verdict in applications.items() if verdict != "yes"]
    told = f"Read exactly as trained by {_and(exact)}." if exact else "No program reads all of it."
    return f"{told} Not so elsewhere: {'; '.join(others)}." if others else told


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
