"""Frozen weights held smaller than they are computed with, or in the computer's memory: made whole for one layer at a
time, in the forward and again in the backward pass, so that no whole copy outlives the layer's own computation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.models.convolutions import input_gradient, order
from engine.models.family import BaseModel
from knowledge.answers import PlainError
from knowledge.architectures import HELD_BLOCK as BLOCK
from knowledge.config import BaseWeights

FP8 = torch.float8_e4m3fn


# -- the forms --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Form:
    """How a weight is made small, and whole again in a shape and a dtype."""

    pack: Callable[[Tensor], tuple[Tensor, ...]]
    unpack: Callable[[tuple[Tensor, ...], torch.Size, torch.dtype], Tensor]


def _pack_fp8(weight: Tensor) -> tuple[Tensor, ...]:
    rows = weight.flatten(1).float()
    # sd-scripts rounds without a scale, which leaves most weights of these models to fp8's few subnormal numbers. Here
    # the largest weight of an output channel becomes fp8's largest number.
    scale = (rows.abs().amax(1, keepdim=True) / torch.finfo(FP8).max).clamp(min=torch.finfo(torch.float32).tiny)
    return (rows / scale).to(FP8), scale


def _unpack_fp8(tensors: tuple[Tensor, ...], shape: torch.Size, dtype: torch.dtype) -> Tensor:
    values, scale = tensors
    return values.to(dtype).mul_(scale.to(dtype)).view(shape)


def _pack_8bit(weight: Tensor) -> tuple[Tensor, ...]:
    import bitsandbytes.functional as bnb

    values, state = bnb.quantize_blockwise(weight.float(), blocksize=BLOCK["8bit"])
    return values, state.absmax, state.code


def _unpack_8bit(tensors: tuple[Tensor, ...], shape: torch.Size, dtype: torch.dtype) -> Tensor:
    import bitsandbytes.functional as bnb

    values, absmax, code = tensors
    state = bnb.QuantState(absmax, shape, code, BLOCK["8bit"], dtype=dtype)  # type: ignore[no-untyped-call]
    whole: Tensor = bnb.dequantize_blockwise(values, state)
    return whole.view(shape)


def _pack_nf4(weight: Tensor) -> tuple[Tensor, ...]:
    import bitsandbytes.functional as bnb

    values, state = bnb.quantize_4bit(weight.float(), blocksize=BLOCK["nf4"], quant_type="nf4")
    return values, state.absmax, state.code


def _unpack_nf4(tensors: tuple[Tensor, ...], shape: torch.Size, dtype: torch.dtype) -> Tensor:
    import bitsandbytes.functional as bnb

    values, absmax, code = tensors
    state = bnb.QuantState(absmax, shape, code, BLOCK["nf4"], "nf4", dtype)  # type: ignore[no-untyped-call]
    whole: Tensor = bnb.dequantize_4bit(values, state)
    return whole.view(shape)


FORMS: dict[BaseWeights, Form] = {
    "same": Form(lambda weight: (weight,), lambda tensors, shape, dtype: tensors[0].to(dtype)),
    "fp8": Form(_pack_fp8, _unpack_fp8),
    "8bit": Form(_pack_8bit, _unpack_8bit),
    "nf4": Form(_pack_nf4, _unpack_nf4),
}


@dataclass(frozen=True)
class Held:
    """One layer's weight as it is kept. `stays`: in the computer's memory, wherever its layer goes."""

    tensors: tuple[Tensor, ...]
    shape: torch.Size
    form: BaseWeights
    stays: bool

    def whole(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The weight on this device in this dtype, for one use."""
        there = tuple(tensor.to(device, non_blocking=True) for tensor in self.tensors)
        return FORMS[self.form].unpack(there, self.shape, dtype)


# -- layers with such a weight ----------------------------------------------------------------------------------------


class _HeldLayer(nn.Module):
    """What the two kinds of layers share. Reading `weight` makes a whole one, for who wants to look at it."""

    held: Held
    whole_dtype: torch.dtype

    def __new__(cls, *arguments: Any, **named: Any) -> Any:
        # LyCORIS makes its own small layers of the class of the layer that it adapts; those hold their weights plainly.
        plain: Any = cls.__mro__[2]
        return plain(*arguments, **named) if arguments or named else super().__new__(cls)

    @property
    def weight(self) -> Tensor:
        return self.held.whole(self.held.tensors[0].device, self.whole_dtype)

    def hold(self, form: BaseWeights, stays: bool, device: torch.device) -> None:
        """Take the place of the weight; it is packed on `device`, where that is fast."""
        weight: Tensor = self._parameters.pop("weight")  # type: ignore[assignment]
        self.whole_dtype = weight.dtype
        tensors = FORMS[form].pack(weight.detach().to(device))
        if stays:
            tensors = tuple(tensor.cpu() for tensor in tensors)
            if device.type == "cuda":  # pinned memory is copied while the card computes
                tensors = tuple(tensor.pin_memory() for tensor in tensors)
        self.held = Held(tensors, weight.shape, form, stays)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """The packed tensors go where the layer goes; their numbers are never converted."""
        if not self.held.stays:
            self.held = replace(self.held, tensors=tuple(fn(t).to(t.dtype) for t in self.held.tensors))
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]


class HeldLinear(_HeldLayer, nn.Linear):  # type: ignore[override]
    def forward(self, x: Tensor) -> Tensor:
        x = x.to(_dtype_of(x))
        return _Linear.apply(x, self.held, self.bias)  # type: ignore[no-untyped-call,no-any-return]


class HeldConvolution(_HeldLayer, nn.Conv2d):  # type: ignore[override]
    def forward(self, x: Tensor) -> Tensor:
        x = x.to(_dtype_of(x))
        settings = (self.stride, self.padding, self.dilation, self.groups)
        return _Convolution.apply(x, self.held, self.bias, *settings)  # type: ignore[no-untyped-call,no-any-return]


def _dtype_of(x: Tensor) -> torch.dtype:
    """What autocast would compute in; the input's own precision without it."""
    device = x.device.type if x.device.type != "meta" else "cpu"
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


class _Linear(torch.autograd.Function):
    """A linear layer that keeps nothing for its backward pass but how to make the weight again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, held: Held, bias: Tensor | None) -> Tensor:
        ctx.held = held
        return F.linear(x, held.whole(x.device, x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        return gradient @ ctx.held.whole(gradient.device, gradient.dtype), None, None


class _Convolution(torch.autograd.Function):
    """The same of a convolution."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, held: Held, bias: Tensor | None, *settings: Any) -> Tensor:
        ctx.held, ctx.settings, ctx.shape, ctx.order = held, settings, x.shape, order(x)
        return F.conv2d(x, held.whole(x.device, x.dtype), None if bias is None else bias.to(x.dtype), *settings)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        weight = ctx.held.whole(gradient.device, gradient.dtype)
        back = input_gradient(ctx.shape, ctx.order, weight, gradient, ctx.settings)
        return back, *(None,) * (2 + len(ctx.settings))


def check_form(form: BaseWeights) -> None:
    """Raises PlainError where the library that makes weights this small is not there."""
    if form in BLOCK and find_spec("bitsandbytes") is None:
        raise PlainError(
            f'memory.base_weights is {form}, which needs bitsandbytes, and it is not installed. Run "pip install '
            'bitsandbytes", or set memory.base_weights = "fp8", which needs nothing.'
        )


def hold_weights(model: BaseModel, form: BaseWeights, offload: bool, device: torch.device) -> None:
    """Hold the weights of the UNet's blocks in this form, and with `offload` in the computer's memory.

    Norms, biases and what stands before and after the blocks stay as they are: they are small and count for much.
    """
    if form == "same" and not offload:
        return
    model.complete()
    for layer in model.adapted_layers("unet", convolutions=True):
        module: Any = layer.module
        module.__class__ = HeldLinear if isinstance(module, nn.Linear) else HeldConvolution
        module.hold(form, offload, device)
