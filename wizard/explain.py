"""`lora-wizard explain`: any setting, choice or word, under any name it has anywhere."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from knowledge.answers import PlainError, write_whole
from knowledge.config import choices, fields, sections
from knowledge.expressions import in_words
from knowledge.lessons import Lesson, of_parameter, record
from knowledge.library import Guide, guides, sources
from knowledge.names import find
from knowledge.optimizer_arguments import known_arguments
from knowledge.parameters import (
    LEVELS,
    Choice,
    Entry,
    Parameter,
    Term,
    advice_words,
    parameters,
    terms,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

SECTIONS = {
    "general": "In general",
    "base_model": "Base model",
    "dataset": "Pictures and captions",
    "network": "The network",
    "optimizer": "The optimizer",
    "schedule": "Length and schedule",
    "ema": "Averaged weights",
    "loss": "The loss",
    "noise": "The noise",
    "memory": "Memory and speed",
    "sampling": "Sample pictures",
    "validation": "Held-out pictures",
    "saving": "Saving",
    "logging": "Trackers",
    "output": "The result",
}
"""The sections of the schema as a reader knows them."""

UNBOUNDED = 99_999
"""A hard limit beyond this is there for the program; no reader would come near it."""

EVIDENCE = {
    "measured": "measured",
    "paper": "from a paper",
    "implementation": "read in source code",
    "community": "experience of many",
    "opinion": "our opinion",
}
DIALECTS = {
    "kohya": "kohya's sd-scripts",
    "kohya_gui": "kohya_ss window",
    "onetrainer": "OneTrainer",
    "ai_toolkit": "ai-toolkit",
    "diffusers": "diffusers scripts",
    "simpletuner": "SimpleTuner",
    "everydream": "EveryDream",
    "also": "elsewhere",
}


@click.command(
    context_settings={"ignore_unknown_options": True},  # a name may be pasted with its dashes: explain --network_dim
    epilog="Examples: lora-wizard explain rank · lora-wizard explain network_dim · lora-wizard explain",
)
@click.argument("name", nargs=-1)
@click.option("--section", type=click.Choice(list(SECTIONS)), help="Every setting of one section.")
@click.option("--level", type=click.Choice(LEVELS), help="Only what one needs at this level.")
@click.option("--all", "everything", is_flag=True, help="The whole handbook.")
@click.option("--format", "kind", type=click.Choice(["html", "md"]), help="The handbook's format; html if not given.")
@click.option("--output", type=click.Path(path_type=Path), help="The file to write the handbook to.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def explain(
    name: tuple[str, ...],
    section: str | None,
    level: str | None,
    everything: bool,
    kind: str | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Explain any setting, choice or word, under any name it has anywhere; without a name, the index."""
    if everything:
        _handbook(kind or "html", output)
        return
    if kind or output:
        raise PlainError("--format and --output belong to the handbook; add --all.", 2)
    if name:
        _one(" ".join(name), as_json)
        return
    listed = [p for p in parameters().values() if _belongs(p, section, level)]
    if as_json:
        click.echo(json.dumps({"parameters": [_line(p) for p in listed], "terms": list(terms())}, ensure_ascii=False))
        return
    from wizard import views

    views.console().print(index(listed, detailed=bool(section or level)))


def _one(name: str, as_json: bool) -> None:
    guide = guides().get(name.strip().lower().replace(" ", "-"))
    if guide is not None:
        _show_guide(guide, as_json)
        return
    entry = find(name)
    if as_json:
        click.echo(json.dumps(document(entry), ensure_ascii=False))
        return
    from wizard import views

    console = views.console()
    console.print()
    console.print(views.indented(page(entry)))
    console.print()


def _show_guide(guide: Guide, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(asdict(guide), ensure_ascii=False))
        return
    from rich.markdown import Markdown

    from wizard import views

    views.console().print(Markdown(guide.text))


def _handbook(kind: str, output: Path | None) -> None:
    from wizard import handbook

    text = handbook.html() if kind == "html" else handbook.markdown()
    if output is None:
        click.echo(text)
        return
    write_whole(output, text)
    click.echo(f"The handbook is in {output}.")


def _belongs(parameter: Parameter, section: str | None, level: str | None) -> bool:
    return (section is None or section_of(parameter) == section) and (level is None or parameter.level == level)


def section_of(parameter: Parameter) -> str:
    first = parameter.name.partition(".")[0]
    return first if first in sections() else "general"


# --- what --json prints -----------------------------------------------------------------------------------------------


def _line(parameter: Parameter) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "title": parameter.title,
        "level": parameter.level,
        "meaning": parameter.meaning,
    }


def document(entry: Parameter | Choice | Term) -> dict[str, Any]:
    """Everything that is known of an entry, with its kind, and the cost of its values where they differ."""
    known = asdict(entry)
    known["kind"] = {Parameter: "parameter", Choice: "choice"}.get(type(entry), getattr(entry, "kind", ""))
    known["sources"] = [asdict(sources()[source]) for source in entry.sources]
    if isinstance(entry, Parameter):
        known["recommendations"] = [
            dict(zip(("case", "value", "because"), advice_words(entry, row), strict=True))
            for row in entry.recommendations
        ]
        from wizard.costs import costs

        known["costs"] = [asdict(cost) for cost in costs(entry)]
    return known


# --- what a reader sees -----------------------------------------------------------------------------------------------


def page(entry: Parameter | Choice | Term) -> RenderableType:
    """All that the knowledge base says of an entry, for the terminal."""
    from rich.text import Text

    from wizard import views

    parts: list[RenderableType] = [_heading(entry), views.prose(entry.meaning, "strong")]
    if entry.explanation:
        parts.append(views.prose(entry.explanation))
    if isinstance(entry, Parameter):
        parts += _of_parameter(entry)
    if isinstance(entry, Choice):
        told = [("Choose it", entry.choose), ("Avoid it", entry.avoid), ("Works in", entry.works_in)]
        parts.append(_labelled(told))
        parts.append(Text(f"It is one of the choices for {entry.parameter}.", "quiet"))
    if isinstance(entry, Term) and entry.here:
        parts.append(_labelled([("Here", entry.here)]))
    if entry.interactions:
        parts.append(_labelled([(_title(other), text) for other, text in entry.interactions.items()], "Together with"))
    for myth in entry.myths:
        parts.append(_labelled([("You may read", myth.claim), ("In truth", myth.truth)]))
    if entry.names:
        parts.append(_labelled([(DIALECTS[d], ", ".join(words)) for d, words in entry.names.items()], "Other names"))
    parts.append(Text(_basis(entry), "quiet"))
    return views.page(*(part for part in parts if part is not None))


def _heading(entry: Parameter | Choice | Term) -> RenderableType:
    from wizard import views

    if isinstance(entry, Term):
        return views.heading(entry.title, "" if entry.kind == "term" else "not a setting of this program")
    return views.heading(entry.title, f"{entry.name} · {entry.level}" if isinstance(entry, Parameter) else entry.name)


def _of_parameter(entry: Parameter) -> Iterator[RenderableType]:
    from wizard import views

    if entry.too_low or entry.too_high:
        yield _labelled([("Too low", entry.too_low), ("Too high", entry.too_high)])
    if entry.recommendations:
        advised = [advice_words(entry, row) for row in entry.recommendations]
        rows = [(case or "everyone", *rest) for case, *rest in advised]
        yield _titled("Recommended", views.table(("For", "Value", "Because"), rows))
    if entry.choices:
        choices = [(c.title, views.prose(f"{c.meaning} {c.choose}")) for c in entry.choices.values()]
        yield _titled("Choices", views.rows(choices))
    from wizard.costs import EXAMPLE_WORDS, costs, headings

    priced = costs(entry)
    if priced:
        columns = headings(priced)
        lines = [(cost.value, *(cost.words()[column] for column in columns)) for cost in priced]
        yield _titled("What it costs", views.table((entry.title, *columns), lines, right=columns), EXAMPLE_WORDS)
    tried = [(f"lab {lesson.name}", said) for lesson, said in measured(entry)]
    if tried:
        yield _labelled(tried, "Measured on the pocket model")
    yield _labelled([("Default", in_words(entry.default)), ("Allowed", allowed(entry))])


def measured(entry: Parameter) -> list[tuple[Lesson, str]]:
    """The lessons about a setting, each with its conclusion in the figures that were recorded, averaged over seeds."""
    return [
        (lesson, lesson.said(found.mean())) for lesson in of_parameter(entry.name) if (found := record(lesson.name))
    ]


def allowed(entry: Parameter) -> str:
    """The hard limits in words; empty where there are none."""
    if entry.name == "optimizer.arguments":
        taken = ((name, known_arguments(name)) for name in choices(fields()["optimizer.name"]))
        return "; ".join(f"{name}: {', '.join(arguments)}" for name, arguments in taken)
    if entry.choices or (entry.minimum is None and entry.maximum is None):
        return ""
    low = None if entry.minimum is None else in_words(entry.minimum)
    high = None if entry.maximum is None or entry.maximum > UNBOUNDED else in_words(entry.maximum)
    unit = f" {entry.unit}" if entry.unit and " " not in entry.unit else ""
    return f"{low} to {high}{unit}" if low and high else f"from {low}{unit}" if low else f"up to {high}{unit}"


def _labelled(pairs: Sequence[tuple[str, str]], title: str = "") -> Any:
    from wizard import views

    told = [(label, views.prose(text)) for label, text in pairs if text]
    if not told:
        return None
    table = views.rows(told, 12)
    return _titled(title, table) if title else table


def _titled(title: str, below: RenderableType, aside: str = "") -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    return Group(Text.assemble((title, "accent"), (f"   {aside}" if aside else "", "quiet")), below)


def _title(name: str) -> str:
    return parameters()[name].title if name in parameters() else name


def _basis(entry: Entry) -> str:
    cited = "; ".join(sources()[source].title for source in entry.sources)
    return f"{EVIDENCE[entry.evidence].capitalize()}{': ' if cited else ''}{cited}"


def index(listed: Sequence[Parameter], *, detailed: bool = False) -> RenderableType:
    """The settings by section, essentials first; with what each means when `detailed`."""
    from rich.text import Text

    from wizard import views

    parts: list[RenderableType] = []
    for section, title in SECTIONS.items():
        inside = sorted((p for p in listed if section_of(p) == section), key=lambda p: LEVELS.index(p.level))
        if not inside:
            continue
        if detailed:
            lines = [(p.name, views.prose(f"{p.title}. {p.meaning}")) for p in inside]
            parts.append(_titled(title, views.rows(lines)))
            continue
        by_level = [(level, ", ".join(_short(p) for p in inside if p.level == level)) for level in LEVELS]
        rows = views.rows([(level, Text(words)) for level, words in by_level if words], 9)
        parts.append(_titled(title, rows, section))
    if not detailed:
        shelf = [(guide.name, views.prose(guide.title)) for guide in guides().values()]
        if shelf:
            parts.append(_titled("Guides", views.rows(shelf)))
        words = ", ".join(sorted((term.title for term in terms().values() if term.kind == "term"), key=str.lower))
        parts.append(_titled("Words", Text(words)))
        parts.append(
            Text(
                "lora-wizard explain NAME explains one, under any name it has anywhere. "
                "--section shows one section with meanings, --all --output handbook.html writes everything.",
                "quiet",
            )
        )
    return views.page(*parts)


def _short(parameter: Parameter) -> str:
    return parameter.name.partition(".")[2] or parameter.name
