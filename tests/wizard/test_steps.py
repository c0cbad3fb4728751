"""The guided path as data and as pure steps."""

from __future__ import annotations

from itertools import pairwise

import pytest

from knowledge.config import fields
from knowledge.parameters import parameters
from wizard import settings, steps
from wizard.steps import REVIEW, Draft

ORDER = tuple(steps.questions())
WITH_PROMPTS = {"sampling.prompts": ("a cat",)}
WITHOUT_PROMPTS = {"sampling.prompts": ()}


def test_every_question_asks_for_a_parameter_of_the_schema():
    assert set(ORDER) <= set(fields())


def test_no_two_questions_share_a_flag():
    flags = [question.flag for question in steps.questions().values()]
    assert len(set(flags)) == len(flags)
    assert all(flag.startswith("--") for flag in flags)


def test_the_path_asks_essentials_only():
    """The one exception is how often samples are drawn: without it the prompts would be half a question."""
    levels = {name: parameters()[name].level for name in ORDER}
    assert {name for name, level in levels.items() if level != "essential"} <= {"sampling.every_epochs"}


def test_every_section_that_a_step_opens_exists():
    for step in steps.steps():
        for section in step.more:
            assert settings.names_in(section), section


def test_every_parameter_of_the_schema_can_be_reached_from_the_review():
    reached = set(settings.every_name())
    columns = {name for name in fields() if name.startswith("dataset.folders.")}
    assert reached == set(fields()) - columns  # the columns are changed with their folder


def test_next_and_back_are_inverse():
    for facts in (WITH_PROMPTS, WITHOUT_PROMPTS):
        path = steps.path(facts)
        for here, there in pairwise(path):
            assert steps.next_question(here, facts) == there
            assert steps.previous_question(there, facts) == here


def test_the_path_begins_with_the_subject_and_ends_in_the_review():
    assert steps.next_question("", {}) == "dataset.goal"
    assert steps.path(WITH_PROMPTS)[-1] == REVIEW
    assert steps.next_question(REVIEW, {}) == REVIEW


def test_before_the_first_question_is_the_first_question():
    assert steps.previous_question("dataset.goal", {}) == "dataset.goal"


def test_a_question_whose_condition_is_false_or_unknown_is_passed_over():
    assert steps.next_question("sampling.prompts", WITHOUT_PROMPTS) == "output.name"
    assert steps.next_question("sampling.prompts", {}) == "output.name"
    assert steps.next_question("sampling.prompts", WITH_PROMPTS) == "sampling.every_epochs"


def test_an_answer_replaces_the_recommendation_and_the_other_way_round():
    draft = Draft().with_recommended("network.rank")
    assert draft.accepted == ("network.rank",)
    chosen = draft.answered("network.rank", 32)
    assert (chosen.values, chosen.accepted) == ({"network.rank": 32}, ())
    followed = chosen.with_recommended("network.rank")
    assert (followed.values, followed.accepted) == ({}, ("network.rank",))


def test_step_of_refuses_a_parameter_that_no_step_asks_for():
    assert steps.step_of("network.rank").name == "network"
    with pytest.raises(KeyError):
        steps.step_of("noise.offset")
