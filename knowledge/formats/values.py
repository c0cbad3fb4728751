"""Values as foreign files write them, in the types of our fields."""

from __future__ import annotations

import math
import re
from typing import Any, get_args

from pydantic import ValidationError

from knowledge.answers import plain_problems
from knowledge.config import TrainingConfig, fields, sections


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
            return int(value) if re.fullmatch(r"[+-]?\d+", str(value)) else int(number)  # a float would lose digits
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


def typed(word: str) -> Any:
    """A word of a command as the number or switch that it is, else as it stands."""
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return {"True": True, "False": False}.get(word, word)
