from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest

from engine.dataset.captions import mentions, read_caption, tags, trained_caption, with_trigger_word
from knowledge.config import DatasetSettings

REFERENCE = json.loads((Path(__file__).parents[1] / "data" / "captions.json").read_text(encoding="utf-8"))
OURS = {
    "shuffle_caption": "shuffle_tags",
    "keep_tokens": "keep_tokens",
    "keep_tokens_separator": "keep_tokens_separator",
    "caption_prefix": "caption_prefix",
    "caption_suffix": "caption_suffix",
    "enable_wildcard": "wildcards",
    "caption_dropout_rate": "caption_dropout_rate",
    "caption_dropout_every_n_epochs": "caption_dropout_every_epochs",
    "caption_tag_dropout_rate": "tag_dropout_rate",
}
KNOWN = [row for row in REFERENCE if row["options"].keys() <= OURS.keys()]


@pytest.mark.parametrize("row", KNOWN, ids=lambda row: f"{row['options']} {row['seed']} {row['caption'][:12]}")
def test_captions_are_sd_scripts_word_for_word(row):
    settings = DatasetSettings(**{OURS[name]: value for name, value in row["options"].items()})
    random = Random(row["seed"])
    assert trained_caption(row["caption"], settings, random, row.get("epoch", 1)) == row["result"]


def test_enough_of_the_reference_is_covered():
    assert len(KNOWN) >= 80


def test_the_trigger_word_goes_first_where_it_is_missing():
    assert with_trigger_word("red, round", "sks") == "sks, red, round"
    assert with_trigger_word("a photo of SKS, red", "sks") == "a photo of SKS, red"
    assert with_trigger_word("", "sks") == "sks"
    assert with_trigger_word("one\ntwo sks", "sks") == "sks, one\ntwo sks"
    assert with_trigger_word("red", "  ") == "red"


def test_the_trigger_word_is_a_word_of_its_own():
    assert not mentions("asks, sksy", "sks")
    assert mentions("sks-like", "sks")
    assert mentions("a (sks:1.2) toy", "sks")


def test_the_trigger_word_never_moves_when_tags_are_shuffled():
    settings = DatasetSettings(trigger_word="sks", shuffle_tags=True)
    results = {trained_caption("a, b, c, d", settings, Random(seed), 1) for seed in range(20)}
    assert len(results) > 5
    assert all(result.startswith("sks, ") and sorted(result[5:].split(", ")) == list("abcd") for result in results)


def test_regularisation_pictures_show_the_class_without_the_trigger_word():
    settings = DatasetSettings(trigger_word="sks")
    assert trained_caption("toy", settings, Random(0), 1, regularisation=True) == "toy"
    assert trained_caption(None, settings, Random(0), 1) == "sks"


def test_caption_dropout_drops_its_share():
    settings = DatasetSettings(caption_dropout_rate=0.25)
    random = Random(1)
    dropped = sum(trained_caption("a", settings, random, 1) == "" for _ in range(4000))
    assert 920 < dropped < 1080  # 1000 ± 3 standard deviations


def test_tags_are_those_of_the_first_line():
    assert tags("a,  b ,, c\nd") == ["a", "b", "c"]


def test_captions_are_read_in_utf8_and_marked_utf16_only(tmp_path):
    file = tmp_path / "a.txt"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        file.write_text(" Zoë, 日本\r\nline two \n", encoding=encoding, newline="")
        assert read_caption(file) == "Zoë, 日本\nline two"
    file.write_text("Zoë", encoding="latin-1")
    with pytest.raises(UnicodeDecodeError):
        read_caption(file)


def test_marks_for_fixed_tags_are_never_trained():
    settings = DatasetSettings(keep_tokens_separator="|||")
    assert trained_caption("a, b ||| c ||| d", settings, Random(0), 1) == "a, b, c, d"


def test_tag_dropout_never_drops_the_trigger_word():
    settings = DatasetSettings(trigger_word="sks", tag_dropout_rate=0.5)
    results = [trained_caption("a, b, c, d", settings, Random(seed), 1) for seed in range(200)]
    assert all(result.split(", ")[0] == "sks" for result in results)
    assert 1.8 < sum(len(result.split(", ")) - 1 for result in results) / 200 < 2.2  # half of four


def test_each_line_is_a_caption_of_its_own_with_wildcards():
    settings = DatasetSettings(wildcards=True, trigger_word="sks")
    results = {trained_caption("one\ntwo {x|y}", settings, Random(seed), 1) for seed in range(50)}
    assert results == {"sks, one", "sks, two x", "sks, two y"}


def test_captions_are_left_out_in_every_nth_epoch_counted_from_one():
    settings = DatasetSettings(caption_dropout_every_epochs=3)
    assert [trained_caption("a", settings, Random(0), epoch) for epoch in range(1, 7)] == ["a", "a", "", "a", "a", ""]
