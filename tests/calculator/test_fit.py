"""The solver's answer always reaches the goal it says it reaches, and by the gentlest way."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from possible_configs import possible_configs

from calculator.fit import (
    FOR_MEMORY,
    FOR_TIME,
    USABLE,
    Case,
    allowed,
    fit_memory,
    fit_steps,
    fit_time,
    relieve_memory,
    table,
    usable,
)
from knowledge.assessment import assess
from knowledge.config import TrainingConfig, with_values
from knowledge.facts import DatasetFacts, FolderFacts, Hardware, Picture, facts
from knowledge.rules import rules

GIB = 1024**3
DATASET = DatasetFacts((FolderFacts(tuple(Picture("", 512, 512, str(n)) for n in range(20)), repeats=5),))
CARD = Hardware("RTX 3060", 12 * GIB, capability=(8, 6))


def case_of(hardware=CARD, **changes):
    values = {"base_model.family": "sd15", "base_model.path": "model", "schedule.batch_size": 4}
    values |= {name.replace("__", "."): value for name, value in changes.items()}
    return Case(with_values(TrainingConfig(), values), DATASET, hardware)


@pytest.mark.parametrize(
    ("chosen", "in_eight_bits"),
    [("adamw", {"optimizer.name": "adamw8bit"}), ("lion", {"optimizer.name": "lion8bit"}), ("prodigy", {})],
)
def test_an_optimizers_memory_is_saved_by_the_same_optimizer_in_eight_bits(chosen, in_eight_bits):
    move = next(move for move in FOR_MEMORY if move.name == "8-bit optimizer")
    config = case_of(optimizer__name=chosen).config
    assert move.changes(config, CARD) == in_eight_bits
    assert move.changes(config, Hardware("CPU")) == {}


def test_what_fits_already_is_left_alone():
    found = fit_memory(case_of(memory__precision="bf16"), 24 * GIB)
    assert found.reached
    assert found.changes == {}


def test_free_changes_come_before_those_that_cost_detail():
    found = fit_memory(case_of(), 6 * GIB)
    assert found.reached
    assert {"memory.precision", "memory.gradient_checkpointing"} & found.changes.keys()
    assert {"dataset.resolution", "network.rank", "optimizer.name"}.isdisjoint(found.changes)
    assert found.after.vram.likely_bytes <= 6 * GIB < found.before.vram.likely_bytes


def test_a_smaller_batch_keeps_the_pictures_behind_a_step():
    found = fit_memory(case_of(memory__precision="bf16", memory__gradient_checkpointing=True), 3 * GIB)
    if "schedule.batch_size" in found.changes:
        product = found.changes["schedule.batch_size"] * found.changes["schedule.gradient_accumulation_steps"]
        assert product == 4


def test_a_goal_out_of_reach_is_not_claimed():
    found = fit_memory(case_of(), GIB // 2)
    assert not found.reached
    assert found.after.vram.likely_bytes < found.before.vram.likely_bytes


def test_the_base_model_is_rounded_before_the_network_suffers_and_carried_before_the_pictures_do():
    changes = {"base_model.family": "sdxl", "base_model.path": "m", "memory.precision": "bf16"}
    changes |= {"memory.gradient_checkpointing": True, "memory.cache_text_encoder_outputs": True, "network.rank": 4}
    card = Hardware("RTX 3060", 6 * GIB, capability=(8, 6))
    case = Case(with_values(TrainingConfig(), changes), DATASET, card)
    assert fit_memory(case, 5 * GIB).changes == {"memory.base_weights": "fp8"}
    assert fit_memory(case, 2 * GIB).changes == {"memory.base_weights": "fp8", "memory.offload_blocks": True}


def test_where_weights_are_updated_at_once_fewer_pictures_are_the_way_and_not_adding_up():
    changes = {"memory__fused_backward": True, "optimizer__maximum_gradient_norm": 0.0, "memory__precision": "bf16"}
    found = fit_memory(case_of(**changes, memory__gradient_checkpointing=True), round(2.1 * GIB))
    assert found.reached
    assert found.changes["schedule.batch_size"] < 4
    assert "schedule.gradient_accumulation_steps" not in found.changes
    assert any("fewer pictures" in effect for effect in found.effects)


def test_another_network_leaves_the_convolutions_that_it_does_not_adapt():
    changes = {"network__algorithm": "full", "network__convolutions": True, "memory__precision": "bf16"}
    found = fit_memory(case_of(**changes, memory__gradient_checkpointing=True), 4 * GIB)
    assert found.changes["network.algorithm"] == "lora"
    assert found.changes["network.convolutions"] is False


@settings(deadline=None, max_examples=25)
@given(limit=st.floats(1.0, 16), values=possible_configs(), side=st.sampled_from([512, 1024]))
def test_what_is_proposed_fits(limit, values, side):
    case = Case(with_values(TrainingConfig(), values | {"dataset.resolution": side}), DATASET, CARD)
    found = fit_memory(case, round(limit * GIB))
    config = with_values(case.config, found.changes)
    again = Case(config, DATASET, CARD).plan
    assert again == found.after
    assert found.reached == (again.vram.likely_bytes <= usable(round(limit * GIB)))
    # Every move begins where the one before it ended, and the gentler ones come first.
    assert [move.before for move in found.moves] == [case.plan, *(move.after for move in found.moves)][:-1]
    hurts = [next(move.hurt for move in FOR_MEMORY if move.effect == made.effect) for made in found.moves]
    assert hurts == sorted(hurts)


def test_what_is_proposed_for_a_card_leaves_nothing_to_say_about_its_memory():
    case = case_of(base_model__family="sdxl", memory__precision="bf16", dataset__resolution=1024)
    for gigabytes in (6, 8, 12, 16):
        card = Hardware("RTX 3060", gigabytes * GIB, 32 * GIB, capability=(8, 6))
        found = fit_memory(Case(case.config, DATASET, card), card.vram_bytes)
        config = with_values(case.config, found.changes)
        told = {one.measure: one.verdict for one in assess(facts(config, DATASET, card, found.after.facts()))}
        assert found.reached
        assert told["memory"] != "too high"


@settings(deadline=None, max_examples=15)
@given(share=st.floats(0.2, 1.5))
def test_a_run_in_time_is_in_time_and_fits_the_card(share):
    case = case_of(memory__gradient_checkpointing=True, memory__precision="bf16")
    limit = case.plan.duration.likely_seconds * share
    found = fit_time(case, limit)
    assert found.reached
    assert found.after.duration.likely_seconds <= limit
    assert found.after.vram.likely_bytes <= CARD.vram_bytes


def test_a_run_is_shortened_to_enough_steps_before_its_pictures_shrink_and_further_only_after():
    case = case_of(schedule__epochs=60, network__algorithm="loha", memory__precision="bf16")
    whole = case.plan.duration.likely_seconds
    shorter = fit_time(case, 0.5 * whole)
    assert shorter.reached
    assert "schedule.epochs" in shorter.changes
    assert not {"network.algorithm", "dataset.resolution"} & shorter.changes.keys()
    assert shorter.after.total_steps >= 400
    smaller = fit_time(case, 0.08 * whole)
    assert smaller.reached
    assert {"network.algorithm", "schedule.epochs"} <= smaller.changes.keys()
    assert smaller.changes.get("dataset.resolution", 512) >= 256
    out_of_reach = fit_time(case, 1.0)
    assert not out_of_reach.reached
    assert out_of_reach.changes["schedule.epochs"] == 1


@pytest.mark.parametrize("steps", [1, 24, 25, 100, 1500])
def test_the_steps_asked_for_are_the_steps_made(steps):
    found = fit_steps(case_of(), steps)
    assert found.reached
    assert found.after.total_steps == steps
    # 25 batches an epoch: whole epochs need no limit
    assert (found.changes.get("schedule.maximum_steps") is None) == (steps % 25 == 0)


def test_the_rules_warn_where_a_run_fills_more_than_the_solver_lets_it():
    rooms = [
        rule.when for rule in rules() if rule.id.startswith("does-not-fit") and "hardware.vram_bytes > 0" in rule.when
    ]
    assert rooms
    assert all(f"plan.vram_likely_bytes > {USABLE} * hardware.vram_bytes" in when for when in rooms)


OLD_CARD = Hardware("RTX 2060", 6 * GIB, capability=(7, 5))


@pytest.mark.parametrize(
    "chosen",
    [
        {"base_model.pad_captions": False},
        {"memory.fused_backward": True, "optimizer.maximum_gradient_norm": 0.0},
        {"network.algorithm": "dylora", "network.rank": 12, "network.dylora_block_size": 12},
        {"network.algorithm": "boft", "network.rank": 12},
        {"optimizer.arguments": {"amsgrad": True}},
    ],
)
def test_a_move_that_something_chosen_forbids_is_passed_over(chosen):
    """Captions as long as they are cannot be cached, an old card's half precision needs a scaler, and so on."""
    case = case_of(OLD_CARD, **{name.replace(".", "__"): value for name, value in chosen.items()})
    found = fit_memory(case, GIB)
    assert found.after == case.changed(found.changes).plan
    assert found.after.vram.likely_bytes < found.before.vram.likely_bytes
    assert relieve_memory(case).reached


def test_what_relieves_a_run_needs_less_where_memory_ran_out():
    case = case_of(memory__precision="bf16", sampling__prompts=("a cat",), memory__cache_text_encoder_outputs=True)
    needs = case.plan.vram.phases
    assert {"caching", "training", "sampling", "saving"} <= needs.keys()
    assert relieve_memory(case, "training").changes == {"memory.selective_checkpointing": True}
    assert relieve_memory(case, "saving").changes == {
        "memory.gradient_checkpointing": True,
        "memory.base_weights": "fp8",
    }
    # The VAE encodes one picture at a time in full precision: nothing that a begun run may change makes that smaller.
    assert relieve_memory(case, "caching").changes == {}


def test_every_move_says_what_it_does_to_the_result():
    for move in (*FOR_MEMORY, *FOR_TIME):
        assert move.effect.endswith(".")
        assert move.hurt > 0


def test_the_table_has_every_combination():
    cells = list(table(case_of(), (1, 4), (512, 768)))
    assert len(cells) == 8
    by_size = {(c.batch_size, c.resolution, c.gradient_checkpointing): c.vram_bytes for c in cells}
    assert by_size[1, 512, False] < by_size[4, 512, False]
    assert by_size[4, 768, True] < by_size[4, 768, False]


@settings(deadline=None, max_examples=8)
@given(gigabytes=st.sampled_from([6, 8, 12, 24]), family=st.sampled_from(["sd15", "sdxl"]))
def test_what_a_card_allows_fits_it_and_one_more_does_not(gigabytes, family):
    case = case_of(base_model__family=family, memory__precision="bf16", memory__cache_text_encoder_outputs=True)

    def need(one, **changes):
        values = {
            "dataset.resolution": one.resolution,
            "dataset.bucket_maximum_side": max(1024, one.resolution),
            "memory.gradient_checkpointing": one.gradient_checkpointing,
        }
        values |= {name.replace("__", "."): value for name, value in changes.items()}
        return Case(with_values(case.config, values), DATASET, CARD).plan.vram.likely_bytes

    for one in allowed(case, gigabytes * GIB, (512, 1024)):
        if one.batch_size:
            assert need(one, schedule__batch_size=one.batch_size) <= usable(gigabytes * GIB)
        if one.batch_size < 64:
            assert need(one, schedule__batch_size=one.batch_size + 1) > usable(gigabytes * GIB)
        if one.rank:
            assert need(one, schedule__batch_size=1, network__rank=one.rank) <= usable(gigabytes * GIB)


@settings(deadline=None, max_examples=15)
@given(
    limit=st.floats(5, 16),
    batch=st.integers(1, 8),
    rank=st.sampled_from([8, 64]),
    algorithm=st.sampled_from(["lora", "locon", "dora", "loha", "lokr"]),
    resolution=st.sampled_from([768, 1024]),
)
def test_what_is_proposed_for_sdxl_fits(limit, batch, rank, algorithm, resolution):
    case = case_of(
        base_model__family="sdxl",
        dataset__resolution=resolution,
        schedule__batch_size=batch,
        network__rank=rank,
        network__algorithm=algorithm,
    )
    found = fit_memory(case, round(limit * GIB))
    assert found.reached == (found.after.vram.likely_bytes <= usable(round(limit * GIB)))
    assert Case(with_values(case.config, found.changes), DATASET, CARD).plan == found.after
