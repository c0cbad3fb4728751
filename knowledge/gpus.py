"""Graphics cards by whatever name they are called."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache, lru_cache
from pathlib import Path

from knowledge.answers import PlainError
from knowledge.facts import Hardware
from knowledge.parsed import parsed

DATA = Path(__file__).parent / "data" / "gpus.toml"
GB = 1024**3
CLOSEST = 4
"""How many cards are named in place of one that is not known."""
NOT_PART_OF_A_NAME = frozenset({"nvidia", "geforce", "graphics", "card", "gpu", "tesla", "quadro", "the", "generation"})
OFTEN_LEFT_OUT = frozenset({"rtx", "gtx", "pcie", "sxm", "sxm2", "blackwell"})
LANE_BYTES = {"3.0": 0.985e9, "4.0": 1.969e9, "5.0": 3.938e9}
"""Bytes a second over one lane of PCI Express: 8, 16 and 32 gigabits a second of which 128 in 130 carry data."""
SUFFIXES = frozenset({"ti", "super", "ada", "max"})
"""Words that make another card of one: a "4070 Ti" is no "4070"."""


@dataclass(frozen=True)
class Gpu:
    """A card's figures: bytes, bytes per second and operations per second, and where they come from."""

    name: str
    memory_bytes: int
    bandwidth: float
    fp16_flops: float
    fp32_flops: float
    capability: tuple[int, int]
    source: str
    pcie: str = "4.0 x16"
    sky: str = ""

    @property
    def bf16(self) -> bool:
        return self.capability >= (8, 0)

    @property
    def bf16_flops(self) -> float:
        """Operations a second in bf16, at the rate of fp16; where it has none, those of fp32 do its work."""
        return self.fp16_flops if self.bf16 else self.fp32_flops

    @property
    def fp8_flops(self) -> float | None:
        """Operations a second in fp8, twice those in fp16; None where the card has no such numbers."""
        return 2 * self.fp16_flops if self.capability >= (8, 9) else None

    @property
    def link_bandwidth(self) -> float:
        """Bytes a second between the card and the computer's memory, one way, at the most."""
        generation, _, lanes = self.pcie.partition(" x")
        return LANE_BYTES[generation] * int(lanes)

    def hardware(self) -> Hardware:
        """A computer with this card, of which nothing else is known."""
        return Hardware(self.name, self.memory_bytes, capability=self.capability)


@lru_cache(maxsize=1)
def gpus() -> tuple[Gpu, ...]:
    """All cards we know figures of."""
    rows = parsed(DATA)["gpu"]
    return tuple(
        Gpu(
            row["name"],
            row["memory_gb"] * GB,
            row["bandwidth_gb"] * 1e9,
            row["fp16_tflops"] * 1e12,
            row["fp32_tflops"] * 1e12,
            tuple(int(part) for part in row["capability"].split(".")),  # type: ignore[arg-type]
            row["source"],
            row["pcie"],
            row.get("sky", ""),
        )
        for row in rows
    )


def gpu(name: str, memory_bytes: int = 0) -> Gpu | None:
    """The card of this name, however it is spelled: "NVIDIA GeForce RTX 3060", "rtx3060", "3060 12gb".

    Of cards that differ in memory alone the one nearest to `memory_bytes` is meant, or the one with the most. None for
    a card that we do not know; a laptop's card is not the desktop's of the same name, and not known.
    """
    asked = _words(name)
    if asked & {"laptop", "mobile"}:
        return None
    fits = [card for card in gpus() if _needed(card) <= asked and not (asked & SUFFIXES) - _words(card.name)]
    if not fits:
        return None

    def nearness(card: Gpu) -> tuple[int, bool, int, float]:
        named = f"{card.memory_bytes // GB}gb" in asked
        apart = abs(card.memory_bytes - memory_bytes) if memory_bytes else -card.memory_bytes
        return (-len(_words(card.name) & asked - _memory(card.name)), not named, apart, -card.bandwidth)

    return min(fits, key=nearness)


def smallest_gpu(memory_bytes: int) -> Gpu | None:
    """The newest of the smallest cards that have this much memory; None when no card has so much."""
    fits = [card for card in gpus() if card.memory_bytes >= memory_bytes]
    return min(fits, key=lambda card: (card.memory_bytes, [-part for part in card.capability]), default=None)


def find_gpu(name: str) -> Gpu:
    """The card of this name. Raises PlainError for a name that we have no figures of."""
    found = gpu(name)
    if found is None:
        raise PlainError(f'There are no figures for a card called "{name}". {_instead(name)}', 2)
    return found


def _instead(name: str) -> str:
    """What to ask for in place of a name that is no card's."""
    amount = re.fullmatch(r"\s*(\d+(?:[.,]\d+)?)\s*(?:g|gb|gib)\s*(?:vram|card)?\s*", name, re.I)
    if amount:
        return f"For a card of so much memory, whichever it is: lora-wizard calc --allow {amount[1]}GB"
    near = sorted((card.name for card in gpus()), key=lambda known: _likeness(name, known), reverse=True)[:CLOSEST]
    return f"The closest are {', '.join(near[:-1])} and {near[-1]}; all {len(gpus())}: lora-wizard calc --gpu list"


def _likeness(asked: str, known: str) -> tuple[int, float]:
    """How like two names of cards are, memory aside: words in common, then letters."""
    words, letters = _words(asked) & _words(known) - _memory(known), re.sub(r"\s*\d+GB$", "", known).lower()
    return len(words), SequenceMatcher(None, asked.lower(), letters).ratio()


@cache  # each card's name is asked for five times in one search
def _words(name: str) -> frozenset[str]:
    """The words of a name, numbers apart from what is glued to them: "rtx3060ti" is rtx, 3060, ti."""
    spelled = re.sub(r"(\d+)\s*gi?b\b", r" \1gb ", name.lower())
    spelled = re.sub(r"\b(rtx|gtx|titan)(?=\d)", r"\1 ", spelled)
    spelled = re.sub(r"(?<=\d\d\d\d)(ti|super|s)\b", r" \1 ", spelled).replace("tisuper", "ti super")
    return frozenset(re.findall(r"[a-z0-9]+", spelled)) - NOT_PART_OF_A_NAME


def _memory(name: str) -> frozenset[str]:
    return frozenset(word for word in _words(name) if word.endswith("gb"))


def _needed(card: Gpu) -> frozenset[str]:
    """The words without which a name does not mean this card."""
    words = _words(card.name) - _memory(card.name)
    return words - OFTEN_LEFT_OUT if any(character.isdigit() for word in words for character in word) else words
