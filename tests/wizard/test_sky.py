"""A SkyPilot task carries all that a run needs and names no secret."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from short_runs import PICTURES, short_config

from knowledge.answers import PlainError, read_answers
from knowledge.config import with_values
from wizard.sky import THERE, _fitting, sky_task


@pytest.fixture
def task(tiny_sd15, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    config = short_config(tiny_sd15, "sd15", tmp_path / "runs")
    exported = sky_task(config, stem="toy")
    for name, text in exported.files.items():
        (tmp_path / name).write_text(text)
    return yaml.safe_load(exported.files["toy.sky.yaml"]), exported, tmp_path, tiny_sd15


def test_pictures_and_model_are_carried_and_found_where_the_answers_say(task):
    document, exported, folder, model = task
    answers = read_answers(folder / "toy.sky-answers.toml")
    assert document["file_mounts"][answers.dataset.folders[0].path] == str(PICTURES.absolute())
    assert document["file_mounts"][answers.base_model.path] == str(model)
    assert document["file_mounts"][f"{THERE}/answers.toml"] == "./toy.sky-answers.toml"
    assert answers.output.folder == "runs"
    assert str(Path.home()) not in exported.files["toy.sky-answers.toml"]
    assert "train answers.toml" in document["run"]
    assert "sky launch" in exported.how
    assert "rsync" in exported.how


def test_the_task_has_the_keys_of_sky_pilot_and_no_secret(task):
    document, exported, *_ = task
    assert set(document) <= {"name", "workdir", "resources", "file_mounts", "envs", "setup", "run"}
    assert set(document["resources"]) == {"accelerators", "disk_size"}
    assert "envs" not in document  # the model is carried
    assert "hf_secretsecret" not in "".join(exported.files.values())


def test_the_gpu_is_large_enough_and_computes_in_the_precision(tiny_sd15, tmp_path):
    config = short_config(tiny_sd15, "sd15", tmp_path)
    bf16 = with_values(config, {"memory.precision": "bf16"})
    assert "T4" in _fitting(10 * 10**9, config)
    assert set(_fitting(10 * 10**9, bf16)) == {"L4", "A10G", "A10", "RTX4090", "A100"}
    assert _fitting(100 * 10**9, config) == ["H200"]
    with pytest.raises(PlainError, match="No GPU that can be rented"):
        _fitting(10**12, config)


def test_a_model_in_a_hub_is_fetched_there_and_its_token_stays_a_name(tiny_sd15, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    config = with_values(short_config(tiny_sd15, "sd15", tmp_path), {"base_model.path": "somebody/model"})
    exported = sky_task(config, stem="toy")
    document = yaml.safe_load(exported.files["toy.sky.yaml"])
    assert document["envs"] == {"HF_TOKEN": ""}
    assert "--env HF_TOKEN" in exported.how
    assert "hf_secretsecret" not in "".join(exported.files.values())
    assert 'path = "somebody/model"' in exported.files["toy.sky-answers.toml"]
