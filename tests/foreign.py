"""Foreign configs for tests: a form of kohya_ss, and short ways to read a file or some options."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import get_args

from hypothesis import strategies as st
from pydantic import ValidationError

from knowledge.config import TrainingConfig, choices, fields, with_values
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

AI_TOOLKIT = """
job: extension
config:
  name: "my_lora v1"
  process:
    - type: sd_trainer
      training_folder: output
      trigger_word: p3r5on
      network: {type: lora, linear: 24, linear_alpha: 12}
      save: {dtype: float16, save_every: 250, max_step_saves_to_keep: 4}
      datasets:
        - folder_path: /pics
          caption_ext: txt
          caption_dropout_rate: 0.05
          shuffle_tokens: no
          resolution: [512, 768]
          num_repeats: 2
      train: {batch_size: 2, steps: 900, lr: 1e-4, optimizer: adamw8bit, dtype: bf16, noise_scheduler: ddpm}
      model: {name_or_path: stabilityai/sdxl, is_xl: true}
      sample: {sampler: ddim, sample_every: 100, width: 1024, height: 768, prompts: ["[trigger] on a horse"], neg: ""}
"""
SH = """#!/bin/bash
ARGS=(
  --network_dim 8  # rank
  --network_args "conv_dim=4" "conv_alpha=1"
)
export MODEL="/m/base.safetensors"
cd sd-scripts && accelerate launch train_network.py --pretrained_model_name_or_path "$MODEL" \\
#  --xformers \\
  "${ARGS[@]}" --output_name='it"s' 2>&1 | tee --append log.txt
"""
PS1 = r"""
$rank = @(
  "--network_dim=8",
  "--network_alpha=4"
)
$model = "D:\x y\m.safetensors" # base
accelerate launch ".\sd-scripts\train_network.py" `
  --pretrained_model_name_or_path=$model `
  --train_data_dir="D:\pics" @rank > log.txt
"""
BAT = r"""@echo off
REM train_network.py --network_dim 99
set "MODEL=C:\My Models\base.safetensors"
set OUT=D:\out dir
cd /d %~dp0
call venv\Scripts\activate.bat
python tag_images_by_wd14_tagger.py --batch_size 4 "C:\pics"
accelerate launch --num_cpu_threads_per_process=2 "sdxl_train_network.py" ^
  --pretrained_model_name_or_path="%MODEL%" --output_dir=%OUT% ^
  --network_dim=32 --optimizer_args "weight_decay=0.1" "betas=0.9,0.99"
pause
"""
EASY_TRAINING = """
[[subsets]]
image_dir = "pics"
num_repeats = 4
name = "fox"
[general_args.args]
sdxl = true
max_train_epochs = 8
[network_args.args]
network_dim = 16
[network_args.args.network_args]
algo = "loha"
[optimizer_args.args]
optimizer_type = "AdamW8bit"
lr_scheduler = "cosine"
learning_rate = 0.0005
warmup_ratio = 0.05
[saving_args.args]
tag_occurrence = true
save_toml = true
"""
SECTIONED = """
loose = 1
[server]
allowed_paths = []
[model]
models_dir = "./models"
output_name = "fox"
train_data_dir = "./data"
[basic]
max_resolution = "768,768"
epoch = 4
lr_scheduler = "cosine"
lr_warmup = 10
optimizer = "AdamW8bit"
learning_rate = 0.0002
max_data_loader_n_workers = 1
save_every_n_steps = 5
[advanced]
save_every_n_steps = 0
noise_offset_type = "Original"
noise_offset = 0
[wd14_caption]
caption_extension = ".wd14"
max_data_loader_n_workers = 2
train_data_dir = "elsewhere"
[metadata]
author = "me"
"""
OLDER_ONETRAINER = {
    "training_method": "LORA",
    "model_type": "STABLE_DIFFUSION_15",
    "optimizer": "ADAFACTOR",
    "weight_decay": 0.03,
    "train_unet": True,
    "unet_learning_rate": 0.0002,
    "train_text_encoder": False,
    "train_text_encoder_epochs": 30,
    "save_after": 3,
    "save_after_unit": "EPOCH",
    "min_snr_gamma": 5,
    "lora_layer_preset": "attn-mlp",
    "token_count": 1,
}


def read(tmp_path: Path, name: str, content: object) -> Imported:
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return read_foreign(path)


def outcome(imported: Imported, key: str) -> str:
    return next(note.outcome for note in imported.notes if note.key == key)


def options(**given: object) -> Imported:
    return translate(given, kind="test")


# -- configs of ours that use every setting ----------------------------------------------------------------------------


def lists_for(blocks: int, numbers: st.SearchStrategy) -> st.SearchStrategy[str]:
    return st.lists(numbers, min_size=blocks, max_size=blocks).map(lambda found: ",".join(f"{n:g}" for n in found))


def for_blocks(numbers: st.SearchStrategy) -> st.SearchStrategy[str]:
    """No list, or one for all blocks of SD 1.5 or of SDXL."""
    return st.one_of(st.just(""), lists_for(25, numbers), lists_for(23, numbers))


def maybe(values: st.SearchStrategy) -> st.SearchStrategy:
    return st.one_of(st.none(), values)


TEXT = st.text("abc, -()é", max_size=12).map(str.strip)
RATE = st.floats(1e-8, 10)
SHARE = st.floats(0, 1)
COUNT = st.integers(1, 1000)
SIDE = st.integers(32, 128).map(lambda n: n * 8)
BOOLEANS = st.booleans()
FOLDERS = st.sampled_from(
    [
        ({"path": "a b", "repeats": 3},),
        ({"path": "a b", "repeats": 3}, {"path": "reg", "regularisation": True}),
        ({"path": "a", "caption": "fox"}, {"path": "b/c", "repeats": 2, "masks": "m"}),
    ]
)
ARGUMENTS = st.sampled_from(
    [
        {},
        {"betas": (0.8, 0.95)},
        {"eps": 1e-6},
        {"d_coef": 0.5, "d0": 1e-5},
        {"betas": (0.8, 0.95), "min_8bit_size": 8192},
        {"clip_threshold": 0.5, "beta1": 0.9},
        {"momentum": 0.5},
        {"use_cautious": True, "split_groups": False},
        {"weight_lr_power": 1.0, "r": 0.5},
        {"betas": (0.8, 0.9, 0.99)},
    ]
)
VALUES: dict[str, st.SearchStrategy] = {
    "network.convolutions": BOOLEANS,
    "network.block_ranks": for_blocks(st.integers(0, 64)),
    "network.conv_block_ranks": for_blocks(st.integers(0, 64)),
    "network.block_alphas": for_blocks(st.integers(1, 64)),
    "network.conv_block_alphas": for_blocks(st.integers(1, 64)),
    "network.block_rates": for_blocks(st.sampled_from([0, 0.25, 1, 2])),
    "network.text_encoder_share": st.sampled_from([1.0, 0.5, 0.25]),
    "network.start_from": st.sampled_from(["", "first.safetensors"]),
    "network.lokr_factor": st.integers(-1, 16),
    "network.dylora_block_size": st.sampled_from([1, 2, 4]),
    "optimizer.arguments": ARGUMENTS,
    "optimizer.learning_rate": RATE,
    "optimizer.text_encoder_learning_rate": maybe(RATE),
    "optimizer.text_encoder_2_learning_rate": maybe(RATE),
    "schedule.warmup": st.one_of(st.floats(0, 0.9), st.integers(2, 1000).map(float)),
    "schedule.decay": st.one_of(st.floats(0, 0.9), st.integers(2, 1000).map(float)),
    "schedule.epochs": COUNT,
    "schedule.maximum_steps": maybe(COUNT),
    "noise.minimum_timestep": st.integers(0, 400),
    "noise.maximum_timestep": st.integers(500, 1000),
    "dataset.folders": FOLDERS,
    "dataset.resolution": SIDE,
    "dataset.bucket_minimum_side": SIDE,
    "dataset.bucket_maximum_side": SIDE,
    "dataset.bucket_step": st.sampled_from([8, 32, 64]),
    "dataset.caption_extension": st.sampled_from([".txt", ".caption", ".tags"]),
    "dataset.keep_tokens_separator": st.sampled_from(["", "|||"]),
    "dataset.trigger_word": st.sampled_from(["", "sks"]),
    "base_model.path": st.sampled_from(["models/base.safetensors", "a/model-of-mine"]),
    "base_model.vae": st.sampled_from(["", "vae.safetensors"]),
    "base_model.maximum_tokens": st.sampled_from([75, 150, 225]),
    "base_model.clip_skip": st.integers(1, 12),
    "sampling.prompts": st.sampled_from([(), ("a cat",), ("a cat", "a dog, running")]),
    "sampling.negative_prompt": st.sampled_from(["", "bad, worse"]),
    "sampling.width": maybe(SIDE),
    "sampling.height": maybe(SIDE),
    "saving.keep_last": maybe(st.integers(1, 9)),
    "saving.state_every_epochs": maybe(st.integers(1, 9)),
    "output.name": st.sampled_from(["my-lora", "fox_v2.1"]),
    "output.folder": st.sampled_from(["runs", "models/lora"]),
}
"""Values for settings whose type alone does not say enough."""


def values_for(name: str) -> st.SearchStrategy:
    """Values that the setting of this name takes by itself."""
    if name in VALUES:
        return VALUES[name]
    field = fields()[name]
    kinds = list(get_args(field.annotation) or (field.annotation,))
    if choices(field):
        return st.sampled_from(choices(field))
    if bool in kinds:
        return BOOLEANS
    limits = {key: value for rule in field.metadata for key, value in _limits(rule)}
    low, high = limits.get("ge", limits.get("gt", 0)), limits.get("le", limits.get("lt", 1000))
    if int in kinds:
        found: st.SearchStrategy = st.integers(low, min(high, 10_000) if "lt" not in limits else high - 1)
    elif float in kinds:
        low, high = max(low, 0.01) if "gt" in limits else low, high * 0.99 if "lt" in limits else high
        found = st.floats(low, high)
    else:
        found = TEXT
    return maybe(found) if type(None) in kinds else found


def _limits(rule: object) -> list[tuple[str, float]]:
    return [(key, getattr(rule, key)) for key in ("ge", "gt", "le", "lt") if hasattr(rule, key)]


EVERY_SETTING = [name for name in fields() if not name.startswith("dataset.folders.")]
FIRST = (
    "base_model.family",
    "network.algorithm",
    "optimizer.name",
    "memory.precision",
    "memory.cache_latents",
    "schedule.scheduler",
)
"""Settings that others must fit, drawn before them."""


@st.composite
def configs(draw: st.DrawFn, families: tuple[str, ...] = ("sd15", "sd2", "sdxl")) -> TrainingConfig:
    """A config with some settings changed, of those that fit together."""
    fixed = {"base_model.path": "m.safetensors", "dataset.folders": ({"path": "a"},)}
    config = with_values(TrainingConfig(), fixed | {"base_model.family": draw(st.sampled_from(families))})
    chosen = Random(draw(st.integers(0, 2**32)))  # which settings; hypothesis itself would choose few
    share = chosen.choice([0.05, 0.3, 0.8])
    for name in [*FIRST[1:], *(name for name in EVERY_SETTING if name not in FIRST)]:
        if chosen.random() < share:
            try:
                config = with_values(config, {name: draw(values_for(name))})
            except ValidationError:
                continue
    return config
