"""`lora-wizard doctor`: is this computer ready? Each line says what was found, if it matters, and what mends it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from wizard import views
from wizard.checks import examine, in_the_way
from wizard.mending import install, installs
from wizard.patient import Line, Patient, find_out
from wizard.words import count

if TYPE_CHECKING:
    from rich.console import RenderableType

MARKS = {"good": ("✓", "good"), "note": ("·", "quiet"), "warning": ("!", "warning"), "problem": ("✗", "error")}


@click.command(epilog="Example: lora-wizard doctor my-lora.toml")
@click.argument("answers", metavar="[FILE]", required=False, type=click.Path(path_type=Path))
@click.option("--install", "installing", is_flag=True, help="Install what is missing, after asking, and look again.")
@click.option("--yes", is_flag=True, help="Install without asking.")
@click.option("--json", "as_json", is_flag=True, help="Print what was found as one JSON document.")
def doctor(answers: Path | None, installing: bool, yes: bool, as_json: bool) -> int:
    """What this computer can train, and what would mend what is missing.

    With an answers FILE it also says whether that training fits this computer. Exits with 1 when something is in the
    way of training. --install runs the commands for what is in the way that begin with pip.
    """
    if installing and (as_json or not (yes or views.interactive())):
        raise click.UsageError("--install asks in a terminal, or goes with --yes; and not with --json.")
    if as_json:
        lines = list(examine(patient_for(answers)))
        document = {"ready": not in_the_way(lines), "lines": [asdict(line) for line in lines]}
        print(json.dumps(document, ensure_ascii=False))
    else:
        lines = _shown(answers)
        commands = installs(lines) if installing else []
        question = f"Run {count(len(commands), 'command')} with pip, as named above?"
        if commands and (yes or click.confirm(question, default=True)) and install(commands):
            lines = _shown(answers)
    return 1 if in_the_way(lines) else 0


def _shown(answers: Path | None) -> list[Line]:
    """What was found, on the terminal as well."""
    console = views.console()
    with console.status("Looking at this computer; some libraries take a while to answer"):
        lines = list(examine(patient_for(answers)))
    console.print(views.indented(views.page(*page(lines))))
    return lines


def page(lines: Sequence[Line]) -> Iterator[RenderableType]:
    """All lines as the terminal shows them, and what comes of them."""
    from rich.text import Text

    yield ""
    yield views.heading("This computer")
    yield grid(lines)
    problems = in_the_way(lines)
    if problems:
        yield Text.assemble(
            ("✗ ", "error"),
            f"{count(len(problems), 'thing')} in the way of training: {', '.join(p.name for p in problems)}.",
        )
    else:
        yield Text.assemble(("✓ ", "good"), "Nothing is in the way of training.")


def grid(lines: Sequence[Line], briefly: bool = False) -> RenderableType:
    """The lines below each other, each with what it means and what mends it; `briefly` only with what was found."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(style="quiet", no_wrap=True)
    table.add_column()
    for line in lines:
        mark, style = MARKS[line.state]
        said: list[RenderableType] = [Text(line.found)]
        if line.matters and not briefly:
            said.append(Text(line.matters, style="quiet"))
        if line.mend and not briefly:
            said.append(Text.assemble(("→ ", "accent"), line.mend, overflow="fold"))
        table.add_row(Text(mark, style=style), line.name, Group(*said))
    return table


def patient_for(answers: Path | None) -> Patient:
    """This computer, seen for the training of an answers file where there is one."""
    if answers is None:
        return find_out()
    from knowledge.answers import read_answers
    from wizard.launch import situation_of

    return find_out(situation_of(read_answers(answers)), shlex.quote(str(answers)))
