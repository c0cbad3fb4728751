from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from engine.low_rank import LowRank
from engine.models import linear
from engine.models.linear import has_onednn, quicken_linear_layers


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The inputs that oneDNN multiplied, forward and backward."""
    seen: list[tuple[int, ...]] = []
    multiply: Callable[..., Tensor] = torch.ops.mkldnn._linear_pointwise

    def count(x: Tensor, *more: object) -> Tensor:
        seen.append(tuple(x.shape))
        return multiply(x, *more)

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", count)
    monkeypatch.setattr(linear, "MANY_WEIGHTS", 100)
    return seen


needs_onednn = pytest.mark.skipif(not has_onednn(), reason="this torch was built without oneDNN")


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7, 24), (2, 5, 24), (2, 3, 4, 24)])
def test_onednns_product_is_the_layer_and_so_is_its_gradient(
    shape: tuple[int, ...], bias: bool, asked: list[tuple[int, ...]]
):
    torch.manual_seed(0)
    layer = nn.Linear(24, 16, bias=bias).requires_grad_(False)
    plain, quick = torch.randn(shape, requires_grad=True), torch.empty(shape)
    quick = plain.detach().clone().requires_grad_()
    expected = layer(plain)
    weights = torch.randn(expected.shape)
    (expected * weights).sum().backward()
    quicken_linear_layers(layer)
    found = layer(quick)
    (found * weights).sum().backward()
    assert asked == [shape, (*shape[:-1], 16)]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(quick.grad, plain.grad, rtol=1e-5, atol=1e-6)


def test_in_half_precision_under_autocast_and_with_few_weights_torch_multiplies(asked: list[tuple[int, ...]]):
    layer = nn.Linear(24, 16)
    quicken_linear_layers(layer.requires_grad_(False))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.ones(2, 24)).dtype == torch.bfloat16
    layer.bfloat16()(torch.ones(2, 24).bfloat16())
    small = nn.Linear(8, 8).requires_grad_(False)
    quicken_linear_layers(small)
    small(torch.ones(2, 8))
    assert asked == []


@needs_onednn
def test_a_quick_layer_is_a_plain_one_to_lycoris_and_its_adapter_learns(asked: list[tuple[int, ...]]):
    layer = nn.Linear(24, 16).requires_grad_(False)
    quicken_linear_layers(layer)
    adapter = LowRank("x", layer, 1.0, 4, 4.0, dropout=0.5).train()
    assert not adapter.is_quant
    nn.init.ones_(adapter.lora_up.weight)
    adapter.bypass_mode = True
    adapter.apply_to()
    layer(torch.ones(2, 24)).sum().backward()
    assert asked == [(2, 24)]
    assert adapter.lora_down.weight.grad.abs().sum() > 0
