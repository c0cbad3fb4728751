"""Where other trainers keep what they encoded once, and where it is kept here."""

from __future__ import annotations

import pytest

from knowledge.config import TrainingConfig, with_values
from knowledge.formats.export import to_sd_scripts
from knowledge.formats.export_onetrainer import to_onetrainer
from knowledge.formats.reader import read_foreign
from knowledge.formats.sd_scripts import translate


@pytest.mark.parametrize(
    ("theirs", "kept", "location"),
    [
        ({"cache_latents": True}, (True, False), "memory"),
        ({"cache_latents": True, "cache_latents_to_disk": False}, (True, False), "memory"),
        ({"cache_latents_to_disk": True}, (True, False), "disk"),
        ({"cache_latents": True, "cache_latents_to_disk": True}, (True, False), "disk"),
        ({"cache_text_encoder_outputs": True}, (False, True), "memory"),
        ({"cache_latents_to_disk": True, "cache_text_encoder_outputs": True}, (True, True), "disk"),
        ({}, (False, False), "disk"),
    ],
)
def test_where_sd_scripts_caches_is_where_it_is_cached_here(theirs, kept, location):
    memory = translate({**theirs, "network_train_unet_only": True}, kind="sd-scripts TOML").config.memory
    assert (memory.cache_latents, memory.cache_text_encoder_outputs) == kept
    assert memory.cache_location == location


@pytest.mark.parametrize("location", ["disk", "memory"])
def test_where_it_is_cached_comes_back_from_what_is_exported(location):
    values = {"base_model.family": "sdxl", "base_model.path": "x.safetensors", "memory.cache_location": location}
    config = with_values(TrainingConfig(), values | {"memory.cache_text_encoder_outputs": True})
    written = to_sd_scripts(config).options
    for switch in ("cache_latents", "cache_text_encoder_outputs"):
        assert (written[switch], written.get(f"{switch}_to_disk", False)) == (True, location == "disk")
    assert translate(written, kind="sd-scripts TOML").config.memory.cache_location == location
    assert ("memory.cache_location" in {lost.name for lost in to_onetrainer(config).lost}) == (location == "memory")


@pytest.mark.parametrize(
    ("theirs", "location"),
    [
        ("cache_latents: true", "memory"),
        ("cache_latents: true, cache_latents_to_disk: false", "memory"),
        ("cache_latents_to_disk: true", "disk"),
        ("cache_latents: true, cache_latents_to_disk: true", "disk"),
    ],
)
def test_where_ai_toolkit_caches_is_where_it_is_cached_here(theirs, location, tmp_path):
    (tmp_path / "a.yaml").write_text(
        "job: extension\nconfig:\n  name: a\n  process:\n  - type: sd_trainer\n    network: {type: lora}\n"
        f"    model: {{name_or_path: m, is_xl: true}}\n    datasets: [{{folder_path: p, {theirs}}}]\n"
    )
    memory = read_foreign(tmp_path / "a.yaml").config.memory
    assert (memory.cache_latents, memory.cache_location) == (True, location)
