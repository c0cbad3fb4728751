"""How a picture is mixed with noise and what the model has to tell back: small pure functions over tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def alphas_cumprod(beta_start: float = 0.00085, beta_end: float = 0.012, timesteps: int = 1000) -> Tensor:
    """Share of the signal left at each timestep, [timesteps] in float32: the "scaled linear" betas of latent diffusion.

    Rombach et al. 2022 (arXiv:2112.10752), appendix; cumulative product as in Ho et al. 2020, equation 4.
    """
    betas = torch.linspace(beta_start**0.5, beta_end**0.5, timesteps, dtype=torch.float32) ** 2
    return torch.cumprod(1.0 - betas, dim=0)


def zero_terminal(alphas_cumprod: Tensor) -> Tensor:
    """The same schedule, shifted and scaled so that nothing of the signal is left at the last timestep.

    Lin et al. 2023 (arXiv:2305.08891), algorithm 1.
    """
    root = alphas_cumprod.sqrt()
    first, last = root[0].clone(), root[-1].clone()
    return ((root - last) * first / (first - last)) ** 2


def signal_to_noise(alphas_cumprod: Tensor) -> Tensor:
    """SNR = ᾱ / (1 − ᾱ) at each timestep. Hang et al. 2023 (arXiv:2303.09556), section 3.1."""
    # As a ratio of roots, squared: kohya's order of operations, equal to the last bit.
    return (alphas_cumprod.sqrt() / (1.0 - alphas_cumprod).sqrt()) ** 2


def add_noise(latents: Tensor, noise: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """Noisy latents q(x_t | x_0), Ho et al. 2020 (arXiv:2006.11239), equation 4.

    latents, noise: [batch, channels, height, width]; alphas_cumprod: [batch], of each picture's timestep.
    """
    alpha_bar = alphas_cumprod.view(-1, 1, 1, 1)
    return alpha_bar**0.5 * latents + (1 - alpha_bar) ** 0.5 * noise


def velocity(latents: Tensor, noise: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """Target of a v-prediction model, v = √ᾱ ε − √(1−ᾱ) x_0. Salimans & Ho 2022 (arXiv:2202.00512), appendix D."""
    alpha_bar = alphas_cumprod.view(-1, 1, 1, 1)
    return alpha_bar**0.5 * noise - (1 - alpha_bar) ** 0.5 * latents
