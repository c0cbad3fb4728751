"""All samples of a run in one picture that grows: a row for each prompt, a column for each time it was drawn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.events import Event, SampleSaved
from engine.sheet import Sheet

if TYPE_CHECKING:
    from PIL.Image import Image

GRID = "samples-over-time.png"
"""The grid's name in the folder of a run."""
SIDE = 192
"""Pixels of a sample's longer side, about."""
MOST_COLUMNS = 12
"""More would make a picture that no screen shows; the samples themselves all stay."""


def samples_of(events: Iterable[Event]) -> dict[int, dict[int, SampleSaved]]:
    """The samples by step, and there by the number of their prompt; of repeated ones, the later."""
    found: dict[int, dict[int, SampleSaved]] = {}
    for event in events:
        if isinstance(event, SampleSaved):
            found.setdefault(event.step, {})[event.index] = event
    return {step: dict(sorted(found[step].items())) for step in sorted(found)}


def samples_until(events: Iterable[Event], step: int) -> list[SampleSaved]:
    """What a run had drawn when `step` was its last; what was drawn later, a resumed run draws again."""
    return [event for event in events if isinstance(event, SampleSaved) and event.step <= step]


def samples_over_time(events: Sequence[Event], folder: Path, path: Path) -> Path | None:
    """Every prompt in a row, from the base model to the newest network; at most MOST_COLUMNS of the times.

    None, and no file, where nothing was drawn.
    """
    samples = samples_of(events)
    if not samples:
        return None
    steps = _evenly(list(samples), MOST_COLUMNS)
    sheet = Sheet("How it came about", "Each row is one prompt, always from the same starting noise.", SIDE)
    blocks = []
    for index, sample in samples[steps[-1]].items():
        row = [
            (_when(samples[step][index]), opened_sample(folder, samples[step][index]))
            for step in steps
            if index in samples[step]
        ]
        blocks.append(sheet.block(sample.prompt, row))
    return sheet.save(blocks, columns=1, path=path)


def _when(sample: SampleSaved) -> str:
    return f"epoch {sample.epoch:,} · step {sample.step:,}" if sample.step else "base model"


def _evenly(values: list[int], most: int) -> list[int]:
    """At most `most` of the values, the first and the last among them."""
    if len(values) <= most:
        return values
    return [values[round(index * (len(values) - 1) / (most - 1))] for index in range(most)]


def opened_sample(folder: Path, sample: SampleSaved) -> Image | None:
    """The sample, or None where its file is gone."""
    from PIL import Image

    try:
        with Image.open(folder / sample.path) as picture:
            return picture.convert("RGB")
    except OSError:
        return None
