"""Lessons of the pocket lab as data: one setting, a few values, and a claim that measured numbers can refute."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from knowledge import library
from knowledge.answers import EMPTY
from knowledge.config import TrainingConfig, value_of, with_values
from knowledge.expressions import Lookup, UnknownFactError, evaluate, fill, in_words
from knowledge.parameters import as_field_type, number, parameters

FILE = "lessons.toml"
PICTURES = library.DATA / "lessons"
"""One picture for each lesson, and the figures that were measured."""

QUANTITIES = {
    "creature_loss": "how far off the guesses are for unseen pictures of the creature",
    "wordless_loss": "the same without their captions",
    "known_loss": "how far off they are for scenes that the model knew before",
    "training_loss": "the loss that the training itself shows, over its second half",
    "loss_spread": "how much that loss jumps from step to step (standard deviation)",
    "steps": "updates of the network",
    "views": "pictures shown",
    "trained": "numbers trained",
    "file_bytes": "size of the file",
    "seconds_per_step": "seconds for a step, on one core",
}
"""What is measured of every variant, in words; losses are mean squared errors with noise and timesteps held still."""

BASE = "base"
"""The name under which a claim asks for the untrained model's losses."""

Figures = Mapping[str, Mapping[str, float]]
"""The quantities of every variant and of the base model, by name."""


@dataclass(frozen=True)
class Variant:
    """One training of a lesson: the settings it changes, by dotted name, and whether known scenes are practised too."""

    name: str
    label: str
    settings: Mapping[str, Any]
    regularisation: bool = False

    def words(self) -> str:
        """The label, with the value of the first setting that it changes: "too low (1e-4)"."""
        if not self.settings or self.regularisation:
            return self.label
        value = next(iter(self.settings.values()))
        return self.label if isinstance(value, bool | str | list) else f"{self.label} ({in_words(value)})"


@dataclass(frozen=True)
class Lesson:
    """One experiment. `claim` is an expression over variant.quantity; `conclusion` says it with the numbers measured,
    `expected` without any, and `look` what the eye should find in the pictures."""

    name: str
    title: str
    question: str
    parameters: tuple[str, ...]
    variants: tuple[Variant, ...]
    shows: tuple[str, ...]
    claim: str
    expected: str
    conclusion: str
    look: str

    def holds(self, figures: Figures) -> bool:
        """Whether the claim is true of these figures. Raises UnknownFactError where one is missing."""
        return bool(evaluate(self.claim, _lookup(figures)))

    def said(self, figures: Figures) -> str:
        """The conclusion in these numbers; where they contradict the claim, that instead."""
        if self.holds(figures):
            return " ".join(fill(self.conclusion, _lookup(figures)).split())
        return f"This time it did not come out as expected, which was: {self.expected}"


def _lookup(figures: Figures) -> Lookup:
    def lookup(name: str) -> Any:
        variant, _, quantity = name.partition(".")
        try:
            return figures[variant][quantity]
        except KeyError:
            raise UnknownFactError(name) from None

    return lookup


@cache
def lessons() -> Mapping[str, Lesson]:
    """Every lesson by name, in teaching order."""
    return {name: _lesson(name, dict(table)) for name, table in library.document(FILE)["lesson"].items()}


def _lesson(name: str, table: dict[str, Any]) -> Lesson:
    variants = tuple(
        Variant(
            variant,
            row["label"],
            {key: as_field_type(key, _value(value)) for key, value in row.get("set", {}).items()},
            row.get("regularisation", False),
        )
        for variant, row in table.pop("variants").items()
    )
    return Lesson(
        name=name,
        variants=variants,
        parameters=tuple(table.pop("parameters")),
        shows=tuple(table.pop("shows")),
        **{key: " ".join(text.split()) for key, text in table.items()},
    )


def _value(value: Any) -> Any:
    """A value of the file; a text in braces is a number of an entry, as in "{network.rank.pocket}", "none" no value."""
    if value == EMPTY:
        return None
    return number(value.strip("{}")) if isinstance(value, str) and value.startswith("{") else value


@cache
def common_settings() -> Mapping[str, Any]:
    """What all lessons share, by dotted name; a variant changes one or two of them."""
    return {name: as_field_type(name, _value(value)) for name, value in library.document(FILE)["common"].items()}


def variant_config(variant: Variant, seed: int, others: Mapping[str, Any]) -> TrainingConfig:
    """The whole config of one training; `others` are the paths that only the caller knows."""
    return with_values(TrainingConfig(), {**common_settings(), **others, **variant.settings, "seed": seed})


def of_parameter(name: str) -> list[Lesson]:
    """The lessons in which this parameter is varied."""
    return [lesson for lesson in lessons().values() if name in lesson.parameters]


@dataclass(frozen=True)
class Record:
    """What was measured of one lesson: figures by seed, with which settings, and on what."""

    seeds: Mapping[int, Figures]
    settings: Mapping[str, Mapping[str, Any]]
    machine: Mapping[str, Any]

    def mean(self) -> Figures:
        """The figures averaged over the seeds."""
        runs = list(self.seeds.values())
        return {
            variant: {name: sum(run[variant][name] for run in runs) / len(runs) for name in quantities}
            for variant, quantities in runs[0].items()
        }


@cache
def record(name: str) -> Record | None:
    """What was measured of the lesson; None where it was not."""
    path = PICTURES / f"{name}.json"
    if not path.exists():
        return None
    document = json.loads(path.read_text(encoding="utf-8"))
    return Record(
        {int(seed): figures for seed, figures in document["seeds"].items()}, document["settings"], document["machine"]
    )


def figure(address: str) -> float:
    """A recorded figure, averaged over the seeds, as LESSON.VARIANT.QUANTITY. Raises UnknownFactError."""
    lesson, _, rest = address.partition(".")
    found = record(lesson) if lesson in lessons() else None
    if found is None:
        raise UnknownFactError(f"lab.{address}")
    value: float = _lookup(found.mean())(rest)
    return value


def values_varied(lesson: Lesson) -> dict[str, list[Any]]:
    """The values that each of the lesson's parameters takes, variant by variant."""
    return {
        name: [value_of(variant_config(variant, 0, {}), name) for variant in lesson.variants]
        for name in lesson.parameters
        if name in parameters()
    }
