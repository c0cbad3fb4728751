"""How well a UNet knows given pictures: the denoising loss with noise and timesteps held still.

Feature similarity and colour histograms rank noise above a near miss; this loss ranked undertrained, trained,
overfitted and destroyed networks in the order the eye did.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def pixels(pictures: Sequence[Image.Image]) -> Tensor:
    """[batch, 3, height, width] in [-1, 1]; all pictures have one size."""
    stacked = torch.from_numpy(np.stack([np.asarray(picture.convert("RGB")) for picture in pictures]))
    return stacked.permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()


def stable_diffusion_alphas_cumprod() -> Tensor:
    """[1000]: Stable Diffusion's schedule, betas from 0.00085 to 0.012, linear in their square roots."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0).float()


def token_ids(tokenizer: Any, captions: Sequence[str]) -> Tensor:
    """[batch, 77]."""
    tokens = tokenizer(list(captions), padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    ids: Tensor = tokens.input_ids
    return ids


@torch.no_grad()
def denoising_loss(
    unet: Any,
    text_encoder: Any,
    vae: Any,
    tokenizer: Any,
    pictures: Sequence[Image.Image],
    captions: Sequence[str],
    draws: int = 16,
    seed: int = 0,
) -> float:
    """Mean squared error of the predicted noise over pictures and `draws` timesteps each, spread over the schedule.

    The same pictures and seed give the same noise and timesteps, so two networks can be compared to 1e-3.
    """
    alphas_cumprod = stable_diffusion_alphas_cumprod()
    generator = torch.Generator().manual_seed(seed)
    latents = vae.encode(pixels(pictures)).latent_dist.mean * vae.config.scaling_factor
    hidden_states = text_encoder(token_ids(tokenizer, captions))[0]
    losses = []
    for draw in range(draws):
        noise = torch.randn(latents.shape, generator=generator)
        shifts = torch.arange(len(latents)) / len(latents)
        timesteps = ((draw + shifts) * 1000 / draws).long()
        alpha_bar = alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        noisy_latents = alpha_bar.sqrt() * latents + (1 - alpha_bar).sqrt() * noise
        prediction = unet(noisy_latents, timesteps, hidden_states).sample
        losses.append(torch.nn.functional.mse_loss(prediction, noise).item())
    return sum(losses) / len(losses)
