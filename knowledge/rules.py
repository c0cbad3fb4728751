"""Rules: risky combinations as data, what they say with the user's own numbers, and fixes that can be applied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, get_args

from knowledge import library
from knowledge.config import TrainingConfig, fields, with_values
from knowledge.expressions import UnknownFactError, evaluate, fill, names_in
from knowledge.optimizer_arguments import argument_problems
from knowledge.parameters import Evidence, as_field_type, lookup_for

Severity = Literal["blocks", "high", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("blocks", "high", "warning", "note")


@dataclass(frozen=True)
class Rule:
    """A risky combination. `when` and the values of `fix` are expressions over the facts; `message` has placeholders.

    `parameters` are those to look at besides the ones that `fix` and `when` name. `fires` and `silent` are facts, laid
    over a plain config, for which the rule must and must not speak.
    """

    id: str
    severity: Severity
    when: str
    message: str
    evidence: Evidence
    sources: Sequence[str]
    fires: Mapping[str, Any]
    silent: Mapping[str, Any]
    fix: Mapping[str, str] = field(default_factory=dict)
    parameters: Sequence[str] = ()


@dataclass(frozen=True)
class Finding:
    """What a rule says of one config; `fix` maps dotted names to new values, empty when only the user can act."""

    rule: str
    severity: Severity
    message: str
    parameters: tuple[str, ...]
    fix: Mapping[str, Any] = field(default_factory=dict)


@cache
def rules() -> tuple[Rule, ...]:
    """Every rule, in the order of the files and within them."""
    paths = sorted((library.DATA / "rules").glob("*.toml"))
    tables = (table for path in paths for table in library.document(f"rules/{path.name}").get("rule", ()))
    return tuple(Rule(**table) for table in tables)


def check(facts: Mapping[str, Any]) -> list[Finding]:
    """What the rules find in these facts, gravest first. A rule whose facts are absent does not apply."""
    found = [finding for rule in rules() if (finding := _finding(rule, facts)) is not None]
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))


def _finding(rule: Rule, facts: Mapping[str, Any]) -> Finding | None:
    lookup = lookup_for(None, facts)
    try:
        if not evaluate(rule.when, lookup):
            return None
        message = " ".join(fill(rule.message, lookup).split())
    except UnknownFactError:
        return None
    try:
        fix = {name: as_field_type(name, evaluate(value, lookup)) for name, value in rule.fix.items()}
        fix |= _arguments_after(fix, facts)
    except UnknownFactError:
        fix = {}
    # What is already as it would be made is no part of it; where that is all of it, nothing is left to offer.
    fix = {name: value for name, value in fix.items() if name not in facts or facts[name] != value}
    named = dict.fromkeys([*rule.fix, *rule.parameters, *(name for name in names_in(rule.when) if name in fields())])
    return Finding(rule.id, rule.severity, message, tuple(named), fix)


def _arguments_after(fix: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """What must go along with another optimizer: the arguments given to the one before that it takes too."""
    optimizer, given = fix.get("optimizer.name"), facts.get("optimizer.arguments")
    if not optimizer or not given:
        return {}
    return {
        "optimizer.arguments": {
            name: value for name, value in given.items() if not any(argument_problems(optimizer, {name: value}))
        }
    }


def apply_fix(config: TrainingConfig, finding: Finding) -> TrainingConfig:
    """The config with the finding's fix made. Raises ValueError for a finding that has none."""
    if not finding.fix:
        raise ValueError(f"the finding {finding.rule} has no fix that could be applied")
    return with_values(config, dict(finding.fix))


def example(overlay: Mapping[str, Any]) -> tuple[TrainingConfig, dict[str, Any]]:
    """The config and the other facts that a rule's `fires` or `silent` describes, laid over a plain config.

    TOML has lists and no empty value: a list is read as a tuple, "none" empties a setting that may be empty.
    """
    known = {name: tuple(value) if isinstance(value, list) else value for name, value in overlay.items()}
    schema = fields()
    for name, value in known.items():
        if value == "none" and type(None) in get_args(schema[name].annotation):
            known[name] = None
    config = with_values(TrainingConfig(), {name: value for name, value in known.items() if name in schema})
    return config, {name: value for name, value in known.items() if name not in schema}
