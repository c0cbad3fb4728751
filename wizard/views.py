"""How everything looks: one console, one accent colour, and the few shapes that pages are made of.

Pages are rich renderables; rich is imported only where one is built, so that asking for help costs nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from knowledge.optimizer_arguments import to_line
from wizard import words

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

WIDEST = 100
"""Columns; prose wider than this is hard to read, so a wider terminal gets margins instead."""

ACCENT = "magenta"
STYLES = {
    "accent": f"bold {ACCENT}",
    "strong": "bold",
    "quiet": "dim",
    "good": "green",
    "note": "dim",
    "warning": "yellow",
    "high": "bold yellow",
    "blocks": "bold red",
    "error": "bold red",
}
"""Names of meanings, for rich markup: [accent]…[/]. Colours are the terminal's own, so they suit its background.
Quiet is dim and not bright black, which some colour schemes draw in the colour of the background."""

PROMPT_STYLES = {
    "pointer": f"fg:ansi{ACCENT} bold",
    "highlighted": "bold",
    "selected": "noinherit",
    "answer": "noinherit",
}
"""The same for prompt_toolkit, which draws the questions."""

SEVERITY_MARKS = {"blocks": "✗", "high": "▲", "warning": "!", "note": "·"}
SEVERITY_WORDS = {"blocks": "cannot start", "high": "likely to fail", "warning": "worth a look", "note": "good to know"}


def plain_terminal() -> bool:
    """Whether the terminal wants neither colours nor cursor movement (NO_COLOR, or TERM=dumb)."""
    return bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"


def interactive() -> bool:
    """Whether there is somebody to ask: both ends are terminals."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def console(file: TextIO | None = None, width: int | None = None, ansi: bool = False) -> Console:
    """A console with our styles, never wider than WIDEST; `ansi` keeps colours when the output is not a terminal."""
    from rich.console import Console
    from rich.theme import Theme

    theme = Theme(STYLES)
    if ansi:
        return Console(
            file=file, theme=theme, highlight=False, width=width, force_terminal=True, color_system="standard"
        )
    made = Console(file=file, theme=theme, highlight=False, width=width, no_color=True if plain_terminal() else None)
    if width is None and made.width > WIDEST:
        made.width = WIDEST
    return made


def ansi_lines(renderable: RenderableType, width: int) -> list[str]:
    """The renderable drawn `width` columns wide, as lines with colour codes."""
    from io import StringIO

    text = StringIO()
    console(text, width=width, ansi=True).print(renderable)
    return [line.rstrip() for line in text.getvalue().splitlines()]


def rows(pairs: Iterable[tuple[str, RenderableType]], label_width: int | None = None) -> Table:
    """Quiet labels on the left, values aligned on the right of them."""
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="quiet", no_wrap=True, min_width=label_width)
    grid.add_column(overflow="fold")
    for label, value in pairs:
        grid.add_row(label, value)
    return grid


def table(columns: Sequence[str], lines: Iterable[Sequence[RenderableType]], right: Sequence[str] = ()) -> Table:
    """A table without borders: quiet headings, and the columns named in `right` aligned to the right."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="quiet")
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left")
    for line in lines:
        made.add_row(*line)
    return made


def heading(title: str, aside: str = "") -> Text:
    """A page's or a part's title, with a quiet remark beside it."""
    from rich.text import Text

    return Text.assemble((title, "accent"), (f"   {aside}" if aside else "", "quiet"))


def title_line(place: str, progress: tuple[int, int] | None = None) -> Text:
    """Where one is: the program's name, a dot for every step, and the name of this one."""
    from rich.text import Text

    line = Text.assemble(("lora-wizard  ", "quiet"))
    if progress is not None:
        done, total = progress
        line.append("●" * done, "accent").append("○" * (total - done), "quiet").append("  ")
    return line.append(place, "accent")


def keys(pairs: Iterable[tuple[str, str]]) -> Text:
    """What each key does, for the foot of a page."""
    from rich.text import Text

    return Text("  ").join(Text.assemble((key, "strong"), (f" {does}", "quiet")) for key, does in pairs)


def problem(message: str) -> Text:
    """What is wrong with an answer, in place."""
    from rich.text import Text

    return Text.assemble(("✗ ", "error"), message)


def escape(text: str) -> str:
    """Text that may hold square brackets, safe beside our own markup."""
    from rich.markup import escape

    return escape(text)


def prose(text: str, style: str = "") -> Text:
    """Text that was written in lines, as paragraphs that fill the width they get."""
    from rich.text import Text

    paragraphs = (" ".join(paragraph.split()) for paragraph in text.strip().split("\n\n"))
    return Text("\n\n".join(paragraphs), style)


def indented(renderable: RenderableType, by: int = 2) -> RenderableType:
    from rich.padding import Padding

    return Padding(renderable, (0, 0, 0, by), expand=False)


def page(*parts: RenderableType) -> RenderableType:
    """The parts one below the other, with an empty line between them."""
    from rich.console import Group

    lines: list[RenderableType] = []
    for part in parts:
        if lines:
            lines.append("")
        lines.append(part)
    return Group(*lines)


def finding(severity: str, message: str, remedy: str = "") -> Table:
    """One finding: its mark and weight, what it says, and below it what would help."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True)
    grid.add_column()
    said: list[RenderableType] = [Text(message)]
    if remedy:
        said.append(Text.assemble(("→ ", "accent"), remedy))
    grid.add_row(Text(SEVERITY_MARKS[severity], style=severity), Group(*said))
    return grid


def bar(share: float, width: int = 20, style: str = "accent") -> Text:
    """A bar filled to `share` of 1; more than full is drawn full, in red."""
    from rich.text import Text

    filled = round(min(max(share, 0.0), 1.0) * width)
    return Text.assemble(("━" * filled, "blocks" if share > 1 else style), ("─" * (width - filled), "quiet"))


def say(message: str, file: TextIO | None = None) -> None:
    """Prints one sentence or paragraph, with our styles read from [markup]."""
    console(file).print(message)


def complain(message: str) -> None:
    """Prints an error to stderr: a red mark, then the sentence; further lines are set below it."""
    from rich.text import Text

    first, *others = message.strip().splitlines() or [""]
    text = Text.assemble(("✗ ", "error"), first)
    for line in others:
        text.append("\n  " + line)
    console(sys.stderr).print(text, soft_wrap=not sys.stderr.isatty())


def memory(number: float) -> str:
    """VRAM or RAM in bytes, in binary gigabytes as graphics cards are sold: "6.1 GB"."""
    if 0 < number < 2**20:
        return "less than 1 MB"
    return f"{number / 2**30:.1f} GB" if number >= 2**27 else f"{number / 2**20:.0f} MB"


def value(thing: Any) -> str:
    """Any setting's value in words."""
    if thing is None:
        return "not set"
    if isinstance(thing, bool):
        return "yes" if thing else "no"
    if isinstance(thing, int):
        return str(thing)
    if isinstance(thing, float):
        return words.number(thing)
    if isinstance(thing, str):
        return thing if thing else "empty"
    if isinstance(thing, Mapping):
        return to_line(thing) or "none"
    return words.count(len(thing), "entry", "entries") if thing else "none"
