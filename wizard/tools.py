"""`lora-wizard tools`: what one does with finished LoRA files and finished runs."""

from __future__ import annotations

import json
from pathlib import Path

import click

from knowledge.answers import PlainError, printable
from wizard import words
from wizard.file_commands import FILE, as_json, may_write, may_write_network, overwrite, print_json, say, shown, watched
from wizard.housekeeping import backup, clean
from wizard.inspection import report_document, show_report, strength_chart
from wizard.network_files import base_option, base_weights, convert, extract, merge, resize
from wizard.publishing import publish


@click.group()
def tools() -> None:
    """What to do with finished LoRA files and finished runs.

    Files are read one tensor at a time and nothing in them is executed; results are written whole or not at all.

    Example: lora-wizard tools inspect my-lora.safetensors
    """


@tools.command()
@click.argument("file", type=FILE)
@base_option
@click.option("--chart", type=FILE, help="Draw the strength of every layer to this PNG.")
@click.option("--layers", is_flag=True, help="Every layer by name.")
@as_json
def inspect(file: Path, base: Path | None, chart: Path | None, layers: bool, as_json: bool) -> None:
    """What a LoRA is, what it changes, what is wrong with it, and which programs read it.

    Example: lora-wizard tools inspect my-lora.safetensors --chart strength.png
    """
    from engine.tools.inspect import inspect as look_into

    with watched(f"Reading {file.name}", as_json) as progress:
        report = look_into(file, weights=base_weights(base), progress=progress)
    if chart is not None:
        strength_chart(report, chart)
    if as_json:
        print_json(report_document(report) | ({"chart": str(chart)} if chart else {}))
        return
    show_report(report, layers)
    if chart is not None:
        say(f"[quiet]Chart[/]  {chart}")


@tools.command()
@click.argument("file", type=FILE)
@click.option(
    "--set", "changes", multiple=True, metavar="KEY=TEXT", help="title, author, license, trigger … or any key."
)
@click.option("--remove", multiple=True, metavar="KEY", help="Take one key out.")
@click.option("--thumbnail", type=FILE, help="A picture to carry inside the file.")
@click.option("--strip", is_flag=True, help="Take out everything that programs do not need to load it.")
@click.option("--everything", is_flag=True, help="With --strip: what programs need as well.")
@click.option("--private-copy", type=FILE, help="Save the present metadata to this JSON file first.")
@click.option("-o", "--output", type=FILE, help="Where the changed file goes; the file itself if not given.")
@overwrite
@as_json
def metadata(
    file: Path,
    changes: tuple[str, ...],
    remove: tuple[str, ...],
    thumbnail: Path | None,
    strip: bool,
    everything: bool,
    private_copy: Path | None,
    output: Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Show, edit or strip what a LoRA file says of itself. Its weights and hashes stay the same.

    \b
    Examples: lora-wizard tools metadata my-lora.safetensors
              lora-wizard tools metadata my-lora.safetensors --set trigger="sks toy"
              lora-wizard tools metadata my-lora.safetensors --strip --private-copy all.json -o public.safetensors
    """
    from engine.tools import metadata as labels

    before = labels.metadata_of(file)
    edits: dict[str, str | None] = dict.fromkeys(remove)
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals or not key:
            raise PlainError(f"--set {change!r} is not of the form KEY=TEXT.", 2)
        edits[key] = text
    if thumbnail is not None:
        edits["thumbnail"] = labels.thumbnail(thumbnail)
    if everything and not strip:
        raise PlainError("--everything goes with --strip.", 2)
    after = labels.edited(labels.stripped(before, everything) if strip else before, edits)
    if private_copy is not None:
        may_write(private_copy, overwrite)
        from engine.tools.writing import atomic

        with atomic(private_copy) as copy:
            copy.write(json.dumps(before, ensure_ascii=False, indent=1).encode())
    if after != before or output is not None:
        target = output or file
        if output is not None:
            may_write_network(output, overwrite)
        labels.write_metadata(file, target, after)
        if not as_json:
            say(
                f"[good]✓[/] {shown(target)}   "
                f"[quiet]{words.count(len(after), 'entry', 'entries')}, weights untouched[/]"
            )
    if as_json:
        print_json(after)
    elif after == before and output is None:
        _show_metadata(after)


for command in (resize, convert, merge, extract, publish, backup, clean):
    tools.add_command(command)


def _show_metadata(metadata: dict[str, str]) -> None:
    from wizard import views

    if not metadata:
        say("[quiet]The file says nothing of itself.[/]")
        return
    lines = [(printable(key, 120), printable(value, 300)) for key, value in sorted(metadata.items())]
    views.console().print(views.rows([(views.escape(key), views.escape(value)) for key, value in lines]))
