"""Checkpointing computes the same numbers and keeps less, also at the ends of the transformers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.models.checkpointing import checkpoint_unet
from engine.models.load import load
from engine.networks import create_network
from knowledge.config import BaseModelSettings, NetworkSettings


def step(folder: Path, enable: Callable[[Any], None]) -> tuple[Tensor, dict[str, Tensor], int]:
    """Loss and gradients of a step, and the bytes of activations that wait outside of checkpoints for its backward."""
    model = load(BaseModelSettings(path=str(folder), family="sd15"), torch.float32)
    network = create_network(model, NetworkSettings(algorithm="locon", dropout=0.5), seed=0)
    for index, weight in enumerate(network.parameters()):
        weight.data.normal_(generator=torch.Generator().manual_seed(index)).mul_(0.05)
    network.attach()
    network.train()
    enable(model.unet)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(5)
    noisy, words = torch.randn(2, 4, 16, 16), torch.randn(2, 77, model.unet.config.cross_attention_dim)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model.unet(noisy, torch.tensor([3, 700]), words).sample.square().mean()
    loss.backward()
    return loss.detach(), {name: weight.grad for name, weight in network.named_parameters()}, sum(kept.values())


@pytest.fixture(scope="module")
def plain(tiny_sd15: Path) -> tuple[Tensor, dict[str, Tensor], int]:
    return step(tiny_sd15, lambda unet: None)


@pytest.fixture(scope="module")
def checkpointed(tiny_sd15: Path) -> tuple[Tensor, dict[str, Tensor], int]:
    return step(tiny_sd15, checkpoint_unet)


def test_loss_and_gradients_are_the_same_bits(plain: Any, checkpointed: Any):
    assert torch.equal(checkpointed[0], plain[0])
    for name, gradient in plain[1].items():
        assert gradient.abs().max() > 0, name
        assert torch.equal(checkpointed[1][name], gradient), name


def test_less_is_kept_than_by_the_checkpoints_of_diffusers_alone(tiny_sd15: Path, plain: Any, checkpointed: Any):
    _, _, own = step(tiny_sd15, lambda unet: unet.enable_gradient_checkpointing())
    assert checkpointed[2] < 0.8 * own < 0.8 * plain[2]
