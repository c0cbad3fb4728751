"""Which noise levels a step trains on."""

from __future__ import annotations

import torch
from torch import Tensor


def draw_timesteps(count: int, minimum: int, maximum: int, generator: torch.Generator | None = None) -> Tensor:
    """Timesteps of `count` pictures, [count] integers, each equally likely in [minimum, maximum)."""
    return torch.randint(minimum, maximum, (count,), generator=generator, device="cpu")
