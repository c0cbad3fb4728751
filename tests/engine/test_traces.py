"""Replays training runs that kohya's sd-scripts recorded, step by step, through the engine's own functions.

The recordings and the model they need are tens of megabytes and not part of the checkout; name their folder in
LORA_WIZARD_ORACLES to run these tests.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from benches import bare_bench
from safetensors.torch import load_file

from calculator.buckets import Placement
from calculator.schedule import learning_rate_multiplier
from engine.batch_loss import loss_of_draw
from engine.bench import Bench
from engine.dataset.batches import Batch, Item
from engine.dataset.images import Look
from engine.models.family import AdaptedLayer
from engine.models.load import load
from engine.models.sd import StableDiffusion
from engine.networks import Network, limit_norms
from engine.optimizers import create_optimizer
from engine.processes import create_accelerator
from knowledge.config import CONV_ALGORITHMS, TrainingConfig
from knowledge.facts import Picture

ORACLES = Path(os.environ.get("LORA_WIZARD_ORACLES", "nowhere"))
pytestmark = pytest.mark.skipif(not ORACLES.is_dir(), reason="LORA_WIZARD_ORACLES does not name the recordings")

# What each recording was asked for, in our words; rank 4, alpha 2, AdamW and a constant rate of 1e-3 unless said.
TRACES: dict[str, dict[str, Any]] = {
    "plain_te_unet": {"optimizer": {"text_encoder_learning_rate": 5e-4}},
    "unet_only_minsnr_offset_cosine": {
        "network": {"train_text_encoder": False},
        "loss": {"minimum_snr_gamma": 5.0},
        "schedule": {"scheduler": "cosine", "warmup": 3.0},
    },
    "batch2_accum2_multires": {"schedule": {"batch_size": 2, "gradient_accumulation_steps": 2}},
    "lycoris_loha": {"network": {"algorithm": "loha"}},
    "vpred_zerosnr": {
        "base_model": {"prediction_type": "v_prediction", "zero_terminal_snr": True},
        "network": {"train_text_encoder": False},
        "loss": {"minimum_snr_gamma": 5.0},
    },
    "conv_maxnorm_debiased": {
        "network": {"algorithm": "locon", "alpha": 1.0, "conv_rank": 2, "conv_alpha": 1.0, "maximum_norm": 1.0},
        "loss": {"debiased": True},
    },
}


def bench(name: str) -> Bench:
    """What the loop holds in its hands when such a run begins."""
    base: dict[str, dict[str, Any]] = {
        "base_model": {"path": str(ORACLES / "tiny15"), "family": "sd15"},
        "network": {"rank": 4, "alpha": 2.0, "train_text_encoder": True},
        "optimizer": {"learning_rate": 1e-3},
    }
    for section, values in TRACES[name].items():
        base[section] = base.get(section, {}) | values
    config = TrainingConfig.model_validate(base)
    accelerator = create_accelerator("fp32")
    model = load(config.base_model, torch.float32)
    initial = load_file(ORACLES / "traces" / f"{name}.init.safetensors")
    network = network_of(model, config, initial)
    optimizer = accelerator.prepare(create_optimizer(network.trained_parameters(), config.optimizer, config.schedule))
    return bare_bench(config=config, accelerator=accelerator, model=model, network=network, optimizer=optimizer)


def network_of(model: StableDiffusion, config: TrainingConfig, initial: dict[str, torch.Tensor]) -> Network:
    """The recorded network before its first step."""
    parts = ["text_encoder", "unet"] if config.network.train_text_encoder else ["unet"]
    layers = [
        layer for part in parts for layer in model.adapted_layers(part, config.network.algorithm in CONV_ALGORITHMS)
    ]
    recorded = {name.partition(".")[0] for name in initial}
    # LyCORIS' preset attn-mlp also takes the two layers that embed the time.
    for name, module in model.unet.time_embedding.named_children():
        saved = f"lora_unet_time_embedding_{name}"
        if saved in recorded:
            layers.append(AdaptedLayer(saved, module, "unet"))
    network = Network(layers, config.network, seed=0)
    own = {name.removeprefix("adapters."): parameter for name, parameter in network.named_parameters()}
    assert set(own) == {name for name in initial if not name.endswith(".alpha") and name.partition(".")[0] in recorded}
    for name, parameter in own.items():
        parameter.data.copy_(initial[name])
    return network


def batch_of(step: dict[str, Any]) -> Batch:
    """The pictures of a recorded step, of which only captions and number matter here."""
    placement = Placement((8, 8), (8, 8), (0, 0, 8, 8))
    captions = tuple(step["captions"])
    items = tuple(Item(Picture("", 8, 8), placement, False, index) for index, _ in enumerate(captions))
    return Batch(items, captions, (Look(),) * len(captions), 8, 8)


@dataclass(frozen=True)
class Replay:
    """What a replay left behind: the loss of every step, and the weights at its end."""

    losses: list[float]
    weights: dict[str, torch.Tensor]


def replay(name: str, precision: torch.dtype) -> Replay:
    """The recorded run once more, with all its draws; the base model and the network compute in this precision."""
    steps = recording(name)["steps"]
    draws = load_file(ORACLES / "traces" / f"{name}.steps.safetensors")
    held = bench(name)
    for module in (held.model.unet, *held.model.text_encoders.values(), held.network):
        module.to(precision)
    schedule, optimizer = held.config.schedule, held.optimizer
    accumulation = schedule.gradient_accumulation_steps
    full_rates = [group["lr"] for group in optimizer.param_groups]
    losses = []
    held.network.attach()
    held.network.train()
    for index, step in enumerate(steps):
        multiplier = learning_rate_multiplier(schedule, index // accumulation, len(steps) // accumulation)
        for group, rate in zip(optimizer.param_groups, full_rates, strict=True):
            group["lr"] = rate * multiplier
        if "lr" in step:  # recorded once per update
            assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(step["lr"], rel=1e-9)
        latents, noise, noisy = (draws[f"{index:03d}.{kind}"].to(precision) for kind in ("latents", "noise", "noisy"))
        timesteps = draws[f"{index:03d}.timesteps"]
        torch.testing.assert_close(held.model.add_noise(latents, noise, timesteps), noisy, rtol=1e-6, atol=1e-6)
        loss = loss_of_draw(held, batch_of(step), latents, noise, noisy, timesteps).mean()
        held.accelerator.backward(loss / accumulation)
        losses.append(loss.item())
        if (index + 1) % accumulation == 0:
            held.accelerator.clip_grad_norm_(held.network.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if held.config.network.maximum_norm is not None:
                limit_norms(held.network, held.config.network.maximum_norm)
    return Replay(losses, held.network.saved_tensors())


def recording(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((ORACLES / "traces" / f"{name}.json").read_text())
    return document


def distance(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> torch.Tensor:
    """How far every weight is from the other's, beyond what the other's file rounded away."""
    assert set(ours) == set(theirs)

    def beyond(own: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        rounded = 0.5 * torch.finfo(other.dtype).eps * other.double().abs() if other.dtype.itemsize == 2 else 0.0
        return ((own.double() - other.double()).abs() - rounded).clamp(min=0).flatten()

    return torch.cat([beyond(ours[name], theirs[name]) for name in sorted(theirs)])


@pytest.mark.parametrize("name", TRACES)
def test_a_recorded_run_replays(name: str):
    ours = replay(name, torch.float32)
    recorded_losses = [step["loss"] for step in recording(name)["steps"]]
    assert ours.losses == pytest.approx(recorded_losses, abs=1e-6)
    apart = distance(ours.weights, load_file(ORACLES / "traces" / f"{name}.final.safetensors"))
    assert apart.max() < 1e-5
