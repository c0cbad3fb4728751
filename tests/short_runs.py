"""Short runs on tiny models that several tests begin, stop, break and compare."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from engine.events import Event, RunFinished, StepFinished
from engine.run_folder import RunFolder
from engine.train import train
from knowledge.config import TrainingConfig

ROOT = Path(__file__).parent.parent
PICTURES = ROOT / "tests" / "data" / "pictures" / "10_sks toy"
Values = dict[str, Any]
Configure = Callable[..., TrainingConfig]

RESTLESS: dict[str, Values] = {
    "prodigy": {"learning_rate": 1.0, "arguments": {"d0": 1e-3}},
    "prodigy_plus_schedule_free": {
        "learning_rate": 1.0,
        "maximum_gradient_norm": 0.0,
        "arguments": {"d0": 1e-3, "d_limiter": False},
    },
    "dadapt_adam": {"learning_rate": 1.0, "arguments": {"d0": 1e-3}},
}
"""Settings under which an optimizer changes its pace within a few updates, so that all it remembers matters."""


def short_config(model_folder: Path, family: str, folder: Path, **changes: Any) -> TrainingConfig:
    """A short run on six small pictures in three buckets: three batches, two updates an epoch, four in all."""
    base: dict[str, Any] = {
        "base_model": {"path": str(model_folder), "family": family},
        "dataset": {
            "folders": [{"path": str(PICTURES)}],
            "resolution": 32,
            "bucket_step": 8,
            "bucket_minimum_side": 16,
            "bucket_maximum_side": 64,
        },
        "network": {"rank": 2, "alpha": 2.0, "conv_rank": 2, "conv_alpha": 2.0, "train_text_encoder": True},
        "optimizer": {"learning_rate": 1e-2},
        "schedule": {"epochs": 2, "batch_size": 2, "gradient_accumulation_steps": 2},
        "saving": {"precision": "fp32", "every_epochs": None},
        "output": {"name": "toy", "folder": str(folder)},
    }
    for section, values in changes.items():
        base[section] = base.get(section, {}) | values if isinstance(values, dict) else values
    return TrainingConfig.model_validate(base)


def run_to_end(config: TrainingConfig) -> tuple[RunFolder, list[Event]]:
    run = RunFolder.create(config)
    return run, list(train(config, run))


def stopped_at(config: TrainingConfig, stops: list[int]) -> RunFolder:
    """The run, stopped after each of these steps and resumed."""
    run = RunFolder.create(config)
    for number, stop in enumerate([*stops, 10**9]):
        last = 0
        for event in train(config, run, resume=number > 0, should_stop=lambda: last >= stop):  # noqa: B023
            if isinstance(event, StepFinished):
                last = event.step
            if isinstance(event, RunFinished):
                assert event.reason == ("completed" if stop == 10**9 else "stopped")
    return run


def weights(run: RunFolder) -> dict[str, torch.Tensor]:
    return load_file(run.checkpoints / "toy.safetensors")


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return set(first) == set(second) and all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def of_kind(events: list[Event], kind: type) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]
