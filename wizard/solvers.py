"""Goals in the wizard: the gentlest changes that fit a card, an evening or a number of steps, applied with one key."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from calculator import fit
from knowledge.config import value_of
from knowledge.parameters import parameters
from wizard import estimate, questions, views, words
from wizard.prompts import Move, Option, Page
from wizard.situation import Situation, measurements_here

if TYPE_CHECKING:
    from rich.console import RenderableType

    from wizard.session import Session

CARDS_GB = (24, 16, 12, 8, 6)
HOURS = (8.0, 2.0, 1.0, 0.5)
STEPS = (500, 1000, 1500, 2000, 3000)
Goal = Callable[[], fit.Proposal]


def goals(situation: Situation) -> dict[str, tuple[str, Goal]]:
    """What can be aimed at from here, each with its title: this card, smaller cards, shorter runs, rounder counts."""
    plan, dataset = situation.plan, situation.dataset
    if plan is None or dataset is None:
        return {}
    hardware = situation.hardware
    case = fit.Case(situation.config, dataset, hardware, situation.architecture, measurements_here())
    found: dict[str, tuple[str, Goal]] = {}

    def memory(title: str, room: int) -> None:
        found[title] = (title, lambda: fit.fit_memory(case, room))

    if hardware.vram_bytes and plan.vram.likely_bytes > hardware.vram_bytes:
        memory(f"Fit this card, {views.memory(hardware.vram_bytes)}", hardware.vram_bytes)
    for size in CARDS_GB:
        if plan.vram.likely_bytes > size * 2**30 and size * 2**30 != hardware.vram_bytes:
            memory(f"Fit a card of {size} GB", size * 2**30)
    for hours in HOURS:
        if plan.duration.likely_seconds > hours * 3600:
            title = f"End within {words.duration(hours * 3600)}"
            found[title] = (title, lambda limit=hours * 3600: fit.fit_time(case, limit))  # type: ignore[misc]
    for steps in STEPS:
        if steps != plan.total_steps:
            title = f"Make {words.count(steps, 'step')}"
            found[title] = (title, lambda wanted=steps: fit.fit_steps(case, wanted))  # type: ignore[misc]
    return found


def solve(session: Session, around: dict[str, Any]) -> None:
    """Shows every goal with what reaching it would change; the one that is chosen is applied."""
    situation = session.situation()
    known = goals(situation)

    @cache
    def proposal(name: str) -> fit.Proposal:
        return known[name][1]()

    answer = session.ask(
        Page(
            title="What should it fit? Enter makes the changes shown below.",
            options=tuple(Option(name, title) for name, (title, _) in known.items()),
            preview=lambda name: told(situation, proposal(name)) if name in known else None,
            **{**around, "back": "back to the review"},
        )
    )
    if isinstance(answer, Move):
        return
    before = situation.config
    if proposal(answer).changes:
        session.answer(proposal(answer).changes)
    session.tell_changes(before)


def told(situation: Situation, proposal: fit.Proposal) -> RenderableType:
    """The changes, what they do to the result, and the estimate before → after."""
    from rich.text import Text

    known = parameters()
    lines: list[RenderableType] = []
    if not proposal.reached:
        lines.append(Text("Not within reach; this is as near as it comes.", "high"))
    if not proposal.changes:
        lines.append(Text("Nothing has to change.", "good") if proposal.reached else Text("Nothing helps.", "high"))
    for name, value in proposal.changes.items():
        entry = known[name]
        was = questions.display(entry, value_of(situation.config, name))
        lines.append(
            Text.assemble(f"{entry.title} ", (f"{was} → ", "quiet"), (questions.display(entry, value), "accent"))
        )
    lines += [Text(effect, "quiet") for effect in proposal.effects]
    lines.append(estimate.line(proposal.before, situation.hardware, proposal.after))
    from rich.console import Group

    return Group(*lines)
