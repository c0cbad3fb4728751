"""Networks that our own engine attached to a tiny model, with random weights; each is made once."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch


def trained_network(model_folder: Path, algorithm: str) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """A network that our own engine attaches to a model, with random weights, and what the UNet answers with it."""
    tensors, answer = _trained_network(model_folder, algorithm)
    return {name: tensor.clone() for name, tensor in tensors.items()}, answer


@functools.cache
def _trained_network(model_folder: Path, algorithm: str) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    from engine.networks import attached, create_network
    from knowledge.config import NetworkSettings

    model = loaded(model_folder)
    convolutions, algorithm = algorithm.endswith("+"), algorithm.removesuffix("+")
    settings = {"convolutions": convolutions, "dylora_block_size": 2}
    chosen = NetworkSettings(algorithm=algorithm, rank=4, alpha=2.0, conv_rank=3, conv_alpha=6.0, **settings)
    made = create_network(model, chosen, 20)
    torch.manual_seed(20)
    with torch.no_grad():
        for parameters in made.trained_parameters().values():
            for parameter in parameters:
                parameter += torch.randn_like(parameter) * 0.05
    with torch.no_grad(), attached(made.eval()):
        answer = unet_answer(model.unet)
    return {name: tensor.float().clone() for name, tensor in made.saved_tensors().items()}, answer


@functools.cache
def loaded(model_folder: Path) -> Any:
    from engine.models.detect import detect
    from engine.models.load import load
    from knowledge.config import BaseModelSettings

    family = detect(model_folder).family
    return load(BaseModelSettings(path=str(model_folder), family=family), torch.float32)


def unet_answer(unet: Any) -> torch.Tensor:
    torch.manual_seed(99)
    added = None
    if unet.config.addition_embed_type:
        pooled = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim
        added = {"text_embeds": torch.randn(1, pooled), "time_ids": torch.ones(1, 6)}
    text = torch.randn(1, 7, unet.config.cross_attention_dim)
    with torch.no_grad():
        return unet(torch.randn(1, 4, 16, 16), torch.tensor([500]), text, added_cond_kwargs=added).sample
