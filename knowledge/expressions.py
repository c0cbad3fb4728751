"""The small closed language of rules and recommendations: comparison, logic and arithmetic over dotted names."""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from simpleeval import SimpleEval

from knowledge.words import agreeing, count

Lookup = Callable[[str], Any]
"""The value of a dotted name. Raises UnknownFactError for a name it has no value for."""

OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.USub: operator.neg,
    ast.Not: operator.not_,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda value, values: value in values,
    ast.NotIn: lambda value, values: value not in values,
}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "ceil": math.ceil,
    "floor": math.floor,
    "min": min,
    "max": max,
    "len": len,
    "abs": abs,
    "round": round,
}
PLACEHOLDER = re.compile(r"\{([^{}:]+)(?::([^{}]*))?\}")


class UnknownFactError(KeyError):
    """A name that has no value here: the rule or recommendation that needs it does not apply."""


class _Evaluator(SimpleEval):  # type: ignore[misc]
    """simpleeval with dotted names read as one name, tuples for `in`, and nothing else of Python."""

    def __init__(self, lookup: Lookup) -> None:
        super().__init__(operators=OPERATORS, functions=FUNCTIONS, names={})
        self._lookup = lookup
        self.nodes: dict[type[ast.AST], Callable[[Any], Any]]
        allowed = (ast.Expr, ast.UnaryOp, ast.BinOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.Call, ast.Constant)
        self.nodes = {kind: self.nodes[kind] for kind in allowed} | {
            ast.Name: self._name,
            ast.Attribute: self._name,
            ast.Tuple: lambda node: tuple(self._eval(element) for element in node.elts),
        }

    def _name(self, node: ast.expr) -> Any:
        return self._lookup(_dotted(node))


def _dotted(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else f"{_dotted(node.value)}.{node.attr}"  # type: ignore[attr-defined]


@lru_cache(maxsize=2048)
def _parsed(expression: str) -> ast.stmt:
    return SimpleEval.parse(expression)  # type: ignore[no-any-return]


def evaluate(expression: str, lookup: Lookup) -> Any:
    """The value of an expression. Raises UnknownFactError when it needs a name that `lookup` does not know."""
    return _Evaluator(lookup).eval(expression, previously_parsed=_parsed(expression))


def names_in(expression: str) -> tuple[str, ...]:
    """The dotted names that an expression reads, in order of appearance, functions left out."""
    found: list[str] = []

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.Name | ast.Attribute):
            found.append(_dotted(node))
            return
        children = node.args if isinstance(node, ast.Call) else ast.iter_child_nodes(node)
        for child in children:
            visit(child)

    visit(_parsed(expression))
    return tuple(dict.fromkeys(found))


def placeholders(text: str) -> tuple[str, ...]:
    """The dotted names that the placeholders of a text read."""
    return tuple(dict.fromkeys(name for match in PLACEHOLDER.finditer(text) for name in names_in(match[1])))


def fill(text: str, lookup: Lookup) -> str:
    """The text with every {expression} or {expression:format} replaced by its value in a reader's form."""
    return PLACEHOLDER.sub(lambda match: in_words(evaluate(match[1], lookup), match[2] or ""), text)


def in_words(value: Any, form: str = "") -> str:
    """A value as prose writes it: 1e-4, 1,600, "on"; `form` is GiB (binary, as cards are sold: "8 GB"), GB, MB, %,
    time, name, word, Word (spelled out), "count picture" or "count copy/copies" (the number with its noun), "agree
    is/are" (what goes with the number), or a Python format."""
    how, _, words = form.partition(" ")
    if how in _AGREEING and words:
        one, _, many = words.partition("/")
        return _AGREEING[how](value, one, many or None)
    if form in _FORMS:
        return _FORMS[form](value)
    if form:
        return format(value, form)
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, int):
        return _number(value)
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name} = {in_words(each)}" for name, each in value.items()) or "none"
    if isinstance(value, tuple | list):
        return ", ".join(in_words(element) for element in value)
    return str(value)


def _number(value: float) -> str:
    if value == int(value) or abs(value) >= 1000:
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.0f}"
    if abs(value) >= 1e-3:
        return f"{value:.4g}"
    mantissa, exponent = f"{value:.3e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _time(seconds: float) -> str:
    for size, unit in ((86_400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= 1.5 * size:
            return count(round(seconds / size), unit)
    return count(round(seconds), "second") if seconds < 59.5 else "1 minute"


SPELLED: Mapping[float, str] = {
    0.1: "a tenth",
    0.2: "a fifth",
    0.25: "a quarter",
    0.33: "a third",
    0.5: "half",
    **dict(
        enumerate(
            ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
        )
    ),
    20: "twenty",
    30: "thirty",
    50: "fifty",
    100: "a hundred",
}
"""Numbers that prose spells out; every other one it writes in figures."""


def _word(value: float) -> str:
    return SPELLED.get(round(value, 2)) or in_words(value)


def _capital_word(value: float) -> str:
    word = _word(value)
    return word[:1].upper() + word[1:]


_AGREEING: dict[str, Callable[[float, str, str | None], str]] = {
    "count": lambda value, one, many: f"{in_words(value)} {agreeing(value, one, many)}",
    "agree": agreeing,
}
_FORMS: dict[str, Callable[[Any], str]] = {
    "GiB": lambda count: f"{count / 2**30:.3g} GB",
    "GB": lambda count: f"{count / 1e9:.3g} GB",
    "MB": lambda count: f"{count / 1e6:,.1f} MB" if count < 1e7 else f"{count / 1e6:,.0f} MB",
    "%": lambda share: f"{share * 100:.3g} %",
    "time": _time,
    "name": str,
    "word": _word,
    "Word": _capital_word,
}
