"""Every lesson's claim is held to the figures that were measured, seed by seed."""

import re

import pytest

from knowledge import config, library
from knowledge.expressions import UnknownFactError, names_in, placeholders
from knowledge.lessons import (
    BASE,
    PICTURES,
    QUANTITIES,
    common_settings,
    lessons,
    record,
    values_varied,
    variant_config,
)
from knowledge.parameters import parameters

LESSONS = list(lessons().values())
LEAST_SEEDS = 2


def test_there_are_enough_lessons_and_no_leftovers():
    assert len(LESSONS) >= 8
    kept = {path.name for path in PICTURES.iterdir()}
    assert kept == {f"{lesson.name}.{kind}" for lesson in LESSONS for kind in ("json", "png")}


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.name)
def test_a_claim_holds_for_every_seed_that_was_measured(lesson):
    found = record(lesson.name)
    assert len(found.seeds) >= LEAST_SEEDS
    for seed, figures in found.seeds.items():
        assert lesson.holds(figures), f"seed {seed}: {figures}"
    assert lesson.holds(found.mean())


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.name)
def test_a_claim_can_be_refuted(lesson):
    variants = [variant.name for variant in lesson.variants]
    alike = dict.fromkeys(QUANTITIES, 1.0)
    assert not lesson.holds(dict.fromkeys((BASE, *variants), alike)) or lesson.name in ALIKE
    said = lesson.said(dict.fromkeys((BASE, *variants), alike))
    assert lesson.name in ALIKE or said.startswith("This time")


ALIKE = {lesson.name for lesson in LESSONS if "alike" in lesson.expected}
"""Lessons whose claim is that nothing differs; they are refuted by a difference instead."""


@pytest.mark.parametrize("lesson", [lesson for lesson in LESSONS if lesson.name in ALIKE], ids=lambda x: x.name)
def test_a_claim_that_nothing_differs_is_refuted_by_a_difference(lesson):
    figures = {BASE: dict.fromkeys(QUANTITIES, 1.0)}
    figures |= {v.name: dict.fromkeys(QUANTITIES, 1.0 + 9.0 * n) for n, v in enumerate(lesson.variants)}
    assert not lesson.holds(figures)


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.name)
def test_a_lesson_reads_only_what_is_measured_and_its_words_carry_no_figures(lesson):
    variants = {variant.name for variant in lesson.variants}
    for name in {*names_in(lesson.claim), *placeholders(lesson.conclusion)}:
        variant, _, quantity = name.partition(".")
        assert variant in variants | {BASE}
        assert quantity in QUANTITIES
    assert set(lesson.shows) <= set(QUANTITIES)
    bare = re.sub(r"\{[^}]*\}|\blab_\w+", "", f"{lesson.conclusion} {lesson.expected} {lesson.look} {lesson.question}")
    assert not re.search(r"\d", bare)


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.name)
def test_a_lesson_trains_valid_configs_that_differ_in_what_it_is_about(lesson):
    assert set(lesson.parameters) <= set(parameters())
    configs = [variant_config(variant, 1, {}) for variant in lesson.variants]
    differ = len({config_.model_dump_json() for config_ in configs}) + any(v.regularisation for v in lesson.variants)
    assert differ >= len(configs)
    if not any(variant.regularisation for variant in lesson.variants):
        varied = values_varied(lesson)
        assert len(set(zip(*varied.values(), strict=True))) == len(configs), varied


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.name)
def test_figures_were_measured_with_the_settings_that_the_lesson_has_now(lesson):
    now = {variant.name: {**common_settings(), **variant.settings} for variant in lesson.variants}
    assert record(lesson.name).settings == now, "measure it anew: python -m wizard.measure_lessons"


def test_a_missing_figure_is_an_error_and_not_a_verdict():
    with pytest.raises(UnknownFactError):
        LESSONS[0].holds({BASE: {}})


def test_figures_say_on_what_they_were_measured():
    for lesson in LESSONS:
        machine = record(lesson.name).machine
        assert machine["processor"]
        assert {"torch", "diffusers", "lycoris-lora"} <= set(machine["versions"])


def test_the_pictures_stay_small():
    sizes = [path.stat().st_size for path in PICTURES.glob("*.png")]
    assert sum(sizes) < 900_000
    assert all(path.is_file() for path in PICTURES.iterdir())


def test_every_varied_setting_is_one_of_the_schema():
    for lesson in LESSONS:
        for variant in lesson.variants:
            assert set(variant.settings) <= set(config.fields())
    assert set(library.document("lessons.toml")["common"]) <= set(config.fields())
