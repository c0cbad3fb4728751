"""What the commands on files share: options, a progress bar, and how a result is told."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from knowledge.answers import PlainError

if TYPE_CHECKING:
    from engine.tools.progress import Progress

FILE = click.Path(path_type=Path)
as_json = click.option("--json", "as_json", is_flag=True, help="One JSON document instead of text.")
overwrite = click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")


@contextmanager
def watched(what: str, quiet: bool, in_bytes: bool = False) -> Iterator[Progress]:
    """A progress bar on stderr for somebody who watches; nothing for a script."""
    from engine.tools.progress import no_progress

    if quiet or not sys.stderr.isatty():
        yield no_progress
        return
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from wizard import views

    counted = DownloadColumn() if in_bytes else MofNCompleteColumn()
    columns = (TextColumn("[quiet]{task.description}[/]"), BarColumn(30), counted, TimeRemainingColumn())
    with Progress(*columns, console=views.console(sys.stderr), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def may_write(path: Path, overwrite: bool) -> None:
    """Raises PlainError for a file that is there and was not said to be replaced."""
    if os.path.lexists(path) and not overwrite:
        raise PlainError(f"{path} exists already. Add --overwrite to replace it, or choose another --output.", 2)


def may_write_network(path: Path, overwrite: bool) -> None:
    """As `may_write`; what is written is a safetensors file, and programs that read it go by its name."""
    if path.suffix.lower() != ".safetensors":
        raise PlainError(f"{path} must end in .safetensors: that is what is written.", 2)
    may_write(path, overwrite)


def print_json(document: Any) -> None:
    print(json.dumps(document, ensure_ascii=False, default=str))


def shown(path: Path) -> str:
    """A path as markup, for a sentence."""
    from wizard import views

    return f"[strong]{views.escape(str(path))}[/]"


def say(message: str) -> None:
    from wizard import views

    views.say(message)
