"""Where `lora-wizard dataset import` takes pictures from: this disk, or a dataset on the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from knowledge.answers import PlainError
from wizard import views, words

if TYPE_CHECKING:
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
    from engine.acquire.hub_dataset import import_dataset, look_into
    from wizard.download import bar, waiting

    if not yes and (quiet or not views.interactive()):
        raise click.UsageError("Without a terminal to ask in, say --yes to download.")
    name = (address.path or address.repository).rpartition("/")[2]
    target = destination or PLACE / name
    with waiting(f"Looking at {address.repository}") as notice:
        try:
            offer = look_into(address, notice)
        except PlainError as problem:
            here = "" if "://" in said else f"\n{said} is no folder on this computer either."
            raise PlainError(f"{problem}{here}", problem.exit_code) from None
    if not quiet:
        files = words.count(len(offer.paths), "file")
        what = words.count(offer.pictures, "picture") if offer.pictures else f"{files} ({offer.form})"
        lines = [
            ("From", f"{address.page}\nrevision {offer.repository.commit[:12]}"),
            ("What", f"{what}, {words.size(offer.size_bytes)}"),
            ("To", str(target)),
        ]
        views.console().print(
            views.indented(views.page("", views.heading(address.repository), views.rows(lines, 5), ""))
        )
    if not (yes or click.confirm("Download them?", default=True)):
        return None
    with bar(offer.size_bytes, quiet) as (tell, notice):
        return import_dataset(
            offer,
            target,
            caption_column=caption_column,
            progress=lambda done: tell(address.repository, done),
            notice=notice,
        )
