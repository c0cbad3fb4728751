"""A page in numbered lines, where nothing moves: for NO_COLOR, TERM=dumb and screen readers."""

from __future__ import annotations

from typing import Any

from knowledge.answers import PlainError
from wizard import views
from wizard.prompts import Move, Page, show


def ask_in_lines(page: Page) -> Any:
    """The answer, or a Move. Raises KeyboardInterrupt where the input ends."""
    from rich.text import Text

    console = views.console()
    console.print()
    console.print(views.page(Text(f"{page.place}\n{page.title}"), *page.body, *page.tail))
    console.print()
    for number, option in enumerate(page.options, 1):
        console.print(f"  {number}  {option.label}{f'  ({option.hint})' if option.hint else ''}", markup=False)
        if option.note:
            console.print(views.indented(f"[quiet]{views.escape(option.note)}[/]", 5))
    error = page.error
    while True:
        if error:
            console.print(error, markup=False)
        error = ""
        preview = page.preview(page.default)
        if preview is not None:
            console.print(preview)
        typed = _typed(_plain_prompt(page), page.secret)
        if typed == "?" and page.help:
            show(page.help(page.default))
        elif typed == "<" and page.back:
            return Move.BACK
        elif typed == "m" and page.more and page.options:
            return Move.MORE
        else:
            try:
                return _plain_answer(page, typed)
            except PlainError as problem:
                error = str(problem)


def _plain_prompt(page: Page) -> str:
    hints = ["? = explain"] if page.help else []
    hints += ["m = more settings"] if page.more and page.options else []
    hints += [f"< = {page.back}"] if page.back else []
    if page.options:
        default = next((str(n) for n, option in enumerate(page.options, 1) if option.value == page.default), "1")
        return f"Number [{default}]  {', '.join(hints)}: "
    default = f" [{page.default}]" if page.default else ""
    return f"Answer{default}  {', '.join(hints)}: "


def _typed(prompt: str, secret: bool = False) -> str:
    from getpass import getpass

    try:
        return (getpass if secret else input)(prompt).strip()
    except EOFError:
        raise KeyboardInterrupt from None


def _plain_answer(page: Page, typed: str) -> Any:
    if not page.options:
        return page.check(typed or ("" if page.default is None else str(page.default)))
    if not typed:
        chosen = next((option for option in page.options if option.value == page.default), page.options[0])
    elif typed.isdecimal() and 1 <= int(typed) <= len(page.options):
        chosen = page.options[int(typed) - 1]
    else:
        raise PlainError(f'"{typed}" is not in the list; type a number from 1 to {len(page.options)}.')
    if chosen.refusal:
        raise PlainError(chosen.refusal)
    return chosen.value
