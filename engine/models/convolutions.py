"""Convolutions with few pixels and many weights, as one matrix product: how a UNet's lowest levels run on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MANY_WEIGHTS = 4 * 2**20
"""From here on the weights are too many for the caches: oneDNN rearranges them all in every call."""
FEW_PIXELS = {torch.float32: 256, torch.bfloat16: 64}
"""Up to this many pixels of a batch the product is faster; on an EPYC of the fourth generation with torch 2.13, 1280 to
1280 channels at 8x8 take 24 ms instead of 50 in float32, and 10 instead of 13 in bfloat16."""


class FewPixelsConvolution(nn.Conv2d):
    """A frozen convolution that computes what nn.Conv2d does, by the faster way for its input."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else input.dtype
        assert not isinstance(self.padding, str)  # such layers keep their class
        sides = zip(input.shape[2:], self.padding, self.kernel_size, self.stride, strict=True)
        outputs = [(side + 2 * padding - kernel) // stride + 1 for side, padding, kernel, stride in sides]
        pixels = len(input) * outputs[0] * outputs[1]
        if input.device.type != "cpu" or weight.dtype != dtype or pixels > FEW_PIXELS.get(dtype, 0):
            plain: Tensor = super()._conv_forward(input, weight, bias)
            return plain
        product: Tensor = _Product.apply(  # type: ignore[no-untyped-call]
            input.to(dtype), weight, bias, self.stride, self.padding, outputs
        )
        return product


class _Product(torch.autograd.Function):
    """Every pixel's neighbourhood as a column, times the weights; gradients reach the input only."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, out: Any
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.stride, ctx.padding = x.shape, stride, padding
        columns = F.unfold(x, weight.shape[2:], padding=padding, stride=stride)
        product = weight.flatten(1) @ columns.transpose(0, 1).flatten(1)
        if bias is not None:
            product += bias.to(product.dtype)[:, None]
        return product.view(-1, len(x), *out).transpose(0, 1).contiguous()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (weight,) = gradients, ctx.saved_tensors
        columns = weight.flatten(1).t() @ gradient.flatten(2).transpose(0, 1).flatten(1)
        columns = columns.view(len(columns), len(gradient), -1).transpose(0, 1)
        back = F.fold(columns, ctx.shape[2:], weight.shape[2:], padding=ctx.padding, stride=ctx.stride)
        return back, None, None, None, None, None


def speed_up_convolutions(module: nn.Module) -> None:
    """Let the convolutions of a frozen module that have many weights choose the faster way on a CPU."""
    for layer in module.modules():
        if (
            type(layer) is nn.Conv2d
            and layer.kernel_size != (1, 1)
            and (layer.dilation, layer.groups, layer.padding_mode) == ((1, 1), 1, "zeros")
            and isinstance(layer.padding, tuple)
            and layer.weight.numel() > MANY_WEIGHTS
        ):
            layer.__class__ = FewPixelsConvolution
