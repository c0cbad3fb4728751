"""What a network of the pocket model has learnt and forgotten: `python -m engine.pocket.examine FILE…` prints JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from engine.models.family import BaseModel
from engine.models.load import load
from engine.pocket import HELD_OUT_FOLDER, KNOWN_FOLDER
from engine.pocket.measure import denoising_loss
from engine.tools.adapters import adapters
from engine.tools.effect import bias_change, change
from engine.tools.files import open_tensors
from knowledge.config import BaseModelSettings

DRAWS = {HELD_OUT_FOLDER: 16, KNOWN_FOLDER: 4}
"""Timesteps for each picture: 96 losses of either kind, six pictures of the creature and 24 of what is known."""


def captioned(folder: Path) -> tuple[list[Image.Image], list[str]]:
    """The pictures of a folder and their captions."""
    files = sorted(folder.glob("*.png"))
    pictures = [Image.open(file).convert("RGB") for file in files]
    return pictures, [file.with_suffix(".txt").read_text(encoding="utf-8").strip() for file in files]


@contextmanager
def merged(parts: dict[str, Any], network: Path) -> Iterator[None]:
    """The changes of a network file added to the model's own weights while it lasts, as programs that draw add them."""
    before: list[tuple[torch.Tensor, torch.Tensor]] = []
    try:
        with torch.no_grad():
            for adapter in adapters(open_tensors(network)).values():
                part, _, layer = (adapter.canonical or "").partition(".")
                # transformers 5 has the layers of CLIP's text model one level higher than files name them
                inside = layer if part == "unet" else layer.removeprefix("text_model.")
                weight, bias = (getattr(parts[part].get_submodule(inside), name) for name in ("weight", "bias"))
                before.append((weight, weight.clone()))
                weight += change(adapter, weight.float()).reshape(weight.shape)
                shift = bias_change(adapter)
                if shift is not None:
                    before.append((bias, bias.clone()))
                    bias += shift
        yield
    finally:
        with torch.no_grad():
            for weight, was in before:
                weight.copy_(was)


def loss(model: BaseModel, folder: Path, *, captions: bool = True) -> float:
    """Denoising loss on a folder's pictures, under their captions or without any."""
    pictures, texts = captioned(folder)
    parts = (model.unet, model.text_encoders["text_encoder"], model.vae, model.tokenizers[0])
    return denoising_loss(*parts, pictures, texts if captions else [""] * len(texts), DRAWS[folder])


def losses(model: BaseModel) -> dict[str, float]:
    """Losses on unseen pictures of the creature, with and without their captions, and on scenes that it knew before."""
    return {
        "creature_loss": loss(model, HELD_OUT_FOLDER),
        "wordless_loss": loss(model, HELD_OUT_FOLDER, captions=False),
        "known_loss": loss(model, KNOWN_FOLDER),
    }


def examine(networks: Sequence[Path]) -> list[dict[str, float]]:
    """All losses of the base model and of the last network; of those on the way only that on the creature."""
    model = load(BaseModelSettings(), torch.float32)
    found = [losses(model)]
    for number, network in enumerate(networks, 1):
        with merged(model.parts(), network):
            last = number == len(networks)
            found.append(losses(model) if last else {"creature_loss": loss(model, HELD_OUT_FOLDER)})
    return found


if __name__ == "__main__":
    print(json.dumps(examine([Path(name) for name in sys.argv[1:]])))  # noqa: T201
