"""The keys that no rule of a format has spoken of, each into its list by what we know of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from knowledge.formats.translation import Translation
from knowledge.formats.values import as_bool, as_number, fitted, is_empty, refusal
from knowledge.formats.vocabulary import alike, choice_of, elsewhere, facts_of, optimizer_of
from knowledge.optimizer_arguments import (
    argument_problems,
    as_arguments,
    decided_elsewhere,
    from_text,
    known_arguments,
    unusual_arguments,
)
from knowledge.parameters import parameters

ARGUMENT_SECTIONS = {
    "network": ("network_args",),
    "optimizer": ("optimizer_args", "network_args"),  # LoRA+ is an argument of the network there
    "schedule": ("lr_scheduler_args",),
}
"""Lists of key=value whose keys an entry of this section may name."""


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
        elif plain in _of_other_models(kind):
            job.no_effect(key, "Only models of another kind (Flux, SD3 …) read it.")
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


def _of_other_models(kind: str) -> frozenset[str]:
    """Keys that mean something for models alone that are not trained here."""
    if kind != "sd_scripts":
        return frozenset()
    same = {*facts_of(kind)["options"], *facts_of(kind)["unset"]}
    forms = facts_of("kohya_gui")["other_models"]["keys"]
    return frozenset({*facts_of(kind)["other_models"]["keys"], *forms} - same)


def take_name(job: Translation, key: str, text: str, why: str = "Letters, digits, dots and dashes only.") -> None:
    """Take the name of the finished file, which holds letters, digits, dots and dashes alone here."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:100] or "my-lora"
    if name == str(job.source[key]):
        job.mapped(key, "output.name", name)
    else:
        job.changed(key, "output.name", name, why)


def take_optimizer(job: Translation, key: str) -> str | None:
    """Take the optimizer, or the nearest one here; None where there is none."""
    word = job.source[key]
    ours, exact = optimizer_of(job.dialect, word)
    if ours is None:
        job.unsupported(key, f'It trains with the optimizer "{word}". AdamW is used here.')
    elif exact:
        job.mapped(key, "optimizer.name", ours)
    else:
        job.changed(key, "optimizer.name", ours, "It is the nearest one here.")
    return ours


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
        otherwise = f'"{value}" is not among our choices; {name} stays as it is.'
        job.mapped_if_known(key, name, choice_of(name, job.dialect, value), otherwise)
    else:
        job.mapped(key, name, value)
