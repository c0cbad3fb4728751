"""The table of optimizers: one row each, from which schema, advice, calculator and engine take their part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from knowledge import library


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """A table of data/optimizers.toml, which tells what each column means."""

    kind: str
    arguments: Mapping[str, Any]
    state: str
    state_in_half: float = 0.5
    pace: Literal["of all", "of parts"] | None = None
    averages: bool = False
    steps: Literal["scaled", "sign", "plain"] = "scaled"
    eight_bits_of: str = ""
    always: Mapping[str, Any] = field(default_factory=dict)
    on_gpu: Mapping[str, Any] = field(default_factory=dict)
    on_own_schedule: Mapping[str, Any] = field(default_factory=dict)

    @property
    def library(self) -> str:
        """The package that its class comes from, as it is imported."""
        return self.kind.partition(":")[0].partition(".")[0]


OPTIMIZERS: dict[str, Optimizer] = {name: Optimizer(**row) for name, row in library.document("optimizers.toml").items()}

KINDS: Mapping[str, Callable[[Optimizer], bool]] = {
    "self_paced": lambda row: row.pace is not None,
    "one_pace": lambda row: row.pace == "of all",
    "averaging": lambda row: row.averages,
    "sign_steps": lambda row: row.steps == "sign",
    "plain_steps": lambda row: row.steps == "plain",
    "eight_bits": lambda row: bool(row.eight_bits_of),
}


def of_kind(kind: str) -> tuple[str, ...]:
    """The optimizers of one of the KINDS, in the order of the table."""
    return tuple(name for name, row in OPTIMIZERS.items() if KINDS[kind](row))
