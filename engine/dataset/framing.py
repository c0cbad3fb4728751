"""How near the pictures are taken, as far as their captions say it; from pixels alone nobody could tell it honestly."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

FRAMINGS = {
    "close-up": ("close-up", "close up", "closeup", "extreme close-up", "face focus", "headshot", "head shot"),
    "head and shoulders": ("portrait", "head and shoulders", "bust shot"),
    "upper body": ("upper body", "half body", "half-body", "waist up", "waist-up", "from the waist up", "medium shot"),
    "to the knees": ("cowboy shot", "knees up", "three-quarter shot"),
    "full body": ("full body", "full-body", "full length", "full-length", "full shot", "head to toe"),
    "from afar": ("wide shot", "very wide shot", "long shot", "from afar", "in the distance"),
}
"""Framings from near to far, with the words of the boards and of sentences that mean them."""

ENOUGH_SAID = 5
"""Captions that must say it before anything is concluded."""
ONE_SIDED = 0.8
"""Share of them that may say the same."""

_WORDS = {
    framing: re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, words))})(?![\w-])", re.IGNORECASE)
    for framing, words in FRAMINGS.items()
}


def framing_of(caption: str) -> str:
    """The framing that a caption says, the nearest where it says several; empty where it says none."""
    plain = caption.replace("_", " ")
    return next((framing for framing, words in _WORDS.items() if words.search(plain)), "")


def framings(captions: Iterable[str]) -> dict[str, int]:
    """How many of the captions say each framing, from near to far; those that say none stand under ""."""
    counts = dict.fromkeys([*FRAMINGS, ""], 0)
    for caption in captions:
        counts[framing_of(caption)] += 1
    return {framing: count for framing, count in counts.items() if count}


def one_sided(said: Mapping[str, int]) -> str:
    """The framing that nearly all captions say which say one; empty where they vary, or too few say it."""
    told = {framing: count for framing, count in said.items() if framing}
    total = sum(told.values())
    if total < ENOUGH_SAID:
        return ""
    framing = max(told, key=lambda each: told[each])
    return framing if told[framing] >= ONE_SIDED * total else ""
