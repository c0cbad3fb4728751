"""What is said of a dataset: findings, how pressing each is, and what the sentences share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Severity = Literal["blocks", "high", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("blocks", "high", "warning", "note")


@dataclass(frozen=True)
class DatasetFinding:
    """One thing to know about the dataset; `files` are the names of those it is about, to be shown."""

    kind: str
    severity: Severity
    message: str
    files: tuple[str, ...] = ()


Found = tuple[DatasetFinding, Sequence[Path]]


def finding(kind: str, severity: Severity, message: str, paths: Sequence[Path] = ()) -> Found:
    names = tuple(str(path).encode(errors="replace").decode() for path in paths)  # a name may be no text at all
    return DatasetFinding(kind, severity, message, names), paths


def have(things: Sequence[object]) -> str:
    return "has" if len(things) == 1 else "have"
