"""`lora-wizard lab`: one setting, a few values, and what each of them makes of the pocket model in about a minute."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from knowledge.answers import PlainError, did_you_mean
from knowledge.lessons import BASE, QUANTITIES, Figures, Lesson, lessons, variant_config
from wizard import views, words

if TYPE_CHECKING:
    from rich.console import RenderableType

    from wizard.trials import Trial

FOLDER = Path("lora-wizard-lab")


@click.command(epilog="Example: lora-wizard lab learning_rate")
@click.argument("name", metavar="[LESSON]", required=False)
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Where all chance comes from.")
@click.option("--at-once", type=click.IntRange(1), help="Trainings at the same time.  [default: one for each core]")
@click.option("--folder", type=click.Path(path_type=Path), default=FOLDER, show_default=True, help="Where to put all.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def lab(name: str | None, seed: int, at_once: int | None, folder: Path, as_json: bool) -> int:
    """Try a setting too low, right and too high on the built-in model; without a lesson, list them.

    Each lesson trains the pocket model a few times, about a minute each, and lays the pictures side by side.
    """
    if name is None:
        return _list(as_json)
    lesson = find_lesson(name)
    console = views.console()
    if not as_json:
        console.print(views.indented(views.page("", introduction(lesson))), "")
    trials = prepare(lesson, seed, folder)
    train(trials, at_once or os.cpu_count() or 1, shown=not as_json)
    figures = figures_of(trials)
    path = picture(lesson, trials, figures, folder / f"{lesson.name}.png")
    if as_json:
        click.echo(json.dumps(document(lesson, figures, path), ensure_ascii=False))
    else:
        console.print("", views.indented(views.page(*_outcome(lesson, figures, path))))
    return 0


def find_lesson(name: str) -> Lesson:
    """The lesson of this name, or the first about a setting that goes by it. Raises PlainError naming the nearest."""
    if name in lessons():
        return lessons()[name]
    from knowledge.names import find
    from knowledge.parameters import Choice

    try:
        entry = find(name)
    except PlainError:
        raise PlainError(
            f'There is no lesson "{name}".{did_you_mean(name, lessons())} List them: lora-wizard lab', 2
        ) from None
    address = entry.parameter if isinstance(entry, Choice) else entry.name
    about = [lesson for lesson in lessons().values() if address in lesson.parameters]
    if not about:
        raise PlainError(f"There is no lesson about {entry.title}. List them: lora-wizard lab", 2)
    return about[0]


# --- the trainings ----------------------------------------------------------------------------------------------------


def prepare(lesson: Lesson, seed: int, folder: Path) -> list[Trial]:
    """A training for each variant, not yet begun; the first one also draws what the base model makes of the prompts."""
    from engine.pocket import DEMO_FOLDER, KNOWN_FOLDER
    from wizard.trials import Trial

    trials: list[Trial] = []
    for variant in lesson.variants:
        pictures: list[dict[str, Any]] = [{"path": str(DEMO_FOLDER), "repeats": 10}]
        if variant.regularisation:
            pictures.append({"path": str(KNOWN_FOLDER), "repeats": 5, "regularisation": True})
        config = variant_config(
            variant,
            seed,
            {
                "dataset.folders": pictures,
                "sampling.at_start": not trials,
                "output.folder": str(folder / "runs"),
                "output.name": f"{lesson.name}-{variant.name}".replace("_", "-"),
            },
        )
        trials.append(Trial(variant.name, variant.words(), config))
    return trials


def train(trials: Sequence[Trial], at_once: int, *, shown: bool) -> None:
    """All trainings to their ends, with a line for each where there is a terminal to show it."""
    from wizard.trials import finish

    if shown and views.interactive() and not views.plain_terminal():
        from rich.live import Live

        with Live(views.indented(standing(trials)), console=views.console(), refresh_per_second=4) as live:
            finish(trials, at_once, lambda: live.update(views.indented(standing(trials))))
        return
    finish(trials, at_once, _told(trials) if shown else lambda: None)


def _told(trials: Sequence[Trial]) -> Callable[[], None]:
    """Says once of each training that it has ended, for output that is not a terminal."""
    said: set[str] = set()

    def look() -> None:
        for trial in trials:
            if trial.done and trial.name not in said:
                said.add(trial.name)
                views.say(f"  {views.escape(trial.label)}: done")

    return look


def standing(trials: Sequence[Trial]) -> RenderableType:
    """A line for each training: how far it is, and its loss."""
    from rich.text import Text

    lines = []
    for trial in trials:
        progress = trial.follower.progress if trial.follower else None
        share = 1.0 if trial.done else progress.share if progress else 0.0
        if trial.done:
            now = "done"
        elif trial.examining:
            now = "measuring on unseen pictures"
        elif progress is None:
            now = "waiting"
        elif progress.step and progress.smoothed_loss is not None:
            now = f"step {progress.step} of {progress.total_steps}, loss {words.number(progress.smoothed_loss)}"
        else:
            now = "loading"
        lines.append((trial.label, Text.assemble(views.bar(share), f"  {now}")))
    return views.rows(lines)


def figures_of(trials: Sequence[Trial]) -> Figures:
    """What was measured of every variant, and of the base model."""
    return {BASE: trials[0].curve[0][1], **{trial.name: trial.figures() for trial in trials}}


def picture(lesson: Lesson, trials: Sequence[Trial], figures: Figures, path: Path) -> Path:
    """The lesson's sheet, written to `path`."""
    from wizard.lesson_sheet import lesson_sheet

    path.parent.mkdir(parents=True, exist_ok=True)
    return lesson_sheet(lesson, trials, lesson.said(figures), path)


# --- what is said -----------------------------------------------------------------------------------------------------


def _list(as_json: bool) -> int:
    if as_json:
        told = [
            {"name": x.name, "title": x.title, "question": x.question, "claim": x.claim} for x in lessons().values()
        ]
        click.echo(json.dumps({"lessons": told}, ensure_ascii=False))
        return 0
    rows = [(lesson.name, views.prose(lesson.question)) for lesson in lessons().values()]
    footer = views.prose(
        "lora-wizard lab LESSON trains the built-in model once for each value, about a minute each, and lays the "
        "pictures side by side.",
        "quiet",
    )
    views.console().print("", views.indented(views.page(views.heading("The pocket lab"), views.rows(rows), footer)), "")
    return 0


def introduction(lesson: Lesson) -> RenderableType:
    """What is about to be tried, and how long it takes."""
    count = len(lesson.variants)
    return views.page(
        views.heading(lesson.title, f"{words.count(count, 'training')} of the pocket model"),
        views.prose(lesson.question),
    )


def figures_table(lesson: Lesson, figures: Figures) -> RenderableType:
    """The quantities that the lesson shows, a line for each variant; the base model first where it has them."""
    shows = lesson.shows
    columns = [HEADINGS[name] for name in shows]
    lines = [
        ("base model", *(_shown(name, figures[BASE][name]) if name in figures[BASE] else "" for name in shows)),
        *(
            (variant.words(), *(_shown(name, figures[variant.name][name]) for name in shows))
            for variant in lesson.variants
        ),
    ]
    return views.table(("", *columns), lines, right=columns)


HEADINGS = {
    "creature_loss": "Creature",
    "wordless_loss": "Without words",
    "known_loss": "What it knew",
    "training_loss": "Training loss",
    "loss_spread": "Jumps by",
    "steps": "Steps",
    "views": "Views",
    "trained": "Numbers trained",
    "file_bytes": "File",
    "seconds_per_step": "A step",
}


def _shown(quantity: str, value: float) -> str:
    if quantity == "file_bytes":
        return words.size(value)
    if quantity == "seconds_per_step":
        return words.duration(value)
    return f"{value:,.0f}" if quantity in ("steps", "views", "trained") else f"{value:.3f}"


def _outcome(lesson: Lesson, figures: Figures, path: Path) -> list[RenderableType]:
    from rich.text import Text

    mark = ("✓ ", "good") if lesson.holds(figures) else ("! ", "warning")
    legend = [(HEADINGS[name], views.prose(QUANTITIES[name])) for name in lesson.shows]
    return [
        figures_table(lesson, figures),
        views.rows(legend),
        Text.assemble(mark, lesson.said(figures)),
        views.prose(lesson.look),
        Text.assemble("The pictures side by side: ", (str(path), "strong")),
        Text(f"More about it: lora-wizard explain {lesson.parameters[0]}", "quiet"),
    ]


def document(lesson: Lesson, figures: Figures, path: Path) -> dict[str, Any]:
    """What --json prints."""
    return {
        "lesson": lesson.name,
        "question": lesson.question,
        "claim": lesson.claim,
        "holds": lesson.holds(figures),
        "conclusion": lesson.said(figures),
        "figures": figures,
        "picture": str(path),
    }
