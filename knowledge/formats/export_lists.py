"""What became of every setting in an export, told by reading back what was written."""

from __future__ import annotations

from typing import Any

from knowledge.config import TrainingConfig, fields, value_of
from knowledge.formats.export import Exported
from knowledge.formats.meaning import idle
from knowledge.formats.translation import Imported, Note, Outcome

EXPORT_TITLES: dict[Outcome, str] = {
    "mapped": "Said as it is",
    "changed": "Said with a change",
    "no_effect": "Without effect in these answers",
    "unsupported": "Cannot be said there",
    "unknown": "Not found when it was read back",
}
"""The five lists of an import, seen from our side."""


ORPHANED = "It hangs on another setting that cannot be said there."


def what_became_of(config: TrainingConfig, exported: Exported, back: Imported) -> list[Note]:
    """A note for each setting of ours that is not the default: `name` and `new` are theirs, `back` the export read."""
    lost = {entry.name: entry.why for entry in exported.lost}
    vain, orphaned = idle(config), idle(back.config) if back.config else set()
    theirs = {note.name: note for note in reversed(back.notes) if note.name}
    notes = []
    for name, field in fields().items():
        value = value_of(config, name) if not name.startswith("dataset.folders.") else field.default
        if value == field.default and name not in lost:
            continue
        why = lost.get(name, ORPHANED if name in orphaned - vain else None)
        notes.append(_note(name, value, why, name in vain, theirs.get(name), back))
    return notes


def _note(name: str, value: Any, why: str | None, vain: bool, theirs: Note | None, back: Imported) -> Note:
    there = None if back.config is None or "folders." in name else value_of(back.config, name)
    if why is not None:
        instead = there != fields()[name].default and there is not None and theirs is not None
        if instead and theirs is not None:
            return Note(name, value, "changed", theirs.key, theirs.value, why)
        return Note(name, value, "unsupported", why=why)
    if vain:
        return Note(name, value, "no_effect", why="Another setting switches off what would read it.")
    if theirs is not None:
        outcome: Outcome = "changed" if theirs.outcome == "changed" and theirs.value != value else "mapped"
        return Note(name, value, outcome, theirs.key, theirs.value, theirs.why if outcome == "changed" else "")
    return Note(name, value, "mapped" if there == value else "unknown")
