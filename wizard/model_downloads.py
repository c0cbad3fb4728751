"""Base models and VAEs from the network inside the wizard: which one, what it is, and the download itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from knowledge.answers import PlainError
from knowledge.downloads import suggestions
from wizard import words
from wizard.prompts import Move, Option, Page

if TYPE_CHECKING:
    from engine.acquire.models_folder import Kind, Model, ModelsFolder
    from wizard.session import Session

Values = Mapping[str, Any]

NOUNS: dict[Kind, str] = {"base model": "model", "vae": "VAE"}
WRONG: dict[Kind, str] = {"base model": "is a VAE, and no base model", "vae": "is a base model, and no VAE"}


def downloaded(session: Session, around: Values, kind: Kind, family: str = "") -> Any:
    """The path of a model of this kind that was chosen and downloaded, or a Move. Raises PlainError without one.

    family: whose are offered; every family's without.
    """
    from engine.acquire.models_folder import models_folder
    from wizard import download
    from wizard.tokens import ask_on_page, with_token

    address = _ask_address(session, around, download.check_address, kind, family)
    if isinstance(address, Move):
        return address
    folder = models_folder()
    offer, there = with_token(lambda: download.look(address, folder), ask_on_page(session, around))
    if offer is not None:
        if offer.kind != kind:
            download.set_aside(offer, folder)
            raise PlainError(f"{offer.offer.title} {WRONG[kind]}.")
        answer = session.ask(
            Page(
                title=f"Download this {NOUNS[kind]}?",
                body=tuple(download.offered(offer, folder)),
                options=(
                    Option("yes", "Download it", words.size(offer.offer.size_bytes or 0)),
                    Option("no", "Choose another"),
                ),
                **around,
            )
        )
        if answer != "yes":
            download.set_aside(offer, folder)
            return Move.BACK
        there = download.fetch(offer, folder)
    assert there is not None
    if there.kind != kind:
        raise PlainError(f"{there.title} {WRONG[kind]}.")
    session.notice = _told(there, folder)
    return str((folder.path / there.name).resolve())


def _ask_address(session: Session, around: Values, check: Callable[[str], Any], kind: Kind, family: str) -> Any:
    """A short name or an address, or a Move."""
    starts = [
        each
        for each in suggestions().values()
        if (each.kind == "vae") == (kind == "vae") and (not family or each.family == family)
    ]
    noun = NOUNS[kind]
    answer = session.ask(
        Page(
            title=f"Which {noun} shall be downloaded?",
            options=(
                *(Option(each.name, each.title, note=each.meaning) for each in starts),
                Option("", "Another one …", "by the address of its page"),
            ),
            **around,
        )
    )
    if answer != "":
        return answer
    return session.ask(
        Page(
            title="What is its address?",
            body=(
                f"The page of the {noun} on Hugging Face or Civitai, or [strong]owner/name[/] on Hugging Face. "
                "It is looked at before anything is downloaded.",
                "[quiet]Where a site wants to know who you are, you are asked for a token.[/]",
            ),
            default="",
            check=check,
            **around,
        )
    )


def _told(model: Model, folder: ModelsFolder) -> str:
    return f"{model.title} is in {folder.path / model.name}"
