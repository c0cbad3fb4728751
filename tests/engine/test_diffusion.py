import json
from pathlib import Path

import pytest
import torch

from engine import diffusion

RECORDED = json.loads((Path(__file__).parent.parent / "data" / "loss_weights.json").read_text())
AT = torch.tensor(RECORDED["timesteps"])


def test_alphas_cumprod_are_those_of_stable_diffusion():
    torch.testing.assert_close(
        diffusion.alphas_cumprod()[AT], torch.tensor(RECORDED["alphas_cumprod"]), rtol=1e-6, atol=0
    )


def test_zero_terminal_leaves_the_first_timestep_and_takes_all_signal_from_the_last():
    plain = diffusion.alphas_cumprod()
    table = diffusion.zero_terminal(plain)
    assert table[0] == pytest.approx(plain[0].item(), rel=1e-6)
    assert table[-1] == 0
    torch.testing.assert_close(table[AT], torch.tensor(RECORDED["alphas_cumprod_zero_terminal"]), rtol=1e-6, atol=1e-7)


def test_signal_to_noise_is_kohyas():
    snr = diffusion.signal_to_noise(diffusion.alphas_cumprod())[AT]
    torch.testing.assert_close(snr, torch.tensor(RECORDED["all_snr"]), rtol=1e-6, atol=0)


def test_add_noise_and_velocity_agree_with_diffusers():
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    generator = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn((3, 4, 8, 6), generator=generator) for _ in range(2))
    timesteps = torch.tensor([0, 500, 999])
    alphas = diffusion.alphas_cumprod()[timesteps]
    torch.testing.assert_close(
        diffusion.add_noise(latents, noise, alphas),
        scheduler.add_noise(latents, noise, timesteps),
        rtol=1e-6,
        atol=1e-6,
    )
    torch.testing.assert_close(
        diffusion.velocity(latents, noise, alphas),
        scheduler.get_velocity(latents, noise, timesteps),
        rtol=1e-6,
        atol=1e-6,
    )


def test_half_of_the_signal_is_left_where_alpha_bar_is_a_half():
    # √0.5 · 2 + √0.5 · 4 = 4.2426; v = √0.5 · 4 − √0.5 · 2 = 1.4142
    latents, noise = torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), 4.0)
    half = torch.tensor([0.5])
    assert diffusion.add_noise(latents, noise, half).item() == pytest.approx(4.242641, rel=1e-6)
    assert diffusion.velocity(latents, noise, half).item() == pytest.approx(1.414214, rel=1e-6)
