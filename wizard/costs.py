"""What the values of a setting cost in memory, time and file size: worked out by the calculator for one example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import ValidationError

from calculator.plan import Plan, plan
from knowledge.config import TrainingConfig, with_values
from knowledge.expressions import in_words
from knowledge.facts import DatasetFacts, FolderFacts, Hardware, Picture
from knowledge.parameters import Parameter
from wizard import views, words

EXAMPLE_CARD = "RTX 3060"
EXAMPLE_WORDS = "computed for 2,000 views with SDXL, batch 1, on an RTX 3060"
NOTABLE = 0.02
"""A figure that changes by less than this share over all values is left out."""


@dataclass(frozen=True)
class Cost:
    """What the example run takes with one value of the setting."""

    value: str
    vram_bytes: int
    seconds: float
    steps: int
    file_bytes: int

    def words(self) -> Mapping[str, str]:
        return {
            "Memory": views.memory(self.vram_bytes),
            "Time": words.duration(self.seconds),
            "Steps": f"{self.steps:,}",
            "File": words.size(self.file_bytes),
        }


FIGURES = {"Memory": "vram_bytes", "Time": "seconds", "Steps": "steps", "File": "file_bytes"}


def costs(entry: Parameter) -> list[Cost]:
    """The cost of each value that the entry compares; empty when nothing notable differs."""
    found = [_cost(entry, value, made) for value in entry.compare if (made := _plan_with(entry.name, value))]
    return found if len(found) > 1 and headings(found) else []


def _cost(entry: Parameter, value: Any, made: Plan) -> Cost:
    return Cost(
        _shown(entry, value), made.vram.likely_bytes, made.duration.likely_seconds, made.total_steps, made.file_bytes
    )


def headings(found: Sequence[Cost]) -> tuple[str, ...]:
    """The figures that differ notably between the values."""
    notable = []
    for heading, attribute in FIGURES.items():
        figures = [getattr(cost, attribute) for cost in found]
        if max(figures) > min(figures) * (1 + NOTABLE):
            notable.append(heading)
    return tuple(notable)


def _shown(entry: Parameter, value: Any) -> str:
    return entry.choices[value].title if value in entry.choices else in_words(value)


EXAMPLE = {
    "base_model.family": "sdxl",
    "base_model.path": "sdxl.safetensors",
    "dataset.resolution": 1024,
    "dataset.bucket_maximum_side": 2048,
    "memory.precision": "bf16",
    "memory.gradient_checkpointing": True,
    "memory.cache_text_encoder_outputs": True,
    "schedule.epochs": 20,
    "saving.every_epochs": 2,
}


@cache
def _example() -> tuple[TrainingConfig, DatasetFacts, Hardware]:
    from knowledge.gpus import find_gpu

    pictures = tuple(Picture(f"{number}.png", 1024, 1024, f"picture {number}") for number in range(20))
    dataset = DatasetFacts((FolderFacts(pictures, 5),))
    return with_values(TrainingConfig(), EXAMPLE), dataset, find_gpu(EXAMPLE_CARD).hardware()


def _plan_with(name: str, value: Any) -> Plan | None:
    """The example's plan with one setting changed; None where it cannot have that value."""
    config, dataset, hardware = _example()
    changes = {name: value} | _companions(name, value)
    try:
        return plan(with_values(config, changes), dataset, hardware)
    except ValidationError:
        return None


COMPANIONS: dict[str, dict[str, Any]] = {
    "network.conv_rank": {"network.algorithm": "locon"},
    "network.convolutions": {"network.algorithm": "loha"},
    "memory.selective_checkpointing": {"memory.gradient_checkpointing": False},
    "network.lokr_factor": {"network.algorithm": "lokr"},
    "network.lokr_full_matrix": {"network.algorithm": "lokr"},
    "network.dylora_block_size": {"network.algorithm": "dylora"},
    "network.train_text_encoder": {"memory.cache_text_encoder_outputs": False},
}
"""What must be set along with a parameter for its values to be priced."""


def _companions(name: str, value: Any) -> dict[str, Any]:
    if name == "network.rank":
        return {"network.alpha": float(value)}
    return COMPANIONS.get(name, {})
