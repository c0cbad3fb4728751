"""Optimizers by name, made as their rows of knowledge/data/optimizers.toml say."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from calculator.schedule import full_learning_rate
from engine.paced import by_group
from knowledge.answers import PlainError
from knowledge.config import OptimizerSettings, ScheduleSettings
from knowledge.optimizer_arguments import all_arguments, to_line
from knowledge.optimizers import OPTIMIZERS


def create_optimizer(
    parameters: Mapping[str, Sequence[nn.Parameter]], settings: OptimizerSettings, schedule: ScheduleSettings
) -> torch.optim.Optimizer:
    """The optimizer over one group of weights per part of the model, each at its full rate under this schedule.

    Raises PlainError when the library behind this optimizer is not installed, or refuses a value of its arguments.
    """
    row = OPTIMIZERS[settings.name]
    module_name, _, class_name = row.kind.partition(":")
    try:
        kind = getattr(importlib.import_module(module_name), class_name)
    except ImportError as problem:
        raise PlainError(
            f"optimizer.name is {settings.name}, which needs {row.library}, and that cannot be used on "
            f'this computer ({problem}). Set optimizer.name = "adamw".'
        ) from problem
    if row.pace == "of all":
        kind = by_group(kind)
    groups = [
        {"params": list(weights), "lr": learning_rate(part, settings, schedule), "name": part}
        for part, weights in parameters.items()
    ]
    on_gpu = all(weight.is_cuda for weights in parameters.values() for weight in weights)
    chosen = {**row.always, **(row.on_gpu if on_gpu else {})}
    arguments = {**chosen, **all_arguments(settings.name, settings.arguments, schedule.scheduler)}
    try:
        optimizer: torch.optim.Optimizer = kind(
            groups, lr=settings.learning_rate, weight_decay=settings.weight_decay, **arguments
        )
    except ValueError as problem:  # a value out of range, which only the class itself knows
        raise PlainError(
            f"{settings.name} cannot be used with optimizer.arguments {to_line(settings.arguments)}: {problem}", 2
        ) from problem
    return optimizer


def check_optimizer(settings: OptimizerSettings, schedule: ScheduleSettings) -> None:
    """Raises the PlainError that making this optimizer would raise, before anything large is loaded for it."""
    create_optimizer({"unet": [nn.Parameter(torch.zeros(1, 1))]}, settings, schedule)


def restore_precision(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Give a loaded optimizer's tensors the precision that they were saved in: torch loads them in that of the weights.

    Some optimizers keep a part of their state in bf16, and would go on with other roundings in fp32.
    """
    for group, saved_group in zip(optimizer.param_groups, saved["param_groups"], strict=True):
        for parameter, index in zip(group["params"], saved_group["params"], strict=True):
            for name, value in saved["state"].get(index, {}).items():
                if isinstance(value, torch.Tensor) and optimizer.state[parameter][name].dtype != value.dtype:
                    optimizer.state[parameter][name] = value.to(parameter.device)


def learning_rate(group: str, settings: OptimizerSettings, schedule: ScheduleSettings) -> float:
    """The full rate of one group of weights under this schedule; groups that end in " up" learn faster (LoRA+).

    "unet ×0.5" is of blocks that learn at half of the UNet's rate.

    Hayou et al. 2024 (arXiv:2402.12354).
    """
    part, *more = group.split()
    text = settings.text_encoder_learning_rate or settings.learning_rate
    rates = {"unet": settings.learning_rate, "text_encoder_2": settings.text_encoder_2_learning_rate or text}
    rate = full_learning_rate(rates.get(part, text), schedule)
    for word in more:
        rate *= settings.lora_plus_ratio if word == "up" else float(word.removeprefix("×"))
    return rate
