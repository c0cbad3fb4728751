"""The learning-rate curve agrees with the schedulers that kohya's sd-scripts uses, to 1e-12."""

import json
import math
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calculator.schedule import COURSES, SHAPES, full_learning_rate, learning_rate_multiplier
from knowledge.config import Scheduler, ScheduleSettings

RECORDED = json.loads((Path(__file__).parent.parent / "data" / "learning_rates.json").read_text())
OURS = {"constant_with_warmup": "constant", "cosine_with_min_lr": "cosine"}
NAMES = {"cycles": "cycles", "power": "power", "min_ratio": "minimum_ratio"}
# Recorded with a decay of 0.2 the curve begins at the lowest rate, as transformers does for this schedule alone.
SCHEDULERS = sorted([*SHAPES, *COURSES])


@pytest.mark.parametrize(
    "recorded",
    RECORDED["curves"],
    ids=lambda c: "-".join(map(str, [c["scheduler"], c["warmup"], *c["options"].values()])),
)
def test_every_recorded_curve_is_ours(recorded):
    options = {NAMES.get(name, name): value for name, value in recorded["options"].items()}
    settings = ScheduleSettings(
        scheduler=OURS.get(recorded["scheduler"], recorded["scheduler"]),
        warmup=float(recorded["warmup"]),
        **{name: float(value) if name == "decay" else value for name, value in options.items()},
    )
    ours = [RECORDED["base_rate"] * learning_rate_multiplier(settings, step, 200) for step in range(201)]
    assert ours == pytest.approx(recorded["rates"], rel=1e-12, abs=1e-16)


def test_rex_falls_late():
    settings = ScheduleSettings(scheduler="rex")
    # half-way 0.5 / (0.5 + 0.25) = 2/3
    assert learning_rate_multiplier(settings, 50, 100) == pytest.approx(2 / 3)
    assert learning_rate_multiplier(settings, 100, 100) == 0.0


def test_the_lowest_rate_is_where_a_falling_curve_ends():
    for scheduler in ("linear", "cosine", "rex", "warmup_stable_decay"):
        settings = ScheduleSettings(scheduler=scheduler, minimum_ratio=0.25)
        assert learning_rate_multiplier(settings, 100, 100) == pytest.approx(0.25)


def test_every_schedule_has_a_curve():
    assert {*SHAPES, *COURSES} == set(get_args(Scheduler))


def test_adafactors_own_schedule_is_its_relative_step():
    settings = ScheduleSettings(scheduler="adafactor")
    assert full_learning_rate(3e-4, settings) == 1.0
    assert full_learning_rate(3e-4, ScheduleSettings()) == 3e-4
    # level at 1e-2 until 1/√step is less: after 10,000 updates; update 40,000 uses 1/200
    assert learning_rate_multiplier(settings, 0, 50_000) == 1e-2
    assert learning_rate_multiplier(settings, 9_998, 50_000) == 1e-2
    assert learning_rate_multiplier(settings, 39_999, 50_000) == pytest.approx(1 / 200)
    gentle = settings.model_copy(update={"warmup_init": True})
    assert learning_rate_multiplier(gentle, 9, 50_000) == pytest.approx(1e-5)
    warmed = settings.model_copy(update={"warmup": 4.0})
    assert [learning_rate_multiplier(warmed, step, 100) for step in range(5)] == [0, 0.0025, 0.005, 0.0075, 0.01]


@given(
    scheduler=st.sampled_from(SCHEDULERS),
    warmup=st.one_of(st.floats(0, 1, exclude_max=True), st.integers(1, 400).map(float)),
    decay=st.one_of(st.floats(0, 1, exclude_max=True), st.integers(1, 400).map(float)),
    minimum=st.floats(0, 1),
    cycles=st.integers(1, 9),
    power=st.floats(0.1, 10),
    total=st.integers(1, 300),
)
def test_every_rate_is_between_zero_and_the_chosen_one(scheduler, warmup, decay, minimum, cycles, power, total):
    settings = ScheduleSettings(
        scheduler=scheduler, warmup=warmup, decay=decay, minimum_ratio=minimum, cycles=cycles, power=power
    )
    for step in range(total + 1):
        multiplier = learning_rate_multiplier(settings, step, total)
        assert math.isfinite(multiplier)
        assert -1e-12 <= multiplier <= 1 + 1e-12
