"""Every key of a foreign file ends in exactly one list, whatever stands in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from foreign import options
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from knowledge.formats import ai_toolkit, onetrainer
from knowledge.formats.sd_scripts import LISTS, translate
from knowledge.formats.translation import TITLES
from knowledge.formats.vocabulary import facts_of


def test_every_option_of_sd_scripts_is_known_and_ends_in_one_list():
    facts = facts_of("sd_scripts")
    everything = {**facts["options"], **dict.fromkeys(set(facts["unset"]) - set(LISTS), "x")}
    imported = translate(everything, kind="test")
    assert {note.key for note in imported.notes} == set(everything)
    assert imported.listed("unknown") == []


@pytest.mark.parametrize("key", sorted(facts_of("sd_scripts")["unset"]))
def test_every_option_alone_ends_in_one_list(key):
    for value in ("x", 3, 0, True, None):
        keys = [note.key for note in translate({key: value}, kind="test").notes]
        assert len(keys) == 1


def test_a_misspelt_key_is_unknown_and_its_neighbour_is_named():
    imported = options(max_grad_normm=1.0)
    note = imported.listed("unknown")[0]
    assert (note.key, note.why) == ("max_grad_normm", 'Did you mean "max_grad_norm"?')


def test_the_five_lists_are_all_there_are():
    assert list(TITLES) == ["mapped", "changed", "no_effect", "unsupported", "unknown"]


@pytest.mark.parametrize("value", ["nonsense", -1, 10**9, [], {}, "1e-4", True, None, "0"])
@pytest.mark.parametrize(
    "key", ["network_dim", "learning_rate", "resolution", "text_encoder_lr", "lr_warmup_steps", "seed"]
)
def test_nonsense_values_never_crash(key, value):
    assert [note.key for note in translate({key: value}, kind="test").notes] == [key]


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2000),
    st.floats(),
    st.sampled_from(
        ["", "x", "1e-4", "0", "True", "none", "a b", "C:\\pics", "x\ny", [], {}, [1, 2], ["a=1", "b"], {"a": 1}]
    ),
)
KEYS = {
    kind: sorted({*facts_of(kind)["options"], *facts_of(kind)["unset"]})
    for kind in ("sd_scripts", "onetrainer", "ai_toolkit")
}


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(given=st.dictionaries(st.sampled_from([*KEYS["sd_scripts"], "typo"]), ODD, max_size=25))
def test_any_options_of_sd_scripts_end_in_one_list_each(given):
    imported = translate(given, kind="test")
    listed = [note.key for note in imported.notes]
    assert len(listed) == len(set(listed))
    assert all(key in listed or any(one.startswith(f"{key}.") for one in listed) for key in given)
    assert (imported.config is None) == bool(imported.problems)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(given=st.dictionaries(st.sampled_from([*KEYS["onetrainer"], "typo"]), ODD, max_size=25))
def test_any_settings_of_onetrainer_end_in_one_list_each(given):
    nested: dict = {}
    for key, value in given.items():
        part, _, inner = key.rpartition(".")
        if part:
            nested.setdefault(part, {})[inner] = value
        else:
            nested[key] = value
    imported = onetrainer.read_json(nested, Path("x.json"))
    assert sorted(note.key for note in imported.notes) == sorted(onetrainer.flattened(nested))


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(given=st.dictionaries(st.sampled_from([*KEYS["ai_toolkit"], "typo"]), ODD, max_size=25))
def test_any_settings_of_ai_toolkit_end_in_one_list_each(given):
    process: dict = {"type": "sd_trainer"}
    dataset: dict = {"folder_path": "pics"}
    for key, value in given.items():
        section, _, inner = key.partition(".")
        if section == "datasets":
            dataset[inner] = value
        elif inner:
            process.setdefault(section, {})[inner] = value
        elif key not in ("network", "save", "train", "model", "sample"):
            process[key] = value
    process["datasets"] = [dataset]
    document = {"config": {"name": "x", "process": [process]}}
    imported = ai_toolkit.read_job(json.loads(json.dumps(document)), Path("x.yaml"))
    assert sorted(note.key for note in imported.notes) == sorted(ai_toolkit.flattened(document, process))
