"""What optimizers take beside rate and weight decay. Names and types stand in data, so that checking loads nothing."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator, Mapping
from typing import Any

from knowledge import library
from knowledge.optimizers import OPTIMIZERS

Argument = bool | int | float | tuple[float, ...]
NUMBER = "number"
"""Stands in the data for an argument that wants a number and has none unless it is set."""
EXAMPLE = "{ betas = [0.9, 0.99] }"


def known_arguments(optimizer: str) -> Mapping[str, Any]:
    """The arguments of this optimizer, each with its value where nobody sets it, or NUMBER."""
    return OPTIMIZERS[optimizer].arguments


def decided_elsewhere() -> Mapping[str, str]:
    """Arguments of optimizers that are not for setting, with where they are decided instead."""
    return library.document("optimizer_arguments.toml")


def as_arguments(value: Any) -> Any:
    """Names and plain values out of a table. Raises ValueError in words when it is none."""
    if not isinstance(value, Mapping):
        raise ValueError(f"optimizer.arguments must be a table of names and values, as in {EXAMPLE}.")
    arguments: dict[str, Argument] = {}
    for name, each in value.items():
        row = tuple(each) if isinstance(each, list | tuple) else None
        numbers = row if row is not None else (each,)
        if not numbers or not all(
            _is_number(number) or (row is None and isinstance(number, bool)) for number in numbers
        ):
            raise ValueError(
                f"optimizer.arguments.{name} is {each!r}; it must be a number, true or false, or a list of numbers, "
                f"as in {EXAMPLE}."
            )
        arguments[str(name)] = each if row is None else row
    return arguments


def argument_problems(optimizer: str, arguments: Mapping[str, Argument]) -> Iterator[str]:
    """One sentence for every argument that this optimizer does not take, or not with this kind of value."""
    from knowledge.answers import did_you_mean  # which stands on the schema, and the schema on this module

    known, elsewhere = known_arguments(optimizer), decided_elsewhere()
    for name, value in arguments.items():
        if name in known:
            wanted = _wanted(known[name])
            if not _fits(known[name], value):
                yield f"optimizer.arguments.{name} is {to_text(value)}; {optimizer} wants {wanted} there."
        elif name in elsewhere:
            yield f'optimizer.arguments has "{name}", which is not set there: {elsewhere[name]}.'
        else:
            yield (
                f'optimizer.arguments has "{name}", which {optimizer} does not take.{did_you_mean(name, known)} '
                f"It takes {', '.join(known)}."
            )


def all_arguments(
    optimizer: str, arguments: Mapping[str, Argument], scheduler: str = "constant"
) -> dict[str, Argument]:
    """What the optimizer's class is given under this schedule: these arguments, and of all others the usual value."""
    usual = {name: value for name, value in known_arguments(optimizer).items() if value != NUMBER}
    if scheduler == optimizer:
        usual |= OPTIMIZERS[optimizer].on_own_schedule

    def fitted(value: Any, like: Any) -> Argument:
        if isinstance(value, tuple | list):
            return tuple(float(number) for number in value)
        return float(value) if _is_number(value) and not isinstance(like, int) else value

    return {name: fitted(value, known_arguments(optimizer)[name]) for name, value in {**usual, **arguments}.items()}


def unusual_arguments(
    optimizer: str, arguments: Mapping[str, Argument], scheduler: str = "constant"
) -> dict[str, Argument]:
    """Those of the arguments that are not what the optimizer is given under this schedule anyway."""
    usual = all_arguments(optimizer, {}, scheduler)
    return {name: value for name, value in arguments.items() if value != usual.get(name)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _wanted(usual: Any) -> str:
    if isinstance(usual, bool):
        return "true or false"
    if isinstance(usual, list):
        return f"{len(usual)} numbers, as in [{to_text(tuple(usual))}]"
    return "a whole number" if isinstance(usual, int) else "a number"


def _fits(usual: Any, value: Argument) -> bool:
    if isinstance(usual, bool):
        return isinstance(value, bool)
    if isinstance(usual, list):
        return isinstance(value, tuple) and len(value) == len(usual)
    return _is_number(value) and (isinstance(value, int) or not isinstance(usual, int))


# -- as one line of text, the way sd-scripts writes them ---------------------------------------------------------------


def to_text(value: Argument) -> str:
    """A value as sd-scripts writes it: 0.9,0.99 or True or 1e-08."""
    return ",".join(str(number) for number in value) if isinstance(value, tuple) else str(value)


def from_text(text: str) -> Any:
    """The value that such text means; the text itself when it means none."""
    word = text.strip()
    if word.lower() in ("true", "false"):
        return word.lower() == "true"
    try:
        value = ast.literal_eval(word)
    except (ValueError, SyntaxError):
        return text
    return tuple(value) if isinstance(value, list | tuple) else value


def to_line(arguments: Mapping[str, Argument]) -> str:
    """All arguments as one line: betas=0.9,0.99 eps=1e-06."""
    return " ".join(f"{name}={to_text(value)}" for name, value in arguments.items())


def from_line(line: str) -> dict[str, Any]:
    """The arguments in such a line. Raises ValueError in words for a piece that sets nothing."""
    arguments = {}
    for piece in line.replace(", ", ",").replace("[", "").replace("]", "").split():
        name, equals, value = piece.partition("=")
        if not (name and equals and value):
            raise ValueError(f'"{piece}" sets nothing; write name=value, as in betas=0.9,0.99 eps=1e-6.')
        arguments[name] = from_text(value)
    return arguments
