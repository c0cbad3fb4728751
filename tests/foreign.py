"""Foreign configs for tests: a form of kohya_ss, and short ways to read a file or some options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

from hypothesis import strategies as st

from knowledge.config import Algorithm
from knowledge.formats.reader import read_foreign
from knowledge.formats.sd_scripts import translate
from knowledge.formats.translation import Imported

DATA = Path(__file__).parent / "data"
NETWORK = DATA / "network_fp16.safetensors"
FORM = {
    "LoRA_type": "Standard",
    "pretrained_model_name_or_path": "model.safetensors",
    "train_data_dir": "img",
    "epoch": 10,
    "max_train_epochs": 0,
    "max_train_steps": 0,
    "learning_rate": 0.0001,
    "unet_lr": 0.0001,
    "text_encoder_lr": 5e-05,
    "network_dim": 32,
    "network_alpha": 16,
    "optimizer": "AdamW8bit",
    "optimizer_args": "",
    "lr_scheduler": "cosine",
    "lr_warmup": 10,
    "max_resolution": "768,768",
    "train_batch_size": 2,
    "mixed_precision": "bf16",
    "save_precision": "fp16",
    "xformers": "xformers",
    "sdxl": False,
    "caption_extension": ".txt",
    "noise_offset_type": "Original",
    "noise_offset": 0.05,
    "multires_noise_iterations": 6,
    "min_snr_gamma": 0,
    "additional_parameters": "",
}


def read(tmp_path: Path, name: str, content: object) -> Imported:
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return read_foreign(path)


def outcome(imported: Imported, key: str) -> str:
    return next(note.outcome for note in imported.notes if note.key == key)


def options(**given: object) -> Imported:
    return translate(given, kind="test")


ALGORITHMS = get_args(Algorithm)
SAFE_TEXT = st.text("abc, -()", max_size=12).map(str.strip)
CHANGES = {
    "network.algorithm": st.sampled_from(ALGORITHMS),
    "network.convolutions": st.booleans(),
    "network.conv_rank": st.integers(1, 1024),
    "network.lokr_full_matrix": st.booleans(),
    "network.dylora_block_size": st.sampled_from([1, 2, 4]),
    "network.rank": st.integers(1, 1024),
    "network.alpha": st.floats(0.01, 4096),
    "network.dropout": st.floats(0, 0.9),
    "network.train_text_encoder": st.booleans(),
    "optimizer.name": st.sampled_from(["adamw", "adamw8bit", "lion", "adafactor", "prodigy"]),
    "optimizer.learning_rate": st.floats(1e-8, 10),
    "optimizer.weight_decay": st.floats(0, 10),
    "optimizer.maximum_gradient_norm": st.floats(0, 1e6),
    "schedule.epochs": st.integers(1, 1000),
    "schedule.batch_size": st.integers(1, 1024),
    "schedule.gradient_accumulation_steps": st.integers(1, 64),
    "schedule.scheduler": st.sampled_from(
        ["constant", "linear", "cosine", "cosine_with_restarts", "polynomial", "adafactor"]
    ),
    "schedule.warmup": st.one_of(st.floats(0, 0.9), st.integers(1, 1000).map(float)),
    "loss.function": st.sampled_from(["l2", "l1", "huber", "smooth_l1"]),
    "loss.minimum_snr_gamma": st.one_of(st.none(), st.floats(0.1, 100)),
    "loss.prior_weight": st.floats(0, 100),
    "noise.offset": st.floats(0, 1),
    "noise.minimum_timestep": st.integers(0, 400),
    "noise.maximum_timestep": st.integers(500, 1000),
    "memory.precision": st.sampled_from(["fp32", "fp16", "bf16"]),
    "memory.gradient_checkpointing": st.booleans(),
    "memory.cache_latents": st.booleans(),
    "saving.precision": st.sampled_from(["fp32", "fp16", "bf16"]),
    "saving.every_epochs": st.one_of(st.none(), st.integers(1, 100)),
    "saving.every_steps": st.one_of(st.none(), st.integers(1, 100)),
    "dataset.resolution": st.integers(32, 128).map(lambda n: n * 8),
    "dataset.buckets": st.booleans(),
    "dataset.bucket_no_upscale": st.booleans(),
    "dataset.flip": st.booleans(),
    "dataset.shuffle_tags": st.booleans(),
    "dataset.keep_tokens": st.integers(0, 255),
    "dataset.caption_dropout_rate": st.floats(0, 1),
    "dataset.caption_prefix": SAFE_TEXT,
    "base_model.prediction_type": st.sampled_from(["epsilon", "v_prediction"]),
    "base_model.family": st.sampled_from(["sd15", "sdxl"]),
    "seed": st.integers(0, 2**40),
    "base_model.zero_terminal_snr": st.booleans(),
    "base_model.maximum_tokens": st.sampled_from([75, 150, 225]),
    "base_model.vae": st.sampled_from(["", "vae.safetensors"]),
    "network.start_from": st.sampled_from(["", "first.safetensors"]),
    "dataset.alpha_masks": st.booleans(),
    "dataset.tag_dropout_rate": st.floats(0, 1),
    "dataset.caption_dropout_every_epochs": st.one_of(st.none(), st.integers(1, 9)),
    "network.rank_dropout": st.floats(0, 0.9),
    "network.module_dropout": st.floats(0, 0.9),
    "network.maximum_norm": st.one_of(st.none(), st.floats(0.1, 10)),
    "optimizer.lora_plus_ratio": st.floats(1, 32),
    "loss.debiased": st.booleans(),
    "loss.scaled_like_noise_prediction": st.booleans(),
    "loss.v_prediction_like": st.floats(0, 10),
    "schedule.warmup_init": st.booleans(),
    "noise.offset_random": st.booleans(),
    "noise.offset_adaptive": st.floats(-1, 1),
    "noise.input_perturbation": st.floats(0, 1),
    "noise.multires_iterations": st.integers(0, 10),
}
