"""What a run's length, memory and time are worth, in words: the thresholds and reasons are data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from knowledge import library
from knowledge.expressions import UnknownFactError, evaluate, fill
from knowledge.parameters import Evidence, lookup_for

Verdict = Literal["too low", "right", "too high"]
MEASURES = {
    "steps": "plan.total_steps",
    "views": "plan.views_per_image",
    "time": "plan.duration_likely_seconds",
    "memory": "plan.vram_likely_bytes",
}
"""What is judged, and the fact that holds it."""


@dataclass(frozen=True)
class Assessment:
    """One figure judged: between `low` and `high` it is right. `change` says what to do, empty when nothing need be."""

    measure: str
    value: float
    low: float
    high: float
    verdict: Verdict
    why: str
    change: str
    evidence: Evidence
    sources: tuple[str, ...]


def assess(facts: Mapping[str, Any]) -> list[Assessment]:
    """Every figure that these facts hold, judged by the first row of its kind whose case they meet."""
    return [found for measure in MEASURES if (found := _judged(measure, facts)) is not None]


def _judged(measure: str, facts: Mapping[str, Any]) -> Assessment | None:
    lookup = lookup_for(None, facts)
    for row in library.document("assessment.toml")[measure]:
        try:
            value = lookup(MEASURES[measure])
            if not value or ("when" in row and not evaluate(row["when"], lookup)):
                continue
            low, high = evaluate(row["low"], lookup), evaluate(row["high"], lookup)
            verdict: Verdict = "too low" if value < low else "too high" if value > high else "right"
            change = {"too low": row["raise"], "too high": row["lower"], "right": ""}[verdict]
            why, change = (fill(text, lookup) for text in (row["why"], change))
        except UnknownFactError:
            continue
        return Assessment(measure, value, low, high, verdict, why, change, row["evidence"], tuple(row["sources"]))
    return None
