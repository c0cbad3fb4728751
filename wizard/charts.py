"""Pictures of a run, drawn from its events alone: how the loss went, what rate it used, what it learnt to draw."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.events import CheckpointSaved, Event, RunStarted, SampleSaved, StepFinished
from engine.run_folder import RunFolder, whole_file
from wizard.verdict import held_out_losses
from wizard.words import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont

INK = "#1f2430"
QUIET = "#8a90a0"
HAIR = "#e6e8ee"
ACCENT = "#9b2fae"
SECOND = "#1c7ed6"
PAPER = "#ffffff"

GROUPS = {"unet": "UNet", "text_encoder": "text encoder", "text_encoder_2": "second text encoder"}

CHART_INCHES = (9.0, 4.6)
CHART_DPI = 150

PAIR_SIDE, ROW_SIDE = 288, 192
"""Pixels of the longer side at which samples stand in a sheet of pairs, and of rows, about."""
MOST_COLUMNS = 7


@dataclass(frozen=True)
class Charts:
    """Where the pictures of a run are; None where its events hold nothing to draw."""

    loss: Path | None = None
    learning_rate: Path | None = None
    held_out: Path | None = None
    before_after: Path | None = None
    over_time: Path | None = None


def draw_charts(run: RunFolder, events: Sequence[Event]) -> Charts:
    """Draw all that these events allow into the run's folder."""
    return Charts(
        loss=loss_chart(events, run.path / "loss.png"),
        learning_rate=learning_rate_chart(events, run.path / "learning-rate.png"),
        held_out=held_out_chart(events, run.path / "held-out.png"),
        before_after=before_after(events, run.path, run.path / "before-after.png"),
        over_time=samples_over_time(events, run.path, run.path / "samples-over-time.png"),
    )


def steps_of(events: Iterable[Event]) -> list[StepFinished]:
    """Every step once, in order; of steps that were done again after a resume, the later ones."""
    by_step = {event.step: event for event in events if isinstance(event, StepFinished)}
    return [by_step[step] for step in sorted(by_step)]


def samples_of(events: Iterable[Event]) -> dict[int, dict[int, SampleSaved]]:
    """The samples by step, and there by the number of their prompt; of repeated ones, the later."""
    found: dict[int, dict[int, SampleSaved]] = {}
    for event in events:
        if isinstance(event, SampleSaved):
            found.setdefault(event.step, {})[event.index] = event
    return {step: dict(sorted(found[step].items())) for step in sorted(found)}


# Charts


def loss_chart(events: Sequence[Event], path: Path) -> Path | None:
    """Every step's loss as a dot, their moving average as a line in the band that chance gives it."""
    steps = [step for step in steps_of(events) if math.isfinite(step.loss)]
    if len(steps) < 2:
        return None
    numbers, losses = [step.step for step in steps], [step.loss for step in steps]
    window = max(2, min(len(losses) // 2, max(10, min(200, len(losses) // 10))))
    centres, means, errors = moving_average(numbers, losses, window)
    figure, axes = new_figure(
        "How far off the guesses were: the loss",
        f"dot: one step   line: average of {window} steps   "
        "band: where chance alone puts that average (two standard errors)",
    )
    top = 1.1 * max(_share(losses, 0.98), max(m + 2 * e for m, e in zip(means, errors, strict=True)))
    axes.scatter(numbers, losses, s=7, color=QUIET, alpha=0.35, linewidths=0, zorder=2)
    lows = [mean - 2 * error for mean, error in zip(means, errors, strict=True)]
    highs = [mean + 2 * error for mean, error in zip(means, errors, strict=True)]
    axes.fill_between(centres, lows, highs, color=ACCENT, alpha=0.16, linewidth=0, zorder=3)
    axes.plot(centres, means, color=ACCENT, linewidth=2.2, solid_capstyle="round", zorder=4)
    axes.annotate(
        number(means[-1]),
        (centres[-1], means[-1]),
        xytext=(8, 0),
        textcoords="offset points",
        color=ACCENT,
        fontweight="bold",
        va="center",
        annotation_clip=False,
    )
    low = _share(losses, 0.02)
    bottom = 0.0 if low < top / 2 else low - (top - low)  # far from zero, its ups and downs fill half of the picture
    axes.set_ylim(bottom, top)
    above = sum(loss > top for loss in losses)
    if above:
        axes.text(
            1, 1.01, f"{above} dots are above the picture", transform=axes.transAxes, ha="right", color=QUIET, size=8
        )
    _steps_axis(axes, events, steps)
    saved = {event.step for event in events if isinstance(event, CheckpointSaved) and event.kind == "network"}
    if saved:
        marks = [bottom + 0.018 * (top - bottom)] * len(saved)
        axes.plot(sorted(saved), marks, marker="^", markersize=6, color=INK, linestyle="", clip_on=False, zorder=6)
        axes.text(0, -0.13, "▲ a LoRA file was saved", transform=axes.transAxes, color=QUIET, size=8.5)
    return save_figure(figure, path)


def learning_rate_chart(events: Sequence[Event], path: Path) -> Path | None:
    """The rate that every step used, a line for each part of the model that learnt."""
    steps = steps_of(events)
    if len(steps) < 2:
        return None
    figure, axes = new_figure("How big the steps were: the learning rate", "the rate each step really used")
    groups = list(dict.fromkeys(group for step in steps for group in step.learning_rate))
    for index, group in enumerate(groups):
        used = [(step.step, step.learning_rate[group]) for step in steps if group in step.learning_rate]
        axes.plot(
            *zip(*used, strict=True),
            color=(ACCENT, SECOND, QUIET)[index % 3],
            linewidth=2.2,
            label=GROUPS.get(group, group),
            zorder=3 - index / 10,
        )
    highest = max(rate for step in steps for rate in step.learning_rate.values())
    axes.set_ylim(0, highest * 1.12 or 1)
    axes.yaxis.set_major_formatter(lambda value, _: number(value))
    if len(groups) > 1:
        axes.legend(frameon=False, loc="upper right")
    _steps_axis(axes, events, steps)
    return save_figure(figure, path)


def held_out_chart(events: Sequence[Event], path: Path) -> Path | None:
    """The loss on pictures that were never trained on, with its lowest point marked."""
    losses = held_out_losses(events)
    if len(losses) < 2:
        return None
    figure, axes = new_figure(
        "On pictures it never saw: the held-out loss",
        "the same noise at every measurement   step 0: the base model   ring: the lowest",
    )
    steps, values = list(losses), list(losses.values())
    axes.plot(steps, values, color=SECOND, linewidth=2.2, marker="o", markersize=4.5, zorder=3)
    best = min(losses, key=lambda step: losses[step])
    axes.plot(
        [best],
        [losses[best]],
        marker="o",
        markersize=13,
        fillstyle="none",
        color=ACCENT,
        markeredgewidth=2,
        clip_on=False,
    )
    share = best / max(steps)
    axes.annotate(
        f"step {best:,}: {number(losses[best])}",
        (best, losses[best]),
        xytext=(0, -22),
        textcoords="offset points",
        ha="left" if share < 0.15 else "right" if share > 0.85 else "center",
        color=ACCENT,
        fontweight="bold",
    )
    spread = (max(values) - min(values)) or max(values) or 1.0
    axes.set_ylim(min(values) - 0.25 * spread, max(values) + 0.12 * spread)
    axes.yaxis.set_major_formatter(lambda value, _: number(value))
    _steps_axis(axes, events, steps_of(events))
    return save_figure(figure, path)


def moving_average(
    numbers: Sequence[int], losses: Sequence[float], window: int
) -> tuple[list[float], list[float], list[float]]:
    """Centre, mean and standard error of every stretch of `window` losses."""
    centres, means, errors = [], [], []
    for start in range(len(losses) - window + 1):
        part = losses[start : start + window]
        mean = math.fsum(part) / window
        variance = math.fsum((loss - mean) ** 2 for loss in part) / (window - 1)
        centres.append((numbers[start] + numbers[start + window - 1]) / 2)
        means.append(mean)
        errors.append(math.sqrt(variance / window))
    return centres, means, errors


def _share(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def new_figure(title: str, subtitle: str) -> tuple[Figure, Axes]:
    """An empty chart in our look, with a title and a quiet line below it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=CHART_INCHES, dpi=CHART_DPI, facecolor=PAPER)
    axes = figure.add_axes((0.075, 0.14, 0.86, 0.66))
    figure.text(0.075, 0.925, title, size=14, weight="bold", color=INK)
    figure.text(0.075, 0.868, subtitle, size=8.5, color=QUIET)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(HAIR)
    axes.tick_params(colors=QUIET, labelsize=9, length=0)
    axes.grid(axis="y", color=HAIR, linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _steps_axis(axes: Axes, events: Sequence[Event], steps: Sequence[StepFinished]) -> None:
    from matplotlib.ticker import MaxNLocator

    started = next((event for event in events if isinstance(event, RunStarted)), None)
    axes.set_xlim(0, max(steps[-1].step, started.total_steps if started else 0))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("step", color=QUIET, size=9, loc="right")


def save_figure(figure: Figure, path: Path) -> Path:
    """The chart written to `path` as PNG, whole or not at all."""
    with whole_file(path) as partial:
        figure.savefig(partial, format="png")
    return path


# Sheets of samples


def before_after(events: Sequence[Event], folder: Path, path: Path) -> Path | None:
    """Every prompt drawn twice from the same noise: by the base model and with the newest network."""
    samples = samples_of(events)
    last = max(samples, default=0)
    if 0 not in samples or last == 0:
        return None
    pairs = [(samples[0][index], samples[last][index]) for index in samples[last] if index in samples[0]]
    sheet = Sheet(
        "Before and after",
        f"Same prompt and same starting noise in each pair; only the LoRA differs ({last:,} steps).",
        PAIR_SIDE,
    )
    blocks = [
        sheet.block(
            before.prompt,
            [("base model", _open(folder, before)), ("with your LoRA", _open(folder, after))],
            strong=1,
        )
        for before, after in pairs
    ]
    return sheet.save(blocks, columns=1 if len(blocks) < 2 else 2 if len(blocks) < 9 else 3, path=path)


def samples_over_time(events: Sequence[Event], folder: Path, path: Path) -> Path | None:
    """Every prompt in a row, from the base model to the newest network; at most MOST_COLUMNS of the steps."""
    samples = samples_of(events)
    if len(samples) < 2:
        return None
    steps = _evenly(list(samples), MOST_COLUMNS)
    sheet = Sheet("How it came about", "Each row is one prompt, always from the same starting noise.", ROW_SIDE)
    blocks = []
    for index, sample in samples[steps[-1]].items():
        row = [
            (f"step {step:,}" if step else "base model", _open(folder, samples[step][index]))
            for step in steps
            if index in samples[step]
        ]
        blocks.append(sheet.block(sample.prompt, row))
    return sheet.save(blocks, columns=1, path=path)


def _evenly(values: list[int], most: int) -> list[int]:
    """At most `most` of the values, the first and the last among them."""
    if len(values) <= most:
        return values
    return [values[round(index * (len(values) - 1) / (most - 1))] for index in range(most)]


def _open(folder: Path, sample: SampleSaved) -> Image | None:
    """The sample, or None where its file is gone."""
    from PIL import Image

    try:
        with Image.open(folder / sample.path) as picture:
            return picture.convert("RGB")
    except OSError:
        return None


class Sheet:
    """Labelled pictures in blocks under a title, drawn with Pillow so that every pixel of a sample stays what it is."""

    margin, gap, between = 36, 10, 34

    def __init__(self, title: str, subtitle: str, side: int) -> None:
        self.title, self.subtitle, self.side = title, subtitle, side
        self.fonts = {name: _font(*look) for name, look in FONTS.items()}

    def block(self, caption: str, pictures: list[tuple[str, Image | None]], strong: int | None = None) -> Image:
        """A caption above a row of pictures, each with its label; the label of number `strong` stands out."""
        from PIL import Image, ImageDraw

        shown = [(label, _sized(picture, self.side)) for label, picture in pictures]
        width = sum(picture.width for _, picture in shown) + self.gap * (len(shown) - 1)
        lines = _wrapped(f"“{caption}”" if caption else "(no prompt)", self.fonts["caption"], width)
        line = _height(self.fonts["caption"])
        top = line * len(lines) + 8
        tall = max(picture.height for _, picture in shown)
        block = Image.new("RGB", (width, top + tall + _height(self.fonts["label"]) + 4), PAPER)
        draw = ImageDraw.Draw(block)
        for index, text in enumerate(lines):
            draw.text((0, index * line), text, INK, self.fonts["caption"])
        left = 0
        for index, (label, picture) in enumerate(shown):
            block.paste(picture, (left, top))
            draw.text(
                (left, top + tall + 6),
                label,
                ACCENT if index == strong else QUIET,
                self.fonts["strong" if index == strong else "label"],
            )
            left += picture.width + self.gap
        return block

    def text(self, text: str, width: int) -> Image:
        """A paragraph as a block of this width."""
        from PIL import Image, ImageDraw

        font = self.fonts["caption"]
        lines = _wrapped(text, font, width, most=12)
        block = Image.new("RGB", (width, _height(font) * len(lines)), PAPER)
        for index, line in enumerate(lines):
            ImageDraw.Draw(block).text((0, index * _height(font)), line, INK, font)
        return block

    def save(self, blocks: list[Image], columns: int, path: Path) -> Path:
        """The blocks in this many columns, row by row; written to `path` as PNG."""
        sheet = self.drawn(blocks, columns)
        with whole_file(path) as partial:
            sheet.save(partial, format="PNG")
        return path

    def drawn(self, blocks: list[Image], columns: int) -> Image:
        """The blocks under the title, in this many columns, row by row."""
        from PIL import Image, ImageDraw

        rows = [blocks[start : start + columns] for start in range(0, len(blocks), columns)]
        across = max(block.width for block in blocks)
        head = _height(self.fonts["title"]) + _height(self.fonts["label"]) + 26
        wide = max(
            across * min(columns, len(blocks)) + self.between * (min(columns, len(blocks)) - 1),
            math.ceil(self.fonts["label"].getlength(self.subtitle)),
        )
        tall = sum(max(block.height for block in row) for row in rows) + self.between * (len(rows) - 1)
        sheet = Image.new("RGB", (wide + 2 * self.margin, head + tall + 2 * self.margin), PAPER)
        draw = ImageDraw.Draw(sheet)
        draw.text((self.margin, self.margin - 8), self.title, INK, self.fonts["title"])
        draw.text(
            (self.margin, self.margin + _height(self.fonts["title"]) - 2), self.subtitle, QUIET, self.fonts["label"]
        )
        top = self.margin + head
        for row in rows:
            low = max(block.height for block in row)
            for index, block in enumerate(row):
                # captions may need different numbers of lines; the pictures of a row still stand in line
                sheet.paste(block, (self.margin + index * (across + self.between), top + low - block.height))
            top += low + self.between
        return sheet


FONTS = {
    "title": ("DejaVuSans-Bold.ttf", 26),
    "caption": ("DejaVuSans.ttf", 16),
    "label": ("DejaVuSans.ttf", 14),
    "strong": ("DejaVuSans-Bold.ttf", 14),
}
"""matplotlib ships these, so captions in Cyrillic or Greek are readable on every system."""


def _font(file: str, size: int) -> FreeTypeFont:
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / file), size)


def _height(font: FreeTypeFont) -> int:
    ascent, descent = font.getmetrics()
    return round((ascent + descent) * 1.15)


def _sized(picture: Image | None, side: int) -> Image:
    """The picture near this side: small ones enlarged by whole pixels, large ones reduced smoothly."""
    from PIL import Image

    if picture is None:
        return Image.new("RGB", (side, side), HAIR)
    factor = side / max(picture.size)
    if factor >= 2:
        times = round(factor)
        return picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
    if factor < 1:
        return picture.resize((round(picture.width * factor), round(picture.height * factor)), Image.Resampling.LANCZOS)
    return picture


def _wrapped(text: str, font: Any, width: int, most: int = 4) -> list[str]:
    """The text in lines that fit the width; what does not fit into `most` lines is cut, with an ellipsis."""
    lines, current = [], ""
    for word in text.split():
        longer = f"{current} {word}".strip()
        if current and font.getlength(longer) > width:
            lines.append(current)
            current = word
        else:
            current = longer
    lines.append(current)
    if len(lines) > most:
        lines = [*lines[: most - 1], lines[most - 1].rstrip(" ,") + "…"]
    return lines
