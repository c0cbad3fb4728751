"""Every setting of an export ends in one list."""

from __future__ import annotations

from collections import Counter

import pytest
from foreign import EVERY_SETTING, configs
from hypothesis import HealthCheck, given, settings

from knowledge.config import TrainingConfig, fields, value_of, with_values
from knowledge.formats.export import to_sd_scripts
from knowledge.formats.export_diffusers import to_diffusers
from knowledge.formats.export_gui import to_kohya_gui
from knowledge.formats.export_lists import what_became_of
from knowledge.formats.export_onetrainer import to_onetrainer
from knowledge.formats.reader import read_foreign

WRITERS = {to_sd_scripts: "x.toml", to_kohya_gui: "x.json", to_onetrainer: "x.json", to_diffusers: "x.sh"}


def became(write, config, folder):
    exported = write(config, "x")
    for name, text in exported.files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return what_became_of(config, exported, read_foreign(folder / WRITERS[write]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("lists")


@pytest.mark.parametrize("write", WRITERS)
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(config=configs())
def test_every_setting_that_is_not_the_default_ends_in_one_list_and_none_is_unknown(write, config, folder):
    notes = became(write, config, folder)
    assert max(Counter(note.key for note in notes).values()) == 1
    chosen = {name for name in EVERY_SETTING if value_of(config, name) != fields()[name].default}
    assert chosen <= {note.key for note in notes}
    assert [note.key for note in notes if note.outcome == "unknown"] == []


def test_what_takes_the_place_of_something_is_told_from_what_is_lost(tmp_path):
    given_ = {"base_model.path": "m", "base_model.family": "sdxl", "schedule.scheduler": "rex", "ema.decay": 0.9}
    config = with_values(TrainingConfig(), given_ | {"network.rank": 4, "network.conv_rank": 2})
    notes = {note.key: note for note in became(to_sd_scripts, config, tmp_path)}
    assert (notes["schedule.scheduler"].outcome, notes["schedule.scheduler"].new) == ("changed", "cosine")
    assert (notes["ema.decay"].outcome, notes["network.conv_rank"].outcome) == ("unsupported", "no_effect")
    assert (notes["network.rank"].outcome, notes["network.rank"].name) == ("mapped", "network_dim")
