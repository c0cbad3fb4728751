"""Runs whose pictures and captions are encoded once: on disk or in memory, the same run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from short_runs import PICTURES, Configure, run_to_end, same, stopped_at, weights

from calculator.caches import text_output_bytes
from engine.checkpoints import DTYPES
from engine.dataset.store import MemoryStore
from engine.dataset.text_outputs import TextCache
from engine.events import PhaseStarted
from engine.models.load import load
from engine.run_folder import RunFolder
from engine.train import train
from knowledge.architectures import read_architecture
from knowledge.config import TrainingConfig


def test_a_run_that_caches_in_memory_writes_no_cache_and_is_the_same_stopped_or_not(configure: Configure):
    unet, both = {"train_text_encoder": False}, {"cache_latents": True, "cache_text_encoder_outputs": True}
    on_disk, in_memory = (
        configure(network=unet, memory=both | {"cache_location": location}, schedule={"maximum_steps": 2})
        for location in ("disk", "memory")
    )
    straight, _ = run_to_end(in_memory)
    resumed = stopped_at(in_memory, [1])
    assert not straight.cache.exists()
    other, _ = run_to_end(on_disk)
    assert {path.name for path in other.cache.iterdir()} == {"latents", "text"}
    assert same(weights(straight), weights(other))
    assert same(weights(straight), weights(resumed))


def test_a_picture_that_was_changed_while_a_run_rested_is_learnt_from_as_it_is_now(
    configure: Configure, tmp_path: Path
):
    def rested(*, changed: bool, cache_kept: bool) -> dict[str, torch.Tensor]:
        pictures = tmp_path / f"{changed} {cache_kept}"
        shutil.copytree(PICTURES, pictures)
        config = configure(dataset={"folders": [{"path": str(pictures)}]}, schedule={"maximum_steps": 3})
        run = RunFolder.create(config)
        for _ in train(config, run, should_stop=lambda: True):
            pass
        if changed:
            for path in pictures.glob("*.png"):
                with Image.open(path) as picture:
                    picture.convert("RGB").point(lambda value: 255 - value).save(path)
        if not cache_kept:
            shutil.rmtree(run.cache)
        list(train(config, run, resume=True))
        return weights(run)

    now = rested(changed=True, cache_kept=True)
    assert not same(now, rested(changed=False, cache_kept=True))
    assert same(now, rested(changed=True, cache_kept=False))


@pytest.mark.parametrize(("family", "precision"), [("sd15", "fp32"), ("sdxl", "fp32"), ("sdxl", "bf16")])
def test_a_kept_caption_takes_what_the_calculator_says(configure: Configure, family: str, precision: str):
    config = configure(family, base_model={"maximum_tokens": 150}, memory={"precision": precision})
    model, store = load(config.base_model, DTYPES[precision], unet_later=True), MemoryStore()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        list(TextCache(store, model.text_encoders.values()).fill(["a toy"], model.encode_prompt))
    (entry,) = store._kept.values()
    said = text_output_bytes(config, read_architecture(Path(config.base_model.path), config.base_model.family))
    assert sum(tensor.nbytes for tensor in entry.values()) == said


ANOTHER: dict[str, dict[str, Any]] = {
    "clip skip": {"base_model": {"clip_skip": 2}},
    "length of captions": {"base_model": {"maximum_tokens": 150}},
    "weighted words": {"dataset": {"weighted_captions": True}},
    "precision": {"memory": {"precision": "bf16"}},
    "filling of captions": {"tokenizer/tokenizer_config.json": {"pad_token": "!"}},
    "reading of the same weights": {"text_encoder/config.json": {"hidden_act": "gelu"}},
}


def text_entries(config: TrainingConfig) -> set[str]:
    """What the cache of captions holds once a run has filled it; the run goes no further."""
    run = RunFolder.create(config)
    for event in train(config, run):
        if isinstance(event, PhaseStarted) and event.detail == "UNet":
            break
    return {path.name for path in (run.cache / "text").rglob("*.safetensors")}


def test_what_another_run_made_of_captions_is_used_only_where_everything_is_the_same(
    configure: Configure, tiny_sd15: Path, tmp_path: Path
):
    cached = {"network": {"train_text_encoder": False}, "memory": {"cache_text_encoder_outputs": True}}
    kept = text_entries(configure(**cached))
    count = len(kept)
    assert text_entries(configure(**cached)) == kept
    for name, change in ANOTHER.items():
        if name in ("filling of captions", "reading of the same weights"):
            ((file, values),) = change.items()
            folder = tmp_path / name
            shutil.copytree(tiny_sd15, folder)
            settings = json.loads((folder / file).read_text())
            (folder / file).write_text(json.dumps(settings | values))
            change = {"base_model": {"path": str(folder)}}
        changed = {section: values | change.get(section, {}) for section, values in cached.items()}
        now = text_entries(configure(**change | changed))
        assert len(now - kept) == count, name
        kept = now
