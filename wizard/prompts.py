"""One page of questions, asked on the terminal: with keys and colours where it can, with numbered lines where not."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from wizard import views

if TYPE_CHECKING:
    from rich.console import RenderableType


class Move(Enum):
    """What somebody may do instead of answering."""

    BACK = "back"
    MORE = "more"


@dataclass(frozen=True)
class Option:
    """One line of a list. `note` is shown below the list while the cursor is on it; `refusal` says why it is closed."""

    value: Any
    label: str
    hint: str = ""
    note: str = ""
    refusal: str = ""


def _text(text: str) -> Any:
    return text


@dataclass(frozen=True)
class Page:
    """One question as the terminal shows it; a list when there are options, a line to type in otherwise.

    `tail` follows the body and is kept where not everything fits. `check` turns typed text into the value or raises
    PlainError; `preview` tells what a value would change,
    `help` all there is to know while that value is under the cursor. What is typed on a `secret` line is not shown.
    """

    place: str
    title: str
    progress: tuple[int, int] | None = None
    body: tuple[RenderableType, ...] = ()
    tail: tuple[RenderableType, ...] = ()
    options: tuple[Option, ...] = ()
    default: Any = None
    help: Callable[[Any], RenderableType] | None = None
    check: Callable[[str], Any] = _text
    preview: Callable[[Any], RenderableType | None] = lambda value: None
    is_path: bool = False
    secret: bool = False
    back: str = "back"
    more: bool = False
    error: str = ""


Asker = Callable[[Page], Any]


def ask(page: Page) -> Any:
    """The answer, or a Move. Raises KeyboardInterrupt on Ctrl-C, and where the input ends."""
    if views.plain_terminal():
        from wizard.line_prompts import ask_in_lines

        return ask_in_lines(page)
    from wizard.screen_prompts import ask_on_screen

    return ask_on_screen(page)


def show(renderable: RenderableType) -> None:
    """A text of any length, to be read and closed."""
    if views.plain_terminal():
        console = views.console()
        console.print()
        console.print(renderable)
        console.print()
    else:
        from wizard.screen_prompts import read_on_screen

        read_on_screen(renderable)


def wait_for_enter() -> None:
    """Leaves what a command has printed on the screen until somebody has read it."""
    views.console().print("\n[quiet]Enter goes on.[/]", end=" ")
    with suppress(EOFError):
        input()


def can_ask() -> bool:
    """Whether there is a terminal at both ends."""
    return sys.stdin.isatty() and sys.stdout.isatty()
