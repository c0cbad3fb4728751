"""Stable Diffusion XL: two text encoders, picture sizes as conditions, and saved names in the original layout."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from engine.models.clip import joined
from engine.models.family import Conditioning
from engine.models.sd import StableDiffusion

# A residual block's layers, by diffusers' names, in the original layout's.
RESIDUAL_LAYERS = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}


class StableDiffusionXL(StableDiffusion):
    """A loaded SDXL base model. Podell et al. 2023 (arXiv:2307.01952)."""

    kinds: ClassVar[dict[str, str]] = {
        **StableDiffusion.kinds,
        "text_encoder_2": "transformers:CLIPTextModelWithProjection",
    }
    family = "sdxl"

    def encode_prompt(self, captions: Sequence[str], *, padded: bool = True) -> Conditioning:
        """Both encoders' last layer but one, side by side, without the final norm; pooled is the second's summary."""
        hidden_states = []
        pooled = None
        for which, encoder in enumerate(self.text_encoders.values()):
            outputs, count = self.encode(which, encoder, captions, padded)
            hidden_states.append(self.weigh(joined(outputs.hidden_states[-2], count), which, captions))
            summary = getattr(outputs, "text_embeds", None)
            pooled = summary[::count] if summary is not None else None  # of the first chunk
        return Conditioning(torch.cat(hidden_states, dim=-1), pooled)

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning, sizes: Tensor) -> Tensor:
        """The UNet's answer. sizes: [batch, 6] pixels: original height, width, crop top, left, target height, width."""
        added = {"text_embeds": conditioning.pooled, "time_ids": sizes}
        prediction: Tensor = self.unet(
            noisy, timesteps, conditioning.hidden_states, added_cond_kwargs=added, return_dict=False
        )[0]
        return prediction

    def saved_name(self, part: str, path: str) -> str:
        """The name of a layer in files: UNet layers as the original checkpoint calls them, which every application
        reads; diffusers' own names would leave A1111 without one up-sampler."""
        if part == "unet":
            path = original_path(path, len(self.unet.down_blocks[0].resnets))
        return super().saved_name(part, path)


def original_path(path: str, layers_per_block: int) -> str:
    """The original checkpoint's path of a UNet layer that diffusers calls `path`.

    down_blocks.1.attentions.0.proj_in is input_blocks.4.1.proj_in, with two layers per block.
    """
    down = re.fullmatch(r"down_blocks\.(\d+)\.(resnets|attentions|downsamplers)\.(\d+)\.(.+)", path)
    if down:
        block, kind, index, rest = int(down[1]), down[2], int(down[3]), down[4]
        if kind == "downsamplers":
            return f"input_blocks.{(layers_per_block + 1) * (block + 1)}.0.op"
        place = (layers_per_block + 1) * block + index + 1
        return f"input_blocks.{place}.{_inside(kind, rest)}"
    up = re.fullmatch(r"up_blocks\.(\d+)\.(resnets|attentions|upsamplers)\.(\d+)\.(.+)", path)
    if up:
        block, kind, index, rest = int(up[1]), up[2], int(up[3]), up[4]
        if kind == "upsamplers":
            # It stands behind the last residual block and that block's attention. Only SDXL is named this way, whose
            # blocks that enlarge all have attention.
            return f"output_blocks.{(layers_per_block + 1) * (block + 1) - 1}.2.conv"
        return f"output_blocks.{(layers_per_block + 1) * block + index}.{_inside(kind, rest)}"
    middle = re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", path)
    if middle:
        kind, index, rest = middle[1], int(middle[2]), middle[3]
        inside = _inside(kind, rest).split(".", 1)[1]
        return f"middle_block.{2 * index if kind == 'resnets' else 1}.{inside}"
    raise ValueError(f"{path} has no name in the original layout")


def _inside(kind: str, rest: str) -> str:
    """Where a layer stands inside its block: residual layers first, attention behind them."""
    if kind == "attentions":
        return f"1.{rest}"
    return f"0.{RESIDUAL_LAYERS[rest]}"
