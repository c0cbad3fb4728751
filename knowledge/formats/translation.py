"""A foreign config on its way into ours: every key ends in exactly one list, and nothing is dropped in silence."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pydantic import ValidationError

from knowledge.answers import plain_problems
from knowledge.config import TrainingConfig, with_values
from knowledge.formats.repairs import NO_MODEL, REPAIRS
from knowledge.formats.values import as_bool, fitted, refusal

Outcome = Literal["mapped", "changed", "no_effect", "unsupported", "unknown"]
TITLES: dict[Outcome, str] = {
    "mapped": "Taken over as it is",
    "changed": "Taken over with a change",
    "no_effect": "Without effect on the result",
    "unsupported": "Not supported here",
    "unknown": "Unknown",
}
"""The five lists, in the order in which they are shown."""


@dataclass(frozen=True)
class Note:
    """What became of one foreign key. `name` and `new` are ours, where there are any; `why` is a sentence."""

    key: str
    value: Any
    outcome: Outcome
    name: str = ""
    new: Any = None
    why: str = ""


@dataclass(frozen=True)
class Imported:
    """A foreign config translated. `implied` are values of ours that follow from the other trainer's defaults.

    `config` is None when the result cannot be trained; `problems` say why. `warnings` bite only in that trainer.
    """

    format: str
    config: TrainingConfig | None
    values: dict[str, Any]
    notes: tuple[Note, ...]
    implied: dict[str, Any] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def listed(self, outcome: Outcome) -> list[Note]:
        """The keys that ended in one list, in the order of the file."""
        return [note for note in self.notes if note.outcome == outcome]


class Translation:
    """The work of one import: foreign values by key, and what has been said of each so far."""

    def __init__(self, kind: str, dialect: str, source: Mapping[str, Any]) -> None:
        self.format = kind
        self.dialect = dialect
        self.source = dict(source)
        self.values: dict[str, Any] = {}
        self.implied: dict[str, Any] = {}
        self.notes: dict[str, Note] = {}
        self.warnings: list[str] = []
        self.other_kind = ""
        """What it trains when that is nothing that we train, as "a FLUX_DEV_1 model"."""

    def get(self, key: str, default: Any = None) -> Any:
        value = self.source.get(key, default)
        return default if value is None else value

    def on(self, key: str) -> bool:
        """Is this switch on? Foreign files write switches as true, "True", 1."""
        return as_bool(self.source.get(key)) is True

    def mapped(self, key: str, name: str, value: Any) -> None:
        """The key means exactly what `name` means, and its value is `value`."""
        self._take("mapped", key, name, value, "")

    def changed(self, key: str, name: str, value: Any, why: str) -> None:
        """The key is taken over as `name` with another value or another meaning, for this reason."""
        self._take("changed", key, name, value, why)

    def mapped_if_known(self, key: str, name: str, value: Any, otherwise: str) -> None:
        """The key means `name`, and its word is called `value` here; None where there is no such thing here.

        `otherwise`, as of `unsupported`: what the word would have done there, and what happens here instead.
        """
        if value is None:
            self.unsupported(key, otherwise)
        else:
            self.mapped(key, name, value)

    def inside(self, name: str, value: Any) -> None:
        """A value that stands inside that of another key, which has a note for all of it."""
        value = fitted(name, value)
        problem = refusal(name, value)
        if problem:
            self.warnings.append(f"{problem} The default stays.")
        else:
            self.values[name] = value

    def added(self, key: str, name: str, entries: Mapping[str, Any]) -> None:
        """The key means these entries of the table `name`, which other keys may add to."""
        self.values[name] = {**self.values.get(name, self.implied.get(name, {})), **entries}
        self._note(Note(key, self.source.get(key), "mapped", name, dict(entries)))

    def no_effect(self, key: str, why: str) -> None:
        self._note(Note(key, self.source.get(key), "no_effect", why=why))

    def unsupported(self, key: str, effect: str) -> None:
        """`effect`: what the setting would have done there, and what happens here instead."""
        self._note(Note(key, self.source.get(key), "unsupported", why=effect))

    def unknown(self, key: str, known: Collection[str]) -> None:
        near = difflib.get_close_matches(key.rpartition(".")[2], list(known), n=1, cutoff=0.75)
        self._note(Note(key, self.source.get(key), "unknown", why=f'Did you mean "{near[0]}"?' if near else ""))

    def so_far(self, name: str) -> Any:
        """The value of a parameter of ours as far as the keys that were spoken of go."""
        return self.values.get(name, self.implied.get(name))

    def done(self, key: str) -> bool:
        return key in self.notes

    def _take(self, outcome: Outcome, key: str, name: str, value: Any, why: str) -> None:
        value = fitted(name, value)
        problem = refusal(name, value)
        if problem:
            self.unsupported(key, f"{problem} The default stays.")
            return
        self.values[name] = value
        self._note(Note(key, self.source.get(key), outcome, name, value, why))

    def _note(self, note: Note) -> None:
        assert note.key not in self.notes, note.key
        self.notes[note.key] = note

    def result(self) -> Imported:
        """The config of all values, after the repairs that apply."""
        merged = {**self.implied, **self.values}
        for repair in REPAIRS:
            if repair.applies(merged):
                for name, value in repair.changes.items():
                    merged[name] = value
                    self._correct(name, value, repair.why)
        config: TrainingConfig | None = None
        problems: tuple[str, ...] = ()
        try:
            config = with_values(TrainingConfig(), merged)
        except ValidationError as error:
            problems = tuple(plain_problems(error))
        implied = {name: value for name, value in self.implied.items() if name not in self.values}
        notes = tuple(self.notes[key] for key in self.source if key in self.notes)
        imported = Imported(self.format, config, merged, notes, implied, problems, tuple(self.warnings))
        return of_another_kind(imported, self.other_kind) if self.other_kind else imported

    def _correct(self, name: str, value: Any, why: str) -> None:
        for key, note in self.notes.items():
            if note.name == name:
                self.notes[key] = Note(key, note.value, "changed", name, value, why)
                return
        self.warnings.append(why)


def of_another_kind(imported: Imported, what: str) -> Imported:
    """The import of a config that trains something else than we do, named in `what`, as "a Flux.1 model".

    Its base model is not taken over, and the first warning says how little such a recipe tells about ours.
    """
    notes = tuple(
        replace(note, outcome="unsupported", name="", new=None, why="It is no base model of a kind trained here.")
        if note.name == "base_model.path"
        else note
        for note in imported.notes
    )
    none = {"base_model.path": NO_MODEL}
    config = None if imported.config is None else with_values(imported.config, none)
    warning = (
        f"It trains {what}, which this program does not. Pictures, captions and samples carry over; choose a base "
        "model, then judge rate, rank and steps anew, since they were meant for something else."
    )
    warnings = (warning, *imported.warnings)
    return replace(imported, config=config, values=imported.values | none, notes=notes, warnings=warnings)
