"""The loss of one batch: the part of a training step that learns from pictures and captions."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from engine.bench import Bench, seeded
from engine.dataset.batches import Batch
from engine.memory import sent
from engine.models.family import Conditioning
from engine.noise import draw_noise, perturbed
from knowledge.config import LossSettings


def loss_per_image(bench: Bench, batch: Batch, epoch: int, number: int) -> Tensor:
    """The weighted loss of every picture of batch `number` of this epoch, [batch].

    All chance comes from the seed, the epoch and the number, drawn on the CPU: every device, number of devices and
    resumed run sees the same latents, noise and timesteps.
    """
    config, model, device = bench.config, bench.model, bench.accelerator.device
    generator = torch.Generator().manual_seed(seeded(config.seed, "batch", epoch, number))
    torch.manual_seed(seeded(config.seed, "dropout", epoch, number))
    latents = model.scaled(clean_latents(bench, batch, generator))
    sizes = random.Random(seeded(config.seed, "multires", epoch, number))
    noise = draw_noise(latents, config.noise, sizes, generator)
    timesteps = model.draw_timesteps(len(latents), config.noise, generator)
    mixed_in = perturbed(noise, config.noise.input_perturbation, generator)
    latents, noise, mixed_in, timesteps = (sent(part, device) for part in (latents, noise, mixed_in, timesteps))
    return loss_of_draw(bench, batch, latents, noise, model.add_noise(latents, mixed_in, timesteps), timesteps)


def loss_of_draw(
    bench: Bench,
    batch: Batch,
    latents: Tensor,
    noise: Tensor,
    noisy: Tensor,
    timesteps: Tensor,
    loss: LossSettings | None = None,
) -> Tensor:
    """The weighted loss of every picture, [batch], for this noise at these timesteps; latents are scaled.

    `loss` takes the place of the config's, where it is given.
    """
    model, device = bench.model, bench.accelerator.device
    masks = bench.caches.masks
    sizes = sent(torch.tensor(batch.sizes, dtype=torch.float32), device)
    with bench.accelerator.autocast():
        prediction = model.predict(noisy, timesteps, conditioning(bench, batch.captions), sizes)
    return model.loss_per_image(
        prediction,
        model.target(latents, noise, timesteps),
        timesteps,
        sent(torch.tensor([item.regularisation for item in batch.items]), device),
        loss or bench.config.loss,
        None if masks is None else sent(masks.of(batch, *latents.shape[2:]), device),
    )


def clean_latents(bench: Bench, batch: Batch, generator: torch.Generator) -> Tensor:
    """One draw of the pictures' latents, before the scaling factor: cached ones on the CPU, others where the VAE is."""
    if bench.caches.latents is not None:
        return bench.caches.latents.latents(batch, generator)
    with torch.no_grad():
        mean, std = bench.model.encode_pictures(bench.caches.ahead.pixels(batch))
    return mean + std * sent(torch.randn(mean.shape, generator=generator), mean.device)


def conditioning(bench: Bench, captions: Sequence[str]) -> Conditioning:
    """What the captions say to the UNet: from the cache, or from the encoders, which may be learning."""
    if bench.caches.texts is not None:
        return bench.caches.texts.conditioning(captions).to(bench.accelerator.device)
    with torch.set_grad_enabled(torch.is_grad_enabled() and bench.config.network.train_text_encoder):
        return bench.model.encode_prompt(captions, padded=bench.config.base_model.pad_captions)
