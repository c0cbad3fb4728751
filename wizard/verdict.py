"""Which file of a run to keep, told by the loss on pictures that it never trained on, or by what there is instead."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from engine.events import CheckpointSaved, Event, RunFinished, StepFinished, Validated
from wizard.trend import ENOUGH_STEPS, SURE, Sample, welch_t
from wizard.words import number

WORSE = 0.01
"""By what share two held-out losses must differ to be called different. The noise is the same each time, so a
difference is real; what is smaller than this is too small to be seen in pictures."""


@dataclass(frozen=True)
class Verdict:
    """What the losses say of the length of a run, and the file that it recommends, where one was saved."""

    course: Literal["learns nothing", "undertrained", "about right", "overtrained", "cannot be told"]
    text: str
    file: CheckpointSaved | None = None


def held_out_losses(events: Iterable[Event]) -> dict[int, float]:
    """The measured losses by step, 0 for the base model's; of steps that were done again, the later ones."""
    found: dict[int, float] = {}
    for event in events:
        if isinstance(event, Validated):
            found[event.step] = event.loss
    return dict(sorted(found.items()))


def judged(events: Sequence[Event]) -> Verdict | None:
    """What can be said; None when nothing was measured after training began and the run has not ended."""
    losses = held_out_losses(events)
    trained = {step: loss for step, loss in losses.items() if step}
    if 0 not in losses or len(trained) < 2:
        return _judged_by_its_own_pictures(events)
    base, last = losses[0], max(trained)
    best = min(trained, key=lambda step: trained[step])
    files = [event for event in events if isinstance(event, CheckpointSaved) and event.kind == "network"]
    file = min(files, key=lambda event: abs(event.step - best), default=None)
    figures = f"{number(base)} before training, {number(trained[best])} at best, {number(trained[last])} at the end"
    if trained[best] > base * (1 - WORSE):
        return Verdict(
            "learns nothing",
            f"On pictures that it never saw it is no better than the base model ({figures}). What it learnt, if "
            "anything, are your pictures themselves: look at the samples, and try a lower learning rate.",
        )
    if trained[last] > trained[best] * (1 + WORSE):
        return Verdict(
            "overtrained",
            f"Its loss on pictures that it never saw was lowest after step {best:,} and has risen since ({figures}): "
            "from there on it learnt your pictures by heart.",
            file,
        )
    steps = max((event.step for event in events if isinstance(event, StepFinished)), default=last)
    earlier = [loss for step, loss in trained.items() if step <= 0.75 * steps]
    if earlier and trained[last] < min(earlier) * (1 - WORSE):
        return Verdict(
            "undertrained",
            f"Its loss on pictures that it never saw was still falling in the last quarter ({figures}): more epochs "
            "would go on teaching it.",
            file,
        )
    return Verdict(
        "about right",
        f"Its loss on pictures that it never saw fell and has levelled out ({figures}): the run was about long enough.",
        file,
    )


def _judged_by_its_own_pictures(events: Sequence[Event]) -> Verdict | None:
    """What the loss of the training itself bears; None before the run has ended, or without a file.

    That loss falls while a subject is learnt and goes on falling while pictures are learnt by heart. So it can tell
    that learning had not ended, and never that there was too much of it.
    """
    files = [event for event in events if isinstance(event, CheckpointSaved) and event.kind == "network"]
    if not files or not any(isinstance(event, RunFinished) for event in events):
        return None
    losses = list({event.step: event.loss for event in events if isinstance(event, StepFinished)}.values())
    quarter = len(losses) // 4
    blind = (
        "No pictures were held out (validation.share), and the loss on those it learns from goes on falling while it "
        "learns them by heart"
    )
    good = "samples show what you asked for and still follow the other words of a prompt"
    if quarter >= ENOUGH_STEPS // 3:
        before, last = Sample.of(losses[-2 * quarter : -quarter]), Sample.of(losses[-quarter:])
        if welch_t(before, last) < -SURE:
            return Verdict(
                "undertrained",
                f"Its loss was still falling in the last quarter, from {number(before.mean)} to {number(last.mean)}, "
                f"more than chance explains: learning had not ended. {blind}, so train longer only while {good}.",
                files[-1],
            )
    earlier = ": where the last one does not, try those before it" if len({file.path for file in files}) > 1 else ""
    return Verdict(
        "cannot be told",
        f"{blind}, so no number here says which. The right file is one whose {good}{earlier}.",
        files[-1],
    )
