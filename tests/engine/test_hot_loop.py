"""What the loop does in every update and must do once, or not more each time than the time before."""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import Any

import pytest
import torch
from short_runs import Configure
from torch.overrides import TorchFunctionMode

from engine.events import StepFinished
from engine.run_folder import RunFolder
from engine.train import train
from knowledge.optimizers import OPTIMIZERS

READS = {"item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__"}
"""What makes the processor wait until a GPU has computed the tensor that it asks for."""


class Reads(TorchFunctionMode):
    """The tensors that are read while this is in place, since they were last asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__name__", "") in READS:
            self.seen.append(function.__name__)
        return function(*args, **(kwargs or {}))

    def since(self) -> list[str]:
        seen, self.seen = self.seen, []
        return seen


@pytest.mark.parametrize("optimizer", ["adamw", "schedule_free_adamw"])
def test_an_update_waits_for_the_gpu_once_however_many_batches_it_takes(
    configure: Configure, optimizer: str, monkeypatch: pytest.MonkeyPatch
):
    row = OPTIMIZERS[optimizer]
    monkeypatch.setitem(OPTIMIZERS, optimizer, replace(row, always={**row.always, **row.on_gpu}))
    config = configure(
        optimizer={"name": optimizer},
        schedule={"gradient_accumulation_steps": 2, "maximum_steps": 5, "epochs": 5},
        memory={"cache_latents": True, "cache_text_encoder_outputs": True},
        network={"train_text_encoder": False},
    )
    reads = []
    with Reads() as mode:
        for event in train(config, RunFolder.create(config)):
            if isinstance(event, StepFinished):
                reads.append(mode.since())
    assert len(reads) == 5
    assert reads[1:] == [["tolist"]] * 4  # what came before the first update is in the first


def test_no_update_leaves_a_tensor_behind(configure: Configure):
    config = configure(schedule={"maximum_steps": 8, "epochs": 8}, ema={"decay": 0.9})
    held = []
    for event in train(config, RunFolder.create(config)):
        if isinstance(event, StepFinished):
            gc.collect()
            tensors = {id(thing): thing for thing in gc.get_objects() if isinstance(thing, torch.Tensor)}
            held.append((len(tensors), sum(tensor.nbytes for tensor in tensors.values())))
            del tensors
    assert len(held) == 8
    assert len(set(held[2:])) == 1
