"""The shelves: the TOML files of data/ read once, the sources they cite, and the guides."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from knowledge.parsed import parsed

DATA = Path(__file__).parent / "data"


@cache
def document(path: str) -> dict[str, Any]:
    """The tables of one file below data/, read once."""
    return parsed(DATA / path)


@dataclass(frozen=True)
class Source:
    """What a claim rests on: a paper, a repository, a thread, a page of documentation, a measurement of our own.

    `record` is where this repository keeps the figures of a measurement, or the test that makes it again.
    """

    id: str
    title: str
    address: str = ""
    record: str = ""


@cache
def sources() -> Mapping[str, Source]:
    """Every cited source by its id."""
    return {name: Source(name, **table) for name, table in document("sources.toml").items()}


@dataclass(frozen=True)
class Guide:
    """A guide in Markdown; its first paragraph is the summary. Its numbers come from the entries, by placeholders."""

    name: str
    title: str
    summary: str
    text: str


@cache
def guides() -> Mapping[str, Guide]:
    """The guides by name, in reading order; the number at the front of a file's name gives the order."""
    return {guide.name: guide for guide in map(_guide, sorted((DATA / "guides").glob("*.md")))}


def _guide(path: Path) -> Guide:
    from knowledge.expressions import fill
    from knowledge.parameters import lookup_for  # which stands on this module

    text = fill(path.read_text(encoding="utf-8"), lookup_for(None))
    heading, summary, *_ = text.split("\n\n")
    return Guide(re.sub(r"^\d+-", "", path.stem), heading.lstrip("# ").strip(), " ".join(summary.split()), text)
