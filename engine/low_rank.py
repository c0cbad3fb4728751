"""LoRA's forward as plain matrix products: what LyCORIS computes, without its passes over the whole output; and kin."""

from __future__ import annotations

import math
from typing import Any

import torch
from lycoris.functional.loha import bypass_forward_diff, diff_weight
from lycoris.modules.glora import GLoRAModule
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from torch import Tensor
from torch.nn import functional as F

from engine.memory import sent


class LowRank(LoConModule):  # type: ignore[misc]
    """LyCORIS' LoRA and LoCon, weights and names alike.

    The scale multiplies the small matrix in the middle, not the output, and a linear layer adds the two paths while it
    multiplies.
    """

    def bypass_forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        """The layer's output with its change."""
        return self.changed_by(self.lora_down.weight, self.lora_up.weight, x, self.scale * scale)

    def changed_by(self, down: Tensor, up: Tensor, x: Tensor, strength: float) -> Tensor:
        """The layer's output with the change of these two matrices."""
        base: Tensor = self.org_forward(x)
        if self.isconv:
            op = self.lora_down
            middle = self.without_dropped(F.conv2d(x, down.to(x.dtype), None, op.stride, op.padding) * strength)
            return base + F.conv2d(middle, up.to(middle.dtype))
        middle = self.without_dropped(F.linear(x, down.to(x.dtype)) * strength)
        return base.flatten(0, -2).addmm(middle.flatten(0, -2), up.to(middle.dtype).t()).view(base.shape)

    def without_dropped(self, middle: Tensor) -> Tensor:
        """The values between the matrices, [batch, …, ranks] or [batch, ranks, …], without what dropout leaves out.

        As in kohya's module: single values, and of every picture whole ranks, for which the others are strengthened.
        LyCORIS drops outputs, and the same ranks of all pictures, and strengthens none for them.
        """
        left: Tensor = self.dropout(middle)
        if not (self.training and self.rank_dropout):
            return left
        side = 1 if self.isconv else left.dim() - 1
        shape = [size if axis in (0, side) else 1 for axis, size in enumerate(left.shape)]
        kept: Tensor = (torch.rand(shape, device=left.device) > self.rank_dropout).to(left.dtype)
        strengthened: Tensor = left * (kept / (1 - self.rank_dropout))
        return strengthened


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
        down = torch.cat([down[:before].detach(), down[before:ranks]])
        up = torch.cat([up[:, :before].detach(), up[:, before:ranks]], dim=1)
        return self.changed_by(down, up, x, self.scale * scale * math.sqrt(self.lora_dim / ranks))


class GeneralLowRank(GLoRAModule):  # type: ignore[misc]
    """LyCORIS' GLoRA, Chavan et al. 2023 (arXiv:2306.07967): W(x + A x) + B x.

    LyCORIS 4.1 keeps the share of ranks that it should drop, so it is told the other share.
    """

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.rank_dropout: float = 1 - self.rank_dropout if self.rank_dropout else 0.0

    @property
    def org_weight(self) -> Tensor:
        """The layer's weight beside the trained ones, also where it is kept in the computer's memory."""
        weight: Tensor = self.org_module[0].weight.to(self.a1.weight.device)
        return weight


class Hadamard(LohaModule):  # type: ignore[misc]
    """LyCORIS' LoHa, Hyeon-Woo et al. 2021 (arXiv:2108.06098), for which a GPU need not stop.

    LyCORIS copies the strength to the device in every layer of every pass, and the processor waits for that each time:
    https://github.com/KohakuBlueleaf/LyCORIS, modules/loha.py. A number of the CPU goes along with the kernel instead.
    """

    def get_weight(self, shape: torch.Size | None) -> Tensor:
        """ΔW; while training, of the outputs that rank dropout leaves."""
        strength = torch.tensor(self.scale, dtype=self.hada_w1_b.dtype)
        weight: Tensor = diff_weight(*self._factors(), None, None, gamma=strength)
        if shape is not None:
            weight = weight.reshape(shape)
        if self.training and self.rank_dropout:
            kept = sent(torch.rand(len(weight)) > self.rank_dropout, weight.device).to(weight.dtype)
            weight *= kept.view(-1, *[1] * (weight.dim() - 1))
        return weight

    def bypass_forward_diff(self, x: Tensor, scale: float = 1.0) -> Tensor:
        """What the layer adds to the output of the layer that it adapts."""
        if self.module_type != "linear" or (self.training and self.rank_dropout):
            weight = self.get_weight(self.shape).to(x.dtype) * scale
            change: Tensor = self.drop(self.op(x, weight, **self.kw_dict))
            return change
        strength = torch.tensor(self.scale * scale, dtype=x.dtype)
        factors = [factor.to(x.dtype) for factor in self._factors()]
        added: Tensor = self.drop(bypass_forward_diff(x, None, *factors, None, None, gamma=strength))
        return added

    def _factors(self) -> tuple[Tensor, ...]:
        return self.hada_w1_b, self.hada_w1_a, self.hada_w2_b, self.hada_w2_a
