"""What a family of base models is to the loop: everything that differs between families stands behind this."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from engine.memory import give_back, sent
from engine.timesteps import draw_timesteps
from knowledge.config import BaseModelSettings, LossSettings, NoiseSettings, Sampler
from knowledge.families import family_facts


@dataclass(frozen=True)
class Conditioning:
    """What the captions say to the model: hidden_states [batch, tokens, width]; pooled [batch, width], or None."""

    hidden_states: Tensor
    pooled: Tensor | None = None

    def to(self, device: torch.device) -> Conditioning:
        """The same on another device."""
        return Conditioning(
            sent(self.hidden_states, device), None if self.pooled is None else sent(self.pooled, device)
        )

    @staticmethod
    def stack(parts: Sequence[Conditioning]) -> Conditioning:
        """One batch out of several; all must have the same number of tokens."""
        pooled = [part.pooled for part in parts if part.pooled is not None]
        return Conditioning(
            torch.cat([part.hidden_states for part in parts]), torch.cat(pooled) if len(pooled) == len(parts) else None
        )


@dataclass(frozen=True)
class AdaptedLayer:
    """A layer that a network changes. `name` is what saved files call it; `part` is "unet" or a text encoder's name."""

    name: str
    module: nn.Module
    part: str


class BaseModel(ABC):
    """A loaded base model. The part that predicts is called "unet" whatever it is built of; all others but the VAE are
    text encoders. What a family must say for itself is abstract; the rest is as most families have it.
    """

    kinds: ClassVar[Mapping[str, str]]
    """The class of each part in a diffusers folder, as library:Class."""
    attention_blocks: ClassVar[tuple[str, ...]]
    """Classes of the blocks whose linear layers and 1x1 convolutions a network changes."""
    convolution_blocks: ClassVar[tuple[str, ...]] = ()
    """Those that it changes besides where network.convolutions asks for it."""
    text_blocks: ClassVar[tuple[str, ...]]

    family: str
    maximum_tokens: int
    """How many words or pieces of words of a caption are read; more are cut off."""

    def __init__(self, unet: Any, vae: Any, text_encoders: dict[str, Any], tokenizers: Sequence[Any]) -> None:
        self.unet, self.vae, self.text_encoders, self.tokenizers = unet, vae, text_encoders, tokenizers
        self.weighted_captions = False  # (red:1.3) in captions and prompts counts more
        self.later: Callable[[], None] | None = None  # reads what `load` left for later
        self.latent_factor = 2 ** (len(vae.config.block_out_channels) - 1)
        self.latent_channels: int = vae.config.latent_channels
        self.scaling_factor: float = vae.config.scaling_factor
        self.shift_factor: float = getattr(vae.config, "shift_factor", None) or 0.0

    @classmethod
    @abstractmethod
    def assemble(cls, parts: Mapping[str, Any], settings: BaseModelSettings) -> Self:
        """The model of its parts: those of `kinds`, a tokenizer for each text encoder, and the scheduler's config."""

    @classmethod
    @abstractmethod
    def read_file(cls, path: Path, family: str, dtype: torch.dtype) -> dict[str, Any]:
        """The same parts out of a single file, which `engine.models.detect` found to be of this family."""

    # -- where things are ---------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.unet.parameters()).device
        return device

    def complete(self) -> None:
        """Read the weights that were left for later. Raises PlainError when their file is broken."""
        if self.later is not None:
            self.later()
            self.later = None

    def parts(self) -> dict[str, Any]:
        """The parts that a network may change, by name."""
        return {"unet": self.unet, **self.text_encoders}

    def to(self, device: torch.device, *, but: Collection[Any] = ()) -> None:
        """Move all parts but these; what was left for later is read now."""
        self.complete()
        for part in (*self.parts().values(), self.vae):
            if not any(part is left for left in but):
                part.to(device)
        give_back()

    def enable_gradient_checkpointing(self) -> None:
        """Compute activations a second time in the backward pass instead of keeping them."""
        self.unet.enable_gradient_checkpointing()
        for encoder in self.text_encoders.values():
            encoder.gradient_checkpointing_enable({"use_reentrant": False})
            encoder.train()  # transformers checkpoints in training mode only; CLIP has no dropout

    @abstractmethod
    def enable_selective_checkpointing(self) -> None:
        """Compute again only what is cheap; families that cannot list memory.selective_checkpointing as lacking."""

    # -- captions and pictures ----------------------------------------------------------------------------------------

    @abstractmethod
    def encode_prompt(self, captions: Sequence[str], *, padded: bool = True) -> Conditioning:
        """What the text encoders make of the captions. Not `padded`: no longer than the longest of them."""

    def encode_pictures(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents of pictures in [-1, 1], as the VAE gives them."""
        distribution = self.vae.encode(sent(pixels, self.vae.device).to(self.vae.dtype)).latent_dist
        return distribution.mean.float(), distribution.std.float()

    def scaled(self, latents: Tensor) -> Tensor:
        """Latents as the model knows them, of those that the VAE gives."""
        return (latents - self.shift_factor) * self.scaling_factor

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Pictures in [-1, 1] of scaled latents."""
        unscaled = latents.to(self.vae.device, self.vae.dtype) / self.scaling_factor + self.shift_factor
        pixels: Tensor = self.vae.decode(unscaled).sample
        return pixels.float().clamp(-1, 1)

    # -- one step of training -----------------------------------------------------------------------------------------

    def draw_timesteps(self, count: int, settings: NoiseSettings, generator: torch.Generator | None) -> Tensor:
        """The noise levels of `count` pictures."""
        return draw_timesteps(count, settings, generator)

    @abstractmethod
    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Latents at these timesteps."""

    @abstractmethod
    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning, sizes: Tensor) -> Tensor:
        """The model's answer.

        sizes: [batch, 6] pixels: original height, width, crop top, left, target height, width.
        """

    @abstractmethod
    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the prediction should have been."""

    @abstractmethod
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

    # -- drawing, and what a network changes --------------------------------------------------------------------------

    @abstractmethod
    def sampling_scheduler(self, sampler: Sampler) -> Any:
        """The diffusers scheduler with which samples are drawn."""

    def adapted_layers(self, part: str, convolutions: bool) -> Iterator[AdaptedLayer]:
        """The layers of a part that a network changes, in the model's order, under the names of saved files.

        Linear layers and 1x1 convolutions of the attention blocks; with `convolutions` also the residual blocks and
        the layers that change the resolution.
        """
        module = self.parts()[part]
        blocks = self.attention_blocks + self.text_blocks + (self.convolution_blocks if convolutions else ())
        inside = [
            name
            for name, block in module.named_modules()
            if any(kind.__name__ in blocks for kind in type(block).__mro__)
        ]
        seen: set[str] = set()
        for block in inside:
            for name, layer in module.get_submodule(block).named_modules(prefix=block):
                if isinstance(layer, (nn.Linear, nn.Conv2d)) and name not in seen:
                    seen.add(name)
                    yield AdaptedLayer(self.saved_name(part, name), layer, part)

    def saved_name(self, part: str, path: str) -> str:
        """The name of a layer in files: the diffusers path with underscores, behind the family's prefix."""
        if part != "unet":
            # transformers 5.6 took the level `text_model` out of CLIPTextModel; files keep it.
            path = path.removeprefix("text_model.")
        return f"{family_facts(self.family).prefixes[part]}_{path.replace('.', '_')}"
