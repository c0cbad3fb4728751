"""Every row that judges a run can say all three things, and says them of the right figures."""

import pytest

from knowledge import library
from knowledge.assessment import MEASURES, assess
from knowledge.config import TrainingConfig, with_values
from knowledge.expressions import evaluate
from knowledge.facts import DatasetFacts, FolderFacts, Hardware, Picture, facts
from knowledge.gpus import gpus
from knowledge.parameters import lookup_for
from knowledge.prices import price_of

GIB = 2**30
DATASET = DatasetFacts((FolderFacts(tuple(Picture(str(n), 512, 512, str(n)) for n in range(20)), 5),))
CARD = Hardware("RTX 3060", 12 * GIB, 32 * GIB, capability=(8, 6))
CPU = Hardware("CPU", ram_bytes=16 * GIB)
ORDINARY = {
    "plan.total_steps": 1500,
    "plan.views_per_image": 80.0,
    "plan.duration_likely_seconds": 3600.0,
    "plan.vram_likely_bytes": 8 * GIB,
}


def known(hardware=CARD, family="sdxl", goal="character", **plan):
    values = {"base_model.family": family, "base_model.path": "model", "dataset.goal": goal}
    config = with_values(TrainingConfig(), values)
    return facts(config, DATASET, hardware, ORDINARY | {f"plan.{name}": value for name, value in plan.items()})


def judged(measure, **changes):
    return next(found for found in assess(known(**changes)) if found.measure == measure)


def test_an_ordinary_run_is_right_in_everything():
    found = assess(known())
    assert [one.measure for one in found] == list(MEASURES)
    assert {one.verdict for one in found} == {"right"}
    assert {one.change for one in found} == {""}


STATES = [
    pytest.param(state, id=name)
    for name, state in {
        "character": known(),
        "style": known(goal="style", family="sd15"),
        "with checkpointing": known() | {"memory.gradient_checkpointing": True},
        "without a card": known(CPU),
        "pocket": facts(TrainingConfig(), DATASET, CARD, ORDINARY),
    }.items()
]


def test_every_row_has_sources_and_is_met_by_some_run():
    used = set()
    for measure, rows in library.document("assessment.toml").items():
        for number, row in enumerate(rows):
            assert row["sources"]
            assert set(row["sources"]) <= set(library.sources())
            met = [p for p in STATES if "when" not in row or evaluate(row["when"], lookup_for(None, p.values[0]))]
            used |= {(measure, number)} if met else set()
    assert len(used) == sum(map(len, library.document("assessment.toml").values()))


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("measure", MEASURES)
def test_too_little_and_too_much_are_told_with_what_to_change(measure, state):
    def told(value):
        return next(one for one in assess(state | {MEASURES[measure]: value}) if one.measure == measure)

    usual = next(one for one in assess(state) if one.measure == measure)
    assert usual.low < usual.high
    for value, verdict in (
        (usual.low / 2, "too low"),
        ((usual.low + usual.high) / 2, "right"),
        (usual.high * 2, "too high"),
    ):
        if value:  # nothing is too little memory on a computer without a card
            found = told(value)
            assert found.verdict == verdict
            assert found.why
            assert bool(found.change) == (verdict != "right")


def test_goal_and_family_have_thresholds_of_their_own():
    assert judged("views", goal="character", views_per_image=150).verdict == "right"
    assert judged("views", goal="style", views_per_image=150).verdict == "too high"
    assert judged("steps", goal="character", total_steps=5000).verdict == "too high"
    assert judged("steps", goal="style", total_steps=5000).verdict == "right"
    pocket = facts(TrainingConfig(), DATASET, CARD, ORDINARY | {"plan.total_steps": 350})
    assert TrainingConfig().base_model.family == "pocket"
    assert next(one for one in assess(pocket) if one.measure == "steps").verdict == "right"
    assert judged("steps", total_steps=350).verdict == "too low"


def test_what_to_change_names_a_number_that_settles_it():
    few = judged("steps", total_steps=100)
    assert "Raise schedule.epochs to about 40." in few.change  # 10 epochs make 100; 400 are wanted
    many = judged("views", views_per_image=1000.0)
    assert "Lower schedule.epochs to about 2" in many.change  # 10 epochs show a picture 1,000 times; 200 at most


def test_a_card_that_is_too_small_is_told():
    assert judged("memory", vram_likely_bytes=11.9 * GIB).verdict == "too high"
    assert "--fit 12GB" in judged("memory", vram_likely_bytes=11.9 * GIB).change
    assert judged("memory", hardware=CPU, vram_likely_bytes=15 * GIB).verdict == "too high"


def test_prices_are_of_cards_that_are_known_and_say_when_they_were_published():
    table = library.document("prices.toml")
    assert set(table["hour"]) <= {card.name for card in gpus()}
    found = price_of("NVIDIA GeForce RTX 4090")
    assert found is not None
    assert (found.hour, found.currency, found.date[:4]) == (0.34, "USD", "2026")
    assert price_of("RTX 2060") is None
    assert price_of("CPU") is None
