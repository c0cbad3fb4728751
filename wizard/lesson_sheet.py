"""A lesson as one picture: the samples side by side, the course of the held-out loss, and what the numbers say."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.events import SampleSaved
from engine.run_folder import whole_file
from engine.sample_grid import samples_of
from engine.sheet import ACCENT, HAIR, INK, PAPER, QUIET, Sheet
from knowledge.lessons import Lesson
from wizard.charts import SECOND
from wizard.trials import Trial
from wizard.words import number

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 128
"""Pixels of a sample in the sheet: the pocket model's 64, doubled."""
LINES = (SECOND, ACCENT, "#c92a2a", "#2b8a3e", "#e8590c", "#5c5f66")
"""Colours of the variants, told apart by most eyes in this order."""
COLOURS = 160
"""Colours in the file: a palette keeps it small, and the samples are flat drawings."""


def lesson_sheet(lesson: Lesson, trials: Sequence[Trial], conclusion: str, path: Path) -> Path:
    """Write the sheet as PNG. Every row is one prompt from one noise, every column one training."""
    sheet = Sheet(lesson.title, lesson.question, SIDE)
    columns = {"the base model": base_samples(trials), **{t.label: last_samples(t) for t in trials}}
    prompts = {index: sample.prompt for samples in columns.values() for index, (sample, _) in samples.items()}
    blocks = [
        sheet.block(prompt, [(label, found[index][1] if index in found else None) for label, found in columns.items()])
        for index, prompt in sorted(prompts.items())
    ]
    width = max(block.width for block in blocks)
    blocks += [curve_chart(trials, width), sheet.text(conclusion, width)]
    drawn = sheet.drawn(blocks, columns=1)
    with whole_file(path) as partial:
        drawn.quantize(COLOURS).save(partial, format="PNG", optimize=True)
    return path


def base_samples(trials: Sequence[Trial]) -> Mapping[int, tuple[SampleSaved, Image]]:
    """What the untrained model drew, by the number of the prompt; one of the trainings draws it for all."""
    for trial in trials:
        found = samples_of(trial.events()).get(0)
        if found:
            return _opened(trial, found)
    return {}


def last_samples(trial: Trial) -> Mapping[int, tuple[SampleSaved, Image]]:
    """What a training drew at its end, by the number of the prompt."""
    by_step = samples_of(trial.events())
    return _opened(trial, by_step[max(by_step)]) if by_step else {}


def _opened(trial: Trial, samples: Mapping[int, SampleSaved]) -> dict[int, tuple[SampleSaved, Image]]:
    from PIL import Image

    assert trial.run is not None
    found = {}
    for index, sample in samples.items():
        with Image.open(trial.run.path / sample.path) as picture:
            found[index] = (sample, picture.convert("RGB"))
    return found


def curve_chart(trials: Sequence[Trial], width: int) -> Image:
    """The held-out loss of every variant by its share of the training, `width` pixels wide."""
    from matplotlib.figure import Figure
    from PIL import Image

    legend = 0.2 * len(trials)  # a row for each, below: beside the chart a narrow sheet would cut it off
    height = 2.6 + legend
    figure = Figure(figsize=(width / 100, height), dpi=100, facecolor=PAPER)
    axes = figure.add_axes((30 / width, (0.45 + legend) / height, 1 - 60 / width, 1.7 / height))
    figure.text(0.0, 1 - 0.2 / height, "Loss on pictures of the creature that were not trained on", size=9, color=INK)
    base = trials[0].curve[0][1]["creature_loss"]
    for index, trial in enumerate(trials):
        steps = [step for step, _ in trial.curve]
        losses = [found["creature_loss"] for _, found in trial.curve]
        shares = [100 * step / steps[-1] for step in steps]
        label = f"{trial.label}: {number(losses[-1])}"
        axes.plot(shares, losses, color=LINES[index % len(LINES)], linewidth=2, marker=".", label=label)
    axes.axhline(base, color=QUIET, linewidth=0.8, linestyle=":")
    axes.set_ylim(0, base * 1.3)
    axes.set_xlim(0, 101)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0f} %")
    axes.set_xticks([0, 25, 50, 75, 100])
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(HAIR)
    axes.tick_params(colors=QUIET, labelsize=7.5, length=0)
    axes.grid(axis="y", color=HAIR, linewidth=0.8)
    figure.legend(frameon=False, fontsize=7.5, loc="lower left", bbox_to_anchor=(0, 0), labelcolor=INK)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")
