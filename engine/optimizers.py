"""Optimizers by name. A new one is a row of the table."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from knowledge.answers import PlainError
from knowledge.config import OptimizerName, OptimizerSettings


@dataclass(frozen=True)
class OptimizerRecipe:
    """An optimizer's class as "module:name" and the arguments that we give it beside rate and weight decay."""

    kind: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    needs_cuda: bool = False


OPTIMIZERS: dict[OptimizerName, OptimizerRecipe] = {
    "adamw": OptimizerRecipe("torch.optim:AdamW", {"fused": True}),
    "adamw8bit": OptimizerRecipe("bitsandbytes.optim:AdamW8bit"),
    "paged_adamw8bit": OptimizerRecipe("bitsandbytes.optim:PagedAdamW8bit"),
    "lion": OptimizerRecipe("pytorch_optimizer:Lion", {"betas": (0.9, 0.99)}),
    "lion8bit": OptimizerRecipe("bitsandbytes.optim:Lion8bit", {"betas": (0.9, 0.99)}),
    # With the rate that the user chose; its own relative rate would make the schedule a dead letter.
    "adafactor": OptimizerRecipe(
        "transformers.optimization:Adafactor", {"scale_parameter": False, "relative_step": False, "warmup_init": False}
    ),
    "came": OptimizerRecipe("pytorch_optimizer:CAME"),
    "prodigy": OptimizerRecipe("pytorch_optimizer:Prodigy", {"bias_correction": True, "safeguard_warmup": True}),
    "dadapt_adam": OptimizerRecipe("pytorch_optimizer:DAdaptAdam", {"weight_decouple": True}),
    "schedule_free_adamw": OptimizerRecipe("pytorch_optimizer:ScheduleFreeAdamW"),
    "stable_adamw": OptimizerRecipe("pytorch_optimizer:StableAdamW"),
    "adopt": OptimizerRecipe("pytorch_optimizer:ADOPT", {"weight_decouple": True}),
    "sgd": OptimizerRecipe("torch.optim:SGD", {"momentum": 0.9, "nesterov": True}),
}


def create_optimizer(
    parameters: Mapping[str, Sequence[nn.Parameter]], settings: OptimizerSettings
) -> torch.optim.Optimizer:
    """The optimizer over one group of weights per part of the model; text encoders may have their own rate.

    Raises PlainError when the library behind this optimizer is not installed.
    """
    recipe = OPTIMIZERS[settings.name]
    module_name, _, class_name = recipe.kind.partition(":")
    try:
        kind = getattr(importlib.import_module(module_name), class_name)
    except ImportError as problem:
        raise PlainError(
            f"optimizer.name is {settings.name}, which needs {module_name.split('.')[0]}, and that cannot be used on "
            f'this computer ({problem}). Set optimizer.name = "adamw".'
        ) from problem
    groups = [
        {"params": list(weights), "lr": learning_rate(part, settings), "name": part}
        for part, weights in parameters.items()
    ]
    optimizer: torch.optim.Optimizer = kind(
        groups, lr=settings.learning_rate, weight_decay=settings.weight_decay, **recipe.arguments
    )
    return optimizer


def learning_rate(group: str, settings: OptimizerSettings) -> float:
    """The rate of one group of weights before any schedule; groups that end in " up" learn faster (LoRA+).

    Hayou et al. 2024 (arXiv:2402.12354).
    """
    part, _, up = group.partition(" ")
    text = settings.text_encoder_learning_rate or settings.learning_rate
    rates = {
        "unet": settings.learning_rate,
        "text_encoder": text,
        "text_encoder_2": settings.text_encoder_2_learning_rate or text,
    }
    return rates[part] * settings.lora_plus_ratio if up else rates[part]
