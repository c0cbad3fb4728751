"""LoRA's forward as plain matrix products: what LyCORIS computes, without its passes over the whole output; and kin."""

from __future__ import annotations

import math
from typing import Any

import torch
from lycoris.modules.glora import GLoRAModule
from lycoris.modules.locon import LoConModule
from torch import Tensor
from torch.nn import functional as F


class LowRank(LoConModule):  # type: ignore[misc]
    """LyCORIS' LoRA and LoCon, weights and names alike.

    The scale multiplies the small matrix in the middle, not the output, and a linear layer adds the two paths while it
    multiplies.
    """

    def bypass_forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        """The layer's output with its change."""
        base: Tensor = self.org_forward(x)
        if self.training and (self.rank_dropout or self.dropout.__class__.__name__ == "Dropout"):
            change: Tensor = self.bypass_forward_diff(x, scale)
            return base + change
        if self.isconv:
            op = self.lora_down
            middle = F.conv2d(x, op.weight.to(x.dtype), None, op.stride, op.padding) * (self.scale * scale)
            return base + F.conv2d(middle, self.lora_up.weight.to(middle.dtype))
        middle = F.linear(x, self.lora_down.weight.to(x.dtype)) * (self.scale * scale)
        up = self.lora_up.weight.to(middle.dtype)
        return base.flatten(0, -2).addmm(middle.flatten(0, -2), up.t()).view(base.shape)


class DynamicRank(LowRank):
    """DyLoRA, Valipour et al. 2022 (arXiv:2210.07558): a pass trains one block of ranks, on top of those before it.

    So the first ranks of the finished network are a network of their own. Its file is a LoRA's. LyCORIS' own module
    trains at `block_size` times the strength that its files have, and cannot resume; the formula here is kohya's.
    """

    def __init__(self, *arguments: Any, block_size: int, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.block_size = block_size

    def bypass_forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        """The layer's output with its change; while training, with that of the ranks up to a block drawn at random."""
        if not self.training:
            return super().bypass_forward(x, scale)
        last = int(torch.randint(self.lora_dim // self.block_size, ()))
        before, ranks = last * self.block_size, (last + 1) * self.block_size
        down, up = self.lora_down.weight, self.lora_up.weight
        down = torch.cat([down[:before].detach(), down[before:ranks]]).to(x.dtype)
        up = torch.cat([up[:, :before].detach(), up[:, before:ranks]], dim=1)
        strength = self.scale * scale * math.sqrt(self.lora_dim / ranks)
        if self.isconv:
            op = self.lora_down
            middle = F.conv2d(x, down, None, op.stride, op.padding) * strength
            change = F.conv2d(middle, up.to(middle.dtype))
        else:
            middle = F.linear(x, down) * strength
            change = F.linear(middle, up.to(middle.dtype))
        output: Tensor = self.org_forward(x) + self.drop(change)
        return output


class GeneralLowRank(GLoRAModule):  # type: ignore[misc]
    """LyCORIS' GLoRA, Chavan et al. 2023 (arXiv:2306.07967): W(x + A x) + B x.

    LyCORIS 4.1 keeps the share of ranks that it should drop, so it is told the other share.
    """

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.rank_dropout: float = 1 - self.rank_dropout if self.rank_dropout else 0.0
