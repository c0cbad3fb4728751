import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from engine import diffusion
from engine.noise import draw_noise, multires_noise, offset_noise, perturbed
from engine.timesteps import SAMPLINGS, draw_timesteps
from knowledge.config import NoiseSettings

DATA = Path(__file__).parent.parent / "data"
RECORDED = load_file(DATA / "noise.safetensors")
OPTIONS = json.loads((DATA / "noise_options.json").read_text())


def settings(options: dict) -> NoiseSettings:
    return NoiseSettings(
        offset=options.get("noise_offset", 0.0),
        offset_random=options.get("noise_offset_random_strength", False),
        offset_adaptive=options.get("adaptive_noise_scale", 0.0),
        multires_iterations=options.get("multires_noise_iterations", 0),
        multires_discount=options.get("multires_noise_discount", 0.3),
        input_perturbation=options.get("ip_noise_gamma", 0.0),
        minimum_timestep=options.get("min_timestep", 0),
        maximum_timestep=options.get("max_timestep", 1000),
    )


@pytest.mark.parametrize("name", OPTIONS)
def test_noise_and_timesteps_are_kohyas_for_the_same_draws(name: str):
    asked = settings(OPTIONS[name])
    latents = RECORDED["latents"]
    generator = torch.Generator().manual_seed(123)
    noise = draw_noise(latents, asked, random.Random(321), generator)
    timesteps = draw_timesteps(len(latents), asked, generator)
    mixed_in = perturbed(noise, asked.input_perturbation, generator)
    noisy = diffusion.add_noise(latents, mixed_in, diffusion.alphas_cumprod()[timesteps])
    assert torch.equal(noise, RECORDED[f"{name}.noise"])
    assert timesteps.tolist() == RECORDED[f"{name}.timesteps"].tolist()
    torch.testing.assert_close(noisy, RECORDED[f"{name}.noisy"], rtol=1e-6, atol=1e-6)


def test_offset_noise_moves_whole_channels():
    generator = torch.Generator().manual_seed(0)
    moved = offset_noise(torch.zeros(2, 4, 8, 8), 0.5, generator)
    assert (moved.amax(dim=(2, 3)) == moved.amin(dim=(2, 3))).all()
    assert moved.std() > 0.1


def test_an_adaptive_offset_grows_with_a_channels_brightness_and_is_never_less_than_none():
    bright = torch.ones(1, 4, 8, 8) * torch.tensor([0.0, 1.0, -2.0, 4.0]).view(1, 4, 1, 1)

    def moved(adaptive: float) -> list[float]:
        generator = torch.Generator().manual_seed(0)
        noise = draw_noise(
            bright, NoiseSettings(offset=0.1, offset_adaptive=adaptive), random.Random(0), generator=generator
        )
        plain = torch.randn(bright.shape, generator=torch.Generator().manual_seed(0))
        return (noise - plain).mean(dim=(2, 3)).flatten().tolist()

    steady = moved(0.0)
    shares = [now / usual for now, usual in zip(moved(0.05), steady, strict=True)]
    assert shares == pytest.approx([1, 1.5, 2, 3], rel=1e-3)  # (0.1 + 0.05 × brightness) / 0.1
    shares = [now / usual for now, usual in zip(moved(-0.05), steady, strict=True)]
    assert shares == pytest.approx([1, 0.5, 0, 0], abs=1e-3)


def test_every_further_iteration_adds_coarser_noise_until_there_is_none():
    latents = torch.zeros(1, 4, 64, 64)

    def coarse(iterations: int) -> float:
        settings = NoiseSettings(multires_iterations=iterations, multires_discount=0.9)
        noise = draw_noise(latents, settings, random.Random(0), torch.Generator().manual_seed(0))
        return noise.mean(dim=(2, 3)).abs().mean().item()

    assert coarse(0) < coarse(2) < coarse(4)
    assert coarse(32) == coarse(64)


def test_multires_noise_keeps_unit_variance():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn((2, 4, 32, 32), generator=generator)
    coarser = multires_noise(noise, 6, 0.8, random.Random(0), generator)
    assert coarser.std().item() == pytest.approx(1, abs=1e-5)
    assert coarser.mean(dim=(2, 3)).std() > 3 * noise.mean(dim=(2, 3)).std()


def test_timesteps_are_kohyas():
    recorded = json.loads((DATA / "timesteps.json").read_text())
    generator = torch.Generator().manual_seed(0)
    ours = [draw_timesteps(4, NoiseSettings(), generator).tolist() for _ in range(50)]
    assert ours == recorded["seed0_randint_0_1000_b4"]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_timesteps_stay_in_their_range(sampling: str):
    generator = torch.Generator().manual_seed(0)
    asked = NoiseSettings(minimum_timestep=200, maximum_timestep=210, timestep_sampling=sampling)
    assert set(draw_timesteps(4000, asked, generator).tolist()) == set(range(200, 210))


def test_logit_normal_timesteps_prefer_the_middle():
    generator = torch.Generator().manual_seed(0)
    drawn = draw_timesteps(4000, NoiseSettings(timestep_sampling="logit_normal"), generator).float()
    # sigmoid of a standard normal: median 1/2, and 68.3 % between sigmoid(-1) = 0.269 and sigmoid(1) = 0.731.
    assert drawn.median().item() == pytest.approx(500, abs=25)
    assert ((drawn > 269) & (drawn < 731)).float().mean().item() == pytest.approx(0.683, abs=0.03)
