"""Tokens that somebody types when one is needed: never shown, never written down, gone with this program."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from wizard import views
from wizard.prompts import Page

if TYPE_CHECKING:
    from engine.acquire.network import TokenNeededError
    from wizard.session import Session

Result = TypeVar("Result")
NOT_KEPT = "It is not shown while you type or paste it, is sent to that site alone, and is kept nowhere."


def with_token(work: Callable[[], Result], ask: Callable[[TokenNeededError], str] | None) -> Result:
    """What `work` returns, done again with a token that was asked for where one is needed.

    ask: gives the token, or nothing from who has none; None where nobody can be asked. Raises what `work` raises.
    The token is put into the environment of this program, as if it had been started with it.
    """
    from engine.acquire.network import TokenNeededError

    while True:
        try:
            return work()
        except TokenNeededError as needed:
            token = ask(needed) if ask is not None else ""
            if not token:
                raise
            os.environ[needed.variable] = token


def ask_on_terminal(needed: TokenNeededError) -> str:
    """A token, asked for between the lines that a command prints."""
    console = views.console()
    console.print()
    console.print(views.indented(views.page(views.problem(str(needed)), f"{NOT_KEPT} Enter alone gives up.", "")))
    token: str = click.prompt(f"  {needed.site} token", hide_input=True, default="", show_default=False)
    return token.strip()


def ask_on_page(session: Session, around: Mapping[str, Any]) -> Callable[[TokenNeededError], str]:
    """Asks for a token on a page of the wizard."""

    def ask(needed: TokenNeededError) -> str:
        answer = session.ask(
            Page(
                title=f"Have you a token for {needed.site}?",
                body=(views.escape(str(needed)), f"[quiet]{NOT_KEPT} Enter on the empty line goes back.[/]"),
                default="",
                secret=True,
                **around,
            )
        )
        return answer if isinstance(answer, str) else ""

    return ask
