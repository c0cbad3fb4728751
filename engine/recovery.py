"""What a run does about trouble before it gives up: goes back to a good state, or makes room where memory ran out."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

from calculator.fit import Case, relieve_memory
from engine.dataset.folders import scan
from engine.events import Phase
from engine.fused_backward import FusedBackward
from engine.loss_watch import WINDOW
from engine.run_folder import RunFolder, step_of
from knowledge.answers import PlainError
from knowledge.architectures import architecture_in
from knowledge.config import POCKET_MODEL, TrainingConfig
from knowledge.facts import Hardware

SMALLEST_SAMPLE = 256
"""Pixels of a sample's side below which samples are given up rather than drawn smaller still."""


Marks = list[object]


def marks(network: nn.Module, optimizer: AcceleratedOptimizer | FusedBackward) -> Marks:
    """What changes with every update, and be it of a part of the weights: versions of tensors, and plain numbers."""
    memories = [value for state in optimizer.state.values() for value in state.values()]
    settings = [value for group in optimizer.param_groups for name, value in group.items() if name != "params"]
    return [
        value._version if isinstance(value, Tensor) else value
        for value in (*network.parameters(), *memories, *settings)
    ]


def drop_spoilt_states(run: RunFolder, step: int) -> Path | None:
    """The newest state from before the updates that broke the run after `step`; newer ones are taken away.

    A loss shows only after some updates that it has run away. Where all states are that young the oldest is the best
    there is. None where there is no state.
    """
    states = run.states()
    if not states:
        return None
    good = next((state for state in states if step_of(state) <= step - WINDOW), states[-1])
    for state in states[: states.index(good)]:
        run.remove_state(state)
    return good


def room_for(config: TrainingConfig, phase: Phase) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The smallest change of settings that needs less memory in this phase and lets the run go on, and what it does.

    Empty where there is none.
    """
    if phase == "sampling":
        return _smaller_samples(config)
    try:
        dataset = scan(config.dataset)
    except PlainError:  # a picture broke meanwhile; without all of them no plan can be compared
        return {}, ()
    case = Case(config, dataset, this_device(), _architecture(config))
    found = relieve_memory(case, phase if phase in case.plan.vram.phases else "training")
    return found.changes, found.effects


def release_memory() -> None:
    """Give back what a run that failed still held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def this_device() -> Hardware:
    """The device that trains, as the calculator sees it."""
    ram_bytes = psutil.virtual_memory().total
    if not torch.cuda.is_available():
        return Hardware("CPU", ram_bytes=ram_bytes)
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return Hardware(
        properties.name, properties.total_memory, ram_bytes, capability=(properties.major, properties.minor)
    )


def _smaller_samples(config: TrainingConfig) -> tuple[dict[str, Any], tuple[str, ...]]:
    sampling, usual = config.sampling, config.dataset.resolution
    sizes = {"sampling.width": sampling.width or usual, "sampling.height": sampling.height or usual}
    sized_by_prompts = all("--w " in prompt and "--h " in prompt for prompt in sampling.prompts)
    if min(sizes.values()) <= SMALLEST_SAMPLE or sized_by_prompts:
        return {"sampling.prompts": ()}, ("No more samples are drawn.",)
    smaller: Mapping[str, int] = {name: max(SMALLEST_SAMPLE, side * 3 // 4 // 64 * 64) for name, side in sizes.items()}
    return dict(smaller), ("Samples are drawn smaller; the training is the same.",)


def _architecture(config: TrainingConfig) -> Any:
    from engine.pocket import MODEL_FOLDER

    path = config.base_model.path
    folder = MODEL_FOLDER if path == POCKET_MODEL else Path(path).expanduser()
    return architecture_in(folder, config.base_model.family)
