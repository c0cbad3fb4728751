"""Which shapes the parts of an adapter must have to go together, as a table."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from knowledge.answers import PlainError

if TYPE_CHECKING:
    from engine.tools.adapters import Adapter

PLAIN = {
    "lora": {"up": "out rank", "down": "rank in"},
    "loha": {
        "hada_w1_a": "out first",
        "hada_w1_b": "first in",
        "hada_w2_a": "out second",
        "hada_w2_b": "second in",
    },
    "lokr": {
        "lokr_w1": "high wide",
        "lokr_w1_a": "high left",
        "lokr_w1_b": "left wide",
        "lokr_w2": "low narrow",
        "lokr_w2_a": "low right",
        "lokr_w2_b": "right narrow",
    },
    "glora": {"a1": "in first", "a2": "first in", "b1": "out second", "b2": "second in"},
    "diag-oft": {"oft_blocks": "blocks size size"},
    "boft": {"oft_blocks": "stages blocks size size"},
    "norm": {"diff": "out", "bias": "out"},
    "full": {"diff": "out"},
    "ia3": {},
    "tlora": {},
    "bias": {"bias": "out"},
}
"""Sides of each part by name, the first of them: what has the same name must have the same length."""
WITH_CORE = {
    "lora": ("mid", {"up": "out first", "mid": "first second", "down": "second in"}),
    "loha": (
        "hada_t1",
        {f"hada_w{side}_a": f"a{side} out" for side in "12"}
        | {f"hada_w{side}_b": f"b{side} in" for side in "12"}
        | {f"hada_t{side}": f"a{side} b{side}" for side in "12"},
    ),
    "lokr": (
        "lokr_t2",
        {
            "lokr_w1": "high wide",
            "lokr_w1_a": "high left",
            "lokr_w1_b": "left wide",
            "lokr_t2": "first second",
            "lokr_w2_a": "first low",
            "lokr_w2_b": "second narrow",
        },
    ),
    "glora": ("bm", {"a1": "in first", "a2": "first in", "b1": "out second", "bm": "second third", "b2": "third in"}),
}
"""The same with a core between two matrices (Tucker decomposition), and the part that tells that there is one."""
SINGLE = ("alpha", "on_input")
"""Parts that are one number."""
OPTIONAL = ("dora_scale", "bias")
OWN = {
    "boft": ("rescale",),
    "diag-oft": ("rescale",),
    "ia3": ("scale_vector",),
    "tlora": ("q_layer", "p_layer", "lambda_layer"),
    "lokr": ("lokr_t1",),
}
"""Parts besides those with sides: of every algorithm, and of some."""
HALVES = {"lokr": (("lokr_w1", ("lokr_w1_a", "lokr_w1_b")), ("lokr_w2", ("lokr_w2_a", "lokr_w2_b")))}
"""Parts of which either the first is there, or else all of the others."""


def refuse_misfit(adapter: Adapter) -> None:
    """Raises PlainError, naming layer and parts, where parts are missing, empty, no weights or do not fit together."""
    problem = next(_problems(adapter), None)
    if problem is not None:
        raise PlainError(f"{adapter} is damaged: {problem}.")


def _problems(adapter: Adapter) -> Iterator[str]:
    allowed = {*_sides(adapter), *SINGLE, *OPTIONAL, *OWN.get(adapter.algorithm, ())}
    for part in adapter.parts:
        if part not in allowed:
            yield f"its {said(part)} belongs to another algorithm than the rest"
        dtype, shape = adapter.layout(part)
        if 0 in shape:
            yield f"its {said(part)} is empty"
        if part in SINGLE and any(side != 1 for side in shape):
            yield f"its {said(part)} should be one number and has the shape {list(shape)}"
        if part not in SINGLE and not dtype.is_floating_point:
            yield f"its {said(part)} holds whole numbers ({str(dtype).removeprefix('torch.')}), which weights never are"
        if part in ("dora_scale", "scale_vector", "rescale") and adapter.count(part) != max(shape, default=1):
            yield f"its {said(part)} should be a vector and has the shape {list(shape)}"
    for whole, halves in HALVES.get(adapter.algorithm, ()):
        if whole not in adapter and not all(half in adapter for half in halves):
            yield f"it has neither {said(whole)} nor both of {' and '.join(halves)}"
    known: dict[str, tuple[str, int]] = {}
    for part, sides in _sides(adapter).items():
        if part not in adapter:
            continue
        shape, names = adapter.shape(part), sides.split()
        if len(shape) < len(names):
            yield f"its {said(part)} has the shape {list(shape)}, where at least {len(names)} sides are needed"
        for name, length in zip(names, shape, strict=False):
            other, expected = known.setdefault(name, (part, length))
            if expected != length:
                yield (
                    f"its {said(other)} {list(adapter.shape(other))} and {said(part)} {list(shape)} do not fit together"
                )


def said(part: str) -> str:
    """A part as kohya's files call it."""
    names = {"up": "lora_up", "down": "lora_down", "mid": "lora_mid", "bias": "diff_b", "scale_vector": "weight"}
    return names.get(part, part)


def size_of_change(adapter: Adapter) -> tuple[int | None, int | None]:
    """Rows and columns of ΔW as a matrix [out, in × kernel]; None where the file alone does not say."""
    lengths: dict[str, int] = {}
    taps = 1
    for part, sides in _sides(adapter).items():
        if part in adapter:
            shape, names = adapter.shape(part), sides.split()
            lengths |= dict(zip(names, shape, strict=False))
            taps = max(taps, math.prod(shape[len(names) :]))

    def side(*names: str) -> int | None:
        return math.prod(lengths[name] for name in names) if all(name in lengths for name in names) else None

    rows = side("out") or side("high", "low") or side("blocks", "size")
    if adapter.algorithm in ("full", "norm"):
        return rows, taps  # a vector is a matrix of one column
    columns = side("in") or side("wide", "narrow")
    return rows, columns * taps if columns else None


def _sides(adapter: Adapter) -> dict[str, str]:
    kind = "lora" if adapter.algorithm == "locon" else adapter.algorithm
    core, sides = WITH_CORE.get(kind, ("", {}))
    return sides if core in adapter else PLAIN[kind]
