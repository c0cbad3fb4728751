"""Which trainer wrote a file, and files that none wrote."""

from __future__ import annotations

import pytest
from foreign import read

from knowledge.answers import PlainError
from knowledge.formats.reader import is_foreign, read_foreign


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.json", "{"),
        ("x.json", "[1]"),
        ("x.json", "{}"),
        ("x.toml", "= 3"),
        ("x.toml", "schema_version = 1"),
        ("x.yaml", "a: [1"),
        ("x.yaml", "a: 1"),
        ("x.sh", "echo hello"),
        ("x.safetensors", "nothing"),
    ],
)
def test_what_is_no_config_gets_one_sentence(name, content, tmp_path):
    with pytest.raises(PlainError, match=name.replace(".", r"\.")):
        read(tmp_path, name, content)


def test_answers_of_ours_are_not_foreign(tmp_path):
    ours, theirs = tmp_path / "a.toml", tmp_path / "b.toml"
    ours.write_text("schema_version = 1\n", encoding="utf-8")
    theirs.write_text("network_dim = 4\n", encoding="utf-8")
    assert (is_foreign(ours), is_foreign(theirs), is_foreign(tmp_path / "c.json")) == (False, True, True)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (
            "flux.json",
            '{"__version": 6, "training_method": "LORA", "model_type": "FLUX_DEV_1", "base_model_name": "a/b"}',
        ),
        ("flux.yaml", "config: {process: [{train: {lr: 1e-4}, model: {name_or_path: a/b, is_flux: true}}]}"),
        ("qwen.yaml", "config: {process: [{train: {lr: 1e-4}, model: {name_or_path: a/b, arch: qwen_image}}]}"),
        ("gui.json", '{"LoRA_type": "Flux1", "pretrained_model_name_or_path": "a/b", "flux1_checkbox": true}'),
        ("run.sh", "python flux_train_network.py --pretrained_model_name_or_path a/b --network_dim 8"),
    ],
)
def test_a_recipe_for_another_kind_of_model_says_so_first_and_brings_no_base_model(name, content, tmp_path):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    imported = read_foreign(path)
    assert "which this program does not" in imported.warnings[0]
    assert imported.config is not None
    assert imported.config.base_model.path == imported.values["base_model.path"] == "base-model"
    assert any(note.value == "a/b" and note.outcome == "unsupported" for note in imported.notes)


def test_a_model_config_of_the_hub_is_no_recipe(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"model_type": "qwen3", "hidden_size": 1024}', encoding="utf-8")
    with pytest.raises(PlainError, match="no trainer that is known"):
        read_foreign(path)


def test_toml_of_no_trainer_is_not_taken_for_answers_of_ours(tmp_path):
    path = tmp_path / "prompts.toml"
    path.write_text('[[prompts]]\ntarget = "cat"\n', encoding="utf-8")
    with pytest.raises(PlainError, match="no config of a trainer"):
        read_foreign(path)
