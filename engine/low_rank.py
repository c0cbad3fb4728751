"""LoRA's forward as plain matrix products: what LyCORIS computes, without its passes over the whole output."""

from __future__ import annotations

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
