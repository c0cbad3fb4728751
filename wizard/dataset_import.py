"""Where `lora-wizard dataset import` takes pictures from: this disk, or a dataset on the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from knowledge.answers import PlainError
from wizard import views, words

if TYPE_CHECKING:
    from rich.console import RenderableType

    from engine.acquire.hub_dataset import DatasetOffer
    from engine.acquire.huggingface import Address
    from engine.acquire.pictures import Imported

PLACE = Path("datasets")


def hub_address(sources: Sequence[str], revision: str = "") -> Address | None:
    """The dataset on the hub that is meant; None when the sources are paths. Raises PlainError for a mixture."""
    from engine.acquire import huggingface

    addresses = {source: _on_the_hub(source) for source in sources}
    remote = [address for address in addresses.values() if address is not None]
    if not remote:
        return None
    if len(sources) > 1:
        names = ", ".join(source for source, address in addresses.items() if address is not None)
        raise PlainError(f"{names} is on Hugging Face; import it by itself, and put the folders together after.", 2)
    address: huggingface.Address = remote[0]
    return replace(address, revision=revision) if revision else address


def _on_the_hub(source: str) -> Address | None:
    """The address, where the text is no path of this disk. A bare owner/name is a dataset's."""
    from engine.acquire import huggingface

    if Path(source).expanduser().exists() or Path(source).suffix.lower() == ".zip":
        return None
    address = huggingface.parse(source)
    bare = address is not None and "://" not in source and source.count("/") == 1
    return replace(address, kind="datasets") if bare and address is not None else address


def from_disk(sources: Sequence[Path], destination: Path | None) -> Imported:
    """The pictures of folders, files and archives in a new folder."""
    from engine.acquire.pictures import import_pictures

    return import_pictures(sources, destination or PLACE / (sources[0].expanduser().resolve().stem or "pictures"))


def from_the_hub(
    said: str, address: Address, destination: Path | None, caption_column: str, *, yes: bool, quiet: bool
) -> Imported | None:
    """The pictures of a dataset on the hub in a new folder, after asking; None where nobody wants them."""
    from wizard.tokens import ask_on_terminal, with_token

    watched = views.interactive() and not quiet
    if not (yes or watched):
        raise click.UsageError("Without a terminal to ask in, say --yes to download.")
    name = (address.path or address.repository).rpartition("/")[2]
    target = destination or PLACE / name
    agreed = yes

    def bring() -> Imported | None:
        nonlocal agreed
        offer = _look(said, address)
        if not quiet:
            views.console().print(views.indented(views.page("", *_offered(offer, target), "")))
        agreed = agreed or click.confirm("Download them?", default=True)
        return _fetched(offer, target, caption_column, quiet) if agreed else None

    return with_token(bring, ask_on_terminal if watched and not yes else None)


def _look(said: str, address: Address) -> DatasetOffer:
    from engine.acquire.hub_dataset import look_into
    from wizard.download import waiting

    with waiting(f"Looking at {address.repository}") as notice:
        try:
            return look_into(address, notice)
        except PlainError as problem:
            if "://" not in said:
                # its kind stays, since one may ask for a token
                problem.args = (f"{problem}\n{said} is no folder on this computer either.",)
            raise


def _offered(offer: DatasetOffer, target: Path) -> Iterator[RenderableType]:
    """What would come, where from and where to."""
    address = offer.repository.address
    files = words.count(len(offer.paths), "file")
    what = words.count(offer.pictures, "picture") if offer.pictures else f"{files} ({offer.form})"
    yield views.heading(address.repository)
    yield views.rows(
        [
            ("From", f"{address.page}\nrevision {offer.repository.commit[:12]}"),
            ("What", f"{what}, {words.size(offer.size_bytes)}"),
            ("To", views.escape(str(target))),
        ],
        5,
    )


def _fetched(offer: DatasetOffer, target: Path, caption_column: str, quiet: bool) -> Imported:
    from engine.acquire.hub_dataset import import_dataset
    from wizard.download import bar

    name = offer.repository.address.repository
    with bar(offer.size_bytes, quiet) as (tell, notice):
        return import_dataset(
            offer,
            target,
            caption_column=caption_column,
            progress=lambda done: tell(name, done),
            notice=notice,
        )
