"""What a family of base models is to the loop: everything that differs between families stands behind this."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from engine.models.sd import AdaptedLayer, Conditioning
from knowledge.config import LossSettings, NoiseSettings, Sampler


class BaseModel(Protocol):
    """A loaded base model. A new family is a class with these, and a row in `engine.models.load.FAMILIES`.

    The part that predicts is called "unet" whatever it is built of; all other parts are text encoders.
    """

    unet: Any
    vae: Any
    text_encoders: dict[str, Any]
    tokenizers: Sequence[Any]
    weighted_captions: bool
    latent_factor: int
    latent_channels: int

    @property
    def device(self) -> torch.device: ...
    def parts(self) -> Mapping[str, Any]: ...
    def complete(self) -> None: ...  # reads what `load` left for later, if anything
    def to(self, device: torch.device) -> None: ...
    def enable_gradient_checkpointing(self) -> None: ...
    def enable_selective_checkpointing(self) -> None: ...

    # Captions and pictures.
    def encode_prompt(self, captions: Sequence[str], *, padded: bool = True) -> Conditioning: ...
    def encode_pictures(self, pixels: Tensor) -> tuple[Tensor, Tensor]: ...
    def scaled(self, latents: Tensor) -> Tensor: ...
    def decode_latents(self, latents: Tensor) -> Tensor: ...

    # One step of training.
    def draw_timesteps(self, count: int, settings: NoiseSettings, generator: torch.Generator | None) -> Tensor: ...
    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor: ...
    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning, sizes: Tensor) -> Tensor: ...
    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor: ...
    def loss_per_image(
        self,
        prediction: Tensor,
        target: Tensor,
        timesteps: Tensor,
        regularisation: Tensor,
        settings: LossSettings,
        mask: Tensor | None,
    ) -> Tensor: ...

    # Drawing, and what a network changes.
    def sampling_scheduler(self, sampler: Sampler) -> Any: ...
    def adapted_layers(self, part: str, convolutions: bool) -> Iterator[AdaptedLayer]: ...
