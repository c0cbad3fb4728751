"""Runs whose pictures and captions are encoded once: on disk or in memory, the same run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from short_runs import Configure, run_to_end, same, stopped_at, weights

from calculator.caches import text_output_bytes
from engine.checkpoints import DTYPES
from engine.dataset.store import MemoryStore
from engine.dataset.text_outputs import TextCache
from engine.models.load import load
from knowledge.architectures import read_architecture


def test_a_run_that_caches_in_memory_writes_no_cache_and_is_the_same_stopped_or_not(configure: Configure):
    unet, both = {"train_text_encoder": False}, {"cache_latents": True, "cache_text_encoder_outputs": True}
    on_disk, in_memory = (
        configure(network=unet, memory=both | {"cache_location": location}) for location in ("disk", "memory")
    )
    straight, _ = run_to_end(in_memory)
    resumed = stopped_at(in_memory, [3])
    assert not straight.cache.exists()
    other, _ = run_to_end(on_disk)
    assert {path.name for path in other.cache.iterdir()} == {"latents", "text"}
    assert same(weights(straight), weights(other))
    assert same(weights(straight), weights(resumed))


@pytest.mark.parametrize(("family", "precision"), [("sd15", "fp32"), ("sdxl", "fp32"), ("sdxl", "bf16")])
def test_a_kept_caption_takes_what_the_calculator_says(configure: Configure, family: str, precision: str):
    config = configure(family, base_model={"maximum_tokens": 150}, memory={"precision": precision})
    model, store = load(config.base_model, DTYPES[precision], unet_later=True), MemoryStore()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        list(TextCache(store, model.text_encoders.values()).fill(["a toy"], model.encode_prompt))
    (entry,) = store._kept.values()
    said = text_output_bytes(config, read_architecture(Path(config.base_model.path)))
    assert sum(tensor.nbytes for tensor in entry.values()) == said
