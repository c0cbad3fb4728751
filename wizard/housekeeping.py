"""`lora-wizard tools backup` and `clean`: what one does with a run when it is over."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from knowledge.answers import PlainError
from wizard import words
from wizard.file_commands import FILE, as_json, may_write, overwrite, print_json, say, shown, watched

if TYPE_CHECKING:
    from engine.tools.backup import Gathered, Part
    from engine.tools.clean import Found, Removable

RUNS = click.option("--folder", default="runs", show_default=True, help="Where the runs are.")


@click.command()
@click.argument("run")
@click.option("-o", "--output", type=FILE, help="The archive: .zip, .tar.gz or .tar.zst. NAME-DATE.zip if not given.")
@click.option("--with", "added", multiple=True, type=click.Choice(["pictures"]), help="Put in the pictures as well.")
@click.option(
    "--without",
    multiple=True,
    type=click.Choice(["states", "samples", "files", "captions"]),
    help="Leave this out; repeatable.",
)
@RUNS
@click.option("--dry-run", is_flag=True, help="List what would go in, and write nothing.")
@overwrite
@as_json
def backup(
    run: str,
    output: Path | None,
    added: tuple[str, ...],
    without: tuple[str, ...],
    folder: str,
    dry_run: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """A run in one archive: answers, LoRA files, states, samples, captions.

    The archive is read back and every file in it compared before it gets its name. Unpacked into the folder of runs,
    it is the same run again.

    Example: lora-wizard tools backup my-lora -o my-lora.tar.zst --without states
    """
    from engine.tools.archives import suffix_of
    from engine.tools.backup import USUAL_PARTS, back_up, gather
    from wizard.follow import find_run

    found = find_run(run, folder)
    archive = output or Path(f"{found.name}-{time.strftime('%Y-%m-%d')}.zip")
    suffix_of(archive)
    parts: Any = [part for part in (*USUAL_PARTS, *added) if part not in without]
    gathered = gather(found, parts)
    if dry_run:
        _show_gathered(gathered, parts, archive, as_json)
        return
    may_write(archive, overwrite)
    with watched(f"Backing up {found.name}", as_json, in_bytes=True) as progress:
        made = back_up(gathered, archive, progress)
    if as_json:
        print_json(_gathered_document(gathered, parts, archive) | {"archive_bytes": made.archive_bytes})
        return
    sizes = f"{words.size(made.bytes)} in {words.size(made.archive_bytes)}"
    say(f"[good]✓[/] {shown(archive)}   [quiet]{words.count(made.files, 'file')}, {sizes}; read back and equal[/]")
    _show_missing(gathered)


def _gathered_document(gathered: Gathered, parts: list[Part], archive: Path) -> dict[str, Any]:
    return {
        "output": str(archive),
        "files": len(gathered.items),
        "bytes": gathered.bytes,
        "parts": {part: [item.name for item in gathered.of(part)] for part in parts},
        "missing_folders": list(gathered.missing),
    }


def _show_gathered(gathered: Gathered, parts: list[Part], archive: Path, as_json: bool) -> None:
    if as_json:
        print_json(_gathered_document(gathered, parts, archive))
        return
    from engine.tools.backup import PARTS
    from wizard import views

    say(f"{shown(archive)} would hold {words.count(len(gathered.items), 'file')}, {words.size(gathered.bytes)}:\n")
    lines = []
    for part in parts:
        items = gathered.of(part)
        lines.append((part, str(len(items)), words.size(sum(item.bytes for item in items)), PARTS[part]))
    columns = ("part", "files", "size", "what it is")
    views.console().print(views.table(columns, lines, right=("files", "size")))
    _show_missing(gathered)


def _show_missing(gathered: Gathered) -> None:
    for missing in gathered.missing:
        from wizard import views

        message = f"{missing} is not there any more, so its captions are not in the backup."
        views.console().print(views.finding("warning", message))


@click.command()
@RUNS
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(["caches", "states", "remains", "drafts"]),
    help="Of this kind alone; repeatable.",
)
@click.option("--yes", is_flag=True, help="Delete without asking.")
@click.option("--dry-run", is_flag=True, help="List what would be deleted, and delete nothing.")
@as_json
def clean(folder: str, only: tuple[str, ...], yes: bool, dry_run: bool, as_json: bool) -> None:
    """Free disk space: caches, old states, what a crash left half-written, old drafts.

    Lists everything with its size and asks first. Your pictures and captions, finished LoRA files, answers, samples and
    reports are never touched, nor a run that is being trained.

    Example: lora-wizard tools clean --only states
    """
    from engine.tools.clean import KINDS, removable, remove
    from wizard import drafts, prompts

    found = removable(Path(folder).expanduser(), drafts.files())
    chosen = [one for one in found.removable if not only or one.kind in only]
    if not dry_run and not yes and (as_json or not prompts.can_ask()):
        raise PlainError("Without a terminal to ask in, say --yes to delete or --dry-run to look.", 2)
    if not as_json:
        _show_removable(found, chosen, folder, KINDS)
    freed = 0
    total = sum(one.bytes for one in chosen)
    if chosen and not dry_run and (yes or click.confirm(f"Delete all of this and free {words.size(total)}?")):
        freed = remove(chosen)
        if not as_json:
            say(f"[good]✓[/] {words.size(freed)} freed.")
    elif chosen and not dry_run:
        say("Nothing was deleted.")
    if as_json:
        listed = [asdict(one) | {"paths": [str(path) for path in one.paths]} for one in chosen]
        print_json({"removable": listed, "busy": list(found.busy), "bytes": total, "freed_bytes": freed})


def _show_removable(found: Found, chosen: list[Removable], folder: str, kinds: dict[Any, str]) -> None:
    from wizard import views

    for name in found.busy:
        message = f"{name} is being trained now; it and the cache are left alone."
        views.console().print(views.finding("note", message))
    if not chosen:
        say(f"There is nothing to clean up in {views.escape(folder)}.")
        return
    lines = [(one.kind, one.title, words.size(one.bytes), one.why) for one in chosen]
    views.console().print(views.table(("kind", "where", "size", "why it may go"), lines, right=("size",)))
    say("")
