"""What the loop holds in its hands, without pictures, a run's folder or a length: for tests of single updates."""

from __future__ import annotations

from typing import Any

from engine.bench import Bench, Caches
from knowledge.facts import DatasetFacts


def bare_bench(**held: Any) -> Bench:
    """A bench that holds this, and nothing of what a whole run has beside."""
    nothing = dict.fromkeys(("run", "model", "length"))
    bare = {"caches": Caches(None, None), "dataset": DatasetFacts(), "prompts": (), "held_out": [], "started_at": 0.0}
    together: dict[str, Any] = nothing | bare | held
    return Bench(**together)
