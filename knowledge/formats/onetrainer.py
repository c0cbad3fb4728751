"""OneTrainer's JSON: sparse over its defaults, nested by part of the model, folders as concepts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from knowledge.formats.onetrainer_files import read_dataset, read_sampling
from knowledge.formats.onetrainer_network import read_network
from knowledge.formats.onetrainer_optimizer import read_optimizer
from knowledge.formats.onetrainer_training import (
    DIALECT,
    read_average,
    read_loss,
    read_memory,
    read_rates,
    read_schedule,
    read_tracker,
)
from knowledge.formats.sorting import rest
from knowledge.formats.translation import Imported, Translation
from knowledge.formats.values import as_bool, as_number, is_empty
from knowledge.formats.vocabulary import choice_of, facts_of

NESTED = (
    "optimizer", "unet", "prior", "transformer", "unconditional_transformer", "text_encoder", "text_encoder_2",
    "text_encoder_3", "text_encoder_4", "vae", "effnet_encoder", "decoder", "decoder_text_encoder", "decoder_vqgan",
)  # fmt: skip
OTHER_PARTS = (
    "prior",
    "transformer",
    "unconditional",
    "text_encoder_3",
    "text_encoder_4",
    "effnet",
    "decoder",
    "quantization",
)
DEFAULTS: dict[str, Any] = {
    "base_model.family": "sd15",
    "base_model.path": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "network.algorithm": "locon",
    "network.rank": 16,
    "network.alpha": 1.0,
    "network.train_text_encoder": True,
    "optimizer.learning_rate": 3e-6,
    "schedule.epochs": 100,
    "schedule.warmup": 200.0,
    "memory.precision": "fp16",
    "memory.gradient_checkpointing": True,
    "saving.precision": "fp32",
    "saving.every_epochs": None,
    "sampling.at_start": True,
}
"""What its settings are when the file does not say, by our names; those equal to our defaults are left out."""


def read_json(document: Mapping[str, Any], path: Path) -> Imported:
    """The config that this file describes; settings of older versions are told under the names they have in it."""
    settings, older = renewed(flattened(document))
    job = Translation("OneTrainer JSON", DIALECT, settings)
    job.implied |= DEFAULTS
    for rule in RULES:
        rule(job, path.parent)
    for key in job.source:
        if not job.done(key) and (key.startswith(OTHER_PARTS) or _is_a_part(job.source[key])):
            job.no_effect(key, "Only models of another kind read it.")
        elif not job.done(key) and key.endswith(".__version"):
            job.no_effect(key, "Says which version of OneTrainer wrote the file.")
    rest(job, "onetrainer")
    imported = job.result()
    notes = [dataclasses.replace(note, key=older.get(note.key, note.key)) for note in imported.notes]
    return dataclasses.replace(imported, notes=tuple(note for note in notes if note.key))


def renewed(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The settings under the names of today, and by these the older names that the file had, "" for what they imply.

    An older name beside its new one stays as it is: the new one counts.
    """
    names = facts_of("onetrainer")["older"]
    now: dict[str, Any] = {}
    older: dict[str, str] = {}
    for key, value in settings.items():
        new = names.get(key)
        if new is None or new in settings or isinstance(value, dict):
            now[key] = value
            continue
        now[new], older[new] = value, key
        if key == "min_snr_gamma" and as_number(value) and "loss_weight_fn" not in settings:
            now["loss_weight_fn"], older["loss_weight_fn"] = "MIN_SNR_GAMMA", ""
    return now, older


def _is_a_part(value: Any) -> bool:
    """Is this the block of a model's part? Those that we do not know belong to other kinds of models."""
    return isinstance(value, dict) and len({"train", "weight_dtype", "model_name", "include"} & value.keys()) > 1


def flattened(document: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with those of optimizer and model parts by dotted name."""
    flat: dict[str, Any] = {}
    for key, value in document.items():
        if key in NESTED and isinstance(value, dict) and value:
            flat |= {f"{key}.{inner}": setting for inner, setting in value.items()}
        else:
            flat[key] = value
    return flat


def _model(job: Translation, beside: Path) -> None:
    kind = job.get("model_type")
    if kind is not None:
        family = choice_of("base_model.family", DIALECT, kind)
        if family is None:
            job.unsupported("model_type", "This program does not train it. SD 1.5 is assumed.")
            job.other_kind = f"a model of the kind {kind}"
        else:
            job.mapped("model_type", "base_model.family", family)
            if family == "sd2" and not str(kind).endswith("_BASE"):
                job.implied["base_model.prediction_type"] = "v_prediction"
    method = job.get("training_method")
    if method is not None:
        if method == "LORA":
            job.no_effect("training_method", "A LoRA is what is trained here.")
        else:
            job.unsupported("training_method", f"It trains {method}, not a LoRA. A LoRA is trained here.")
    if not is_empty(job.get("base_model_name")):
        job.mapped("base_model_name", "base_model.path", str(job.get("base_model_name")))
    if as_bool(job.get("force_v_prediction")):
        job.mapped("force_v_prediction", "base_model.prediction_type", "v_prediction")
    if as_bool(job.get("force_epsilon_prediction")):
        job.mapped("force_epsilon_prediction", "base_model.prediction_type", "epsilon")
    skip = as_number(job.get("text_encoder_layer_skip"))
    if skip is not None:
        why = "It counts skipped layers from 0, clip skip counts from 1."
        job.changed("text_encoder_layer_skip", "base_model.clip_skip", skip + 1, why)


RULES: tuple[Callable[[Translation, Path], None], ...] = (
    _model,
    read_network,
    read_rates,
    read_schedule,
    read_optimizer,
    read_average,
    read_loss,
    read_memory,
    read_tracker,
    read_dataset,
    read_sampling,
)
