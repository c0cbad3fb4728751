"""`lora-wizard import` and `export`: other trainers' configs in and out, key by key."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from pydantic import BaseModel

from knowledge.answers import PlainError, read_answers, write_answers, write_whole

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import RenderableType

    from knowledge.config import TrainingConfig
    from knowledge.formats.export import Exported
    from knowledge.formats.translation import Imported, Note, Outcome

FORMATS = {
    "sky": "wizard.sky:sky_task",
    "sd-scripts": "knowledge.formats.export:to_sd_scripts",
    "kohya_ss": "knowledge.formats.export_gui:to_kohya_gui",
    "onetrainer": "knowledge.formats.export_onetrainer:to_onetrainer",
    "diffusers": "knowledge.formats.export_diffusers:to_diffusers",
}
"""Where each export lives."""
MARKS = {"mapped": "✓", "changed": "→", "no_effect": "·", "unsupported": "✗", "unknown": "?"}
STYLES = {"mapped": "good", "changed": "accent", "no_effect": "quiet", "unsupported": "warning", "unknown": "error"}
LONGEST_VALUE = 36


@click.command("import", epilog="Example: lora-wizard import kohya.json --output my-lora.toml")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the answers to this file.")
@click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")
@click.option("--all", "everything", is_flag=True, help="Also the keys that have no effect, one by one.")
@click.option("--json", "as_json", is_flag=True, help="The five lists and the values as one JSON document.")
@click.pass_context
def import_(
    context: click.Context, file: Path, output: Path | None, overwrite: bool, everything: bool, as_json: bool
) -> None:
    """Read another trainer's config, or the recipe inside a LoRA file, and say what becomes of every key.

    Understood are sd-scripts (TOML with its dataset file, or a command in a script of any shell), kohya_ss (JSON, and
    its config.toml), LoRA Easy Training Scripts (TOML), OneTrainer (JSON), ai-toolkit (YAML), commands of diffusers'
    training scripts, and LoRA files (.safetensors).
    """
    from knowledge.formats.reader import read_foreign

    if output is not None and output.exists() and not overwrite:
        raise PlainError(f"{output} exists already. Add --overwrite to replace it, or choose another --output.", 2)
    imported = read_foreign(file)
    if imported.config is not None and output is not None:
        write_answers(imported.config, output)
    if as_json:
        print(json.dumps(import_document(imported, output), ensure_ascii=False, default=str))
    else:
        show_import(imported, file, everything)
        _say_next(imported, output)
    if imported.config is None:
        context.exit(1)


def import_document(imported: Imported, output: Path | None = None) -> dict[str, Any]:
    """What --json prints."""
    from knowledge.formats.translation import TITLES

    lists: dict[str, Any] = {outcome: [asdict(note) for note in imported.listed(outcome)] for outcome in TITLES}
    return {
        "format": imported.format,
        **lists,
        "implied": imported.implied,
        "warnings": list(imported.warnings),
        "problems": list(imported.problems),
        "config": imported.config.model_dump(mode="json") if imported.config else None,
        "output": str(output) if output and imported.config else None,
    }


def show_import(imported: Imported, file: Path, everything: bool = False, brief: bool = False) -> None:
    """Prints the five lists; `brief`, as `check` shows them, names the keys that are taken over as they are alone."""
    from knowledge.formats.translation import TITLES
    from wizard import views, words

    console = views.console()
    console.print(views.heading(file.name, f"{imported.format}, {words.count(len(imported.notes), 'key')}"))
    _show_lists(imported.notes, TITLES, everything, brief)
    if not everything:
        from knowledge.answers import quoted

        command = views.escape(f"lora-wizard import {quoted(file)} --all")
        console.print(f"\n[quiet]Every key, one by one, and what the file leaves unsaid: {command}[/]")
    if imported.implied and everything:
        console.print(f"\n[strong]What its defaults mean[/] [quiet]({len(imported.implied)})[/]")
        lines = [(name, _short(value)) for name, value in imported.implied.items()]
        console.print(views.indented(views.table(("ours", "value"), lines)))
    if imported.warnings:
        console.print()
    for warning in imported.warnings:
        console.print(views.finding("warning", warning))
    for problem in imported.problems:
        console.print(views.finding("blocks", problem))


def _show_lists(notes: Sequence[Note], titles: Mapping[Outcome, str], everything: bool, brief: bool) -> None:
    """Each list under its title; of those where nothing changes only the names, unless everything is asked for."""
    from rich.console import Group
    from rich.text import Text

    from wizard import views

    console = views.console()
    for outcome, title in titles.items():
        listed = [note for note in notes if note.outcome == outcome]
        if not listed:
            continue
        console.print(f"\n[{STYLES[outcome]}]{MARKS[outcome]}[/] [strong]{title}[/] [quiet]({len(listed)})[/]")
        if (outcome == "no_effect" and not everything) or (outcome == "mapped" and brief):
            more = ", …" if len(listed) > 8 else ""
            keys = views.escape(", ".join(note.key for note in listed[:8]))
            console.print(views.indented(Text.from_markup(f"[quiet]{keys}{more}[/]")))
            continue
        width = min(40, max(len(f"{note.key} = {_short(note.value)}") for note in listed))
        console.print(views.indented(Group(*(_line(note, width) for note in listed))))


def _line(note: Note, width: int) -> RenderableType:
    """A key, its value, what it is here, and below it why; identifiers are never cut."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    theirs = Text(note.key)
    if note.value not in (None, ""):
        theirs.append(f" = {_short(note.value)}", "quiet")
    if note.name:
        theirs.pad_right(max(0, width - theirs.cell_len))
        theirs.append("  ").append(note.name, "accent")
        if _short(note.new) != _short(note.value):
            theirs.append(f" = {_short(note.new)}")
    if not note.why:
        return theirs
    return Group(theirs, Padding(Text(note.why, style="quiet"), (0, 0, 0, 2)))


def _short(value: Any) -> str:
    text = _words(value).replace("\n", " ")
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 1] + "…"


def _words(value: Any) -> str:
    """A value as a reader would write it: folders with their repeats, lists with commas, whole numbers without .0."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if isinstance(value, BaseModel):
        value = value.model_dump()
    if isinstance(value, dict) and "path" in value:
        return f"{value['path']} × {_words(value.get('repeats', value.get('balancing', 1)))}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_words(held)}" for name, held in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_words, value))
    return str(value)


def _say_next(imported: Imported, output: Path | None) -> None:
    from wizard import views

    if imported.config is None:
        views.say(
            "\n[blocks]This cannot be trained as it is.[/] Change the file where it says so, and import it again."
        )
    elif output is not None:
        views.say(f"\n[good]✓[/] [strong]{views.escape(str(output))}[/]")
        views.say(f"  look at it: lora-wizard check {views.escape(str(output))}")
    else:
        views.say("\n[quiet]To keep it: add --output my-lora.toml[/]")


@click.command(epilog="Example: lora-wizard export sd-scripts my-lora.toml --folder kohya")
@click.argument("format_name", metavar="FORMAT", type=click.Choice(list(FORMATS)))
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-f", "--folder", type=click.Path(path_type=Path), default=Path(), help="Where the files go; here.")
@click.option("--overwrite", is_flag=True, help="Replace files that exist.")
@click.option("--json", "as_json", is_flag=True, help="Names of the files and what got lost, as JSON.")
def export(format_name: str, file: Path, folder: Path, overwrite: bool, as_json: bool) -> None:
    """Write an answers file as another trainer's config, and say what it cannot express.

    FORMAT is sd-scripts, kohya_ss, onetrainer or diffusers; or sky, a task that trains on a GPU rented by SkyPilot.
    """
    module, _, function = FORMATS[format_name].partition(":")
    config = read_answers(file)
    exported: Exported = getattr(import_module(module), function)(config, stem=file.stem)
    existing = [name for name in exported.files if (folder / name).exists()]
    if existing and not overwrite:
        raise PlainError(f"{folder / existing[0]} exists already. Add --overwrite to replace it.", 2)
    for name, text in exported.files.items():
        write_whole(folder / name, text)
    notes = [] if format_name == "sky" else _became(config, exported, folder)
    if as_json:
        from knowledge.formats.translation import TITLES

        lists: dict[str, Any] = {
            outcome: [asdict(note) for note in notes if note.outcome == outcome] for outcome in TITLES
        }
        document = {
            "files": [str(folder / name) for name in exported.files],
            **lists,
            "lost": [asdict(lost) for lost in exported.lost],
            "command": exported.how,
        }
        print(json.dumps(document, ensure_ascii=False, default=str))
    else:
        _show_export(exported, notes, folder)


def _became(config: TrainingConfig, exported: Exported, folder: Path) -> list[Note]:
    """What became of each setting, by reading back what was written; the file that names the others comes first."""
    from knowledge.formats.export_lists import what_became_of
    from knowledge.formats.reader import read_foreign

    return what_became_of(config, exported, read_foreign(folder / next(iter(exported.files))))


def _show_export(exported: Exported, notes: list[Note], folder: Path) -> None:
    from knowledge.formats.export_lists import EXPORT_TITLES
    from wizard import views

    for name in exported.files:
        views.say(f"[good]✓[/] [strong]{views.escape(str(folder / name))}[/]")
    _show_lists(notes, EXPORT_TITLES, everything=False, brief=True)
    views.say(f"\n[quiet]{views.escape(exported.how)}[/]")
