"""Which noise levels a step trains on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from knowledge.config import NoiseSettings, TimestepSampling


def uniform(count: int, minimum: int, maximum: int, generator: torch.Generator | None = None) -> Tensor:
    """Each timestep in [minimum, maximum) equally likely."""
    return torch.randint(minimum, maximum, (count,), generator=generator)


def logit_normal(count: int, minimum: int, maximum: int, generator: torch.Generator | None = None) -> Tensor:
    """The middle of the range more often than its ends. Esser et al. 2024 (arXiv:2403.03206), equation 19."""
    share = torch.sigmoid(torch.randn(count, generator=generator))
    return (minimum + (maximum - minimum) * share).long().clamp(max=maximum - 1)


SAMPLINGS: dict[TimestepSampling, Callable[[int, int, int, torch.Generator | None], Tensor]] = {
    "uniform": uniform,
    "logit_normal": logit_normal,
}


def draw_timesteps(count: int, settings: NoiseSettings, generator: torch.Generator | None = None) -> Tensor:
    """Timesteps of `count` pictures, [count] integers in [noise.minimum_timestep, noise.maximum_timestep)."""
    draw = SAMPLINGS[settings.timestep_sampling]
    return draw(count, settings.minimum_timestep, settings.maximum_timestep, generator)
