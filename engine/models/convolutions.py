"""Frozen convolutions: on a CPU few pixels with many weights, as a UNet's lowest levels have them, are one matrix
product; and where it is asked for, nothing is kept for the gradient of a weight that has none."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.models.linear import product

MANY_WEIGHTS = 4 * 2**20
"""From here on the weights are too many for the caches: oneDNN rearranges them all in every call."""
FEW_PIXELS = {torch.float32: 256, torch.bfloat16: 64}
"""Up to this many pixels of a batch the product is faster; on an EPYC of the fourth generation with torch 2.13, 1280 to
1280 channels at 8x8 take 24 ms instead of 50 in float32, and 10 instead of 13 in bfloat16."""


class FewPixelsConvolution(nn.Conv2d):
    """What nn.Conv2d computes, by the faster way for its input."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002
        # LyCORIS makes its own small layers of the class of the layer that it adapts; those learn.
        if weight.requires_grad or (bias is not None and bias.requires_grad):
            plain: Tensor = super()._conv_forward(input, weight, bias)
            return plain
        outputs = self._outputs(input)
        device = input.device.type
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else input.dtype
        if device == "cpu" and outputs is not None and weight.dtype == dtype:
            pixels = len(input) * outputs[0] * outputs[1]
            if weight.numel() > MANY_WEIGHTS and pixels <= FEW_PIXELS.get(dtype, 0):
                few: Tensor = _Product.apply(  # type: ignore[no-untyped-call]
                    input.to(dtype), weight, bias, self.stride, self.padding, outputs
                )
                return few
        return self._many_pixels(input, weight, bias)

    def _many_pixels(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002
        usual: Tensor = super()._conv_forward(input, weight, bias)
        return usual

    def _outputs(self, input: Tensor) -> list[int] | None:  # noqa: A002
        """Height and width of what comes out; None of a convolution that is no simple product of neighbourhoods."""
        if (self.dilation, self.groups) != ((1, 1), 1) or self.kernel_size == (1, 1):
            return None
        assert not isinstance(self.padding, str)  # such layers keep their class
        sides = zip(input.shape[2:], self.padding, self.kernel_size, self.stride, strict=True)
        return [(side + 2 * padding - kernel) // stride + 1 for side, padding, kernel, stride in sides]


def input_gradient(
    shape: torch.Size, order: torch.memory_format, weight: Tensor, gradient: Tensor, settings: Any
) -> Tensor:
    """The gradient of a convolution's input, by the very kernel that torch's own backward pass takes.

    The kernel looks at the input's shape and order, not at its content: it gets an empty one. `settings`: stride,
    padding, dilation and groups.
    """
    stride, padding, dilation, groups = settings
    if gradient.device.type == "cpu" or order == torch.channels_last:  # a CPU's kernels would write out an expanded one
        stand_in = torch.empty(shape, dtype=gradient.dtype, device=gradient.device, memory_format=order)
    else:
        stand_in = gradient.new_empty(1).expand(shape)
    back: Tensor = torch.ops.aten.convolution_backward(
        gradient, stand_in, weight, None, stride, padding, dilation, False, [0, 0], groups, [True, False, False]
    )[0]
    return back


def order(x: Tensor) -> torch.memory_format:
    """In which order torch's kernels take this tensor's numbers."""
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


class _Convolution(torch.autograd.Function):
    """A convolution that keeps nothing but a hold of its weight; gradients reach the input only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *settings: Any) -> Tensor:
        # Not as a saved tensor: a checkpoint would compute the convolution a second time to come by it.
        ctx.weight, ctx.settings = weight, settings
        ctx.shape, ctx.order = x.shape, order(x)
        return F.conv2d(x, weight, bias, *settings)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        weight = ctx.weight.to(gradient.dtype)  # as autocast had it
        back = input_gradient(ctx.shape, ctx.order, weight, gradient, ctx.settings)
        return back, *(None,) * (2 + len(ctx.settings))


class LeanConvolution(FewPixelsConvolution):
    """The same without its input kept, which torch's own convolution keeps even where its weight is frozen."""

    def _many_pixels(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002
        settings = (self.stride, self.padding, self.dilation, self.groups)
        kept_nothing: Tensor = _Convolution.apply(input, weight, bias, *settings)  # type: ignore[no-untyped-call]
        return kept_nothing


class _Product(torch.autograd.Function):
    """Every pixel's neighbourhood as a column, times the weights; gradients reach the input only."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, out: Any
    ) -> Tensor:
        ctx.weight, ctx.shape, ctx.stride, ctx.padding = weight, x.shape, stride, padding
        columns = F.unfold(x, weight.shape[2:], padding=padding, stride=stride)
        columns = columns.transpose(0, 1).flatten(1)
        result = product(weight.flatten(1), columns.t())
        if bias is not None:
            result += bias.to(result.dtype)[:, None]
        return result.view(-1, len(x), *out).transpose(0, 1).contiguous()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), weight = gradients, ctx.weight
        gradient = gradient.flatten(2)
        # [pixels, channels x neighbours], which oneDNN computes faster than the other way round
        columns = product(gradient.transpose(1, 2).flatten(0, 1), weight.flatten(1).t())
        columns = columns.view(len(gradient), -1, columns.shape[1]).transpose(1, 2)
        back = F.fold(columns, ctx.shape[2:], weight.shape[2:], padding=ctx.padding, stride=ctx.stride)
        return back, None, None, None, None, None


def quicken_convolutions(module: nn.Module) -> None:
    """Let the convolutions of a frozen module choose the faster way on a CPU."""
    for layer in module.modules():
        if type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and isinstance(layer.padding, tuple):
            layer.__class__ = FewPixelsConvolution


def keep_no_inputs(module: nn.Module) -> None:
    """Let the convolutions of a frozen module keep no input for the gradient of a weight that has none."""
    quicken_convolutions(module)
    for layer in module.modules():
        if type(layer) is FewPixelsConvolution:
            layer.__class__ = LeanConvolution
