"""From a batch to its loss: what is drawn for it, and what of the settings reaches the loss."""

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engine import diffusion
from engine.batch_loss import loss_per_image
from engine.bench import seeded
from engine.loss import weighted_loss_per_image
from engine.models.sd import StableDiffusion
from engine.noise import draw_noise
from engine.timesteps import draw_timesteps
from knowledge.config import LossSettings, NoiseSettings, PredictionType

LATENTS = torch.randn((2, 4, 16, 16), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("strength", [0.0, 0.2])
def test_the_picture_is_mixed_with_perturbed_noise_and_the_target_is_the_noise_itself(
    monkeypatch: pytest.MonkeyPatch, strength: float
):
    settings = NoiseSettings(
        offset=0.1, multires_iterations=3, input_perturbation=strength, minimum_timestep=900, maximum_timestep=950
    )
    model = SimpleNamespace(
        scaled=lambda latents: 2 * latents,
        draw_timesteps=draw_timesteps,
        add_noise=lambda latents, noise, timesteps: {"latents": latents, "mixed in": noise, "timesteps": timesteps},
    )
    bench: Any = SimpleNamespace(
        config=SimpleNamespace(seed=42, noise=settings),
        model=model,
        accelerator=SimpleNamespace(device=torch.device("cpu")),
    )
    monkeypatch.setattr("engine.batch_loss.clean_latents", lambda *_: LATENTS)
    monkeypatch.setattr("engine.batch_loss.loss_of_draw", lambda *given: given)
    _, _, latents, noise, noisy, timesteps = loss_per_image(bench, None, 3, 7)  # type: ignore[arg-type]

    generator = torch.Generator().manual_seed(seeded(42, "batch", 3, 7))
    expected = draw_noise(2 * LATENTS, settings, random.Random(seeded(42, "multires", 3, 7)), generator)
    assert torch.equal(noise, expected)
    assert torch.equal(timesteps, draw_timesteps(2, settings, generator))
    further = torch.randn(noise.shape, generator=generator) if strength else 0.0
    assert torch.equal(noisy["mixed in"], expected + strength * further)
    assert torch.equal(latents, 2 * LATENTS)
    assert torch.equal(noisy["latents"], latents)
    assert torch.equal(noisy["timesteps"], timesteps)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_stable_diffusion_weighs_its_loss_as_what_it_predicts_asks(prediction_type: PredictionType):
    alphas = diffusion.alphas_cumprod()
    known = {"alphas_cumprod": alphas, "snr": diffusion.signal_to_noise(alphas), "prediction_type": prediction_type}
    model: Any = SimpleNamespace(**known)
    settings = LossSettings(minimum_snr_gamma=5.0, debiased=True, unmasked_weight=0.25, prior_weight=0.5)
    mask = torch.zeros(2, 1, 16, 16)
    mask[:, :, :8] = 1
    given = (LATENTS, LATENTS.flip(0), torch.tensor([100, 800]), torch.tensor([False, True]), settings)
    ours = StableDiffusion.loss_per_image(model, *given, mask)
    assert torch.equal(ours, weighted_loss_per_image(*given, **known, mask=mask))
