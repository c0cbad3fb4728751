"""`lora-wizard check`: an answers file read, planned and judged, without starting anything."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from knowledge.answers import parse_assignment, plain_problems, read_answers
from knowledge.config import POCKET_MODEL

if TYPE_CHECKING:
    from knowledge.config import TrainingConfig
    from wizard.situation import Situation

BLOCKED = 3
"""The exit code of a config that cannot start."""


@click.command(epilog="Example: lora-wizard check my-lora.toml")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--set", "assignments", multiple=True, metavar="NAME=VALUE", help="Look at it with this setting changed.")
@click.option("--json", "as_json", is_flag=True, help="The plan and the findings as one JSON document.")
@click.pass_context
def check(context: click.Context, file: Path, assignments: tuple[str, ...], as_json: bool) -> None:
    """The plan of an answers file, and what is wrong or risky in it, gravest first.

    Ends with exit code 3 when training could not start.
    """
    situation = _situation(_changed(read_answers(file), assignments))
    if as_json:
        click.echo(json.dumps(document(situation), ensure_ascii=False))
    else:
        show(situation)
    if situation.blocked:
        context.exit(BLOCKED)


def document(situation: Situation) -> dict[str, Any]:
    """What --json prints: the plan where the pictures can be read, the findings always, `problem` where not."""
    findings = situation.findings
    known = situation.plan.as_dict(findings) if situation.plan else {"findings": [asdict(found) for found in findings]}
    return known | {"blocked": situation.blocked} | ({"problem": situation.problem} if situation.problem else {})


def show(situation: Situation) -> None:
    """Prints the plan and the findings for a reader."""
    from wizard import review, views

    console = views.console()
    console.print(review.whole_plan(situation))
    if not situation.config.dataset.folders:
        console.print("\n[warning]![/] No pictures are named, so steps and time are not known. Set dataset.folders.")
    for line in situation.problem.splitlines():
        console.print(f"\n[blocks]✗[/] {views.escape(line)}")
    console.print()
    if situation.blocked:
        console.print("[blocks]This cannot start as it is.[/]")
    elif not situation.findings:
        console.print("[good]Nothing to remark: ready to train.[/]")
    else:
        console.print("[good]This can start.[/]")


def _situation(config: TrainingConfig) -> Situation:
    from wizard.situation import Workbench

    situation = Workbench(base=config, recommend=False).situation({})
    path = config.base_model.path
    if path != POCKET_MODEL and not Path(path).expanduser().exists():
        missing = f"There is no base model at {path} (base_model.path)."
        situation = replace(situation, problem="\n".join(filter(None, (situation.problem, missing))))
    return situation


def _changed(config: TrainingConfig, assignments: tuple[str, ...]) -> TrainingConfig:
    from pydantic import ValidationError

    from knowledge.answers import PlainError
    from knowledge.config import with_values

    if not assignments:
        return config
    try:
        return with_values(config, dict(map(parse_assignment, assignments)))
    except ValidationError as error:
        raise PlainError("\n".join(plain_problems(error)), 2) from None
