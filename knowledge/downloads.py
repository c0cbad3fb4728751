"""Models that one might start with, by short names, and the VAE that fits a family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

from knowledge.library import document


@dataclass(frozen=True)
class Suggestion:
    """A model on the Hugging Face hub. path: the one file that is meant; empty for what a training needs of it all."""

    name: str
    title: str
    kind: Literal["base", "vae"]
    family: str
    address: str
    meaning: str
    path: str = ""


@cache
def suggestions() -> Mapping[str, Suggestion]:
    """All of them by their short names, in the order in which they are offered."""
    return {name: Suggestion(name, **table) for name, table in document("downloads.toml").items()}


def fitting_vae(family: str) -> Suggestion | None:
    """The VAE to go with a base model of this family; None where nothing is better than its own."""
    found = (each for each in suggestions().values() if each.kind == "vae" and each.family == family)
    return next(found, None)
