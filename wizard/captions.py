"""`lora-wizard dataset captions`: captions changed one by one or in bulk, seen before they are written, taken back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wizard import views
from wizard.paths import quoted
from wizard.words import count

if TYPE_CHECKING:
    from rich.console import RenderableType

    from engine.dataset.caption_edits import Change

CHANGES_SHOWN = 8
FROM_TABLES = "taken from the table beside the pictures"
FILES_SHOWN = 4


@click.command()
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
@click.option("--from-tables", is_flag=True, help="Take missing captions from metadata.jsonl and its like.")
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
    from_tables: bool,
    undo: bool,
    caption_extension: str | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Write the captions in FOLDER one by one, or change them all at once.

    With nothing but FOLDER a page opens that shows one picture after the other beside its caption. With changes it
    shows what would change and asks before it writes; several are made in the order in which they stand below. Every
    edit is kept in a journal in the folder, and --undo takes the last one back.

    \b
    Examples: lora-wizard dataset captions pictures
              lora-wizard dataset captions pictures --remove "blurry, text" --unique --trigger sks
    """
    from engine.dataset import caption_edits as edits
    from engine.dataset.folders import suggest_caption_extension, suggest_folders
    from wizard.caption_changes import KINDS

    if undo:
        _undo(folder, as_json)
        return
    said = {
        "find": (find, replace) if find is not None and not regex else None,
        "regex": (find, replace) if find is not None and regex else None,
        "remove": remove,
        "spaces": spaces,
        "unique": unique,
        "sort": sort,
        "keep_first": keep_first,
        "trigger": trigger,
        "prefix": prefix,
        "suffix": suffix,
    }
    chosen = [kind.made(*_each(said[name])) for name, kind in KINDS.items() if said[name] not in (None, False, "")]
    if not (chosen or from_tables) and views.interactive() and not (as_json or dry_run or yes):
        one_by_one(folder, caption_extension)
        return
    if not (chosen or from_tables):
        raise click.UsageError(
            "Say what to change, for example --trigger WORD or --remove TAGS; or take back with --undo."
        )
    if not (dry_run or yes) and (as_json or not views.interactive()):
        raise click.UsageError("Without a terminal to ask in, say --yes to write or --dry-run to look.")

    if chosen and from_tables:
        raise click.UsageError("--from-tables makes captions; change them with a second command.")

    words = "; ".join(text for text, _ in chosen) or FROM_TABLES
    extension = caption_extension or suggest_caption_extension(suggest_folders(folder))
    if from_tables:
        planned = edits.from_tables(folder, extension)
    else:
        planned = edits.changes(folder, extension, [edit for _, edit in chosen], create=create)
    if not as_json:
        preview(planned, words)
    asked = f"Change {count(len(planned), 'caption')}?"
    if settled(folder, planned, words, asked, yes, dry_run, {"edit": words} if as_json else None):
        views.console().print(
            f"[good]{count(len(planned), 'caption')} changed.[/] "
            f"[quiet]To take it back: lora-wizard dataset captions {views.escape(quoted(folder))} --undo[/]"
        )


def settled(
    folder: Path,
    changes: Sequence[Change],
    words: str,
    question: str,
    yes: bool,
    dry_run: bool,
    document: dict[str, Any] | None,
) -> bool:
    """Write the changes if that is wanted; whether they were, and a person is to be told.

    With a `document` nobody is told: it is printed as JSON instead, with the changes added.
    """
    from engine.dataset import caption_edits as edits

    write = bool(changes) and not dry_run and (yes or click.confirm(question))
    if write:
        edits.apply(folder, changes, words)
    if document is None:
        return write
    rows = [{"file": str(change.file), "before": change.before, "after": change.after} for change in changes]
    print(json.dumps({**document, "changes": rows, "written": write}, ensure_ascii=False))
    return False


def one_by_one(folder: Path, extension: str | None = None) -> None:
    """The page for one caption after the other, and what was changed on it."""
    from engine.dataset.folders import suggest_caption_extension, suggest_folders
    from wizard.caption_editor import edit_captions

    changed = edit_captions(folder, extension or suggest_caption_extension(suggest_folders(folder)))
    done = f"[good]{count(changed, 'caption')} changed.[/]" if changed else "No caption was changed."
    back = (
        f" [quiet]To take the last one back: lora-wizard dataset captions {views.escape(quoted(folder))} --undo[/]"
        if changed
        else ""
    )
    views.console().print(f"{done}{back}")


def preview(planned: Sequence[Change], words: str) -> None:
    """Prints the first few captions that would change."""
    console = views.console()
    if not planned:
        console.print(f"No caption would change ({views.escape(words)}).")
        return
    console.print(views.heading(f"{count(len(planned), 'caption')} to change", words))
    for line in changes_shown(planned):
        console.print(line)


def changes_shown(planned: Sequence[Change], most: int | None = CHANGES_SHOWN) -> list[RenderableType]:
    """A line for each of the first captions: what goes behind a minus and struck through, what comes behind a plus."""
    from difflib import SequenceMatcher
    from itertools import zip_longest

    from rich.text import Text

    from engine.dataset.caption_edits import split

    shown: list[RenderableType] = []
    for change in planned[:most]:
        lines = zip_longest((change.before or "").split("\n"), (change.after or "").split("\n"), fillvalue="")
        before, after = next((split(old), split(new)) for old, new in lines if old != new)
        line = Text.assemble((f"  {change.file.name}  ", "quiet"))
        pieces = []
        for kind, a, b, c, d in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
            if kind == "equal":
                pieces += [Text(tag) for tag in before[a:b]]
            else:
                pieces += [Text.assemble(("-", "red"), (tag, "strike red")) for tag in before[a:b]]
                pieces += [Text(f"+{tag}", style="bold green") for tag in after[c:d]]
        line.append_text(Text(", ").join(pieces))
        shown.append(line)
    if most is not None and len(planned) > most:
        shown.append(f"  [quiet]and {len(planned) - most} more[/]")
    return shown


def _each(said: Any) -> tuple[Any, ...]:
    """What an option says, as the answers that its edit takes: none for a switch."""
    return () if said is True else said if isinstance(said, tuple) else (said,)


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
