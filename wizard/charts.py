"""Pictures of a run, drawn from its events alone: how the loss went, what rate it used, what it learnt to draw."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine.events import CheckpointSaved, Event, RunStarted, StepFinished
from engine.run_folder import RunFolder, whole_file
from engine.sample_grid import GRID, opened_sample, samples_of, samples_over_time
from engine.sheet import ACCENT, HAIR, INK, PAPER, QUIET, Sheet
from wizard.verdict import held_out_losses
from wizard.words import count, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SECOND = "#1c7ed6"

GROUPS = {"unet": "UNet", "text_encoder": "text encoder", "text_encoder_2": "second text encoder"}

CHART_INCHES = (9.0, 4.6)
CHART_DPI = 150

PAIR_SIDE = 288
"""Pixels of the longer side at which samples stand in a sheet of pairs, about."""


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
        over_time=samples_over_time(events, run.path, run.path / GRID) if len(samples_of(events)) > 1 else None,
    )


def steps_of(events: Iterable[Event]) -> list[StepFinished]:
    """Every step once, in order; of steps that were done again after a resume, the later ones."""
    by_step = {event.step: event for event in events if isinstance(event, StepFinished)}
    return [by_step[step] for step in sorted(by_step)]


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
            1,
            1.01,
            f"{count(above, 'dot is', 'dots are')} above the picture",
            transform=axes.transAxes,
            ha="right",
            color=QUIET,
            size=8,
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
        f"Same prompt and same starting noise in each pair; only the LoRA differs ({count(last, 'step')}).",
        PAIR_SIDE,
    )
    blocks = [
        sheet.block(
            before.prompt,
            [("base model", opened_sample(folder, before)), ("with your LoRA", opened_sample(folder, after))],
            strong=1,
        )
        for before, after in pairs
    ]
    return sheet.save(blocks, columns=1 if len(blocks) < 2 else 2 if len(blocks) < 9 else 3, path=path)
