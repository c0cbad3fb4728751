"""sd-scripts' options (train_network.py): what each means in ours. TOML files, command lines, kohya_ss' forms and the
metadata of LoRA files are all brought into these options first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from knowledge.config import choices, fields
from knowledge.formats.kohya_network import DEFAULT_RANK, DIALECT, read_network
from knowledge.formats.sd_scripts_files import read_dataset, read_sampling, read_saving
from knowledge.formats.sd_scripts_training import (
    read_loss,
    read_memory,
    read_optimizer,
    read_rates,
    read_schedule,
    read_tracker,
)
from knowledge.formats.sorting import rest
from knowledge.formats.translation import Imported, Translation
from knowledge.formats.values import fitted, is_empty, refusal
from knowledge.formats.vocabulary import alike, choice_of, facts_of

ENDLESS = 100_000
"""Epochs that never end a run before maximum_steps does: the largest number that schedule.epochs takes."""
NEUTRAL = {"schedule.decay", "schedule.cycles", "schedule.power"}
"""Parameters that only one schedule reads: what the other trainer defaults to matters under that schedule alone."""
DEFAULT_STEPS = 1600
LISTS = ("network_args", "optimizer_args", "lr_scheduler_args")
"""Options that are lists of key=value: each key is judged by itself, under the list's name."""
RULED = frozenset(
    {
        "weighting_scheme", "down_lr_weight", "mid_lr_weight", "up_lr_weight", "block_dims", "block_alphas",
        "conv_block_dims", "conv_block_alphas", "block_lr_zero_threshold",
        "v2", "v_parameterization", "network_train_unet_only", "network_train_text_encoder_only", "network_module",
        "network_args", "algo", "learning_rate", "unet_lr", "text_encoder_lr", "use_8bit_adam",
        "use_lion_optimizer",
        "max_train_steps", "max_train_epochs", "save_state", "save_state_on_train_end", "save_last_n_epochs_state",
        "save_last_n_steps_state", "cache_latents", "cache_latents_to_disk", "cache_text_encoder_outputs",
        "cache_text_encoder_outputs_to_disk", "mixed_precision", "save_precision", "save_last_n_steps",
        "fp8_base", "fp8_base_unet",
        "sample_prompts", "no_metadata",
        "train_data_dir", "reg_data_dir", "in_json", "image_dir", "dataset_repeats", "caption_extention",
        "resolution",
    }
)  # fmt: skip
"""Options whose meaning is not that of the one parameter whose entry names them: a rule below speaks of each."""
SDXL_SIGNS = ("xl", "pony", "illustrious", "noob", "animagine")
SDXL_OPTIONS = ("cache_text_encoder_outputs", "cache_text_encoder_outputs_to_disk", "no_half_vae")


def translate(
    options: Mapping[str, Any], *, kind: str, family: str | None = None, beside: Path | None = None
) -> Imported:
    """The config that these options of sd-scripts describe. `beside` is the folder that relative paths start from."""
    job = Translation(kind, DIALECT, expanded(options))
    job.implied |= implied(job, family)
    for rule in RULES:
        rule(job, beside)
    rest(job, "sd_scripts")
    return job.result()


def expanded(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with lists of key=value taken apart, each key below its list: optimizer_args.weight_decay."""
    flat: dict[str, Any] = {}
    for key, value in options.items():
        if key not in LISTS or is_empty(value):
            flat[key] = value
            continue
        if isinstance(value, dict):
            flat |= {f"{key}.{name}": setting for name, setting in value.items()}
            continue
        items = value.split() if isinstance(value, str) else list(value) if isinstance(value, list | tuple) else [value]
        for item in items:
            name, equals, setting = str(item).strip("\"' ").partition("=")
            flat[f"{key}.{name.strip()}"] = setting.strip("\"' ") if equals else True
    return flat


def implied(job: Translation, family: str | None) -> dict[str, Any]:
    """What follows from the options that are not given: the other trainer's defaults, by our names."""
    known = facts_of("sd_scripts")["options"]
    values = {}
    for key, name in alike(DIALECT).items():
        if key in RULED or key not in known or is_empty(known[key]) or "folders." in name or name in NEUTRAL:
            continue
        value = choice_of(name, DIALECT, known[key]) if choices(fields()[name]) else fitted(name, known[key])
        values[name] = None if refusal(name, value) else value
    return values | {
        "base_model.family": family or guessed_family(job),
        "base_model.path": "",
        "network.rank": DEFAULT_RANK,
        "network.alpha": 1.0,
        "network.train_text_encoder": True,
        "optimizer.learning_rate": 2e-6,
        "schedule.epochs": ENDLESS,
        "schedule.maximum_steps": DEFAULT_STEPS,
        "memory.precision": "fp32",
        "memory.cache_latents": False,
        "saving.precision": "fp32",
        "saving.every_epochs": None,
        "sampling.at_start": False,
        "dataset.buckets": False,
        "dataset.caption_extension": ".caption",
        "dataset.flip": False,
    }


def guessed_family(job: Translation) -> str:
    """SDXL when an option that only its script has is set, or when the model's name says so; else SD 1.5."""
    if any(job.on(key) for key in SDXL_OPTIONS):
        return "sdxl"
    name = Path(str(job.get("pretrained_model_name_or_path", ""))).name.lower()
    return "sdxl" if any(sign in name for sign in SDXL_SIGNS) else "sd15"


# Rules: one for each subject whose keys mean something only together.


def _model(job: Translation, beside: Path | None) -> None:
    if not is_empty(job.get("pretrained_model_name_or_path")):
        job.mapped("pretrained_model_name_or_path", "base_model.path", str(job.get("pretrained_model_name_or_path")))
    if job.on("v2"):
        job.mapped("v2", "base_model.family", "sd2")
    elif "v2" in job.source:
        job.no_effect("v2", "It is switched off there.")
    if "v_parameterization" in job.source:
        job.mapped(
            "v_parameterization",
            "base_model.prediction_type",
            "v_prediction" if job.on("v_parameterization") else "epsilon",
        )
    if "clip_skip" in job.source and not is_empty(job.get("clip_skip")) and _family(job) == "sdxl":
        job.no_effect("clip_skip", "SDXL always reads the last layer but one of its text encoders.")


def _family(job: Translation) -> str:
    return str(job.values.get("base_model.family", job.implied["base_model.family"]))


RULES: tuple[Callable[[Translation, Path | None], None], ...] = (
    _model,
    read_network,
    read_rates,
    read_optimizer,
    read_schedule,
    read_loss,
    read_memory,
    read_tracker,
    read_dataset,
    read_sampling,
    read_saving,
)
