from __future__ import annotations

import pytest
import torch
from lycoris.modules.locon import LoConModule
from torch import nn

from engine.low_rank import LowRank

LAYERS = {
    "linear": (lambda: nn.Linear(12, 10), (2, 5, 12)),
    "1x1": (lambda: nn.Conv2d(12, 10, 1), (2, 12, 6, 4)),
    "3x3 with a stride": (lambda: nn.Conv2d(12, 10, 3, 2, 1), (2, 12, 6, 4)),
}


@pytest.mark.parametrize("dropout", [{}, {"dropout": 0.5}, {"rank_dropout": 0.5}], ids=str)
@pytest.mark.parametrize("kind", LAYERS)
def test_outputs_and_gradients_are_lycoris_own(kind: str, dropout: dict[str, float]):
    make, shape = LAYERS[kind]
    results = []
    for adapter_class in (LoConModule, LowRank):
        torch.manual_seed(0)
        layer = make().requires_grad_(False)
        adapter = adapter_class("x", layer, 1.0, 4, 2.0, bypass_mode=True, **dropout)
        nn.init.normal_(adapter.lora_up.weight)
        adapter.apply_to()
        adapter.train()
        x = torch.randn(shape, requires_grad=True)
        torch.manual_seed(1)
        output = layer(x)
        output.square().sum().backward()
        results.append((output, x.grad, adapter.lora_up.weight.grad, adapter.lora_down.weight.grad))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
