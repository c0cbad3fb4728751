"""The last page of a run: what there is now, where it lies, and what to do next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine.events import Event, Failed, RunFinished
from engine.run_folder import RunFolder
from knowledge.answers import PlainError
from knowledge.config import TrainingConfig
from wizard import views, words
from wizard.charts import Charts, draw_charts
from wizard.progress import Progress
from wizard.words import size

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class Keepsakes:
    """What was made of a run's events besides the LoRA: charts and the report."""

    charts: Charts
    report: Path | None
    problem: str = ""


def make_keepsakes(run: RunFolder, events: list[Event]) -> Keepsakes:
    """Draw the charts and write the report; a run that ended is not made worse by a chart that cannot be drawn."""
    from wizard.report import write_report

    try:
        charts = draw_charts(run, events)
        return Keepsakes(charts, write_report(run, events, charts))
    except (OSError, PlainError) as problem:
        return Keepsakes(Charts(), None, f"Charts and report could not be written: {problem}")


def show_outcome(run: RunFolder, progress: Progress, kept: Keepsakes) -> None:
    """Print the last page; what went wrong was said before it."""
    views.console().print(views.indented(views.page(*_page(run, progress, kept))))


def _page(run: RunFolder, progress: Progress, kept: Keepsakes) -> Iterator[RenderableType]:
    from rich.text import Text

    ended = progress.ended
    yield ""
    if isinstance(ended, RunFinished) and ended.reason == "completed":
        yield Text.assemble(("✓ ", "good"), ("Your LoRA is ready.", "strong"))
    elif isinstance(ended, Failed):
        yield Text.assemble(("✗ ", "error"), ("The training did not finish.", "strong"))
    else:
        where = (
            f" after step {progress.step:,} of {progress.total_steps:,}" if progress.step else " before the first step"
        )
        yield Text.assemble(("■ ", "accent"), (f"Stopped{where}.", "strong"))
    files = list(_files(run, kept))
    if files:
        yield Text.assemble("In ", (str(run.path), "strong"), ":")
        yield views.indented(views.rows(files))
    if kept.problem:
        yield Text.assemble(("! ", "warning"), kept.problem)
    if isinstance(ended, RunFinished) and ended.reason == "completed":
        yield Text("\n".join(how_to_use(run.config())))
    else:
        words_on, command = way_on(run, progress.step)
        yield Text(words_on)
        yield views.indented(Text(command, "strong"))


def _files(run: RunFolder, kept: Keepsakes) -> Iterator[tuple[str, RenderableType]]:
    """What lies in the run's folder, with what it is."""
    from rich.text import Text

    newest, charts = newest_network(run), kept.charts
    there = [
        (newest, f"your LoRA, {size(newest.stat().st_size)}" if newest else ""),
        (kept.report, "all of it on one page, for a browser"),
        (charts.before_after, "base model beside your LoRA"),
        (charts.over_time, "how it came about"),
        (charts.loss, "the loss, step by step"),
    ]
    for path, what in there:
        if path is not None:
            yield str(path.relative_to(run.path)), Text(what)


def newest_network(run: RunFolder) -> Path | None:
    """The network file that was written last."""
    files = sorted(run.checkpoints.glob("*.safetensors"), key=lambda file: file.stat().st_mtime_ns)
    return files[-1] if files else None


def way_on(run: RunFolder, step: int) -> tuple[str, str]:
    """What is saved of a run that ended after `step` without finishing, and the command that goes on from there."""
    states = run.states()
    if states:
        saved = int(states[0].name.rpartition("-")[2])
        return f"Everything up to step {saved:,} is saved. To go on from there:", f"lora-wizard resume {address(run)}"
    start_again = f"lora-wizard train {run.path / 'config.toml'}"
    if newest_network(run):
        return "The LoRA file can be used, but the training cannot go on from it. To start again:", start_again
    if step:
        lost = words.count(step, "step is", "steps are")
        return f"Nothing had been saved yet; the {lost} lost. To start again:", start_again
    return "Nothing had been trained yet, so nothing is lost. To start again:", start_again


def address(run: RunFolder) -> str:
    """How a command names this run: by name where it lies in the usual folder, by its path elsewhere."""
    return run.name if run.path.parent == Path("runs") else str(run.path)


def how_to_use(config: TrainingConfig) -> list[str]:
    """What to do with the finished file, a sentence a line."""
    trigger = config.dataset.trigger_word
    word = f"Write “{trigger}” in the prompt to call it up." if trigger else ""
    if config.base_model.family == "pocket":
        return [
            f"It fits the built-in pocket model only; for pictures you can use, train on a full model. {word}".strip()
        ]
    return [
        f"To use it: copy it to ComfyUI/models/loras, or to models/Lora of A1111 or Forge. {word}".strip(),
        "Start at strength 1; lower it where the LoRA takes over the whole picture.",
    ]
