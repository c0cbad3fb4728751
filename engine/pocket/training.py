"""The two trainings behind the pocket model: its VAE, then its UNet and text encoder together."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from engine.pocket.measure import pixels, stable_diffusion_alphas_cumprod, token_ids
from engine.pocket.muon import Muon
from engine.pocket.scenes import captioned_scene, clutter

VAE_SEEDS = 10_000_000  # first scene seed of the VAE's own pictures; the UNet's begin at 0

THUMBNAIL_SCALE = 1.5  # brings the thumbnail's deviation near 1


@dataclass(frozen=True)
class VaeRecipe:
    """Steps and rates of the VAE.

    A VAE left alone makes latents rough where the picture is flat, and a small UNet then learns slowly. So three of the
    four channels are drawn towards the reduced picture (`thumbnail`), decode(half-size latents) must match the
    half-size picture (`equivariance`, Kouzelis et al. 2025, arXiv:2502.09509), and the decoder sees latents with a
    little noise added (`robustness`), as a UNet would make them.
    """

    steps: int = 2000
    batch_size: int = 10
    muon_rate: float = 0.02
    adamw_rate: float = 2e-3
    edges: float = 0.5
    thumbnail: float = 0.5
    equivariance: float = 0.25
    divergence: float = 2e-4
    robustness: float = 0.08
    seed: int = 1


def new_vae() -> AutoencoderKL:
    """An untrained VAE of Stable Diffusion's layout: four channels, but a factor of 4 instead of 8."""
    channels = (16, 32, 64)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=16,
        sample_size=64,
    )


def optimizers(model: nn.Module, muon_rate: float, adamw_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the weights between the first and the last layer, AdamW for everything else."""
    outer = ("conv_in", "conv_out", "quant_conv", "embedding")
    named = dict(model.named_parameters())
    inner = {name: weight for name, weight in named.items() if weight.ndim > 1 and not any(o in name for o in outer)}
    rest = [weight for name, weight in named.items() if name not in inner]
    return [
        torch.optim.AdamW(rest, lr=adamw_rate, betas=(0.9, 0.98), weight_decay=1e-4, fused=True),
        Muon(list(inner.values()), lr=muon_rate),
    ]


def edge_difference(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of horizontal and vertical gradients."""
    difference = prediction - target
    return difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()


def rate_factor(step: int, steps: int, warmup: int = 50, hold: float = 0.3) -> float:
    """Linear warm-up, a plateau for `hold` of the run, then linear down to 0."""
    return min(1.0, (step + 1) / warmup, (1 - step / steps) / (1 - hold))


def save_state(
    file: Path, step: int, model: nn.Module, average: dict[str, Tensor], tuners: list[torch.optim.Optimizer]
) -> None:
    """Everything a training needs to go on, written whole or not at all."""
    part = file.with_suffix(".part")
    tuner_states = [tuner.state_dict() for tuner in tuners]
    torch.save({"step": step, "model": model.state_dict(), "average": average, "tuners": tuner_states}, part)
    part.replace(file)


def load_state(file: Path, model: nn.Module, tuners: list[torch.optim.Optimizer]) -> tuple[int, dict[str, Tensor]]:
    """Steps done and averaged weights, after model and optimizers have taken up their saved state."""
    state = torch.load(file)
    model.load_state_dict(state["model"])
    for tuner, tuner_state in zip(tuners, state["tuners"], strict=True):
        tuner.load_state_dict(tuner_state)
    return state["step"], state["average"]


def write_progress(log: Path, stage: str, step: int, loss: float, started: float) -> None:
    """One JSON line: where the training stands."""
    with log.open("a") as file:
        file.write(json.dumps({"stage": stage, "step": step, "loss": loss, "seconds": time.time() - started}) + "\n")


def train_vae(recipe: VaeRecipe, state_file: Path, log: Path) -> AutoencoderKL:
    """The VAE with averaged weights; goes on from `state_file` when it is there."""
    torch.manual_seed(recipe.seed)
    vae = new_vae()
    vae.set_attn_processor(AttnProcessor())
    tuners = optimizers(vae, recipe.muon_rate, recipe.adamw_rate)
    rates = [tuner.param_groups[0]["lr"] for tuner in tuners]
    average = {name: tensor.detach().clone() for name, tensor in vae.state_dict().items()}
    first_step, started, errors = 0, time.time(), []
    if state_file.exists():
        first_step, average = load_state(state_file, vae, tuners)
    for step in range(first_step, recipe.steps):
        torch.manual_seed(recipe.seed * 1_000_000 + step)  # so that a resumed run draws the same noise
        for tuner, rate in zip(tuners, rates, strict=True):
            tuner.param_groups[0]["lr"] = rate * rate_factor(step, recipe.steps)
        seeds = range(step * recipe.batch_size, (step + 1) * recipe.batch_size)
        images = pixels([captioned_scene(VAE_SEEDS + seed)[0] if seed % 3 else clutter(seed) for seed in seeds])
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(images).latent_dist
            latents = posterior.mean.float() + posterior.std.float() * torch.randn_like(posterior.mean.float())
            latents = latents + recipe.robustness * torch.randn_like(latents)
            decoded = vae.decode(latents).sample.float()
            few = recipe.batch_size // 3
            decoded_small = vae.decode(F.avg_pool2d(latents[:few], 2)).sample.float()
        error = F.mse_loss(decoded, images)
        loss = (
            0.5 * F.l1_loss(decoded, images)
            + 2 * error
            + recipe.thumbnail * F.mse_loss(posterior.mean[:, :3].float(), THUMBNAIL_SCALE * F.avg_pool2d(images, 4))
            + recipe.edges * edge_difference(decoded, images)
            + recipe.equivariance * F.l1_loss(decoded_small, F.avg_pool2d(images[:few], 2))
            + recipe.divergence * posterior.kl().float().mean() / latents[0].numel()
        )
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        for tuner in tuners:
            tuner.step()
            tuner.zero_grad()
        with torch.no_grad():
            for name, tensor in vae.state_dict().items():
                average[name].lerp_(tensor, 1 - min(0.995, step / (step + 20)))
        errors.append(error.item())
        if (step + 1) % 100 == 0 or step + 1 == recipe.steps:
            write_progress(log, "vae", step + 1, float(np.mean(errors[-100:])), started)
        if (step + 1) % 400 == 0:
            save_state(state_file, step + 1, vae, average, tuners)
    vae.load_state_dict(average)
    return vae


@torch.no_grad()
def encode_scenes(vae: AutoencoderKL, tokenizer: CLIPTokenizer, count: int, first_seed: int = 0) -> dict[str, Tensor]:
    """Latent means and deviations [count, 2, 4, 16, 16], unscaled, and token ids [count, 77] of `count` scenes."""
    posteriors, captions = [], []
    for seed in range(first_seed, first_seed + count, 100):
        scenes = [captioned_scene(seed + number) for number in range(min(100, first_seed + count - seed))]
        captions += [caption for _, caption in scenes]
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(pixels([picture for picture, _ in scenes])).latent_dist
        posteriors.append(torch.stack([posterior.mean, posterior.std], dim=1).half())
    return {"posteriors": torch.cat(posteriors), "token_ids": token_ids(tokenizer, captions).int()}


@dataclass(frozen=True)
class DenoiserRecipe:
    """Steps and rates of UNet and text encoder.

    `rate_points` are (step, share of the rates), joined by straight lines.
    From `grounds_from` on the caption must decide about the ground: the noise gets an offset per channel, without which
    even the last timestep gives the mean colour away, and timesteps of almost pure noise count more, up to the SNR of
    `min_snr_floor`. From `text_encoder_from` on, when the UNet can draw, the text encoder learns, and the noisier
    timesteps, where the caption decides, come more often. Until `crowds_from` it learns from scenes with one object in
    the middle.
    """

    steps: int = 2_125
    rate_points: tuple[tuple[int, float], ...] = (
        (0, 0.0),
        (100, 1.0),
        (1000, 1.0),
        (1375, 0.0),
        (1400, 0.8),
        (1550, 0.8),
        (2125, 0.0),
    )
    grounds_from: int = 250
    text_encoder_from: int = 750
    crowds_from: int = 1_375
    noise_offset: float = 0.1
    min_snr_floor: float = 0.05
    batch_size: int = 64
    muon_rate: float = 0.02
    adamw_rate: float = 2e-3
    min_snr_gamma: float = 5.0
    caption_dropout: float = 0.1
    scenes: int = 64_000
    seed: int = 2


def new_unet() -> UNet2DConditionModel:
    """An untrained UNet of Stable Diffusion's classes: three levels instead of four, attention below the first.

    Attention at 16x16 would take half the time of a step.
    """
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 96, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=64,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def new_text_encoder() -> CLIPTextModel:
    """An untrained CLIP text encoder, 64 wide and 2 layers deep, with every row of the real vocabulary.

    Rows are seeded at plus or minus 0.05: a word the training never shows keeps a vector of its own, from which a LoRA
    can learn it, and two values compress well.
    """
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=64,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=2,
            projection_dim=64,
            hidden_act="quick_gelu",
            bos_token_id=49406,
            eos_token_id=49407,
            pad_token_id=49407,
        )
    )
    rows = encoder.get_input_embeddings().weight
    with torch.no_grad():
        rows.copy_(torch.randint(0, 2, rows.shape) * 0.1 - 0.05)
    return encoder


class Denoiser(nn.Module):
    """UNet and text encoder, trained as one."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = new_unet()
        self.unet.set_attn_processor(AttnProcessor())
        self.text_encoder = new_text_encoder()
        self.text_encoder.set_attn_implementation("eager")  # fused, it took 6 % of a step

    def forward(self, noisy_latents: Tensor, timesteps: Tensor, ids: Tensor) -> Tensor:
        prediction: Tensor = self.unet(noisy_latents, timesteps, self.text_encoder(ids).last_hidden_state).sample
        return prediction


def train_denoiser(
    recipe: DenoiserRecipe,
    scenes: dict[str, Tensor],
    empty_ids: Tensor,
    several_ids: Tensor,
    scaling_factor: float,
    state_file: Path,
    log: Path,
) -> Denoiser:
    """UNet and text encoder with averaged weights; goes on from `state_file` when it is there.

    `several_ids` are the tokens that only scenes with several, small or displaced objects have.
    """
    torch.manual_seed(recipe.seed)
    denoiser = Denoiser()
    tuners = optimizers(denoiser, recipe.muon_rate, recipe.adamw_rate)
    rates = [tuner.param_groups[0]["lr"] for tuner in tuners]
    average = {name: tensor.detach().clone() for name, tensor in denoiser.state_dict().items()}
    first_step, started, losses = 0, time.time(), []
    if state_file.exists():
        first_step, average = load_state(state_file, denoiser, tuners)
    alphas_cumprod = stable_diffusion_alphas_cumprod()
    snr = alphas_cumprod / (1 - alphas_cumprod)
    first_weights = snr.clamp(max=recipe.min_snr_gamma) / snr
    later_weights = snr.clamp(min=recipe.min_snr_floor, max=recipe.min_snr_gamma) / snr
    batch = torch.arange(recipe.batch_size)
    single = (~torch.isin(scenes["token_ids"], several_ids).any(dim=1)).nonzero().flatten()
    turns = [turn for turn, _ in recipe.rate_points], [rate for _, rate in recipe.rate_points]
    for step in range(first_step, recipe.steps):
        torch.manual_seed(recipe.seed * 1_000_000 + step)  # so that a resumed run draws the same noise
        for tuner, rate in zip(tuners, rates, strict=True):
            tuner.param_groups[0]["lr"] = rate * float(np.interp(step, *turns))
        chosen = torch.randint(0, len(scenes["token_ids"]), (recipe.batch_size,))
        if recipe.text_encoder_from <= step < recipe.crowds_from:
            chosen = single[chosen % len(single)]
        mean, deviation = scenes["posteriors"][chosen].float().unbind(1)
        latents = (mean + deviation * torch.randn_like(mean)) * scaling_factor
        ids = scenes["token_ids"][chosen].long()
        ids[torch.rand(recipe.batch_size) < recipe.caption_dropout] = empty_ids
        noise = torch.randn_like(latents)
        weights = first_weights
        if step >= recipe.grounds_from:
            noise = noise + recipe.noise_offset * torch.randn(*latents.shape[:2], 1, 1)
            weights = later_weights
        weights = weights / weights.mean()
        shares = (batch + torch.rand(1)) / recipe.batch_size  # evenly spread: a steadier gradient
        if step >= recipe.text_encoder_from:
            shares = shares.sqrt()
        timesteps = (shares * 1000).long()
        alpha_bar = alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        noisy_latents = alpha_bar.sqrt() * latents + (1 - alpha_bar).sqrt() * noise
        with torch.autocast("cpu", torch.bfloat16):
            prediction = denoiser(noisy_latents, timesteps, ids).float()
        per_image = (prediction - noise).square().mean(dim=(1, 2, 3))
        (per_image * weights[timesteps]).mean().backward()
        if step < recipe.text_encoder_from:
            for weight in denoiser.text_encoder.parameters():
                weight.grad.zero_()
        nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
        for tuner in tuners:
            tuner.step()
            tuner.zero_grad()
        with torch.no_grad():
            fresh = denoiser.state_dict()
            moving = [name for name in fresh if fresh[name].is_floating_point()]
            share = 1 - min(0.998, step / (step + 30))
            torch._foreach_lerp_([average[name] for name in moving], [fresh[name] for name in moving], share)
        losses.append(per_image.mean().item())
        if (step + 1) % 50 == 0 or step + 1 == recipe.steps:
            write_progress(log, "denoiser", step + 1, float(np.mean(losses[-50:])), started)
        if (step + 1) % 125 == 0 or step + 1 == recipe.steps:
            save_state(state_file, step + 1, denoiser, average, tuners)
    denoiser.load_state_dict(average)
    return denoiser
