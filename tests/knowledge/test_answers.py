"""The answers file: written with comments, read back the same, and every mistake in it said in one sentence."""

import os
import shlex
import tomllib
from pathlib import Path

import pytest

from knowledge.answers import (
    MIGRATIONS,
    PlainError,
    answers_text,
    parse_assignment,
    quoted,
    read_answers,
    write_answers,
)
from knowledge.config import DatasetFolder, TrainingConfig, with_values
from knowledge.formats.reader import is_foreign, read_foreign

FULL = with_values(
    TrainingConfig(),
    {
        "seed": 7,
        "dataset.folders": [
            DatasetFolder(path="cats", repeats=5).model_dump(),
            {"path": "dogs", "regularisation": True},
        ],
        "dataset.trigger_word": 'qu"ote',
        "network.rank": 32,
        "optimizer.learning_rate": 2e-4,
        "optimizer.text_encoder_learning_rate": 5e-5,
        "sampling.prompts": ["a cat", "a dog, sleeping"],
        "saving.every_epochs": 2,
    },
)


def test_what_is_written_is_read_back(tmp_path):
    write_answers(FULL, tmp_path / "deep" / "answers.toml")
    assert read_answers(tmp_path / "deep" / "answers.toml") == FULL
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["answers.toml"]


def test_only_what_differs_or_was_chosen_is_written_each_with_a_comment():
    text = answers_text(FULL, chosen=["network.alpha"])
    assert set(tomllib.loads(text)["network"]) == {"rank", "alpha"}
    assert "# How much the network can hold" in text
    assert "schedule" not in tomllib.loads(text)
    assert tomllib.loads(answers_text(TrainingConfig())) == {"schema_version": 1}


def test_a_setting_that_was_emptied_stays_empty(tmp_path):
    config = with_values(TrainingConfig(), {"saving.every_epochs": None})
    assert TrainingConfig().saving.every_epochs is not None
    write_answers(config, tmp_path / "answers.toml")
    assert 'every_epochs = "none"' in (tmp_path / "answers.toml").read_text(encoding="utf-8")
    assert read_answers(tmp_path / "answers.toml") == config


def test_only_a_setting_that_may_be_empty_can_be_emptied(tmp_path):
    (tmp_path / "answers.toml").write_text('[network]\nrank = "none"\n', encoding="utf-8")
    with pytest.raises(PlainError, match=r"network\.rank"):
        read_answers(tmp_path / "answers.toml")


def test_all_problems_of_a_file_are_told_together(tmp_path):
    path = tmp_path / "answers.toml"
    path.write_text(
        """
[network]
rank = 0
algoritm = "lora"
[optimizer]
unet_lr = 1e-4
learning_rate = "1e-4"
[sampling]
sampler = "magic"
[[dataset.folders]]
repeats = 3
[trainig]
x = 1
"""
    )
    with pytest.raises(PlainError) as caught:
        read_answers(path)
    text = str(caught.value)
    assert caught.value.exit_code == 2
    assert "7 problems" in text
    assert "network.rank is 0; it must be at least 1." in text
    assert 'no setting "network.algoritm". Did you mean "algorithm"?' in text
    assert "here it is called optimizer.learning_rate" in text
    assert 'optimizer.learning_rate is "1e-4"; it must be a number.' in text
    assert 'it must be one of "ddim", "ddpm"' in text
    assert "dataset.folders[1].path is missing." in text
    assert '"trainig"' in text


def test_what_the_engine_cannot_honour_is_told_in_its_own_words(tmp_path):
    path = tmp_path / "answers.toml"
    path.write_text("[network]\ntrain_text_encoder = true\n[memory]\ncache_text_encoder_outputs = true\n")
    with pytest.raises(PlainError, match="Turn one of them off"):
        read_answers(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"network = [", "not valid TOML"),
        (b"\xff\xfe\x00", "not text in UTF-8"),
        (b"schema_version = 99", "newer lora-wizard"),
        (b'schema_version = "one"', "whole number"),
    ],
)
def test_a_file_that_is_no_answers_file_is_refused_in_words(tmp_path, content, said):
    path = tmp_path / "answers.toml"
    path.write_bytes(content)
    with pytest.raises(PlainError, match=said):
        read_answers(path)


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path):
    with pytest.raises(PlainError, match="no file"):
        read_answers(tmp_path / "none.toml")
    with pytest.raises(PlainError, match="is a folder"):
        read_answers(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no pipes with a name in a folder")
@pytest.mark.parametrize("read", [read_answers, read_foreign, is_foreign])
def test_a_pipe_is_refused_instead_of_waited_for(tmp_path, read):
    os.mkfifo(tmp_path / "config.toml")
    if read is is_foreign:  # and read_answers, which follows, says why
        assert not read(tmp_path / "config.toml")
        return
    with pytest.raises(PlainError, match="is a pipe or a device") as error:
        read(tmp_path / "config.toml")
    assert error.value.exit_code == 2


def test_an_older_file_is_migrated_step_by_step(tmp_path, monkeypatch):
    monkeypatch.setattr("knowledge.answers.SCHEMA_VERSION", 3)
    monkeypatch.setitem(MIGRATIONS, 1, lambda document: {"network": {"rank": document["dim"]}})
    monkeypatch.setitem(MIGRATIONS, 2, lambda document: document)
    from knowledge.answers import _migrated

    assert _migrated({"schema_version": 1, "dim": 4}, tmp_path) == {"schema_version": 3, "network": {"rank": 4}}


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("network.rank=32", "network.rank", 32),
        ("network_dim = 32", "network.rank", 32),
        ("optimizer.learning_rate=1e-4", "optimizer.learning_rate", 1e-4),
        ("dataset.trigger_word=12", "dataset.trigger_word", "12"),
        ('output.name="my cat"', "output.name", "my cat"),
        ("dataset.flip=yes", "dataset.flip", True),
        ("saving.every_epochs=none", "saving.every_epochs", None),
        ('sampling.prompts=["a", "b"]', "sampling.prompts", ["a", "b"]),
        ("optimizer.name=lion", "optimizer.name", "lion"),
    ],
)
def test_an_assignment_is_read_as_its_parameter_wants_it(text, name, value):
    assert parse_assignment(text) == (name, value)


@pytest.mark.parametrize(("text", "said"), [("network.rank", "NAME=VALUE"), ("network.rnak=3", "Did you mean")])
def test_a_wrong_assignment_is_told(text, said):
    with pytest.raises(PlainError, match=said):
        parse_assignment(text)


@pytest.mark.skipif(os.name == "nt", reason="it is for other terminals")
@pytest.mark.parametrize(
    "word", ["plain/path-1.toml", "two words", "it's here", 'say "hi"', "$HOME", "a\\b", "`x`", "né", "", "wow!"]
)
def test_a_quoted_word_is_read_as_that_word_again(word):
    assert shlex.split(quoted(word)) == [word]


def test_what_needs_no_quotes_gets_none():
    assert quoted(Path("datasets/my-set_é.zip")) == "datasets/my-set_é.zip"
    assert quoted("two words") == '"two words"'
