"""Entries and fields are one; every entry says what a person needs in order to decide."""

import re

import pytest

from knowledge import config, library
from knowledge.config import TrainingConfig, with_values
from knowledge.facts import DatasetFacts, FolderFacts, Hardware, Picture, facts
from knowledge.parameters import (
    UNSECTIONED,
    Parameter,
    advice_words,
    parameters,
    recommended,
    recommended_values,
    terms,
)

NAMES = list(config.fields())
PARAMETERS = parameters()
CHOICES = [choice for name in NAMES for choice in PARAMETERS[name].choices.values()]
ENTRIES = [*(PARAMETERS[name] for name in NAMES), *CHOICES, *terms().values()]


def dataset_of(images, repeats=1):
    return DatasetFacts((FolderFacts(tuple(Picture(f"{i}.png", 640, 512, "a cat") for i in range(images)), repeats),))


def test_every_field_has_an_entry_and_every_entry_a_field():
    written = set()
    for path in (library.DATA / "parameters").glob("*.toml"):
        for key in library.document(f"parameters/{path.name}"):
            written.add(key if path.stem == UNSECTIONED else f"{path.stem}.{key}")
    assert written == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_choice_of_a_field_has_an_entry(name):
    assert tuple(PARAMETERS[name].choices) == config.choices(config.fields()[name])


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_an_entry_is_complete_and_cites_known_sources(entry):
    assert entry.title
    assert entry.meaning.endswith(".")
    assert entry.level in {"essential", "advanced", "expert"}
    assert entry.evidence in {"measured", "paper", "implementation", "community", "opinion"}
    assert entry.sources or entry.evidence in {"community", "opinion"}
    assert set(entry.sources) <= set(library.sources()), set(entry.sources) - set(library.sources())
    if isinstance(entry, Parameter):
        assert entry.explanation
        assert set(entry.interactions) <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_number_parameter_says_what_too_little_and_too_much_do(name):
    field = config.fields()[name]
    if not isinstance(field.default, bool) and isinstance(field.default, int | float) and not name.endswith("seed"):
        assert PARAMETERS[name].too_low
        assert PARAMETERS[name].too_high


WITHOUT_A_VALUE_TO_ADVISE = {
    "base_model.family": "read from the model's file",
    "base_model.prediction_type": "read from the model's file, or known from its page",
    "dataset.goal": "what the user wants",
    "optimizer.arguments": "nothing beyond what the authors of each optimizer advise",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_setting_with_a_value_to_choose_says_which_and_why_and_what_it_goes_with(name):
    parameter, annotation = PARAMETERS[name], str(config.fields()[name].annotation)
    if name not in WITHOUT_A_VALUE_TO_ADVISE and (parameter.choices or re.search(r"\b(bool|int|float)\b", annotation)):
        assert parameter.recommendations
        assert all(row.because for row in parameter.recommendations)
    assert parameter.interactions


NAMES_WITH_DIGITS = (
    r"SD 1\.5|SD [123]\b|\bT5\b|\bWD14\b|AUTOMATIC1111|DPM\+\+ 2M|LyCORIS \d\.\d|\b[Ll][12]\b|\b[bf]p\d+|\bbf\d+"
    r"|RTX [0-9]0|GTX 16|V100|\bT4\b|20[12]\d|word:1\.2"
)
FREE_OF_NUMBERS = re.compile(r"\{[^}]*\}|1e-4|" + NAMES_WITH_DIGITS)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_prose_takes_its_numbers_from_placeholders(entry):
    raw = _raw(entry)
    keys = ("meaning", "explanation", "too_low", "too_high", "choose", "avoid")
    prose = [raw[key] for key in keys if key in raw]
    prose += [row["because"] for row in raw.get("recommendations", ())]
    for text in prose:
        assert not re.search(r"\d", FREE_OF_NUMBERS.sub("", text)), f"{entry.name}: a bare number in: {text}"


def _raw(entry):
    from knowledge import parameters as module

    if entry.name in NAMES:
        return module._table(entry.name)
    parameter, _, value = entry.name.rpartition(".")
    if parameter in NAMES:
        return module._table(parameter)["choices"][value]
    return {name: table for _, name, table in module._term_tables()}[entry.name]


@pytest.mark.parametrize("name", NAMES)
def test_recommendation_rows_read_well_without_facts(name):
    parameter = PARAMETERS[name]
    for row in parameter.recommendations:
        case, value, _ = advice_words(parameter, row)
        assert value, f"{name}: a formula over facts needs words"
        assert case or len(parameter.recommendations) == 1 or row is parameter.recommendations[-1]
        assert (row.value is None) != (row.formula is None)


CARDS = [
    None,
    Hardware("CPU", ram_bytes=16 * 2**30, cores=2),
    Hardware("NVIDIA GeForce RTX 3060", vram_bytes=12 * 2**30, capability=(8, 6)),
    Hardware("NVIDIA GeForce GTX 1660", vram_bytes=6 * 2**30, capability=(7, 5)),
    Hardware("NVIDIA GeForce RTX 4090", vram_bytes=24 * 2**30, capability=(8, 9)),
    Hardware("Apple M2", vram_bytes=16 * 2**30),
]


@pytest.mark.parametrize("hardware", CARDS, ids=lambda card: card.name if card else "unknown")
@pytest.mark.parametrize("family", ["pocket", "sd15", "sdxl"])
@pytest.mark.parametrize("goal", ["character", "style"])
@pytest.mark.parametrize("images", [None, 4, 20, 300])
def test_recommended_values_make_a_valid_config(family, goal, images, hardware):
    config_ = with_values(TrainingConfig(), {"dataset.goal": goal, "base_model.family": family})
    dataset = None if images is None else dataset_of(images)
    values = recommended_values(facts(config_, dataset, hardware))
    advised = with_values(config_, values)
    assert values["network.alpha"] == values["network.rank"]
    assert advised.dataset.resolution == values["dataset.resolution"]


def test_recommendations_follow_each_other_and_respect_what_was_chosen():
    config_ = with_values(TrainingConfig(), {"optimizer.name": "prodigy", "network.rank": 48})
    values = recommended_values(facts(config_), chosen=["optimizer.name", "network.rank"])
    assert values["optimizer.learning_rate"] == 1.0
    assert values["network.alpha"] == 48.0
    assert "optimizer.name" not in values


def test_the_reason_carries_the_users_own_numbers():
    known = facts(with_values(TrainingConfig(), {"base_model.family": "sdxl"}), dataset_of(20, repeats=5))
    advice = recommended("schedule.epochs", known)
    assert advice.value == 20  # 20 pictures × 100 views, 100 views an epoch
    assert "20 pictures" in advice.because


def test_a_number_stands_once_and_changes_everywhere(monkeypatch):
    from knowledge import parameters as module
    from knowledge.rules import check

    def everything():
        for cached in (module._numbers, module._parameter):
            cached.cache_clear()
        known = facts(with_values(TrainingConfig(), {"base_model.family": "sdxl", "base_model.path": "x.safetensors"}))
        burning = known | {"optimizer.learning_rate": 2e-3}
        (told,) = [found.message for found in check(burning) if found.rule == "rate-likely-to-burn"]
        said = parameters()["optimizer.learning_rate"].explanation
        fix = next(found.fix for found in check(burning) if found.rule == "rate-likely-to-burn")
        return recommended("optimizer.learning_rate", known).value, said, told, fix["optimizer.learning_rate"]

    value, said, _, fix = everything()
    assert (value, fix) == (1e-4, 1e-4)
    assert "1e-4" in said
    numbers = library.document("parameters/optimizer.toml")["learning_rate"]["numbers"]
    monkeypatch.setitem(numbers, "usual", 3e-4)
    monkeypatch.setitem(numbers, "burns", 1.5e-3)
    value, said, told, fix = everything()
    assert (value, fix) == (3e-4, 3e-4)
    assert "3e-4" in said
    assert "0.0015" in told
    monkeypatch.undo()
    everything()
