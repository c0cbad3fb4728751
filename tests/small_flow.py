"""A family as engine/models would hold it: Stable Diffusion 3 without its third text encoder, as diffusers draws it.

Esser et al. 2024 (arXiv:2403.03206). What is known of it without a model stands in data/families/small_flow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from engine import loss
from engine.models.clip import ClipModel
from engine.models.family import Conditioning
from knowledge.answers import PlainError
from knowledge.config import BaseModelSettings, LossSettings, NoiseSettings, Sampler

TIMESTEPS = 1000
EMPTY_TOKENS = 256
"""What stands where the third text encoder would speak."""


class SmallFlow(ClipModel):
    """A loaded model that learns the straight way from noise to picture: x_t = (1 - σ) x_0 + σ ε, target ε - x_0."""

    kinds: ClassVar[dict[str, str]] = {
        "unet": "diffusers:SD3Transformer2DModel",
        "vae": "diffusers:AutoencoderKL",
        "text_encoder": "transformers:CLIPTextModelWithProjection",
        "text_encoder_2": "transformers:CLIPTextModelWithProjection",
    }
    attention_blocks: ClassVar[tuple[str, ...]] = ("JointTransformerBlock",)
    family = "small_flow"
    shift = 1.0
    """How much more often and more finely the noisy end is looked at."""

    @classmethod
    def assemble(cls, parts: Mapping[str, Any], settings: BaseModelSettings) -> Self:
        encoders = {name: parts[name] for name in cls.kinds if name.startswith("text_encoder")}
        model = cls(parts["unet"], parts["vae"], encoders, [parts["tokenizer"], parts["tokenizer_2"]])
        model.shift = float(parts["scheduler"].get("shift", cls.shift))
        return model

    @classmethod
    def read_file(cls, path: Path, family: str, dtype: torch.dtype) -> dict[str, Any]:
        raise PlainError(f"{path} is a single file; models of this family are read from diffusers folders alone.")

    def enable_selective_checkpointing(self) -> None:
        raise AssertionError("listed as lacking")

    def encode_prompt(self, captions: Sequence[str], *, padded: bool = True) -> Conditioning:
        """Both encoders' last layer but one side by side, widened to what the transformer reads; summaries likewise."""
        hidden_states, pooled = [], []
        for which, encoder in enumerate(self.text_encoders.values()):
            outputs, _ = self.encode(which, encoder, captions, padded)
            hidden_states.append(self.weigh(outputs.hidden_states[-2], which, captions))
            pooled.append(outputs.text_embeds)
        read = torch.cat(hidden_states, dim=-1)
        read = F.pad(read, (0, self.unet.config.joint_attention_dim - read.shape[-1], 0, EMPTY_TOKENS))
        return Conditioning(read, torch.cat(pooled, dim=-1))

    def draw_timesteps(self, count: int, settings: NoiseSettings, generator: torch.Generator | None) -> Tensor:
        sigmas = super().draw_timesteps(count, settings, generator) / TIMESTEPS
        return TIMESTEPS * self.shift * sigmas / (1 + (self.shift - 1) * sigmas)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        sigmas = (timesteps / TIMESTEPS).view(-1, 1, 1, 1)
        return (1 - sigmas) * latents + sigmas * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return noise - latents

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning, sizes: Tensor) -> Tensor:
        prediction: Tensor = self.unet(
            noisy, conditioning.hidden_states, conditioning.pooled, timesteps, return_dict=False
        )[0]
        return prediction

    def loss_per_image(
        self,
        prediction: Tensor,
        target: Tensor,
        timesteps: Tensor,
        regularisation: Tensor,
        settings: LossSettings,
        mask: Tensor | None,
    ) -> Tensor:
        if mask is not None:
            mask = settings.unmasked_weight + (1 - settings.unmasked_weight) * mask
        each = loss.loss_per_image(prediction, target, settings.function, mask=mask)
        return torch.where(regularisation, each * settings.prior_weight, each)

    def sampling_scheduler(self, sampler: Sampler) -> Any:
        from diffusers import FlowMatchEulerDiscreteScheduler

        return FlowMatchEulerDiscreteScheduler(shift=self.shift)
