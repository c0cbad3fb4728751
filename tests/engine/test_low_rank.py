from __future__ import annotations

import pytest
import torch
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from torch import Tensor, nn
from torch.nn import functional as F

from engine.low_rank import Hadamard, LowRank

LAYERS = {
    "linear": (lambda: nn.Linear(12, 10), (2, 5, 12)),
    "1x1": (lambda: nn.Conv2d(12, 10, 1), (2, 12, 6, 4)),
    "3x3 with a stride": (lambda: nn.Conv2d(12, 10, 3, 2, 1), (2, 12, 6, 4)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_outputs_and_gradients_are_lycoris_own(kind: str):
    make, shape = LAYERS[kind]
    results = []
    for adapter_class in (LoConModule, LowRank):
        torch.manual_seed(0)
        layer = make().requires_grad_(False)
        adapter = adapter_class("x", layer, 1.0, 4, 2.0, bypass_mode=True)
        nn.init.normal_(adapter.lora_up.weight)
        adapter.apply_to()
        adapter.train()
        x = torch.randn(shape, requires_grad=True)
        output = layer(x)
        output.square().sum().backward()
        results.append((output, x.grad, adapter.lora_up.weight.grad, adapter.lora_down.weight.grad))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", LAYERS)
def test_dropout_leaves_out_what_kohyas_module_leaves_out(kind: str):
    make, shape = LAYERS[kind]
    torch.manual_seed(0)
    layer = make()
    adapter = LowRank("x", layer, 1.0, 4, 2.0, 0.3, 0.4, bypass_mode=True).train()
    nn.init.normal_(adapter.lora_up.weight)
    x = torch.randn(shape)

    def kohyas() -> Tensor:
        """sd-scripts' LoRAModule.forward in its own order of draws; alpha ÷ rank is a half."""
        inner = F.dropout(adapter.lora_down(x), 0.3)
        kept = torch.rand(2, 4) > 0.4  # of every picture
        inner = inner * (kept[:, :, None, None] if x.dim() == 4 else kept[:, None])
        return layer(x) + adapter.lora_up(inner) * 0.5 / (1 - 0.4)

    torch.manual_seed(1)
    expected = kohyas()
    adapter.apply_to()
    torch.manual_seed(1)
    torch.testing.assert_close(layer(x), expected)
    adapter.eval()
    assert torch.equal(layer(x), layer(x))


@pytest.mark.parametrize("dropout", [{"dropout": 0.5}, {"rank_dropout": 0.5}], ids=str)
def test_what_is_drawn_with_is_as_strong_as_what_was_trained(dropout: dict[str, float]):
    torch.manual_seed(0)
    layer = nn.Linear(12, 10)
    adapter = LowRank("x", layer, 1.0, 4, 2.0, bypass_mode=True, **dropout).train()
    nn.init.normal_(adapter.lora_up.weight)
    x = torch.randn(1, 12)
    alone = layer(x)
    adapter.apply_to()
    with torch.no_grad():
        mean = layer(x.expand(20_000, 1, 12)).mean(dim=0) - alone
        adapter.eval()
        change = layer(x) - alone
    torch.testing.assert_close(mean, change, rtol=0.05, atol=0.05 * float(change.abs().max()))


@pytest.mark.parametrize("dropout", [{}, {"dropout": 0.5}, {"rank_dropout": 0.5}], ids=str)
@pytest.mark.parametrize("kind", LAYERS)
def test_lohas_outputs_and_gradients_are_lycoris_own_to_the_bit(kind: str, dropout: dict[str, float]):
    make, shape = LAYERS[kind]
    results = []
    for adapter_class in (LohaModule, Hadamard):
        torch.manual_seed(0)
        layer = make().requires_grad_(False)
        adapter = adapter_class("x", layer, 1.0, 4, 2.0, bypass_mode=True, **dropout)
        nn.init.normal_(adapter.hada_w2_a)
        adapter.apply_to()
        adapter.train()
        x = torch.randn(shape, requires_grad=True)
        torch.manual_seed(1)
        output = layer(x)
        output.square().sum().backward()
        results.append((output, x.grad, *(weights.grad for weights in adapter.parameters())))
    for expected, found in zip(*results, strict=True):
        assert torch.equal(found, expected)
