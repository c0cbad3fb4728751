"""The noise that is mixed into the latents. Every draw comes from a generator that the caller hands in."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.memory import sent
from knowledge.config import NoiseSettings


def offset_noise(noise: Tensor, strength: float | Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Noise with one further random number per channel, so that overall brightness is learnt as well.

    Guttenberg 2023 (crosslabs.org, "Diffusion with offset noise"). noise: [batch, channels, height, width].
    """
    batch, channels = noise.shape[:2]
    return noise + strength * _drawn((batch, channels, 1, 1), noise, generator)


def multires_noise(
    noise: Tensor, iterations: int, discount: float, sizes: random.Random, generator: torch.Generator | None = None
) -> Tensor:
    """Noise plus ever coarser noise, each weaker by `discount`, brought back to unit variance.

    Kolasinski 2023 (wandb.ai, "Multi-resolution noise"). `sizes` draws by what factor each level shrinks.
    """
    batch, channels, height, width = noise.shape
    for level in range(iterations):
        factor = (sizes.random() * 2 + 2) ** level
        coarse_height, coarse_width = max(1, int(height / factor)), max(1, int(width / factor))
        coarse = _drawn((batch, channels, coarse_height, coarse_width), noise, generator)
        noise = noise + F.interpolate(coarse, size=(height, width), mode="bilinear") * discount**level
        if 1 in (coarse_height, coarse_width):
            break
    return noise / noise.std()  # kohya takes one deviation over the whole batch; we match it


def draw_noise(
    latents: Tensor, settings: NoiseSettings, sizes: random.Random, generator: torch.Generator | None = None
) -> Tensor:
    """The noise of one batch of scaled latents, as the settings shape it, where the latents are.

    Drawn on the CPU and in kohya's order, so that every device sees the same.
    """
    noise = _drawn(latents.shape, latents, generator)
    if settings.offset > 0:
        strength: float | Tensor = settings.offset
        if settings.offset_random:
            strength = strength * sent(torch.rand(1, generator=generator), latents.device)
        if settings.offset_adaptive != 0:
            brightness = latents.mean(dim=(2, 3), keepdim=True).abs()
            strength = torch.clamp(strength + settings.offset_adaptive * brightness, min=0)
        noise = offset_noise(noise, strength, generator)
    if settings.multires_iterations > 0:
        noise = multires_noise(noise, settings.multires_iterations, settings.multires_discount, sizes, generator)
    return noise


def perturbed(noise: Tensor, strength: float, generator: torch.Generator | None = None) -> Tensor:
    """Noise to mix in while the target stays `noise`: what the model gets is a little off, as it is when drawing.

    Ning et al. 2023 (arXiv:2301.11706), algorithm 1.
    """
    return noise + strength * _drawn(noise.shape, noise, generator) if strength > 0 else noise


def _drawn(shape: Sequence[int], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Normal numbers from the CPU's generator, on the device of another tensor."""
    return sent(torch.randn(shape, generator=generator, dtype=like.dtype), like.device)
