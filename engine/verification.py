"""A saved network looked at as a stranger would: are its names known, its shapes right, does it change anything, who
reads it. What is checked are the tensors of the file, after rounding, not those of the running network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from engine.tools.adapters import Adapter, in_memory
from engine.tools.applications import readings
from engine.tools.part_shapes import size_of_change
from knowledge.answers import PlainError
from knowledge.words import count

ACTS_THROUGH: dict[str, tuple[tuple[str, ...], ...]] = {
    "lora": (("up", "down"),),
    "locon": (("up", "down"),),
    "loha": (("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),),
    "lokr": (("lokr_w1", "lokr_w2"), ("lokr_w1", "lokr_w2_a", "lokr_w2_b")),
    "glora": (("a1", "a2"), ("b1", "b2")),
    "boft": (("oft_blocks",),),
    "diag-oft": (("oft_blocks",),),
    "ia3": (("scale_vector",),),
    "full": (("diff",), ("bias",)),
}
"""Products of tensors that make up an algorithm's change: it is zero when there is a zero in each of them."""


@dataclass(frozen=True)
class Verified:
    """What a file turned out to be: the layers that change nothing, and what each application does with it."""

    layers: int
    silent: tuple[str, ...]
    applications: dict[str, str]


def verify(tensors: Mapping[str, Tensor], base: Mapping[str, tuple[int, ...]], family: str) -> Verified:
    """Look through the tensors of a network file. base: shape of the base model's weight by the saved layer's name.

    Raises PlainError when a layer is missing or foreign, or does not fit its base layer. A name that an application
    does not know is no error, since a family may be newer than the application: what each makes of it is told.
    """
    found = in_memory(tensors)
    missing, foreign = sorted(set(base) - set(found)), sorted(set(found) - set(base))
    unfit = [name for name, adapter in found.items() if name in base and not _fits(adapter, base[name])]
    for names, what in (
        (missing, "lacks"),
        (foreign, "has more layers than were trained, as"),
        (unfit, "has shapes that do not fit the base model, as"),
    ):
        if names:
            raise PlainError(
                f"The network file {what} {names[0]} ({len(names)} of {count(len(base), 'layer')}). It would not work "
                "anywhere, so it was not saved. This is a fault of the program; please report it."
            )
    silent = tuple(name for name, adapter in found.items() if not acts(adapter))
    applications = {r.application: _words(r.verdict, r.remarks) for r in readings(found, family)}
    return Verified(len(found), silent, applications)


def acts(adapter: Adapter) -> bool:
    """Whether the layer's change can be anything but zero: some product of its tensors has no zero factor."""
    return any(
        all(part in adapter and bool(adapter[part].any()) for part in factors)
        for factors in ACTS_THROUGH[adapter.algorithm]
    )


def _fits(adapter: Adapter, shape: tuple[int, ...]) -> bool:
    inputs = 1
    for size in shape[1:]:
        inputs *= size
    rows, columns = size_of_change(adapter)
    return columns in (inputs, None) and rows in (shape[0], None)


def _words(verdict: str, remarks: tuple[str, ...]) -> str:
    return verdict if not remarks else f"{verdict}: {'; '.join(remarks)}"
