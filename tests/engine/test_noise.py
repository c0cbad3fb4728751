import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from engine import diffusion
from engine.noise import draw_noise, multires_noise, offset_noise
from engine.timesteps import draw_timesteps
from knowledge.config import NoiseSettings

DATA = Path(__file__).parent.parent / "data"
RECORDED = load_file(DATA / "noise.safetensors")
OPTIONS = json.loads((DATA / "noise_options.json").read_text())
SHAPE = tuple(RECORDED["latents"].shape)


def settings(options: dict) -> NoiseSettings:
    return NoiseSettings(
        offset=options.get("noise_offset", 0.0),
        multires_iterations=options.get("multires_noise_iterations", 0),
        multires_discount=options.get("multires_noise_discount", 0.3),
    )


@pytest.mark.parametrize("name", [name for name in OPTIONS if not name.startswith("ip")])
def test_noise_and_timesteps_are_kohyas_for_the_same_draws(name: str):
    options = OPTIONS[name]
    generator = torch.Generator().manual_seed(123)
    noise = draw_noise(SHAPE, settings(options), random.Random(321), generator)
    timesteps = draw_timesteps(SHAPE[0], options.get("min_timestep", 0), options.get("max_timestep", 1000), generator)
    noisy = diffusion.add_noise(RECORDED["latents"], noise, diffusion.alphas_cumprod()[timesteps])
    assert torch.equal(noise, RECORDED[f"{name}.noise"])
    assert timesteps.tolist() == RECORDED[f"{name}.timesteps"].tolist()
    torch.testing.assert_close(noisy, RECORDED[f"{name}.noisy"], rtol=1e-6, atol=1e-6)


def test_offset_noise_moves_whole_channels():
    generator = torch.Generator().manual_seed(0)
    moved = offset_noise(torch.zeros(2, 4, 8, 8), 0.5, generator)
    assert (moved.amax(dim=(2, 3)) == moved.amin(dim=(2, 3))).all()
    assert moved.std() > 0.1


def test_multires_noise_keeps_unit_variance():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn((2, 4, 32, 32), generator=generator)
    coarser = multires_noise(noise, 6, 0.8, random.Random(0), generator)
    assert coarser.std().item() == pytest.approx(1, abs=1e-5)
    assert coarser.mean(dim=(2, 3)).std() > 3 * noise.mean(dim=(2, 3)).std()


def test_timesteps_are_kohyas():
    recorded = json.loads((DATA / "timesteps.json").read_text())
    generator = torch.Generator().manual_seed(0)
    ours = [draw_timesteps(4, 0, 1000, generator).tolist() for _ in range(50)]
    assert ours == recorded["seed0_randint_0_1000_b4"]


def test_timesteps_stay_in_their_range():
    generator = torch.Generator().manual_seed(0)
    drawn = draw_timesteps(2000, 200, 210, generator)
    assert set(drawn.tolist()) == set(range(200, 210))
