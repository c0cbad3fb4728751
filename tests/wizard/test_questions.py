"""What typed text means, what the pages offer, and how refusals are worded."""

from __future__ import annotations

import pytest

from knowledge.answers import PlainError
from knowledge.config import value_of
from knowledge.facts import Hardware
from knowledge.parameters import Recommendation, parameters
from wizard import questions, settings
from wizard.situation import Workbench


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("network.rank", "16", 16),
        ("schedule.maximum_steps", "1,500", 1500),
        ("schedule.maximum_steps", "1 500", 1500),
        ("schedule.maximum_steps", "", None),
        ("schedule.maximum_steps", "not set", None),
        ("optimizer.learning_rate", "1e-4", 0.0001),
        ("optimizer.learning_rate", "0.0002", 0.0002),
        ("noise.offset", "0,05", 0.05),
        ("network.alpha", "8", 8.0),
        ("dataset.buckets", "yes", True),
        ("dataset.buckets", "off", False),
        ("dataset.trigger_word", " zorb ", "zorb"),
        ("output.name", "mila-2", "mila-2"),
        ("seed", "7", 7),
    ],
)
def test_typed_text_becomes_the_value_it_means(name: str, text: str, value: object):
    parsed = questions.parse(name, text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("network.rank", "0", "Rank is 0; it must be at least 1."),
        ("network.rank", "many", 'Rank must be a whole number; "many" is not.'),
        ("network.rank", "1.5", 'Rank must be a whole number; "1.5" is not.'),
        ("optimizer.learning_rate", "-1", "it must be above 0"),
        ("optimizer.learning_rate", "inf", "it must be"),
        ("dataset.resolution", "100", "it must be a multiple of 8"),
        ("dataset.buckets", "perhaps", '"perhaps" is neither yes nor no.'),
        ("output.name", "my lora!", "use letters, digits, dots, dashes and underscores"),
        ("output.name", "", "must"),
    ],
)
def test_what_is_not_allowed_is_refused_in_plain_words(name: str, text: str, said: str):
    with pytest.raises(PlainError) as refusal:
        questions.parse(name, text)
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


class Bench(Workbench):
    """A workbench for a computer that is the same everywhere."""

    hardware = Hardware("CPU", ram_bytes=8 * 2**30, cores=2)


@pytest.mark.parametrize("name", settings.every_name())
def test_every_parameter_has_a_page_that_explains_itself(name: str):
    page = questions.page(Bench(), {}, name, place="Settings")
    assert page.title
    assert page.body
    assert page.help is not None
    assert page.help(page.default)
    if page.options:
        assert page.default in [option.value for option in page.options]


@pytest.mark.parametrize("name", settings.every_name())
def test_the_line_that_a_page_proposes_is_accepted_by_it(name: str):
    page = questions.page(Bench(), {}, name, place="Settings", typed=True)
    if name not in ("dataset.folders", "sampling.prompts"):  # lists, which have forms of their own
        assert page.check(page.default) == value_of(Bench().situation({}).config, name)


def test_offers_hold_the_recommended_value_the_current_one_and_a_way_to_any_other():
    entry = parameters()["network.rank"]
    options = questions._offers(entry, Recommendation(16, "because"), 20)
    values = [option.value for option in options]
    assert {16, 20} <= set(values)
    assert values[-1] is questions.OTHER
    assert [option.value for option in options if option.hint == "recommended"] == [16]


def test_offers_stay_inside_the_hard_range():
    entry = parameters()["schedule.epochs"]
    options = questions._offers(entry, Recommendation(1, "because"), 1)
    assert all(option.value is questions.OTHER or option.value >= 1 for option in options)


def test_one_of_something_is_not_called_many():
    entry = parameters()["schedule.epochs"]
    assert questions.display(entry, 1) == "1 epoch"
    assert questions.display(entry, 2) == "2 epochs"


def test_optimizer_arguments_are_typed_as_one_line():
    typed = questions.parse("optimizer.arguments", "betas=0.9,0.95 eps=1e-6 amsgrad=true")
    assert typed == {"betas": (0.9, 0.95), "eps": 1e-6, "amsgrad": True}
    assert questions.parse("optimizer.arguments", "none") == questions.parse("optimizer.arguments", "") == {}
    assert questions.display(parameters()["optimizer.arguments"], typed) == "betas=0.9,0.95 eps=1e-06 amsgrad=True"
    for wrong, said in (("betas", "sets nothing"), ("betas=large", "must be a number, true or false")):
        with pytest.raises(PlainError, match=said):
            questions.parse("optimizer.arguments", wrong)
