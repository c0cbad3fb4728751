"""Held-out pictures: which ones a run keeps for measuring, and when it measures."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random

from calculator.steps import regular_steps
from knowledge.config import TrainingConfig, ValidationSettings
from knowledge.facts import DatasetFacts, Picture

DRAWS = 4
"""How often each held-out picture is measured, each time with noise of its own that stays the same over the run."""


def held_out(dataset: DatasetFacts, config: TrainingConfig) -> tuple[Picture, ...]:
    """The pictures that are measured and never trained on, drawn by the seed; regularisation pictures never are.

    At least one when a share is set, and at least one is left to train on.
    """
    pictures = dataset.training_pictures
    if not config.validation.share or len(pictures) < 2:
        return ()
    count = min(max(1, round(config.validation.share * len(pictures))), len(pictures) - 1)
    return tuple(Random(f"{config.seed} held out").sample(pictures, count))


def trained_on(dataset: DatasetFacts, config: TrainingConfig) -> DatasetFacts:
    """The dataset without its held-out pictures."""
    apart = Counter(held_out(dataset, config))
    if not apart:
        return dataset
    folders = []
    for folder in dataset.folders:
        kept = []
        for picture in folder.pictures:
            if not folder.regularisation and apart[picture]:
                apart[picture] -= 1
            else:
                kept.append(picture)
        folders.append(replace(folder, pictures=tuple(kept)))
    return replace(dataset, folders=tuple(folders))


def validation_steps(validation: ValidationSettings, updates_per_epoch: int, total_steps: int) -> list[int]:
    """The updates after which held-out pictures are measured, 0 for the base model's own loss; none without a share."""
    if not validation.share:
        return []
    return [0, *regular_steps(validation.every_epochs, validation.every_steps, updates_per_epoch, total_steps)]
