"""What the loop does in every update and must do once, or not more each time than the time before."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from card import CARD, counting
from short_runs import RESTLESS, Configure
from torch import nn

import engine.train
from engine.events import StepFinished
from engine.models.family import AdaptedLayer
from engine.networks import ALGORITHMS, Network, attached, limit_norms
from engine.optimizers import create_optimizer
from engine.processes import create_accelerator
from engine.run_folder import RunFolder
from engine.train import train
from knowledge.config import LACKING_DROPOUT, Algorithm, NetworkSettings, OptimizerSettings, ScheduleSettings
from knowledge.optimizers import OPTIMIZERS


@pytest.fixture
def on_card(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs train on the card."""

    def create(*arguments: Any, **more: Any) -> Any:
        accelerator = create_accelerator(*arguments, **more)
        PartialState._shared_state["device"] = AcceleratorState._shared_state["device"] = CARD
        return accelerator

    monkeypatch.setattr(engine.train, "create_accelerator", create)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


CACHED = {"cache_latents": True, "cache_text_encoder_outputs": True}
ONCE = {"gradient_accumulation_steps": 1}
RUNS: dict[str, dict[str, Any]] = {
    "several batches an update": {"memory": CACHED, "network": {"train_text_encoder": False}},
    "nothing cached, text encoders too, and all that shapes noise and network": {
        "base_model": {"maximum_tokens": 150},
        "dataset": {"weighted_captions": True, "alpha_masks": True},
        "network": {"dropout": 0.1, "rank_dropout": 0.1, "module_dropout": 0.1, "maximum_norm": 1.0},
        "noise": {
            "offset": 0.1,
            "offset_random": True,
            "offset_adaptive": 0.01,
            "multires_iterations": 4,
            "input_perturbation": 0.1,
            "timestep_sampling": "logit_normal",
        },
        "loss": {"function": "huber", "huber_schedule": "exponential", "minimum_snr_gamma": 5.0},
        "memory": {"cache_latents": False, "cache_text_encoder_outputs": False},
        "schedule": ONCE,
        "ema": {"decay": 0.9},
    },
    "SDXL, checkpointed, updated within the backward pass": {
        "family": "sdxl",
        "memory": {**CACHED, "gradient_checkpointing": True, "fused_backward": True},
        "network": {"train_text_encoder": False},
        "optimizer": {"maximum_gradient_norm": 0.0},
        "schedule": ONCE,
    },
    "v-prediction on weights that are held small and elsewhere": {
        "base_model": {"prediction_type": "v_prediction", "zero_terminal_snr": True},
        "loss": {"function": "smooth_l1", "huber_schedule": "snr", "debiased": True, "v_prediction_like": 0.1},
        "memory": {**CACHED, "selective_checkpointing": True, "base_weights": "fp8", "offload_blocks": True},
        "network": {"train_text_encoder": False},
        "schedule": ONCE,
    },
}
"""Between them, all that the loop does otherwise because a setting asks for it."""


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.usefixtures("on_card")
def test_an_update_waits_for_the_card_once_to_hear_how_it_went(configure: Configure, name: str):
    changes = dict(RUNS[name])
    changes["schedule"] = changes.get("schedule", {}) | {"maximum_steps": 4, "epochs": 4}
    config = configure(changes.pop("family", "sd15"), **changes)
    waits = []
    with counting() as card:
        for event in train(config, RunFolder.create(config)):
            if isinstance(event, StepFinished):
                waits.append(card.since())
                if event.step == 2:  # what came before the first update is in the first
                    break
    assert len(waits[1]) == 1, waits[1]
    assert "mean_and_norm" in waits[1][0]


def test_what_is_read_or_copied_while_the_card_computes_is_seen():
    """The same questions and copies that the tests above must not find."""
    with counting() as card:
        there = torch.ones(3).to(CARD, non_blocking=True)
        assert card.since() == []
        for wait in (
            lambda: torch.ones(3).to(CARD),
            lambda: torch.tensor([1.0], device=CARD),
            lambda: there.cpu(),
            lambda: there.sum().item(),
            lambda: bool(there[0] > 0),
            lambda: there.tolist(),
            lambda: there.nonzero(),
            lambda: there[there > 0],
            lambda: torch.ones(3).copy_(there),
        ):
            wait()
            assert len(card.since()) == 1
        with pytest.raises(RuntimeError, match="on the card and on the CPU"):
            there + torch.ones(3)


FINDING_A_PACE: dict[str, int] = {"prodigy": 3, "prodigy_plus_schedule_free": 4, "dadapt_adam": 4}
"""How often the libraries of these read what they need for their pace; `prodigy_plus…` twice for each of two groups."""


@pytest.mark.parametrize("name", [name for name, row in OPTIMIZERS.items() if row.library != "bitsandbytes"])
def test_an_optimizer_waits_for_the_card_only_where_it_finds_a_pace_of_its_own(
    name: str, monkeypatch: pytest.MonkeyPatch
):
    """bitsandbytes' own are not among them: their kernels want a real card."""
    row = OPTIMIZERS[name]
    monkeypatch.setitem(OPTIMIZERS, name, replace(row, always={**row.always, **row.on_gpu}))
    shapes = {"text_encoder": [(4, 8), (8, 4)], "unet": [(4, 8), (8, 4), (3, 2, 3, 3), (8,)]}
    settings = OptimizerSettings(name=name, **RESTLESS.get(name, {}))
    kernels = "torch.optim.optimizer._get_fused_kernels_supported_devices"
    with mock.patch(kernels, return_value=[CARD.type]), counting() as card:
        groups = {part: [nn.Parameter(torch.randn(*shape).to(CARD)) for shape in each] for part, each in shapes.items()}
        optimizer = create_optimizer(groups, settings, ScheduleSettings())
        getattr(optimizer, "train", lambda: None)()
        for group, share in zip(optimizer.param_groups, (0.5, 1.0), strict=True):
            group["lr"] *= share
        waits = []
        for _ in range(3):
            for weights in (one for each in groups.values() for one in each):
                weights.grad = torch.randn(weights.shape).to(CARD)
            card.since()
            optimizer.step()
            waits.append(card.since())
    for seen in waits[1:]:  # the first makes what it remembers
        assert len(seen) == FINDING_A_PACE.get(name, 0), seen


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_no_networks_layer_waits_for_the_card(algorithm: Algorithm):
    settings = NetworkSettings(
        algorithm=algorithm, rank=4, alpha=2.0, conv_rank=2, conv_alpha=1.0, lokr_factor=4, dylora_block_size=2
    )
    kinds = {"linear": nn.Linear(8, 8), "conv": nn.Conv2d(8, 8, 3, padding=1)}
    dropouts = ("dropout", "rank_dropout", "module_dropout")
    chance = {name: 0.1 for name in dropouts if algorithm not in LACKING_DROPOUT.get(name, {})}
    with counting() as card:
        layers = [
            AdaptedLayer(f"lora_unet_{name}", layer.requires_grad_(False).to(CARD), "unet")
            for name, layer in kinds.items()
        ]
        network = Network(layers, settings.model_copy(update=chance), 0).to(CARD)
        pixels = torch.randn(2, 8, 4, 4).to(CARD).requires_grad_()  # also where both modules are dropped
        with attached(network):
            network.train()
            for _ in range(2):
                card.since()
                rows = layers[1].module(pixels).flatten(2).transpose(1, 2)
                layers[0].module(rows).square().mean().backward()
                limit_norms(network, 1.0)
    assert card.since() == []


def test_no_update_leaves_a_tensor_behind(configure: Configure):
    config = configure(schedule={"maximum_steps": 5, "epochs": 5}, ema={"decay": 0.9})
    held = []
    for event in train(config, RunFolder.create(config)):
        if isinstance(event, StepFinished):
            gc.collect()
            tensors = {id(thing): thing for thing in gc.get_objects() if isinstance(thing, torch.Tensor)}
            held.append((len(tensors), sum(tensor.nbytes for tensor in tensors.values())))
            del tensors
    assert len(held) == 5
    assert len(set(held[2:])) == 1
