"""The guided path as data: its steps and questions, what comes next and came before, and the draft of the answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from knowledge.expressions import UnknownFactError, evaluate
from knowledge.parsed import parsed

Form = Literal["", "pictures", "base_model", "prompts", "offers"]
REVIEW = "review"
"""Where the path ends: the name that stands for the review in `Draft.at`."""


@dataclass(frozen=True)
class StepQuestion:
    """One question of the path; its keys are explained at the top of steps.toml."""

    parameter: str
    ask: str
    flag: str
    metavar: str = "VALUE"
    required: bool = False
    when: str = ""
    form: Form = ""


@dataclass(frozen=True)
class Step:
    name: str
    title: str
    questions: tuple[StepQuestion, ...]
    more: tuple[str, ...] = ()


@dataclass(frozen=True)
class Draft:
    """What was answered so far, by dotted name, and the parameter that is asked next (or REVIEW).

    `accepted` are the questions answered with whatever is recommended: they follow when the recommendation changes.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    at: str = ""
    accepted: tuple[str, ...] = ()

    def answered(self, name: str, value: Any) -> Draft:
        """The draft in which the parameter has this value, chosen by the user."""
        return replace(
            self,
            values={**self.values, name: value},
            accepted=tuple(other for other in self.accepted if other != name),
        )

    def with_recommended(self, name: str) -> Draft:
        """The draft in which the parameter follows its recommendation."""
        return replace(
            self,
            values={other: value for other, value in self.values.items() if other != name},
            accepted=(*(other for other in self.accepted if other != name), name),
        )

    def moved(self, to: str) -> Draft:
        return replace(self, at=to)


@lru_cache(maxsize=1)
def steps() -> tuple[Step, ...]:
    """The steps of the guided path, in order, without the review that follows them."""
    document = parsed(Path(__file__).parent / "steps.toml")
    return tuple(
        Step(
            name=table["name"],
            title=table["title"],
            questions=tuple(StepQuestion(**question) for question in table["question"]),
            more=tuple(table.get("more", ())),
        )
        for table in document["step"]
    )


@lru_cache(maxsize=1)
def questions() -> Mapping[str, StepQuestion]:
    """Every question of the path by the parameter it asks for, in order."""
    return {question.parameter: question for step in steps() for question in step.questions}


def step_of(parameter: str) -> Step:
    """The step that asks for this parameter. Raises KeyError when none does."""
    for step in steps():
        if any(question.parameter == parameter for question in step.questions):
            return step
    raise KeyError(parameter)


def applies(question: StepQuestion, facts: Mapping[str, Any]) -> bool:
    """Whether the question makes sense for these facts; one whose facts are unknown is not asked."""

    def lookup(name: str) -> Any:
        if name not in facts:
            raise UnknownFactError(name)
        return facts[name]

    try:
        return not question.when or bool(evaluate(question.when, lookup))
    except UnknownFactError:
        return False


def path(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """The parameters asked for under these facts, in order, and REVIEW at the end."""
    return (*(name for name, question in questions().items() if applies(question, facts)), REVIEW)


def next_question(at: str, facts: Mapping[str, Any]) -> str:
    """The parameter asked after `at`, or REVIEW. An unknown or empty `at` is before the first."""
    order = [*questions(), REVIEW]
    after = order[order.index(at) + 1 :] if at in order else order
    possible = path(facts)
    return next((name for name in after if name in possible), REVIEW)


def previous_question(at: str, facts: Mapping[str, Any]) -> str:
    """The parameter asked before `at`; the first one where there is none before."""
    order = [*questions(), REVIEW]
    before = order[: order.index(at)] if at in order else []
    possible = path(facts)
    return next((name for name in reversed(before) if name in possible), possible[0])
