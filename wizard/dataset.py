"""lora-wizard dataset: look at pictures and captions, bring them in, change captions in bulk and take changes back."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wizard import views
from wizard.words import count

if TYPE_CHECKING:
    from rich.console import RenderableType

    from engine.dataset.caption_edits import Change
    from engine.dataset.inspect import Inspection
    from knowledge.answers import PlainError
    from knowledge.config import DatasetSettings

FILES_SHOWN = 4
TAGS_SHOWN = 12
RESOLUTIONS = {"pocket": 64, "sd15": 512, "sdxl": 1024}


@click.group()
def dataset() -> None:
    """Pictures and captions: import, inspect, tag, edit in bulk."""


@dataset.command()
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option("--answers", type=click.Path(path_type=Path), help="Look at the dataset of this answers file instead.")
@click.option("--resolution", type=click.IntRange(16, 4096), help="Pixels of a side, as in training.  [512]")
@click.option("--family", type=click.Choice(list(RESOLUTIONS)), help="Take the resolution of this model family.")
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
        settings = _settings(folder, resolution or RESOLUTIONS[family or "sd15"], trigger, caption_extension)
    found = inspect_dataset(settings, batch_size, _progress("Looking at pictures", quiet=as_json))
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
        for part in _pages(found):
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


def _pages(found: Inspection) -> list[RenderableType]:
    """What the terminal shows: what is there, what to mend, how it is grouped, which words are used."""
    from rich.padding import Padding
    from rich.text import Text

    from wizard.dataset_page import summary

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
    facts = f"{found.captions} captions, the longest of {found.most_tokens} tokens"
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
        rest = f"{found.usable} of {count(len(found.pictures), 'picture')} are fine. "
        return f"{rest}Mend first: {blocking[0].message}"
    pressing = [finding for finding in found.findings if finding.severity in ("high", "warning")]
    if pressing:
        return f"It can be trained. It would gain most from this: {pressing[0].message}"
    return "It can be trained as it is."


def _progress(what: str, quiet: bool) -> Callable[[int, int], None]:
    """Tells on stderr how far it is, where somebody watches."""
    if quiet or not sys.stderr.isatty():
        return lambda done, total: None

    def tell(done: int, total: int) -> None:
        end = "\r\033[K" if done == total else ""
        sys.stderr.write(f"\r{what} {done} of {total}{end}")
        sys.stderr.flush()

    return tell


@dataset.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--find", metavar="TEXT", help="Replace this text …")
@click.option("--replace", default="", metavar="TEXT", help="… by this one.  [nothing]")
@click.option("--regex", is_flag=True, help="Read --find as a regular expression.")
@click.option("--remove", metavar="TAGS", help="Take these tags away, separated by commas.")
@click.option("--spaces", is_flag=True, help="Turn underscores in tags into spaces.")
@click.option("--unique", is_flag=True, help="Keep each tag once.")
@click.option("--sort", is_flag=True, help="Put the tags in alphabetical order.")
@click.option("--keep-first", type=click.IntRange(1), metavar="N", help="Keep only the first N tags.")
@click.option("--trigger", metavar="WORD", help="Put the trigger word first.")
@click.option("--prefix", metavar="TEXT", help="Put this text before every caption, blank space and comma included.")
@click.option("--suffix", metavar="TEXT", help="Put this text after every caption.")
@click.option("--create", is_flag=True, help="Make captions for pictures that have none, too.")
@click.option("--undo", is_flag=True, help="Take the last edit back.")
@click.option("--caption-extension", metavar=".EXT", help="Ending of the caption files.  [the usual one found]")
@click.option("--dry-run", is_flag=True, help="Show what would change, and stop.")
@click.option("--yes", is_flag=True, help="Write without asking.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document; needs --yes or --dry-run.")
def captions(
    folder: Path,
    find: str | None,
    replace: str,
    regex: bool,
    remove: str | None,
    spaces: bool,
    unique: bool,
    sort: bool,
    keep_first: int | None,
    trigger: str | None,
    prefix: str | None,
    suffix: str | None,
    create: bool,
    undo: bool,
    caption_extension: str | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Change the captions in FOLDER all at once.

    Shows what would change and asks before it writes. Every edit is kept in a journal in the folder, and --undo takes
    the last one back. Several changes are made in the order in which they stand below.

    \b
    Example: lora-wizard dataset captions pictures --remove "blurry, text" --unique --trigger sks
    """
    from engine.dataset import caption_edits as edits
    from engine.dataset.folders import suggest_caption_extension
    from knowledge.config import DatasetFolder

    if undo:
        _undo(folder, as_json)
        return
    chosen: list[tuple[str, edits.Edit]] = []
    if find is not None:
        chosen.append((f'"{find}" replaced by "{replace}"', edits.find_and_replace(find, replace, regex=regex)))
    if remove is not None:
        chosen.append((f"removed: {remove}", edits.remove_tags(edits.split(remove))))
    if spaces:
        chosen.append(("underscores turned into spaces", edits.spaces_for_underscores))
    if unique:
        chosen.append(("each tag once", edits.without_doubles))
    if sort:
        chosen.append(("sorted", edits.sorted_tags))
    if keep_first is not None:
        chosen.append((f"the first {count(keep_first, 'tag')} kept", edits.keep_first(keep_first)))
    if trigger:
        chosen.append((f'"{trigger}" put first', edits.trigger_first(trigger)))
    if prefix:
        chosen.append((f'"{prefix}" put before', edits.prefix(prefix)))
    if suffix:
        chosen.append((f'"{suffix}" put after', edits.suffix(suffix)))
    if not chosen:
        raise click.UsageError(
            "Say what to change, for example --trigger WORD or --remove TAGS; or take back with --undo."
        )
    if not (dry_run or yes) and (as_json or not views.interactive()):
        raise click.UsageError("Without a terminal to ask in, say --yes to write or --dry-run to look.")

    words = "; ".join(text for text, _ in chosen)
    folders = (DatasetFolder(path=str(folder)),)
    extension = caption_extension or suggest_caption_extension(folders)
    planned = edits.changes(folder, extension, [edit for _, edit in chosen], create=create)
    if not as_json:
        _preview(planned, words)
    wanted = bool(planned) and not dry_run and (yes or click.confirm(f"Change {count(len(planned), 'caption')}?"))
    if wanted:
        edits.apply(folder, planned, words)
    if as_json:
        rows = [{"file": str(change.file), "before": change.before, "after": change.after} for change in planned]
        print(json.dumps({"edit": words, "changes": rows, "written": wanted}, ensure_ascii=False))
    elif wanted:
        views.console().print(
            f"[good]{count(len(planned), 'caption')} changed.[/] "
            f"[quiet]To take it back: lora-wizard dataset captions {folder} --undo[/]"
        )


CHANGES_SHOWN = 8


def _preview(planned: Sequence[Change], words: str) -> None:
    """The first few captions, with what goes struck through and what comes set off."""
    from difflib import SequenceMatcher
    from itertools import zip_longest

    from rich.text import Text

    from engine.dataset.caption_edits import split

    console = views.console()
    if not planned:
        console.print(f"No caption would change ({words}).")
        return
    console.print(views.heading(f"{count(len(planned), 'caption')} to change", words))
    for change in planned[:CHANGES_SHOWN]:
        lines = zip_longest((change.before or "").split("\n"), (change.after or "").split("\n"), fillvalue="")
        before, after = next((split(old), split(new)) for old, new in lines if old != new)
        line = Text.assemble((f"  {change.file.name}  ", "quiet"))
        pieces = []
        for kind, a, b, c, d in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
            if kind == "equal":
                pieces += [Text(tag) for tag in before[a:b]]
            else:
                pieces += [Text(tag, style="strike red") for tag in before[a:b]]
                pieces += [Text(tag, style="bold green") for tag in after[c:d]]
        line.append_text(Text(", ").join(pieces))
        console.print(line)
    if len(planned) > CHANGES_SHOWN:
        console.print(f"  [quiet]and {len(planned) - CHANGES_SHOWN} more[/]")


def _undo(folder: Path, as_json: bool) -> None:
    from engine.dataset import caption_edits as edits

    words, restored, kept = edits.undo(folder)
    if as_json:
        names = {"restored": [str(change.file) for change in restored], "left_alone": [str(path) for path in kept]}
        print(json.dumps({"undone": words} | names, ensure_ascii=False))
        return
    console = views.console()
    console.print(f"[good]Taken back:[/] {words} ({count(len(restored), 'caption')}).")
    if kept:
        names_ = ", ".join(path.name for path in kept[:FILES_SHOWN])
        console.print(f"[warning]Left alone, because changed since:[/] {names_}")


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
    set HF_TOKEN.

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
        facts = {"folder": str(done.folder), "pictures": done.pictures, "captions": done.captions}
        print(json.dumps(facts | {"renamed": done.renamed, "left_out": dict(done.left_out)}, ensure_ascii=False))
        return
    console = views.console()
    console.print(
        f"[good]{count(done.pictures, 'picture')} and {count(done.captions, 'caption')}[/] are now in {done.folder}."
    )
    if done.renamed:
        console.print(f"[quiet]{count(done.renamed, 'name')} were there twice and got a number.[/]")
    if done.left_out:
        kinds = ", ".join(f"{number} × {extension}" for extension, number in done.left_out.most_common(5))
        console.print(f"[quiet]Left out, neither pictures nor captions: {kinds}[/]")
    console.print(f"[quiet]Look at them: lora-wizard dataset inspect {done.folder}[/]")


@dataset.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--tagger",
    default="wd-vit-v3",
    show_default=True,
    metavar="NAME|FOLDER",
    help="wd-vit-v3, wd-swinv2-v3, wd-eva02-large-v3, blip-base, blip-large … or a folder.",
)
@click.option("--threshold", type=click.FloatRange(0.01, 1), default=0.35, show_default=True, help="For general tags.")
@click.option(
    "--character-threshold", type=click.FloatRange(0.01, 1), default=0.85, show_default=True, help="For names."
)
@click.option("--blacklist", default="", metavar="TAGS", help="Never write these tags, separated by commas.")
@click.option("--trigger", metavar="WORD", help="Put the trigger word first.")
@click.option("--rating", is_flag=True, help="Add the rating (general, sensitive, questionable, explicit).")
@click.option("--underscores", is_flag=True, help="Keep the underscores in tags.")
@click.option("--append", "existing", flag_value="append", help="Add to captions that are there.")
@click.option("--replace", "existing", flag_value="replace", help="Replace captions that are there.")
@click.option("--skip", "existing", flag_value="skip", default="skip", help="Leave captions that are there.  [this]")
@click.option("--caption-extension", default=".txt", show_default=True, metavar=".EXT", help="Ending of the files.")
@click.option("--batch-size", type=click.IntRange(1, 64), default=4, show_default=True)
@click.option("--dry-run", is_flag=True, help="Show what would be written, and stop.")
@click.option("--yes", is_flag=True, help="Write without asking.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document; needs --yes or --dry-run.")
def tag(
    folder: Path,
    tagger: str,
    threshold: float,
    character_threshold: float,
    blacklist: str,
    trigger: str | None,
    rating: bool,
    underscores: bool,
    existing: str,
    caption_extension: str,
    batch_size: int,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Write captions for the pictures in FOLDER: tags from a WD14 tagger, or a sentence from BLIP.

    Tags are good for drawings and anime, sentences (--tagger blip-large) for photographs. Tagger and captioner are
    downloaded once, or taken from a folder. To take back what they wrote: lora-wizard dataset captions FOLDER --undo

    \b
    Example: lora-wizard dataset tag pictures --threshold 0.4 --blacklist "simple background" --trigger sks
    """
    from engine.dataset import caption_edits as edits
    from engine.dataset.folders import folder_listing
    from knowledge.answers import PlainError

    if not (dry_run or yes) and (as_json or not views.interactive()):
        raise click.UsageError("Without a terminal to ask in, say --yes to write or --dry-run to look.")
    found = folder_listing(folder, caption_extension)
    old = {picture: edits.caption_text(found.captions.get(picture.stem)) for picture in found.pictures}
    wanted = [picture for picture, text in old.items() if existing != "skip" or not (text or "").strip()]
    if not found.pictures or not wanted:
        why = "has no pictures" if not found.pictures else "has a caption for every picture; --append or --replace"
        raise PlainError(f"{folder} {why}.", 2)
    device, said = _words_for(wanted, tagger, threshold, character_threshold, rating, underscores, batch_size)
    told = _progress(f"Tagging on the {device}", quiet=as_json)
    unwanted, changes, broken = edits.remove_tags(edits.split(blacklist)), [], []
    for number, (picture, text) in enumerate(said, start=1):
        told(number, len(wanted))
        if isinstance(text, PlainError):
            broken.append(str(text))
            continue
        text, before = unwanted(text), old[picture]
        if existing == "append" and before:
            text = edits.without_doubles(edits.join([*edits.split(before), *edits.split(text)]))
        if trigger:
            text = edits.trigger_first(trigger)(text)
        file = found.captions.get(picture.stem, picture.with_suffix(caption_extension))
        if text != before:
            changes.append(edits.Change(file, before, text))
    words = f"tagged by {Path(tagger).name}"
    if not as_json:
        _preview(changes, words)
        for sentence in broken:
            views.console().print(f"[warning]{sentence}[/]")
    write = bool(changes) and not dry_run and (yes or click.confirm(f"Write {count(len(changes), 'caption')}?"))
    if write:
        edits.apply(folder, changes, words)
    if as_json:
        rows = [{"file": str(change.file), "before": change.before, "after": change.after} for change in changes]
        print(json.dumps({"changes": rows, "broken": broken, "written": write}, ensure_ascii=False))
    elif write:
        views.console().print(f"[good]{count(len(changes), 'caption')} written.[/]")


def _words_for(
    pictures: Sequence[Path],
    tagger: str,
    threshold: float,
    character_threshold: float,
    rating: bool,
    underscores: bool,
    batch_size: int,
) -> tuple[str, Iterator[tuple[Path, str | PlainError]]]:
    """Where it computes, and what it says of each picture: tags from a tagger, a sentence from a captioner."""
    from engine.captioning import Captioner, caption_pictures, is_captioner

    if is_captioner(tagger):
        captioner = Captioner(tagger)
        return captioner.device, caption_pictures(captioner, pictures, batch_size)
    from engine.dataset.caption_edits import join
    from engine.tagging import Tagger, spoken, tag_pictures, tagger_folder

    loaded = Tagger(tagger_folder(tagger, lambda words: click.echo(words, err=True)))

    def text(row: Any) -> str | PlainError:
        if not hasattr(row, "shape"):
            return row  # type: ignore[no-any-return]
        names = [tag.name for tag in loaded.tags(row, threshold, character_threshold, rating=rating)]
        return join(name if underscores else spoken(name) for name in names)

    return loaded.device, ((path, text(row)) for path, row in tag_pictures(loaded, pictures, batch_size))
