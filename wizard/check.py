"""`lora-wizard check`: an answers file read, planned and judged, without starting anything."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from knowledge.answers import PlainError, parse_assignment, plain_problems, read_answers
from knowledge.assessment import assess
from knowledge.config import DatasetFolder
from knowledge.facts import DatasetFacts, FolderFacts, Picture
from wizard.exchange import import_document, show_import
from wizard.needs import lacking

if TYPE_CHECKING:
    from knowledge.config import TrainingConfig
    from knowledge.formats.translation import Imported
    from wizard.situation import Situation

BLOCKED = 3
"""The exit code of a config that cannot start."""


@click.command(epilog="Example: lora-wizard check my-lora.toml")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--set", "assignments", multiple=True, metavar="NAME=VALUE", help="Look at it with this setting changed.")
@click.option(
    "--images", type=click.IntRange(1, 1_000_000), metavar="N", help="Reckon with N pictures in each of its folders."
)
@click.option("--gpu", metavar="NAME", help="Another computer's card, as RTX 3060 or A100; cpu for none.")
@click.option("--json", "as_json", is_flag=True, help="The plan and the findings as one JSON document.")
@click.pass_context
def check(
    context: click.Context,
    file: Path,
    assignments: tuple[str, ...],
    images: int | None,
    gpu: str | None,
    as_json: bool,
) -> None:
    """The plan of an answers file, and what is wrong or risky in it, gravest first.

    Files of other trainers, and LoRA files, are read as lora-wizard import reads them: what becomes of their keys, then
    the plan of the same training here. Their pictures are often elsewhere: --images says how many there are. Ends with
    exit code 3 when training could not start.
    """
    imported = _foreign(file)
    if imported is not None and imported.config is None:
        _refuse(imported, file, as_json)
        context.exit(BLOCKED)
    config = imported.config if imported is not None and imported.config is not None else read_answers(file)
    situation = _situation(_changed(config, assignments), images, gpu)
    if as_json:
        extra = {"imported": import_document(imported)} if imported is not None else {}
        click.echo(json.dumps(document(situation) | extra, ensure_ascii=False, default=str))
    else:
        if imported is not None:
            show_import(imported, file, brief=True)
            print()
        show(situation)
    if situation.blocked:
        context.exit(BLOCKED)


def _refuse(imported: Imported, file: Path, as_json: bool) -> None:
    """Say of a file whose settings do not go together here what became of them, and why no plan follows."""
    if as_json:
        problem = "\n".join(imported.problems)
        extra = {"imported": import_document(imported)}
        click.echo(json.dumps({"findings": [], "blocked": True, "problem": problem} | extra, default=str))
    else:
        show_import(imported, file, brief=True)
        print("\nThis cannot start as it is.")


def _foreign(file: Path) -> Imported | None:
    """What a file of another trainer says; None for answers of ours, and for what is neither."""
    from knowledge.formats.reader import is_foreign, read_foreign

    return read_foreign(file) if is_foreign(file) else None


def document(situation: Situation) -> dict[str, Any]:
    """What --json prints: the plan and its worth where the pictures can be read, the findings always, `problem` where
    not."""
    findings = situation.findings
    known: dict[str, Any] = {"findings": [asdict(found) for found in findings]}
    if situation.plan:
        known = situation.plan.as_dict(findings) | {"assessment": [asdict(one) for one in assess(situation.facts)]}
    problem = "\n".join(situation.hindrances)
    return known | {"blocked": situation.blocked} | ({"problem": problem} if problem else {})


def show(situation: Situation) -> None:
    """Prints the plan and the findings for a reader."""
    from wizard import review, views

    console = views.console()
    console.print(review.whole_plan(situation))
    if not situation.config.dataset.folders:
        console.print("\n[warning]![/] No pictures are named, so steps and time are not known. Set dataset.folders.")
    for line in situation.hindrances:
        console.print()
        console.print(views.finding("blocks", line))
    if situation.problem and situation.dataset is None and situation.config.dataset.folders:
        console.print("\n[quiet]Steps, time and memory hang on the pictures; say how many there are: --images 20[/]")
    console.print()
    if situation.blocked:
        console.print("[blocks]This cannot start as it is.[/]")
    elif not situation.findings:
        console.print("[good]Nothing to remark: ready to train.[/]")
    else:
        console.print("[good]This can start.[/]")


def _situation(config: TrainingConfig, images: int | None, gpu: str | None) -> Situation:
    from wizard.calc import computer
    from wizard.situation import Workbench

    situation = Workbench(base=config, recommend=False).situation({})
    if gpu is not None:
        situation = replace(situation, hardware=computer(gpu))
    if images is not None:
        situation = replace(situation, dataset=_supposed(config, images), problem="")
    return replace(situation, absent="\n".join(lacking(config)))


def _supposed(config: TrainingConfig, images: int) -> DatasetFacts:
    """So many square pictures in each folder, or in one where none is named."""
    side = config.dataset.resolution
    shown = tuple(Picture("", side, side, f"picture {number}") for number in range(images))
    folders = config.dataset.folders or (DatasetFolder(path="pictures"),)
    return DatasetFacts(tuple(FolderFacts(shown, folder.repeats, folder.regularisation) for folder in folders))


def _changed(config: TrainingConfig, assignments: tuple[str, ...]) -> TrainingConfig:
    from pydantic import ValidationError

    from knowledge.config import with_values

    if not assignments:
        return config
    try:
        return with_values(config, dict(map(parse_assignment, assignments)))
    except ValidationError as error:
        raise PlainError("\n".join(plain_problems(error)), 2) from None
