"""The running estimate: one line that says what the answers so far cost, and what another answer would change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from calculator.plan import Plan
from knowledge.facts import Hardware
from wizard import views, words

if TYPE_CHECKING:
    from rich.text import Text


def figures(plan: Plan, hardware: Hardware) -> Iterator[tuple[str, str]]:
    """What a person wants to know before starting, each as (figure, what it is)."""
    yield f"{plan.total_steps:,}", "steps"
    yield f"about {roughly(plan.duration.likely_seconds)}", ""
    needed = views.memory(plan.vram.likely_bytes)
    if hardware.vram_bytes:
        yield needed, f"of {views.memory(hardware.vram_bytes)} VRAM"
    else:
        yield needed, "memory"
    yield words.size(plan.file_bytes), "file"


def line(plan: Plan, hardware: Hardware, otherwise: Plan | None = None) -> Text:
    """The estimate in one line; with `otherwise`, what changes is shown as before → after."""
    from rich.text import Text

    text = Text()
    after = list(figures(otherwise or plan, hardware))
    for (figure, unit), (new, _) in zip(figures(plan, hardware), after, strict=True):
        if text:
            text.append("  ·  ", "quiet")
        if new == figure:
            text.append(figure)
        else:
            text.append(f"{figure} → ", "quiet").append(new.removeprefix("about "), "accent")
        text.append(f" {unit}" if unit else "", "quiet")
    needed = (otherwise or plan).vram.likely_bytes
    if hardware.vram_bytes and needed > hardware.vram_bytes:
        text.append("  ·  does not fit", "high")
    return text


def roughly(seconds: float) -> str:
    """An estimated time, no more exact than it can be: "40 s", "6 min", "1 h 20 min"."""
    grain = 10 if seconds < 90 else 60 if seconds < 3600 else 600 if seconds < 36000 else 3600
    return words.duration(max(round(seconds / grain), 1) * grain)
