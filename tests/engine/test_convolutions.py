from __future__ import annotations

import pytest
import torch
from torch import nn

from engine.low_rank import LowRank
from engine.models import convolutions
from engine.models.convolutions import quicken_convolutions


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The inputs that went the way of one matrix product."""
    seen: list[tuple[int, ...]] = []
    product = convolutions._Product.apply

    def count(x: torch.Tensor, *more: object) -> torch.Tensor:
        seen.append(tuple(x.shape))
        return product(x, *more)

    monkeypatch.setattr(convolutions._Product, "apply", count)
    monkeypatch.setattr(convolutions, "MANY_WEIGHTS", 100)
    return seen


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_product_is_the_convolution_and_so_is_its_gradient(
    batch: int, stride: int, bias: bool, counted: list[tuple[int, ...]]
):
    generator = torch.Generator().manual_seed(0)
    layer = nn.Conv2d(8, 6, 3, stride, 1, bias=bias).requires_grad_(False)
    x = torch.randn((batch, 8, 6, 10), generator=generator)
    plain, quick = x.clone().requires_grad_(), x.clone().requires_grad_()
    expected = layer(plain)
    weights = torch.randn(expected.shape, generator=generator)
    (expected * weights).sum().backward()
    quicken_convolutions(layer)
    found = layer(quick)
    (found * weights).sum().backward()
    assert counted == [(batch, 8, 6, 10)]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(quick.grad, plain.grad, rtol=1e-5, atol=1e-6)


def test_under_autocast_it_computes_in_the_precision_of_autocast(counted: list[tuple[int, ...]]):
    layer = nn.Conv2d(8, 6, 3, padding=1).requires_grad_(False).bfloat16()
    x = torch.randn((1, 8, 4, 4), generator=torch.Generator().manual_seed(0), requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        expected = layer(x)
        quicken_convolutions(layer)
        found = layer(x)
    found.float().square().mean().backward()
    assert len(counted) == 1
    assert found.dtype == expected.dtype == torch.bfloat16
    assert x.grad is not None
    assert x.grad.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)


def test_many_pixels_go_the_usual_way(counted: list[tuple[int, ...]]):
    layer = nn.Conv2d(8, 6, 3, padding=1).requires_grad_(False)
    quicken_convolutions(layer)
    layer(torch.zeros(1, 8, 16, 17))
    assert counted == []
    layer(torch.zeros(1, 8, 16, 16))
    assert len(counted) == 1


def test_layers_with_few_weights_go_the_usual_way(counted: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(convolutions, "MANY_WEIGHTS", 1000)
    for layer in (nn.Conv2d(8, 6, 3), nn.Conv2d(64, 64, 1)):
        quicken_convolutions(layer.requires_grad_(False))
        layer(torch.zeros(1, layer.in_channels, 4, 4))
    assert counted == []


def test_an_adapter_of_such_a_layer_learns(counted: list[tuple[int, ...]]):
    layer = nn.Conv2d(8, 6, 3, padding=1).requires_grad_(False)
    quicken_convolutions(layer)
    adapter = LowRank("x", layer, 1.0, 4, 4.0, dropout=0.5, bypass_mode=True).train()
    nn.init.ones_(adapter.lora_up.weight)
    adapter.apply_to()
    layer(torch.ones(1, 8, 4, 4)).sum().backward()
    assert counted == [(1, 8, 4, 4)]
    assert adapter.lora_down.weight.grad.abs().sum() > 0
