"""Stable Diffusion 1.x and 2.x, and the pocket model, which is built from the same classes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from engine import diffusion, samplers
from engine.loss import weighted_loss_per_image
from engine.memory import give_back
from engine.models.checkpointing import checkpoint_unet
from engine.models.weights import weighted_ids
from engine.timesteps import draw_timesteps
from knowledge.config import LossSettings, NoiseSettings, PredictionType, Sampler


@dataclass(frozen=True)
class Conditioning:
    """What the captions say to the UNet: hidden_states [batch, tokens, width]; pooled [batch, width], SDXL only."""

    hidden_states: Tensor
    pooled: Tensor | None = None

    def to(self, device: torch.device) -> Conditioning:
        """The same on another device."""
        pooled = None if self.pooled is None else self.pooled.to(device, non_blocking=True)
        return Conditioning(self.hidden_states.to(device, non_blocking=True), pooled)

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


class StableDiffusion:
    """A loaded base model of the 1.x or the 2.x family: everything about it that the loop must not know.

    `engine.models.family.BaseModel` lists what another family must have.
    """

    attention_blocks: ClassVar[tuple[str, ...]] = ("Transformer2DModel",)
    convolution_blocks: ClassVar[tuple[str, ...]] = ("ResnetBlock2D", "Downsample2D", "Upsample2D")
    text_blocks: ClassVar[tuple[str, ...]] = ("CLIPAttention", "CLIPSdpaAttention", "CLIPMLP")

    saved_prefixes: ClassVar[dict[str, str]] = {"unet": "lora_unet", "text_encoder": "lora_te_text_model"}

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
        self.unet, self.vae, self.text_encoders, self.tokenizers = unet, vae, text_encoders, tokenizers
        self.prediction_type: PredictionType = prediction_type
        self.clip_skip, self.maximum_tokens = clip_skip, maximum_tokens
        self.weighted_captions = False  # (red:1.3) in captions and prompts counts more
        plain = diffusion.alphas_cumprod(beta_start, beta_end)
        self.alphas_cumprod = diffusion.zero_terminal(plain) if zero_terminal_snr else plain
        # kohya weighs losses by the SNR of the plain schedule even under zero terminal SNR; we match it, and so
        # min-SNR never divides by zero.
        self.snr = diffusion.signal_to_noise(plain)
        self.zero_terminal_snr = zero_terminal_snr
        self.later: Callable[[], None] | None = None  # reads what `load` left for later
        self.latent_factor = 2 ** (len(vae.config.block_out_channels) - 1)
        self.latent_channels: int = vae.config.latent_channels
        self.scaling_factor: float = vae.config.scaling_factor

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
        """Move all parts but these, and the tables with them; what was left for later is read now."""
        self.complete()
        for part in (*self.parts().values(), self.vae):
            if not any(part is left for left in but):
                part.to(device)
        self.alphas_cumprod, self.snr = self.alphas_cumprod.to(device), self.snr.to(device)
        give_back()

    def enable_gradient_checkpointing(self) -> None:
        """Compute activations a second time in the backward pass instead of keeping them."""
        checkpoint_unet(self.unet)
        for encoder in self.text_encoders.values():
            encoder.gradient_checkpointing_enable({"use_reentrant": False})
            encoder.train()  # transformers checkpoints in training mode only; CLIP has no dropout

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

    def weigh(self, hidden_states: Tensor, which: int, captions: Sequence[str]) -> Tensor:
        """The hidden states of each word times the weight that the caption gives it."""
        if not self.weighted_captions:
            return hidden_states
        _, weights = weighted_ids(self.tokenizers[which], captions, self.maximum_tokens)
        return hidden_states * weights[:, : hidden_states.shape[1]].to(hidden_states)[..., None]

    def encode(self, which: int, encoder: Any, captions: Sequence[str], padded: bool) -> tuple[Any, int]:
        """The outputs of text encoder `which` for all chunks of all captions, and the number of chunks of each."""
        ids = (
            self.token_ids(which, captions)
            if padded
            else self.token_ids(which, captions)[..., : self.longest(captions)]
        )
        return encoder(ids.flatten(0, 1).to(encoder.device), output_hidden_states=True), ids.shape[1]

    def token_ids(self, which: int, captions: Sequence[str]) -> Tensor:
        """Token numbers [batch, chunks, 77] of the captions for tokenizer `which`; what does not fit is cut off.

        The encoders read 75 tokens at a time, between a begin and an end; longer captions go through in chunks.
        """
        tokenizer, most = self.tokenizers[which], self.maximum_tokens + 2
        ids: Tensor
        if self.weighted_captions:
            ids, _ = weighted_ids(tokenizer, captions, self.maximum_tokens)
        else:
            ids = tokenizer(
                list(captions), padding="max_length", truncation=True, max_length=most, return_tensors="pt"
            ).input_ids
        begin, end = ids[:, :1], ids[:, -1:]
        chunks = torch.stack(
            [torch.cat([begin, ids[:, at : at + 75], end], dim=1) for at in range(1, self.maximum_tokens, 75)], dim=1
        )
        if tokenizer.pad_token_id != tokenizer.eos_token_id and self.maximum_tokens > 75:
            # Where padding is not the end mark, every chunk still needs one, as kohya sets it.
            inside = (chunks[..., -2] != tokenizer.pad_token_id) & (chunks[..., -2] != tokenizer.eos_token_id)
            chunks[..., -1] = torch.where(inside, tokenizer.eos_token_id, chunks[..., -1])
            empty = chunks[..., 1] == tokenizer.pad_token_id
            chunks[..., 1] = torch.where(empty, tokenizer.eos_token_id, chunks[..., 1])
        return chunks

    def longest(self, captions: Sequence[str]) -> int:
        """Tokens of the longest caption with its begin and its end; all of a family's tokenizers count alike."""
        ids = self.token_ids(0, captions)[:, 0]
        return int((ids == self.tokenizers[0].eos_token_id).int().argmax(dim=1).max()) + 1

    # -- pictures and latents -----------------------------------------------------------------------------------------

    def encode_pictures(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents of pictures in [-1, 1], before the scaling factor."""
        distribution = self.vae.encode(pixels.to(self.vae.device, self.vae.dtype)).latent_dist
        return distribution.mean.float(), distribution.std.float()

    def scaled(self, latents: Tensor) -> Tensor:
        """Latents as the UNet knows them, of those that the VAE gives."""
        return latents * self.scaling_factor

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Pictures in [-1, 1] of scaled latents."""
        pixels: Tensor = self.vae.decode(latents.to(self.vae.device, self.vae.dtype) / self.scaling_factor).sample
        return pixels.float().clamp(-1, 1)

    # -- noise, prediction, target ------------------------------------------------------------------------------------

    def draw_timesteps(self, count: int, settings: NoiseSettings, generator: torch.Generator | None) -> Tensor:
        """The noise levels of `count` pictures."""
        return draw_timesteps(count, settings, generator)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Latents at these timesteps."""
        return diffusion.add_noise(latents, noise, self.alphas_cumprod[timesteps])

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the prediction should have been."""
        if self.prediction_type == "v_prediction":
            return diffusion.velocity(latents, noise, self.alphas_cumprod[timesteps])
        return noise

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning, sizes: Tensor) -> Tensor:
        """The UNet's answer. sizes: [batch, 6] as `engine.models.sdxl` reads it; this family does not look at it."""
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

    # -- what a network changes ---------------------------------------------------------------------------------------

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
        """The name of a layer in files: the diffusers path with underscores."""
        # transformers 5.6 took the level `text_model` out of CLIPTextModel; files keep it.
        if part == "text_encoder":
            path = path.removeprefix("text_model.")
        return f"{self.saved_prefixes[part]}_{path.replace('.', '_')}"


def final_layer_norm(encoder: Any) -> nn.Module:
    """The norm after a CLIP text encoder's last layer, wherever this version of transformers keeps it."""
    norm: nn.Module = getattr(encoder, "text_model", encoder).final_layer_norm
    return norm


def joined(hidden_states: Tensor, chunks: int) -> Tensor:
    """The chunks of each caption behind one another, [batch, 75 * chunks + 2, width]: one begin, one end.

    hidden_states: [batch * chunks, 77, width].
    """
    if chunks == 1:
        return hidden_states
    each = hidden_states.view(-1, chunks, *hidden_states.shape[1:])
    return torch.cat([each[:, 0, :1], each[:, :, 1:-1].flatten(1, 2), each[:, -1, -1:]], dim=1)
