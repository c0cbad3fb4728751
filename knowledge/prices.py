"""What a rented card costs an hour, from a dated table."""

from __future__ import annotations

from dataclasses import dataclass

from knowledge import library
from knowledge.gpus import gpu


@dataclass(frozen=True)
class Price:
    """Money an hour for one card, where it was published and when (ISO date)."""

    hour: float
    currency: str
    where: str
    date: str


def price_of(card: str, memory_bytes: int = 0) -> Price | None:
    """What the table says of the card of this name, however it is spelled; None where it says nothing."""
    table = library.document("prices.toml")
    known = gpu(card, memory_bytes)
    if known is None or known.name not in table["hour"]:
        return None
    return Price(table["hour"][known.name], table["currency"], table["where"], table["date"])
