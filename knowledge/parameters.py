"""Parameters: a field of the schema joined with what we believe of it, and the terms that stand beside them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, get_args

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from knowledge import config, library
from knowledge.expressions import Lookup, UnknownFactError, evaluate, fill, placeholders
from knowledge.families import family_facts, family_names
from knowledge.optimizers import KINDS, of_kind

Level = Literal["essential", "advanced", "expert"]
LEVELS: tuple[Level, ...] = ("essential", "advanced", "expert")
Evidence = Literal["measured", "paper", "implementation", "community", "opinion"]

CONSTANTS = {"GiB": 2**30}
PROSE = ("meaning", "explanation", "too_low", "too_high", "choose", "avoid", "works_in", "here")
UNSECTIONED = "general"
"""The file of entries for parameters that stand in no section: the seed."""


@dataclass(frozen=True)
class Myth:
    """A claim that readers meet elsewhere, and what is true instead."""

    claim: str
    truth: str


@dataclass(frozen=True)
class Advice:
    """One row of recommendations: a value (or a formula over the facts) for the case that `when` describes.

    `case` says `when` in words, `words` says the formula in words; both are for readers without facts.
    """

    because: str
    value: Any = None
    formula: str | None = None
    when: str | None = None
    case: str = ""
    words: str = ""


@dataclass(frozen=True)
class Recommendation:
    value: Any
    because: str


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What parameters, choices and terms have in common.

    `names` are foreign names by dialect. Files of a dialect are read and written by them, so those of a parameter hold
    its value there; names that only lead a reader to it stand under `also`.
    """

    name: str
    title: str
    meaning: str
    explanation: str = ""
    level: Level = "advanced"
    evidence: Evidence = "community"
    sources: tuple[str, ...] = ()
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    myths: tuple[Myth, ...] = ()
    interactions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Choice(Entry):
    """One value of a parameter with a fixed list of values. Its `name` is optimizer.name.adamw, its `value` adamw."""

    parameter: str
    value: str
    choose: str = ""
    avoid: str = ""
    works_in: str = ""


@dataclass(frozen=True, kw_only=True)
class Term(Entry):
    """A word of the field, or a setting of other trainers; `here` says how this program deals with it."""

    kind: Literal["term", "elsewhere"] = "term"
    here: str = ""


@dataclass(frozen=True, kw_only=True)
class Parameter(Entry):
    """One setting. `numbers` are believed quantities that prose, recommendations and rules share by name.

    `compare` are values whose cost in VRAM, time and file size is worth showing side by side.
    """

    too_low: str = ""
    too_high: str = ""
    unit: str = ""
    default: Any = None
    minimum: float | None = None
    maximum: float | None = None
    numbers: Mapping[str, Any] = field(default_factory=dict)
    recommendations: tuple[Advice, ...] = ()
    choices: Mapping[str, Choice] = field(default_factory=dict)
    compare: tuple[Any, ...] = ()

    @property
    def field(self) -> FieldInfo:
        return _fields()[self.name]


class _Parameters(Mapping[str, Parameter]):
    """All parameters by dotted name; an entry is read when it is asked for."""

    def __getitem__(self, name: str) -> Parameter:
        if name not in _fields():
            raise KeyError(name)
        return _parameter(name)

    def __iter__(self) -> Iterator[str]:
        return iter(_fields())

    def __len__(self) -> int:
        return len(_fields())


def parameters() -> Mapping[str, Parameter]:
    """Every parameter by dotted name, in the order of the schema."""
    return _Parameters()


@cache
def _fields() -> dict[str, FieldInfo]:
    return config.fields()


def address_of(name: str) -> tuple[str, str]:
    """The file and the table of a parameter's entry: ("optimizer", "learning_rate")."""
    section, _, key = name.partition(".")
    return (section, key) if key else (UNSECTIONED, section)


def _table(name: str) -> dict[str, Any]:
    """The entry as it stands in its file. Raises KeyError when there is none."""
    section, key = address_of(name)
    table: dict[str, Any] = library.document(f"parameters/{section}.toml")[key]
    return table


@cache
def _parameter(name: str) -> Parameter:
    table = dict(_table(name))
    numbers = _numbers(name)
    told = _table(table.get("choices_as", name)).get("choices", {})
    # A family of models may be there before anything is believed of it; then it is not offered.
    chosen = {value: _choice(name, value) for value in config.choices(_fields()[name]) if value in told}
    advice = tuple(Advice(**row) for row in table.pop("recommendations", ()))
    compare = tuple(table.pop("compare", ()))
    for consumed in ("numbers", "numbers_of_families", "choices", "choices_as"):
        table.pop(consumed, None)
    fixed = {key: numbers[key] for key in ("default", "minimum", "maximum")}
    return Parameter(
        **_common(name, table, lookup_for(name)),
        **fixed,
        numbers={key: value for key, value in numbers.items() if key not in fixed},
        recommendations=advice,
        choices=chosen,
        compare=compare,
    )


def _choice(name: str, value: str) -> Choice:
    home = _table(name).get("choices_as", name)
    table = dict(_table(home)["choices"][value])
    return Choice(**_common(f"{home}.{value}", table, lookup_for(home)), parameter=home, value=value)


def _common(name: str, table: dict[str, Any], lookup: Lookup) -> dict[str, Any]:
    """The fields of Entry from a table, with the placeholders of its prose filled."""
    interactions = {other: fill(text, lookup) for other, text in table.pop("interactions", {}).items()}
    myths = tuple(Myth(myth["claim"], fill(myth["truth"], lookup)) for myth in table.pop("myths", ()))
    names = {dialect: tuple(words) for dialect, words in table.pop("names", {}).items()}
    prose: dict[str, Any] = {key: fill(table.pop(key), lookup).strip() for key in PROSE if key in table}
    sources = tuple(table.pop("sources", ()))
    return {
        "name": name,
        **table,
        **prose,
        "interactions": interactions,
        "myths": myths,
        "names": names,
        "sources": sources,
    }


@cache
def _numbers(name: str) -> dict[str, Any]:
    """The numbers that prose may use: those of the entry, and default, minimum and maximum of the field.

    `numbers_of_families` in an entry names a fact of families, which is a number under each family's name.
    Of the optimizers also which are of what kind.
    """
    schema = _fields()[name]
    default = None if schema.default is PydanticUndefined else schema.default
    low = next((m.ge if isinstance(m, Ge) else m.gt for m in schema.metadata if isinstance(m, Ge | Gt)), None)
    high = next((m.le if isinstance(m, Le) else m.lt for m in schema.metadata if isinstance(m, Le | Lt)), None)
    table = _table(name)
    families = (
        {family: getattr(family_facts(family), table["numbers_of_families"]) for family in family_names()}
        if "numbers_of_families" in table
        else {}
    )
    numbers: dict[str, Any] = table.get("numbers", {})
    kinds = {kind: of_kind(kind) for kind in KINDS} if name == "optimizer.name" else {}
    return {"default": default, "minimum": low, "maximum": high} | families | kinds | numbers


def number(name: str) -> Any:
    """A believed number by its address, as in network.rank.large or network.rank.default; a measured one as in
    lab.rank.small.creature_loss. Raises UnknownFactError."""
    if name in CONSTANTS:
        return CONSTANTS[name]
    if name.startswith("lab."):
        from knowledge.lessons import figure  # which stands on this module

        return figure(name.removeprefix("lab."))
    parameter, _, key = name.rpartition(".")
    if parameter in _fields() and key in _numbers(parameter):
        return _numbers(parameter)[key]
    raise UnknownFactError(name)


def lookup_for(
    name: str | None, facts: Mapping[str, Any] | None = None, own: Mapping[str, Any] | None = None
) -> Lookup:
    """What names mean inside the entry `name`: its own numbers, then the facts, recommended.*, and all numbers.

    `own` are the numbers of an entry that is no parameter.
    """
    if own is None:
        own = _numbers(name) if name is not None and name in _fields() else {}

    def lookup(word: str, own: Mapping[str, Any] = own) -> Any:
        if word in own:
            return own[word]
        if facts is not None:
            if word in facts:
                return facts[word]
            if word.startswith("recommended."):
                advised = recommended(word.removeprefix("recommended."), facts)
                if advised is None:
                    raise UnknownFactError(word)
                return advised.value
        return number(word)

    return lookup


def recommended(name: str, facts: Mapping[str, Any]) -> Recommendation | None:
    """The first recommendation whose case these facts meet, with its reason; None when nothing is recommended.

    A case that needs an absent fact is not met.
    """
    lookup = lookup_for(name, facts)
    for row in parameters()[name].recommendations:
        try:
            if row.when is None or evaluate(row.when, lookup):
                value = row.value if row.formula is None else evaluate(row.formula, lookup)
                return Recommendation(as_field_type(name, value), fill(row.because, lookup))
        except UnknownFactError:
            continue
    return None


class _Proposed(Mapping[str, Any]):
    """The facts with every parameter that was not chosen replaced by its recommendation, as it is asked for."""

    def __init__(self, facts: Mapping[str, Any], chosen: Collection[str]) -> None:
        self._facts = facts
        self._chosen = frozenset(chosen)
        self.values_by_name: dict[str, Any] = {}
        self._open: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        if name in self.values_by_name:
            return self.values_by_name[name]
        if name in _fields() and name not in self._chosen and _table(name).get("recommendations"):
            assert name not in self._open, f"the recommendation for {name} depends on itself"
            self._open.add(name)
            advised = recommended(name, self)
            self._open.discard(name)
            if advised is not None:
                self.values_by_name[name] = advised.value
                return advised.value
        return self._facts[name]

    def __contains__(self, name: object) -> bool:
        return name in self._facts

    def __iter__(self) -> Iterator[str]:
        return iter(self._facts)

    def __len__(self) -> int:
        return len(self._facts)


def recommended_values(facts: Mapping[str, Any], chosen: Collection[str] = ()) -> dict[str, Any]:
    """The recommended value of every parameter that has one for these facts; each takes the others into account.

    What is named in `chosen` was decided by the user: it is left alone and the others follow it.
    """
    proposed = _Proposed(facts, chosen)
    for name in _fields():
        if name in facts:
            proposed[name]
    return {name: proposed.values_by_name[name] for name in _fields() if name in proposed.values_by_name}


def as_field_type(name: str, value: Any) -> Any:
    """A computed value as its field wants it: 3.0 becomes 3 for a whole number, 3 becomes 3.0 for a fraction."""
    wanted = {_fields()[name].annotation, *get_args(_fields()[name].annotation)}
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    if int in wanted and value == int(value):
        return int(value)
    return float(value) if float in wanted else value


class _Terms(Mapping[str, Term]):
    """All terms by name; one is read when it is asked for."""

    def __getitem__(self, name: str) -> Term:
        return _term(name)

    def __iter__(self) -> Iterator[str]:
        return iter(_tables_of_terms())

    def __len__(self) -> int:
        return len(_tables_of_terms())


def terms() -> Mapping[str, Term]:
    """The words of the field, and the settings that other trainers have, by name."""
    return _Terms()


TERM_FILES: Mapping[str, Literal["term", "elsewhere"]] = {
    "glossary.toml": "term",
    "elsewhere.toml": "elsewhere",
    "rarer.toml": "elsewhere",
}


def _term_tables() -> Iterator[tuple[Literal["term", "elsewhere"], str, dict[str, Any]]]:
    for file, kind in TERM_FILES.items():
        for name, table in library.document(file).items():
            yield kind, name, table


@cache
def _tables_of_terms() -> dict[str, tuple[Literal["term", "elsewhere"], dict[str, Any]]]:
    return {name: (kind, table) for kind, name, table in _term_tables()}


@cache
def _term(name: str) -> Term:
    kind, table = _tables_of_terms()[name]
    known = {key: value for key, value in table.items() if key != "numbers"}
    return Term(**_common(name, known, lookup_for(None, own=table.get("numbers", {}))), kind=kind)


def advice_words(parameter: Parameter, row: Advice) -> tuple[str, str, str]:
    """Case, value and reason of a row for a reader without facts; the reason may be empty if it needs them."""
    from knowledge.expressions import in_words

    lookup = lookup_for(parameter.name)
    value = row.words and fill(row.words, lookup)
    because = ""
    if not value:
        value = in_words(evaluate(row.formula, lookup) if row.formula else row.value)
    if all(name in parameter.numbers or _is_number(name) for name in placeholders(row.because)):
        because = fill(row.because, lookup)
    return (fill(row.case, lookup) or ("otherwise" if len(parameter.recommendations) > 1 else ""), value, because)


def _is_number(name: str) -> bool:
    try:
        number(name)
    except UnknownFactError:
        return False
    return True
