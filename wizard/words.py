"""Numbers as a person says them: durations, sizes, counts. Pure text; everything that shows a number takes it here."""

from __future__ import annotations

from knowledge.words import agreeing as agreeing  # which sentences of every floor share
from knowledge.words import count as count


def duration(seconds: float) -> str:
    """A length of time with as much precision as its size deserves: "0.4 s", "48 s", "3 min 20 s", "2 h 5 min"."""
    if seconds < 0.95:
        return f"{seconds:.1g} s"
    if seconds < 9.5:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest and minutes < 10 else f"{round(whole / 60)} min"
    hours, minutes = divmod(round(whole / 60), 60)
    if hours < 24:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(round(whole / 3600), 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def size(total: float) -> str:
    """A number of bytes in the unit that needs the fewest digits, as shops and file managers write it: "1.2 GB"."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if total >= factor * 0.9995:
            return f"{total / factor:.1f} {unit}" if total < 99.5 * factor else f"{total / factor:.0f} {unit}"
    return count(round(total), "byte")


def number(value: float) -> str:
    """A small real number without noise digits: "0.118", "0.0001", "2e-05" stays readable as 0.00002."""
    if value == 0:
        return "0"
    text = f"{value:.3g}"
    return f"{value:.8f}".rstrip("0") if "e-" in text and abs(value) >= 1e-6 else text
