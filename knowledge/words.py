"""Counted things, in the singular or the plural."""

from __future__ import annotations


def count(number: float, one: str, many: str | None = None) -> str:
    """ "1 picture", "12 pictures", "1,200 steps"; `many` where that is not just `one` with an s."""
    return f"{number:,} {agreeing(number, one, many)}"


def agreeing(number: float, one: str, many: str | None = None) -> str:
    """The form of a word that goes with the number: "is" or "are"."""
    return one if number == 1 else many or f"{one}s"
