"""Steps: what is shown in an epoch, in how many batches, and how many updates a run makes. As kohya's sd-scripts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from calculator.buckets import Size, place
from knowledge.config import DatasetSettings, SamplingSettings, SavingSettings, ScheduleSettings
from knowledge.facts import DatasetFacts

Key = TypeVar("Key")


@dataclass(frozen=True)
class Run:
    """The length of a run. `epochs` counts the last one even when maximum_steps ends the run inside it."""

    batches_per_epoch: int
    updates_per_epoch: int
    total_steps: int
    epochs: int


def text_encoder_steps(total_steps: int, share: float) -> int:
    """The updates at the beginning of a run in which text encoders are trained; a begun one counts."""
    return math.ceil(round(total_steps * share, 6))  # 0.7 of ten steps is seven, whatever binary fractions make of it


def views(dataset: DatasetFacts, settings: DatasetSettings) -> dict[Size, int]:
    """Pictures that an epoch shows, by bucket in order of size: training repeats and balanced regularisation."""
    counts: dict[Size, int] = {}
    for (folder, index), times in views_of_pictures(dataset).items():
        picture = dataset.folders[folder].pictures[index]
        bucket = place(picture.width, picture.height, settings).bucket
        counts[bucket] = counts.get(bucket, 0) + times
    return dict(sorted(counts.items()))


def views_of_pictures(dataset: DatasetFacts) -> dict[tuple[int, int], int]:
    """How often an epoch shows each picture, by (folder, picture) index; pictures that are never shown are left out."""
    shown = {
        (number, index): folder.repeats
        for number, folder in enumerate(dataset.folders)
        if not folder.regularisation
        for index in range(len(folder.pictures))
    }
    balanced = regularisation_views(
        [
            ((number, index), folder.repeats)
            for number, folder in enumerate(dataset.folders)
            if folder.regularisation
            for index in range(len(folder.pictures))
        ],
        dataset.views_per_epoch,
    )
    return shown | balanced


def regularisation_views(pictures: Sequence[tuple[Key, int]], training_views: int) -> dict[Key, int]:
    """How often an epoch shows each regularisation picture, given as (key, repeats), to balance the training views.

    The first pass takes each with its own repeats, later passes take each once more, until there are as many as
    training views; the last one taken may overshoot, and what is then left over is not shown.
    """
    shown: dict[Key, int] = {}
    total = 0
    while pictures and total < training_views:
        for key, repeats in pictures:
            if total >= training_views:
                break
            more = 1 if key in shown else repeats
            shown[key] = shown.get(key, 0) + more
            total += more
    return shown


def batches(views_by_bucket: Mapping[Size, int], batch_size: int) -> dict[Size, int]:
    """Batches of an epoch by bucket. A batch holds one shape only, so each bucket may end with a part-filled one."""
    return {bucket: math.ceil(count / batch_size) for bucket, count in views_by_bucket.items()}


def run_length(batches_per_epoch: int, schedule: ScheduleSettings, processes: int = 1) -> Run:
    """The updates of a run. Accumulation never reaches over the end of an epoch."""
    per_process = math.ceil(batches_per_epoch / processes)
    updates = math.ceil(per_process / schedule.gradient_accumulation_steps)
    total = updates * schedule.epochs
    if schedule.maximum_steps is not None:
        total = min(total, schedule.maximum_steps)
    return Run(batches_per_epoch, updates, total, math.ceil(total / updates) if updates else 0)


def saving_steps(saving: SavingSettings, updates_per_epoch: int, total_steps: int) -> list[int]:
    """The updates, counted from 1, after which a network file is saved; the last one is always among them."""
    return regular_steps(saving.every_epochs, saving.every_steps, updates_per_epoch, total_steps)


def state_steps(saving: SavingSettings, updates_per_epoch: int, total_steps: int) -> list[int]:
    """The updates, counted from 1, after which a state to resume from is saved; none when that is off."""
    if saving.state_every_epochs is None:
        return []
    return regular_steps(saving.state_every_epochs, None, updates_per_epoch, total_steps)


def sampling_steps(sampling: SamplingSettings, updates_per_epoch: int, total_steps: int) -> list[int]:
    """The updates after which samples are drawn, 0 for those before the first; none without prompts.

    The last update is always among them.
    """
    if not sampling.prompts:
        return []
    steps = regular_steps(sampling.every_epochs, sampling.every_steps, updates_per_epoch, total_steps)
    return [0, *steps] if sampling.at_start else steps


def naive_total_steps(images_and_repeats: Iterable[tuple[int, int]], schedule: ScheduleSettings) -> int:
    """The number that most guides compute, which knows no buckets: images × repeats × epochs ÷ batch ÷ accumulation."""
    shown = sum(images * repeats for images, repeats in images_and_repeats) * schedule.epochs
    return math.ceil(shown / schedule.batch_size / schedule.gradient_accumulation_steps)


def regular_steps(
    every_epochs: int | None, every_steps: int | None, updates_per_epoch: int, total_steps: int
) -> list[int]:
    """Multiples of both intervals up to the last step, and the last step itself."""
    steps = {total_steps}
    if every_epochs and updates_per_epoch:
        steps |= set(range(every_epochs * updates_per_epoch, total_steps + 1, every_epochs * updates_per_epoch))
    if every_steps:
        steps |= set(range(every_steps, total_steps + 1, every_steps))
    return sorted(steps - {0})
