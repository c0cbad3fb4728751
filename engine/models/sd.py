"""Stable Diffusion 1.x and 2.x, and the pocket model, which is built from the same classes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from engine import diffusion, samplers
from engine.loss import weighted_loss_per_image
from engine.models.checkpointing import checkpoint_unet
from engine.models.clip import ClipModel, final_layer_norm, joined
from engine.models.family import Conditioning
from engine.models.original import read_original
from knowledge.answers import PlainError
from knowledge.config import BaseModelSettings, LossSettings, PredictionType, Sampler
from knowledge.words import count


class StableDiffusion(ClipModel):
    """A loaded base model of the 1.x or the 2.x family."""

    kinds: ClassVar[dict[str, str]] = {
        "unet": "diffusers:UNet2DConditionModel",
        "vae": "diffusers:AutoencoderKL",
        "text_encoder": "transformers:CLIPTextModel",
    }
    attention_blocks: ClassVar[tuple[str, ...]] = ("Transformer2DModel",)
    convolution_blocks: ClassVar[tuple[str, ...]] = ("ResnetBlock2D", "Downsample2D", "Upsample2D")
    family = "sd15"

    def __init__(
        self,
        unet: Any,
        vae: Any,
        text_encoders: dict[str, Any],
        tokenizers: Sequence[Any],
        *,
        prediction_type: PredictionType = "epsilon",
        zero_terminal_snr: bool = False,
        clip_skip: int = 1,
        maximum_tokens: int = 75,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
    ) -> None:
        super().__init__(unet, vae, text_encoders, tokenizers, clip_skip=clip_skip, maximum_tokens=maximum_tokens)
        self.prediction_type: PredictionType = prediction_type
        plain = diffusion.alphas_cumprod(beta_start, beta_end)
        self.alphas_cumprod = diffusion.zero_terminal(plain) if zero_terminal_snr else plain
        # kohya weighs losses by the SNR of the plain schedule even under zero terminal SNR; we match it, and so
        # min-SNR never divides by zero.
        self.snr = diffusion.signal_to_noise(plain)
        self.zero_terminal_snr = zero_terminal_snr

    @classmethod
    def assemble(cls, parts: Mapping[str, Any], settings: BaseModelSettings) -> Self:
        """The model of its parts. Raises PlainError where its text encoder has fewer layers than clip_skip asks for."""
        encoders = {name: parts[name] for name in cls.kinds if name.startswith("text_encoder")}
        layers = parts["text_encoder"].config.num_hidden_layers
        if settings.clip_skip > layers:
            raise PlainError(
                f"base_model.clip_skip is {settings.clip_skip}, but the text encoder of {settings.path} "
                f"has {count(layers, 'layer')}. 1 takes the last one."
            )
        return cls(
            parts["unet"],
            parts["vae"],
            encoders,
            [parts[name.replace("text_encoder", "tokenizer")] for name in encoders],
            prediction_type=settings.prediction_type,
            zero_terminal_snr=settings.zero_terminal_snr,
            clip_skip=settings.clip_skip,
            maximum_tokens=settings.maximum_tokens,
            beta_start=float(parts["scheduler"].get("beta_start", 0.00085)),
            beta_end=float(parts["scheduler"].get("beta_end", 0.012)),
        )

    @classmethod
    def read_file(cls, path: Path, family: str, dtype: torch.dtype) -> dict[str, Any]:
        """The same parts out of a file in the original layout."""
        return read_original(path, family, dtype)

    def to(self, device: torch.device, *, but: Collection[Any] = ()) -> None:
        """Move all parts but these, and the tables with them; what was left for later is read now."""
        self.alphas_cumprod, self.snr = self.alphas_cumprod.to(device), self.snr.to(device)
        super().to(device, but=but)

    def enable_gradient_checkpointing(self) -> None:
        """Compute activations a second time in the backward pass instead of keeping them."""
        super().enable_gradient_checkpointing()
        checkpoint_unet(self.unet)

    def enable_selective_checkpointing(self) -> None:
        """Compute again only what is cheap: norms and activation functions of the UNet."""
        from engine.models.selective_checkpointing import keep_less  # and with it diffusers, which takes seconds

        keep_less(self.unet)

    # -- text ----------------------------------------------------------------------------------------------------------

    def encode_prompt(self, captions: Sequence[str], *, padded: bool = True) -> Conditioning:
        """What the text encoder makes of the captions. clip_skip 1 takes its last layer, 2 the one before it.

        Not `padded`: no longer than the longest of them.
        """
        (encoder,) = self.text_encoders.values()
        outputs, count = self.encode(0, encoder, captions, padded)
        # The list also holds the embeddings, before the first layer.
        hidden_states = final_layer_norm(encoder)(outputs.hidden_states[-self.clip_skip])
        return Conditioning(self.weigh(joined(hidden_states, count), 0, captions))

    # -- noise, prediction, target ------------------------------------------------------------------------------------

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Latents at these timesteps."""
        return diffusion.add_noise(latents, noise, self.alphas_cumprod[timesteps])

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the prediction should have been."""
        if self.prediction_type == "v_prediction":
            return diffusion.velocity(latents, noise, self.alphas_cumprod[timesteps])
        return noise

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning, sizes: Tensor) -> Tensor:
        """The UNet's answer; this family does not look at sizes."""
        prediction: Tensor = self.unet(noisy, timesteps, conditioning.hidden_states, return_dict=False)[0]
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
        """The weighted loss of each picture, [batch]."""
        return weighted_loss_per_image(
            prediction,
            target,
            timesteps,
            regularisation,
            settings,
            alphas_cumprod=self.alphas_cumprod,
            snr=self.snr,
            prediction_type=self.prediction_type,
            mask=mask,
        )

    def sampling_scheduler(self, sampler: Sampler) -> Any:
        """The diffusers scheduler with which samples are drawn."""
        return samplers.scheduler(sampler, self.snr, self.prediction_type, zero_terminal_snr=self.zero_terminal_snr)
