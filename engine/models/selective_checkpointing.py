"""Selective checkpointing: a frozen UNet that keeps less for its backward pass than torch does, to the same bits.

Kept is what a gradient needs and what would be dear to compute again. A norm with its activation is cheap, but torch
keeps three tensors around it: what goes into the norm, into the activation and into the convolution behind.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn import functional as F

from engine.models.convolutions import keep_no_inputs, order


def keep_less(unet: nn.Module) -> None:
    """Let the layers of a frozen UNet keep only what their backward pass cannot cheaply compute again."""
    keep_no_inputs(unet)
    for module in unet.modules():
        if type(module) is ResnetBlock2D and _is_plain(module):
            module.__class__ = LeanResnetBlock
        elif type(module) is GEGLU:
            module.__class__ = LeanGEGLU
        elif type(module) is nn.LayerNorm and module.elementwise_affine:
            module.__class__ = LeanLayerNorm


def _is_plain(block: ResnetBlock2D) -> bool:
    """Whether a block is as Stable Diffusion has them; others keep diffusers' own forward."""
    return (
        block.upsample is None
        and block.downsample is None
        and block.time_embedding_norm == "default"
        and block.time_emb_proj is not None
        and not block.skip_time_act
        and isinstance(block.nonlinearity, nn.SiLU)
        and not any(weights.requires_grad for norm in (block.norm1, block.norm2) for weights in norm.parameters())
    )


class LeanResnetBlock(ResnetBlock2D):  # type: ignore[misc]
    """diffusers' residual block, which keeps what goes into its two norms and nothing else."""

    def forward(self, input_tensor: Tensor, temb: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The block's output; temb: [batch, width], the embedded noise level and its kin."""
        hidden_states = self.conv1(_normed_and_activated(input_tensor, self.norm1))
        hidden_states = hidden_states + self.time_emb_proj(self.nonlinearity(temb))[:, :, None, None]
        hidden_states = self.conv2(self.dropout(_normed_and_activated(hidden_states, self.norm2)))
        if self.conv_shortcut is not None:
            input_tensor = self.conv_shortcut(input_tensor)
        output: Tensor = input_tensor + hidden_states
        return output if self.output_scale_factor == 1 else output / self.output_scale_factor


class LeanGEGLU(GEGLU):  # type: ignore[misc]
    """diffusers' gated activation, which keeps what it is made of and not the activated gate."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The half that is let through times how far its gate is open."""
        gated: Tensor = _Gated.apply(self.proj(hidden_states))  # type: ignore[no-untyped-call]
        return gated


class LeanLayerNorm(nn.LayerNorm):
    """A layer norm that keeps its input as it came, where autocast would keep a copy of it in single precision."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """The normed input."""
        device = input.device.type if input.device.type != "meta" else "cpu"
        # A CPU's autocast norms in half precision; all the others' do it in single.
        widened = torch.is_autocast_enabled(device) and input.device.type != "cpu"
        if not widened or input.dtype == torch.float32 or self.weight.requires_grad:
            return super().forward(input)
        normed: Tensor = _SingleLayerNorm.apply(  # type: ignore[no-untyped-call]
            input, self.normalized_shape, self.weight, self.bias, self.eps
        )
        return normed


def _normed_and_activated(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    result: Tensor = _NormThenSiLU.apply(x, norm.weight, norm.bias, norm.num_groups, norm.eps)  # type: ignore[no-untyped-call]
    return result


class _NormThenSiLU(torch.autograd.Function):
    """A frozen group norm and its activation; only what goes in is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.weight, ctx.bias, ctx.groups, ctx.eps = weight, bias, groups, eps
        normed = F.group_norm(x, groups, weight, bias, eps)
        ctx.single = normed.dtype == torch.float32  # which CUDA's autocast makes of a half-precision input
        return F.silu(normed, inplace=True)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (x,), weight, bias = gradients, ctx.saved_tensors, ctx.weight, ctx.bias
        if ctx.single:
            x, weight, bias = x.float(), weight.float(), bias.float()
        x = x.contiguous(memory_format=order(x))
        sizes = (x.shape[0], x.shape[1], x.shape[2:].numel(), ctx.groups)
        normed, mean, rstd = torch.ops.aten.native_group_norm(x, weight, bias, *sizes, ctx.eps)
        gradient = torch.ops.aten.silu_backward(gradient, normed)
        del normed
        back = torch.ops.aten.native_group_norm_backward(gradient, x, mean, rstd, weight, *sizes, [True, False, False])[
            0
        ]
        return back, None, None, None, None


class _SingleLayerNorm(torch.autograd.Function):
    """A frozen layer norm in single precision of an input in half."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: Any, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        bias = None if bias is None else bias.float()
        normed, mean, rstd = torch.native_layer_norm(x.float(), shape, weight.float(), bias, eps)
        ctx.save_for_backward(x, mean, rstd)
        ctx.shape, ctx.weight, ctx.bias = shape, weight, bias
        return normed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (x, mean, rstd) = gradients, ctx.saved_tensors
        back = torch.ops.aten.native_layer_norm_backward(
            gradient, x.float(), ctx.shape, mean, rstd, ctx.weight.float(), ctx.bias, [True, False, False]
        )[0]
        return back, None, None, None, None


class _Gated(torch.autograd.Function):
    """GEGLU of both halves in one tensor; the activated gate is computed again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        ctx.save_for_backward(both)
        through, gate = both.chunk(2, dim=-1)
        return F.gelu(gate).mul_(through)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,), (both,) = gradients, ctx.saved_tensors
        through, gate = both.chunk(2, dim=-1)
        back = torch.empty_like(both)
        into_through, into_gate = back.chunk(2, dim=-1)
        torch.mul(gradient, F.gelu(gate), out=into_through)
        torch.ops.aten.gelu_backward.grad_input(gradient * through, gate, grad_input=into_gate)
        return back
