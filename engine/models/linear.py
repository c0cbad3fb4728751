"""Frozen linear layers in single precision on a CPU, multiplied by oneDNN, where torch itself asks MKL.

On processors that are not Intel's MKL does not use all that they can. On an EPYC of the fourth generation, torch 2.13,
the linear layers of SD 1.5 run at 100 to 110 GFLOP a CPU-second instead of 80 to 95, those with few rows at 90 instead
of 60 to 80.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MANY_WEIGHTS = 2**16
"""Smaller layers take longer to ask than to multiply."""


class Linear(nn.Linear):
    """A frozen linear layer. Its class is called as torch's own, since LyCORIS takes any other for a quantised one."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """The layer's output; what it keeps for the gradient of its input is a hold of its weight."""
        weight, bias = self.weight, self.bias
        # LyCORIS makes its own small layers of the class of the layer that it adapts; those learn.
        learns = weight.requires_grad or (bias is not None and bias.requires_grad)
        if learns or weight.numel() < MANY_WEIGHTS or not is_onednns(input, weight):
            return super().forward(input)
        output: Tensor = _Linear.apply(input, weight, bias)  # type: ignore[no-untyped-call]
        return output


class _Linear(torch.autograd.Function):
    """A product whose gradient reaches the input only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        return product(gradient, ctx.weight.t()), None, None


def is_onednns(x: Tensor, weight: Tensor) -> bool:
    """Whether `product` has this product: of single-precision tensors on a CPU, where torch was built with oneDNN."""
    single = x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return single and x.device.type == weight.device.type == "cpu" and has_onednn()


@cache
def has_onednn() -> bool:
    """Whether this torch has the operation that torch.compile makes of a linear layer on a CPU."""
    built: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return built and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """What F.linear gives: x [..., in] times weight [out, in] the other way round, plus bias [out]; no gradient."""
    if not is_onednns(x, weight):
        return F.linear(x, weight, bias)
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result


def quicken_linear_layers(module: nn.Module) -> None:
    """Let the linear layers of a frozen module choose the faster library on a CPU."""
    for layer in module.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = Linear
