"""Adapters that rebuild their layer's weight: one product with W + ΔW, where LyCORIS adds a second layer's."""

from __future__ import annotations

from typing import Any

import torch
from lycoris.modules.base import LycorisBaseModule
from lycoris.modules.boft import ButterflyOFTModule
from lycoris.modules.diag_oft import DiagOFTModule
from lycoris.modules.ia3 import IA3Module
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from engine.memory import sent


class Rebuilt:
    """The forward of an adapter on a layer whose weight and bias it may change, to be mixed into a LyCORIS module."""

    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output with its change."""
        if self.training and self.module_dropout and torch.rand(1) < self.module_dropout:
            unchanged: Tensor = self.org_forward(x)
            return unchanged
        layer = self.org_module[0]
        weight = layer.weight.to(x.device)  # where it is kept in the computer's memory, it comes for this use
        difference, bias_difference = self.differences(weight)
        bias = layer.bias
        if bias is not None and bias_difference is not None:
            bias = (bias + bias_difference).to(bias.dtype)
        output: Tensor = self.op(x, (weight + difference).to(weight.dtype), bias, **self.kw_dict)
        return output


class Full(Rebuilt, LycorisBaseModule):  # type: ignore[misc]
    """The difference itself of a weight and its bias, under LyCORIS' names.

    Its own module takes the weight out of the base model while it is attached and returns a copy, so that a network
    could not be detached and attached again; here the base model is left alone.
    """

    def __init__(
        self,
        name: str,
        layer: Any,
        multiplier: float,
        rank: int,
        alpha: float,
        dropout: float,
        rank_dropout: float,
        module_dropout: float,
    ) -> None:
        super().__init__(name, layer, multiplier, dropout, rank_dropout, module_dropout)
        self.diff = nn.Parameter(torch.zeros(self.shape))
        if layer.bias is not None:
            self.diff_b = nn.Parameter(torch.zeros_like(layer.bias))

    def differences(self, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        """ΔW and the bias' change; while training, of the outputs that rank dropout leaves."""
        difference: Tensor = self.diff
        bias_difference: Tensor | None = getattr(self, "diff_b", None)
        if self.training and self.rank_dropout:
            kept = sent(torch.rand(self.dim) > self.rank_dropout, difference.device).to(difference.dtype)
            difference = difference * kept.view(-1, *[1] * (difference.dim() - 1))
            bias_difference = None if bias_difference is None else bias_difference * kept
        return difference, bias_difference


class _Turned(Rebuilt):
    def differences(self: Any, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        """ΔW of a turned weight, in single precision: half of it would round small rotations away.

        It is computed again in the backward pass, since every stage would keep a copy of the weight.
        """
        device = "cpu" if weight.is_meta else weight.device.type  # the memory tracer's autocast is the CPU's
        with torch.autocast(device, enabled=False):
            turned: Tensor = checkpoint(self.turned, weight, use_reentrant=False, preserve_rng_state=False)
        return turned, None

    def turned(self: Any, weight: Tensor) -> Tensor:
        """What turning adds to the weight."""
        difference: Tensor = self.change_of(weight.float(), self.oft_blocks)
        return difference


class Rotation(_Turned, DiagOFTModule):  # type: ignore[misc]
    """LyCORIS' Diag-OFT, Qiu et al. 2023 (arXiv:2306.07280): blocks of outputs, each turned by itself."""

    @staticmethod
    def change_of(weight: Tensor, blocks: Tensor) -> Tensor:
        from lycoris.functional.diag_oft import diff_weight

        difference: Tensor = diff_weight(weight, blocks, None, constraint=0)
        return difference


class Butterfly(_Turned, ButterflyOFTModule):  # type: ignore[misc]
    """LyCORIS' BOFT, Liu et al. 2023 (arXiv:2311.06243): stages of rotations that reach every output."""

    @staticmethod
    def change_of(weight: Tensor, blocks: Tensor) -> Tensor:
        from lycoris.functional.boft import diff_weight

        difference: Tensor = diff_weight(weight, blocks, None, constraint=0, scale=1)
        return difference


class Scaled(Rebuilt, IA3Module):  # type: ignore[misc]
    """LyCORIS' (IA)³ over the outputs, Liu et al. 2022 (arXiv:2205.05638); the bias is left as it is, as in files."""

    def differences(self, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        """ΔW: every output's row times its factor."""
        return weight * self.weight.view(-1, *[1] * (weight.dim() - 1)), None
