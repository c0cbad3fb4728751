"""Goals in the wizard: the gentlest changes that fit a card, an evening or a number of steps, applied with one key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from calculator import fit
from knowledge.config import TrainingConfig, value_of, with_values
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

    if hardware.vram_bytes and plan.vram.likely_bytes > fit.usable(hardware.vram_bytes):
        memory(f"Fit this card, {views.memory(hardware.vram_bytes)}", hardware.vram_bytes)
    for size in CARDS_GB:
        if plan.vram.likely_bytes > fit.usable(size * 2**30) and size * 2**30 != hardware.vram_bytes:
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
    changes = proposal(answer).changes
    if len(proposal(answer).moves) > 1:
        wanted = _which(session, proposal(answer), around)
        if isinstance(wanted, Move):
            return
        changes = wanted
    if changes:
        session.answer(changes)
    session.tell_changes(before)


ALL = "all"


def _which(session: Session, proposal: fit.Proposal, around: dict[str, Any]) -> fit.Changes | Move:
    """The changes of all moves or of one of them, as somebody chooses; those of each that is possible by itself."""
    from wizard.review import fix_words

    situation = session.situation()
    plans = {ALL: proposal.after}
    changes = {ALL: proposal.changes}
    for number, move in enumerate(proposal.moves):
        try:
            alone = with_values(situation.config, move.changes)
        except ValidationError:  # it needs one that comes before it
            continue
        changes[str(number)] = move.changes
        plans[str(number)] = replace(situation, config=alone).plan or proposal.after
    single = [Option(name, f"Only: {fix_words(situation.config, changes[name])}") for name in changes if name != ALL]
    answer = session.ask(
        Page(
            title="Which of these changes?",
            options=(Option(ALL, f"All {len(proposal.moves)}"), *single),
            preview=lambda name: estimate.line(proposal.before, situation.hardware, plans[name]),
            **{**around, "back": "back to the review"},
        )
    )
    return answer if isinstance(answer, Move) else changes[str(answer)]


def told(situation: Situation, proposal: fit.Proposal) -> RenderableType:
    """Every change with what it does to result, memory and time, and the estimate before → after."""
    from rich.console import Group
    from rich.text import Text

    lines: list[RenderableType] = []
    if not proposal.reached:
        lines.append(Text("Not within reach; this is as near as it comes.", "high"))
    if not proposal.moves:
        lines.append(Text("Nothing has to change.", "good") if proposal.reached else Text("Nothing helps.", "high"))
    config = situation.config
    for move in proposal.moves:
        lines.append(told_move(config, move))
        config = with_values(config, move.changes)
    lines.append(estimate.line(proposal.before, situation.hardware, proposal.after))
    return Group(*lines)


def told_move(config: TrainingConfig, move: fit.Made) -> RenderableType:
    """What one move changes in this config, and under it what becomes of the result, the memory and the time."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    known = parameters()
    text = Text()
    for name, value in move.changes.items():
        entry = known[name]
        was, new = questions.change(entry, value_of(config, name), value)
        text.append("\n" if text else "").append(f"{entry.title} ").append(f"{was} → ", "quiet").append(new, "accent")
    before, after = move.before, move.after
    figures = [
        ("memory", views.memory(before.vram.likely_bytes), views.memory(after.vram.likely_bytes)),
        ("time", estimate.roughly(before.duration.likely_seconds), estimate.roughly(after.duration.likely_seconds)),
        ("steps", f"{before.total_steps:,}", f"{after.total_steps:,}"),
    ]
    effects = [f"{what} {was} → {new}" for what, was, new in figures if was != new]
    told = Text(move.effect, "quiet")
    for effect in effects or ["hardly another figure"]:
        told.append(f"  ·  {effect}")
    return Group(text, Padding(told, (0, 0, 0, 2)))
