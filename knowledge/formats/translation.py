"""A foreign config on its way into ours: every key ends in exactly one list, and nothing is dropped in silence."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal, get_args

from pydantic import ValidationError

from knowledge import library
from knowledge.answers import plain_problems
from knowledge.config import LACKING_DROPOUT, UP_ALGORITHMS, TrainingConfig, fields, sections, with_values
from knowledge.optimizer_arguments import (
    argument_problems,
    as_arguments,
    decided_elsewhere,
    from_text,
    known_arguments,
    unusual_arguments,
)
from knowledge.parameters import Term, parameters, terms

ARGUMENT_SECTIONS = {
    "network": ("network_args",),
    "optimizer": ("optimizer_args", "network_args"),  # LoRA+ is an argument of the network there
    "schedule": ("lr_scheduler_args",),
}
"""Lists of key=value whose keys an entry of this section may name."""

NO_MODEL = "base-model"
"""Stands where a base model is still to be chosen."""

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


@dataclass(frozen=True)
class Repair:
    """A combination that cannot be trained, and the change that keeps its meaning."""

    applies: Callable[[Mapping[str, Any]], bool]
    changes: dict[str, Any]
    why: str


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


def _caption_changes(values: Mapping[str, Any]) -> bool:
    switches = ("dataset.shuffle_tags", "dataset.wildcards")
    rates = ("dataset.caption_dropout_rate", "dataset.tag_dropout_rate", "dataset.caption_dropout_every_epochs")
    return any(values.get(name) for name in (*switches, *rates))


def _lacking(name: str, algorithm: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda values: bool(values.get(f"network.{name}") and values.get("network.algorithm") == algorithm)


REPAIRS = (
    Repair(
        lambda values: bool(values.get("memory.full_half")) and values.get("memory.precision", "fp32") != "bf16",
        {"memory.full_half": False},
        "Trained weights can be kept in bf16 only where the calculations are in bf16 too.",
    ),
    Repair(
        lambda values: bool(
            values.get("memory.cache_text_encoder_outputs") and values.get("network.train_text_encoder")
        ),
        {"memory.cache_text_encoder_outputs": False},
        "Text encoders that are trained cannot be cached; sd-scripts stops at this. Here they are trained without it.",
    ),
    Repair(
        lambda values: bool(values.get("memory.cache_text_encoder_outputs") and _caption_changes(values)),
        {"memory.cache_text_encoder_outputs": False},
        "Captions that change cannot be cached; sd-scripts stops at this. They change, without the cache.",
    ),
    Repair(
        lambda values: bool(
            values.get("memory.cache_latents")
            and (values.get("dataset.random_crop") or values.get("dataset.colour_augmentation"))
        ),
        {"memory.cache_latents": False},
        "Pictures that change cannot be cached; sd-scripts stops at this. They change, without the cache.",
    ),
    *(
        Repair(_lacking(name, algorithm), {f"network.{name}": 0.0}, f"{why[0].upper()}{why[1:]}.")
        for name, lacking in LACKING_DROPOUT.items()
        for algorithm, why in lacking.items()
    ),
    Repair(
        lambda values: (
            values.get("optimizer.lora_plus_ratio", 1) > 1
            and values.get("network.algorithm", "lora") not in UP_ALGORITHMS
        ),
        {"optimizer.lora_plus_ratio": 1.0},
        "This algorithm has no pair of matrices that could learn at two rates.",
    ),
    Repair(
        lambda values: values.get("base_model.clip_skip", 1) > 1 and values.get("base_model.family") == "sdxl",
        {"base_model.clip_skip": 1},
        "SDXL always reads the last layer but one of its text encoders.",
    ),
    Repair(
        lambda values: values.get("base_model.path") == "",
        {"base_model.path": NO_MODEL},
        "It names no base model. Set base_model.path.",
    ),
)


def as_bool(value: Any) -> bool | None:
    """A switch as foreign files write it; None when it is none."""
    if isinstance(value, bool) or value is None:
        return value
    return {"true": True, "yes": True, "1": True, "on": True, "false": False, "no": False, "0": False, "": False}.get(
        str(value).strip().lower()
    )


def as_number(value: Any) -> float | None:
    """A finite number as foreign files write it, as number or text; None when it is none."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def is_empty(value: Any) -> bool:
    """Is this how a form writes "not set"?"""
    return value is None or value == "" or value == [] or value == {}


def fitted(name: str, value: Any) -> Any:
    """A foreign value in the type of our field: "16" and 16.0 become 16 for a whole number, choices become ours."""
    annotation = fields()[name].annotation
    kinds = {annotation, *get_args(annotation)}
    if bool in kinds:
        switch = as_bool(value)
        return value if switch is None else switch
    number = as_number(value)
    if number is not None and not kinds & {str}:
        if int in kinds and number == int(number):
            return int(number)
        if float in kinds:
            return number
    return value


def refusal(name: str, value: Any) -> str:
    """Why our field cannot take this value, in a sentence; empty when it can."""
    section, _, column = name.rpartition(".")
    try:
        if section:
            sections()[section].model_validate({column: value})
        else:
            TrainingConfig.model_validate({name: value})
    except ValidationError as error:
        sentence = plain_problems(error)[0]
        return sentence.replace(f"{column} ", f"{name} ", 1) if not sentence.startswith(name) else sentence
    return ""


@cache
def alike(dialect: str) -> Mapping[str, str]:
    """Our dotted name of each foreign key whose entry claims it, for keys that a single entry claims."""
    found: dict[str, list[str]] = {}
    for name, parameter in parameters().items():
        for key in parameter.names.get(dialect, ()):
            found.setdefault(key, []).append(name)
    return {key: names[0] for key, names in found.items() if len(names) == 1}


def choice_of(name: str, dialect: str, word: Any) -> str | None:
    """Our choice that goes by this word in a dialect, whatever its case; None when there is none."""
    wanted = str(word).strip().lower()
    for value, choice in parameters()[name].choices.items():
        if wanted in (value, *(known.lower() for known in choice.names.get(dialect, ()))):
            return value
    return None


def foreign_choice(name: str, dialect: str, value: str) -> str | None:
    """The word for our choice in a dialect, the first that its entry gives."""
    choice = parameters()[name].choices.get(value)
    return next(iter(choice.names.get(dialect, ())), None) if choice else None


@cache
def elsewhere(dialect: str) -> Mapping[str, Term]:
    """What the knowledge base says of settings that only other trainers have, by their key."""
    return {key: term for term in terms().values() if term.kind == "elsewhere" for key in term.names.get(dialect, ())}


@cache
def facts_of(kind: str) -> Mapping[str, Any]:
    """What we know of a format's keys: data/formats/KIND.toml."""
    return library.document(f"formats/{kind}.toml")


def rest(job: Translation, kind: str) -> None:
    """Sort every key that no rule has spoken of: by its entry, by what we know of it, else as unknown."""
    known = facts_of(kind)
    same, foreign = alike(job.dialect), elsewhere(job.dialect)
    for key, value in job.source.items():
        if job.done(key):
            continue
        last = key.rpartition(".")[2]
        plain = re.sub(r"\.\d+\.", ".", key)
        if plain in known["options"] and value == known["options"][plain] and last not in same:
            job.no_effect(key, "It is what the other trainer does anyway.")
        elif is_empty(value):
            job.no_effect(key, "It is not set.")
        elif plain in known.get("harmless", {}):
            job.no_effect(key, known["harmless"][plain])
        elif plain in known.get("unlike", {}):
            _unlike(job, key, value, known["unlike"][plain])
        elif key in same:
            _take_alike(job, key, same[key], value)
        elif last in same and key.split(".")[0] in ARGUMENT_SECTIONS.get(same[last].split(".")[0], ()):
            _take_alike(job, key, same[last], value)
        elif key.split(".")[0] in known and "." in key:
            _argument(job, key, value, known[key.split(".")[0]])
        elif as_bool(value) is False and plain in known.get("missing", {}):
            job.no_effect(key, "It is switched off there.")
        elif plain in known.get("missing", {}):
            job.unsupported(key, known["missing"][plain])
        elif key in foreign:
            job.unsupported(key, foreign[key].here or foreign[key].meaning)
        elif plain in known["options"] or plain in known.get("unset", ()):
            job.unsupported(key, "This program has no such setting.")
        else:
            job.unknown(key, [*known["options"], *known.get("unset", ()), *same, *known.get("missing", {})])


def take_argument(job: Translation, key: str, optimizer: str, argument: str, value: Any) -> None:
    """Sort a key that gives the optimizer's class an argument, by our library's name for it."""
    written = key.rpartition(".")[2]
    value = from_text(value) if isinstance(value, str) else value
    if value is None:
        job.no_effect(key, "It is not set.")
    elif argument not in known_arguments(optimizer):
        why = decided_elsewhere().get(argument, f"{optimizer} has no such argument here")
        job.unsupported(key, f"It sets {written} of the optimizer; {why}.")
    else:
        problems = list(_argument_refusals(optimizer, {argument: value}))
        if problems:
            job.unsupported(key, f"{problems[0]} The optimizer's own value stays.")
        else:
            job.added(key, "optimizer.arguments", as_arguments({argument: value}))
            job.values["optimizer.arguments"] = unusual_arguments(
                optimizer, job.values["optimizer.arguments"], job.so_far("schedule.scheduler")
            )


def _argument_refusals(optimizer: str, arguments: Mapping[str, Any]) -> Iterator[str]:
    try:
        yield from argument_problems(optimizer, as_arguments(arguments))
    except ValueError as problem:
        yield str(problem)


def _argument(job: Translation, key: str, value: Any, known: Mapping[str, str]) -> None:
    """One key of a list of key=value: off, known for what it would have done, or unknown."""
    word = key.rpartition(".")[2]
    if word not in known:
        job.unknown(key, list(known))
    elif as_bool(value) is False or as_number(value) == 0:
        job.no_effect(key, "It is switched off there.")
    else:
        job.unsupported(key, known[word])


def _unlike(job: Translation, key: str, value: Any, effect: str) -> None:
    """A key that an entry of ours names, though it means something else."""
    if as_bool(value) is False or as_number(value) == 0:
        job.no_effect(key, "It is switched off there.")
    else:
        job.unsupported(key, effect)


def _take_alike(job: Translation, key: str, name: str, value: Any) -> None:
    if name in job.values:
        job.no_effect(key, f"{name} is taken from another key of this file.")
        return
    if name.startswith("dataset.folders."):
        _unlike(job, key, value, f"Here it belongs to each folder; set {name}.")
        return
    if as_number(value) == 0 and refusal(name, fitted(name, value)) and not refusal(name, None):
        job.no_effect(key, "0 means not set.")
        return
    choices = parameters()[name].choices
    if choices:
        ours = choice_of(name, job.dialect, value)
        if ours is None:
            job.unsupported(key, f'"{value}" is not among our choices; {name} stays as it is.')
            return
        value = ours
    job.mapped(key, name, value)
