"""Goals in the wizard: shown with what they change, applied with one key."""

from __future__ import annotations

from pathlib import Path

import pytest
from prompt_toolkit.input import PipeInput

from calculator import fit
from knowledge.config import with_values
from knowledge.facts import Hardware
from wizard import solvers, views
from wizard.forms import folders_in
from wizard.screen_prompts import ask_on_screen
from wizard.session import Session
from wizard.steps import REVIEW, Draft

pytestmark = pytest.mark.usefixtures("own_home")
CARD = Hardware("NVIDIA GeForce RTX 3060", 12 * 2**30, 32 * 2**30, capability=(8, 6))
ENTER, DOWN, UP, ESC = "\r", "\x1b[B", "\x1b[A", "\x1b[D"
LARGE = {
    "dataset.goal": "object",
    "base_model.family": "sdxl",
    "base_model.path": "model.safetensors",
    "dataset.resolution": 1024,
    "dataset.bucket_maximum_side": 2048,
    "schedule.batch_size": 4,
    "schedule.epochs": 400,
    "memory.gradient_checkpointing": False,
    "memory.precision": "bf16",
}


@pytest.fixture
def session(photos: Path) -> Session:
    found = Session(asker=ask_on_screen, draft=Draft({**LARGE, **folders_in(str(photos))}, REVIEW))
    found.bench.__dict__["hardware"] = CARD
    return found


def test_goals_are_those_that_are_not_met_yet(session: Session):
    titles = list(solvers.goals(session.situation()))
    assert titles[0] == "Fit this card, 12.0 GB"
    assert "Fit a card of 8 GB" in titles
    assert any(title.startswith("End within") for title in titles)
    session.answer({"memory.gradient_checkpointing": True, "schedule.batch_size": 1, "schedule.epochs": 1})
    fewer = list(solvers.goals(session.situation()))
    assert "Fit this card, 12.0 GB" not in fewer
    assert not any(title.startswith("End within") for title in fewer)


def test_a_goal_is_reached_with_one_key(session: Session, keyboard: PipeInput):
    assert session.situation().plan.vram.likely_bytes > CARD.vram_bytes
    keyboard.send_text(ENTER)
    solvers.solve(session, {"place": "Review"})
    assert session.situation().config.memory.gradient_checkpointing
    assert session.situation().plan.vram.likely_bytes <= CARD.vram_bytes
    assert "→" in session.notice


def test_what_a_goal_would_change_is_shown_before(session: Session):
    situation = session.situation()
    _, goal = solvers.goals(situation)["Fit this card, 12.0 GB"]
    told = "\n".join(views.ansi_lines(solvers.told(situation, goal()), 90))
    assert "Gradient checkpointing" in told
    assert "the result is the same" in told
    assert "GB" in told
    assert session.situation() is situation  # nothing was changed


def test_of_several_changes_one_may_be_made_alone(session: Session, keyboard: PipeInput):
    session.answer({"schedule.batch_size": 8, "network.rank": 128, "network.alpha": 128.0})
    before = session.situation().config
    moves = solvers.goals(session.situation())["Fit a card of 6 GB"][1]().moves
    assert len(moves) > 1
    places = list(solvers.goals(session.situation()))
    keyboard.send_text(DOWN * places.index("Fit a card of 6 GB") + ENTER + DOWN + ENTER)
    solvers.solve(session, {"place": "Review"})
    changed = session.situation().config
    assert changed != before
    assert changed == with_values(before, moves[0].changes)


def test_all_of_several_changes_are_the_first_offer(session: Session, keyboard: PipeInput):
    session.answer({"schedule.batch_size": 8, "network.rank": 128, "network.alpha": 128.0})
    places = list(solvers.goals(session.situation()))
    keyboard.send_text(DOWN * places.index("Fit a card of 6 GB") + ENTER + ENTER)
    solvers.solve(session, {"place": "Review"})
    assert session.situation().plan.vram.likely_bytes <= fit.usable(6 * 2**30)


def test_going_back_changes_nothing(session: Session, keyboard: PipeInput):
    before = session.situation().config
    keyboard.send_text(ESC)
    solvers.solve(session, {"place": "Review"})
    assert session.situation().config == before
