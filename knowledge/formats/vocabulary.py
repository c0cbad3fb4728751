"""What foreign keys and choices are called here, from our entries and from the tables of each format."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from knowledge import library
from knowledge.parameters import Term, parameters, terms


@cache
def alike(dialect: str) -> Mapping[str, str]:
    """Our dotted name of each foreign key whose entry claims it, for keys that a single entry claims."""
    found: dict[str, list[str]] = {}
    for name, parameter in parameters().items():
        for key in parameter.names.get(dialect, ()):
            found.setdefault(key, []).append(name)
    return {key: names[0] for key, names in found.items() if len(names) == 1}


def choice_of(name: str, dialect: str, word: Any) -> str | None:
    """Our choice that goes by this word in a dialect, whatever its case; None when there is none."""
    wanted = str(word).strip().lower()
    for value, choice in parameters()[name].choices.items():
        if wanted in (value, *(known.lower() for known in choice.names.get(dialect, ()))):
            return value
    return None


def optimizer_of(dialect: str, word: Any) -> tuple[str | None, bool]:
    """Our optimizer for this word, a class with or without its module, and whether it is that very one."""
    bare = str(word).strip().rpartition(".")[2].lower()
    for value, choice in parameters()["optimizer.name"].choices.items():
        known = [name.rpartition(".")[2].lower() for name in choice.names.get(dialect, ())]
        if bare == value or bare in known:
            return value, bare in (value, known[0])
    return None, False


def foreign_choice(name: str, dialect: str, value: str) -> str | None:
    """The word for our choice in a dialect, the first that its entry gives."""
    choice = parameters()[name].choices.get(value)
    return next(iter(choice.names.get(dialect, ())), None) if choice else None


@cache
def elsewhere(dialect: str) -> Mapping[str, Term]:
    """What the knowledge base says of settings that only other trainers have, by their key."""
    return {key: term for term in terms().values() if term.kind == "elsewhere" for key in term.names.get(dialect, ())}


@cache
def facts_of(kind: str) -> Mapping[str, Any]:
    """What we know of a format's keys: data/formats/KIND.toml."""
    return library.document(f"formats/{kind}.toml")
