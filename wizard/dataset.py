"""lora-wizard dataset: look at pictures and captions before they are trained, and bring them in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from knowledge.families import family_facts, family_names
from wizard import views
from wizard.captions import captions
from wizard.file_commands import watched
from wizard.paths import quoted
from wizard.scraping import scrape
from wizard.tagging import tag
from wizard.words import agreeing, count

if TYPE_CHECKING:
    from rich.console import RenderableType

    from engine.dataset.inspect import Inspection
    from knowledge.config import DatasetSettings

FILES_SHOWN = 4
TAGS_SHOWN = 12


@click.group()
def dataset() -> None:
    """Pictures and captions: import, scrape, inspect, tag, edit."""


for command in (scrape, tag, captions):
    dataset.add_command(command)


@dataset.command()
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option("--answers", type=click.Path(path_type=Path), help="Look at the dataset of this answers file instead.")
@click.option("--resolution", type=click.IntRange(16, 4096), help="Pixels of a side, as in training.  [512]")
@click.option("--family", type=click.Choice(family_names()), help="Take the resolution of this model family.")
@click.option("--trigger", default="", metavar="WORD", help="The trigger word, to see which captions hold it.")
@click.option("--caption-extension", metavar=".EXT", help="Ending of the caption files.  [the usual one found]")
@click.option("--batch-size", type=click.IntRange(1), default=1, show_default=True, help="For the table of shapes.")
@click.option("--sheet", type=click.Path(path_type=Path), help="Write a contact sheet (PNG) to this file.")
@click.option("--html", type=click.Path(path_type=Path), help="Write a page with all of it (HTML) to this file.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_context
def inspect(
    context: click.Context,
    folder: Path | None,
    answers: Path | None,
    resolution: int | None,
    family: str | None,
    trigger: str,
    caption_extension: str | None,
    batch_size: int,
    sheet: Path | None,
    html: Path | None,
    as_json: bool,
) -> None:
    """Look at the pictures and captions in FOLDER before they are trained.

    Decodes every picture and names what is broken, blurred, too small, there twice or mislabelled; reads every
    caption. Exit code 3 when something must be mended before training.

    \b
    Example: lora-wizard dataset inspect pictures --trigger sks --html dataset.html
    """
    from engine.dataset.inspect import inspect_dataset
    from knowledge.answers import read_answers

    if (folder is None) == (answers is None):
        raise click.UsageError("Name a folder of pictures, or an answers file with --answers.")
    if answers is not None:
        config = read_answers(answers)
        settings, batch_size = config.dataset, config.schedule.batch_size
    else:
        assert folder is not None
        settings = _settings(folder, resolution or family_facts(family or "sd15").side, trigger, caption_extension)
    with watched("Looking at pictures", quiet=as_json) as tell:
        found = inspect_dataset(settings, batch_size, tell)
    if sheet or html:
        from wizard.dataset_page import contact_sheet, page

        if sheet:
            contact_sheet(found, sheet)
        if html:
            page(found, html)
    if as_json:
        print(json.dumps(found.as_dict(), ensure_ascii=False))
    else:
        console = views.console()
        for part in pages(found):
            console.print(part)
        for written in (sheet, html):
            if written:
                console.print(f"[quiet]Written:[/] {written}")
    if any(finding.severity == "blocks" for finding in found.findings):
        context.exit(3)


def _settings(folder: Path, resolution: int, trigger: str, caption_extension: str | None) -> DatasetSettings:
    """The folder as it would be trained at this resolution, with what is recommended for shape groups."""
    from engine.dataset.folders import suggest_caption_extension, suggest_folders
    from knowledge.config import DatasetSettings

    folders = suggest_folders(folder)
    return DatasetSettings(
        folders=folders,
        trigger_word=trigger,
        caption_extension=caption_extension or suggest_caption_extension(folders),
        resolution=resolution,
        bucket_step=64 if resolution >= 256 else 16,
        bucket_minimum_side=max(16, resolution // 2),
        bucket_maximum_side=resolution * 2,
    )


def pages(found: Inspection) -> list[RenderableType]:
    """What the terminal shows: what is there, what to mend, how it is grouped, which words are used."""
    from rich.padding import Padding
    from rich.text import Text

    from wizard.dataset_page import framing_in_words, summary

    parts: list[RenderableType] = [
        Text(),
        views.heading(count(len(found.pictures), "picture"), summary(found)),
        Text(),
        *(Padding(line, (0, 0, 0, 2)) for line in _finding_lines(found)),
        Text(),
        views.heading(f"Shape groups at {found.resolution} pixels"),
        Padding(_bucket_table(found), (0, 0, 0, 2)),
    ]
    if found.tag_frequency:
        parts += [
            Text(),
            views.heading("Words in the captions", _caption_facts(found)),
            Padding(_tags(found), (0, 0, 0, 2)),
            Padding(Text(framing_in_words(found), "quiet"), (1, 0, 0, 2)),
        ]
    return [*parts, Text(), Text(verdict(found), style="strong"), Text()]


def _finding_lines(found: Inspection) -> list[RenderableType]:
    from rich.table import Table
    from rich.text import Text

    if not found.findings:
        return [Text("Nothing stands out.", style="good")]
    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True)
    grid.add_column()
    for finding in found.findings:
        text = Text(finding.message)
        if finding.files:
            names = ", ".join(Path(name).name for name in finding.files[:FILES_SHOWN])
            more = f" and {len(finding.files) - FILES_SHOWN} more" if len(finding.files) > FILES_SHOWN else ""
            text.append(f"\n{names}{more}", style="quiet")
        grid.add_row(Text(views.SEVERITY_MARKS[finding.severity], style=finding.severity), text)
    return [grid]


def _bucket_table(found: Inspection) -> RenderableType:
    most = max((row.views for row in found.buckets), default=1)
    lines = [
        (
            f"{row.width} × {row.height}",
            f"{row.views:,}",
            f"{row.batches:,}",
            "▆" * max(1, round(24 * row.views / most)),
        )
        for row in found.buckets
    ]
    return views.table(("shape", "views", "batches", ""), lines, right=("views", "batches"))


def _caption_facts(found: Inspection) -> str:
    facts = f"{count(found.captions, 'caption')}, the longest of {count(found.most_tokens, 'token')}"
    if found.trigger_word:
        facts += f"; “{found.trigger_word}” in {found.trigger_captions}"
    return facts


def _tags(found: Inspection) -> RenderableType:
    shown = list(found.tag_frequency.items())[:TAGS_SHOWN]
    lines = [
        (
            tag if len(tag) <= 48 else tag[:47] + "…",
            f"{number:,}",
            "▆" * max(1, round(24 * number / max(found.captions, 1))),
        )
        for tag, number in shown
    ]
    if len(found.tag_frequency) > len(shown):
        lines.append((f"and {len(found.tag_frequency) - len(shown):,} more", "", ""))
    return views.table(("tag", "captions", ""), lines, right=("captions",))


def verdict(found: Inspection) -> str:
    """Whether it can be trained, and what to do first."""
    blocking = [finding for finding in found.findings if finding.severity == "blocks"]
    if not found.usable:
        return "None of these pictures can be trained."
    if blocking:
        rest = f"{found.usable} of {count(len(found.pictures), 'picture')} {agreeing(found.usable, 'is', 'are')} fine. "
        return f"{rest}Mend first: {blocking[0].message}"
    pressing = [finding for finding in found.findings if finding.severity in ("high", "warning")]
    if pressing:
        return f"It can be trained. It would gain most from this: {pressing[0].message}"
    return "It can be trained as it is."


@dataset.command("import")
@click.argument("sources", nargs=-1, required=True)
@click.option("--to", "destination", type=click.Path(path_type=Path), help="The new folder.  [datasets/NAME]")
@click.option("--revision", default="", metavar="NAME", help="Branch, tag or commit on Hugging Face.  [main]")
@click.option("--caption-column", default="", metavar="NAME", help="Column of a table on Hugging Face with captions.")
@click.option("--yes", is_flag=True, help="Download from Hugging Face without asking.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document; downloads need --yes as well.")
def import_(
    sources: tuple[str, ...],
    destination: Path | None,
    revision: str,
    caption_column: str,
    yes: bool,
    as_json: bool,
) -> None:
    """Copy pictures and captions from SOURCES into a new dataset folder.

    SOURCES are folders, files and ZIP archives, or one dataset on Hugging Face: its page, or owner/name. The originals
    are not touched. Folders named like "10_sks cat" keep their name and with it their repeats. For a private dataset
    set HF_TOKEN; else you are asked, and what you answer is kept nowhere.

    \b
    Examples: lora-wizard dataset import holiday.zip "more pictures" --to datasets/holiday
              lora-wizard dataset import https://huggingface.co/datasets/diffusers/dog-example
    """
    from wizard.dataset_import import from_disk, from_the_hub, hub_address

    address = hub_address(sources, revision)
    if address is None:
        if revision or caption_column:
            raise click.UsageError("--revision and --caption-column are for datasets on Hugging Face.")
        done = from_disk([Path(source) for source in sources], destination)
    else:
        found = from_the_hub(sources[0], address, destination, caption_column, yes=yes, quiet=as_json)
        if found is None:
            return
        done = found
    if as_json:
        facts: dict[str, Any] = {"folder": str(done.folder), "pictures": done.pictures, "captions": done.captions}
        facts |= {"renamed": done.renamed, "left_out": dict(done.left_out)}
        facts |= {"from_tables": dict(done.from_tables), "problems": done.problems}
        print(json.dumps(facts, ensure_ascii=False))
        return
    console = views.console()
    console.print(
        f"[good]{count(done.pictures, 'picture')} and {count(done.captions, 'caption')}[/] are now in "
        f"{views.escape(str(done.folder))}."
    )
    if done.renamed:
        twice = "name was there twice and got" if done.renamed == 1 else "names were there twice and got"
        console.print(f"[quiet]{done.renamed:,} {twice} a number.[/]")
    for table, number in done.from_tables.items():
        console.print(f"[quiet]{count(number, 'caption')} came from {views.escape(table)}.[/]")
    for problem in done.problems:
        console.print(f"[warning]{views.escape(problem)}[/]")
    if done.left_out:
        kinds = ", ".join(f"{number} × {extension}" for extension, number in done.left_out.most_common(5))
        console.print(f"[quiet]Left out, neither pictures nor captions: {kinds}[/]")
    console.print(f"[quiet]Look at them: lora-wizard dataset inspect {views.escape(quoted(done.folder))}[/]")
