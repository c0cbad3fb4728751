"""Combinations that other trainers accept or stop at and we cannot train, and what keeps their meaning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from knowledge.blocks import LISTS
from knowledge.config import LACKING_DROPOUT, RANK_IN_FILE, UP_ALGORITHMS
from knowledge.optimizers import of_kind

NO_MODEL = "base-model"
"""Stands where a base model is still to be chosen."""


@dataclass(frozen=True)
class Repair:
    """A combination that cannot be trained, and the change that keeps its meaning."""

    applies: Callable[[Mapping[str, Any]], bool]
    changes: dict[str, Any]
    why: str


RANKS_BY_BLOCK = tuple(f"network.{name}" for name in LISTS if name != "block_rates")


def _caption_changes(values: Mapping[str, Any]) -> bool:
    switches = ("dataset.shuffle_tags", "dataset.wildcards")
    rates = ("dataset.caption_dropout_rate", "dataset.tag_dropout_rate", "dataset.caption_dropout_every_epochs")
    return any(values.get(name) for name in (*switches, *rates))


def _lacking(name: str, algorithm: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda values: bool(values.get(f"network.{name}") and values.get("network.algorithm") == algorithm)


def _fused_in_vain(values: Mapping[str, Any]) -> bool:
    """Is a fused backward pass asked for beside what has to see all gradients first?"""
    return bool(values.get("memory.fused_backward")) and (
        values.get("optimizer.maximum_gradient_norm", 1.0) > 0
        or values.get("schedule.gradient_accumulation_steps", 1) > 1
        or values.get("memory.precision", "fp32") == "fp16"
        or values.get("optimizer.name") in of_kind("self_paced")
    )


REPAIRS = (
    Repair(
        _fused_in_vain,
        {"memory.fused_backward": False},
        "Beside clipping, accumulation, fp16 or a paced optimizer all gradients are kept here; it takes more memory.",
    ),
    Repair(
        lambda values: bool(values.get("network.rank_from_start")) and not values.get("network.start_from"),
        {"network.rank_from_start": False},
        "It names no file to take ranks from; sd-scripts stops at this. The rank is the one given.",
    ),
    Repair(
        lambda values: (
            bool(values.get("network.rank_from_start")) and values.get("network.algorithm", "lora") not in RANK_IN_FILE
        ),
        {"network.rank_from_start": False},
        "A file of this type of network does not tell its ranks here. The rank is the one given.",
    ),
    Repair(
        lambda values: bool(values.get("network.rank_from_start")) and any(map(values.get, RANKS_BY_BLOCK)),
        dict.fromkeys(RANKS_BY_BLOCK, ""),
        "Ranks and alphas come from a file, which says what each block has.",
    ),
    Repair(
        lambda values: bool(values.get("memory.full_half")) and values.get("memory.precision", "fp32") != "bf16",
        {"memory.full_half": False},
        "Trained weights can be kept in bf16 only where the calculations are in bf16 too.",
    ),
    Repair(
        lambda values: bool(
            values.get("memory.cache_text_encoder_outputs") and values.get("network.train_text_encoder")
        ),
        {"memory.cache_text_encoder_outputs": False},
        "Text encoders that are trained cannot be cached; sd-scripts stops at this. Here they are trained without it.",
    ),
    Repair(
        lambda values: bool(values.get("memory.cache_text_encoder_outputs") and _caption_changes(values)),
        {"memory.cache_text_encoder_outputs": False},
        "Captions that change cannot be cached; sd-scripts stops at this. They change, without the cache.",
    ),
    Repair(
        lambda values: bool(
            values.get("memory.cache_latents")
            and (values.get("dataset.random_crop") or values.get("dataset.colour_augmentation"))
        ),
        {"memory.cache_latents": False},
        "Pictures that change cannot be cached; sd-scripts stops at this. They change, without the cache.",
    ),
    *(
        Repair(_lacking(name, algorithm), {f"network.{name}": 0.0}, f"{why[0].upper()}{why[1:]}.")
        for name, lacking in LACKING_DROPOUT.items()
        for algorithm, why in lacking.items()
    ),
    Repair(
        lambda values: (
            values.get("optimizer.lora_plus_ratio", 1) > 1
            and values.get("network.algorithm", "lora") not in UP_ALGORITHMS
        ),
        {"optimizer.lora_plus_ratio": 1.0},
        "This algorithm has no pair of matrices that could learn at two rates.",
    ),
    Repair(
        lambda values: values.get("base_model.clip_skip", 1) > 1 and values.get("base_model.family") == "sdxl",
        {"base_model.clip_skip": 1},
        "SDXL always reads the last layer but one of its text encoders.",
    ),
    Repair(
        lambda values: values.get("base_model.path") == "",
        {"base_model.path": NO_MODEL},
        "It names no base model. Set base_model.path.",
    ),
)
