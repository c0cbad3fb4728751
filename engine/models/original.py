"""Stable Diffusion models in single files of the layout that they were published in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from engine.models.detect import read_header
from knowledge.families import family_facts


def configs(family: str) -> Path:
    """What a single file lacks: the configurations of its parts, laid out as a diffusers model."""
    return family_facts(family).folder


def read_original(path: Path, family: str, dtype: torch.dtype) -> dict[str, Any]:
    """The parts of a single file in the original layout, converted by diffusers with the configurations we ship."""
    from diffusers import AutoencoderKL, StableDiffusionPipeline, StableDiffusionXLPipeline

    config = configs(family)
    vae = AutoencoderKL.from_single_file(
        str(path), config=str(config), subfolder="vae", local_files_only=True, torch_dtype=torch.float32
    )
    tokenizers = {"tokenizer": shipped_tokenizer("!" if family == "sd2" else "<|endoftext|>")}
    pipeline: Any = StableDiffusionPipeline
    more: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "image_encoder": None}
    if family == "sdxl":
        pipeline = StableDiffusionXLPipeline
        tokenizers["tokenizer_2"] = shipped_tokenizer("!")
        del more["safety_checker"]
    elif encoder := _merged_text_encoder(path, config, dtype):
        more["text_encoder"] = encoder
    whole = pipeline.from_single_file(
        str(path), config=str(config), local_files_only=True, torch_dtype=dtype, vae=vae, **tokenizers, **more
    )
    parts = dict(whole.components)
    parts["scheduler"] = json.loads((config / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    return parts


def _merged_text_encoder(path: Path, config: Path, dtype: torch.dtype) -> nn.Module | None:
    """The text encoder of an SD 1 merge that leaves the level `text_model` out of its names; None where it is there.

    diffusers does not find such an encoder.
    """
    from transformers import CLIPTextConfig, CLIPTextModel

    prefix = "cond_stage_model.transformer."
    if f"{prefix}embeddings.position_embedding.weight" not in read_header(path).shapes:
        return None
    encoder = CLIPTextModel(CLIPTextConfig.from_pretrained(config / "text_encoder"))
    level = "text_model." if hasattr(encoder, "text_model") else ""
    with safe_open(path, framework="pt") as file:
        names = [name for name in file.keys() if name.startswith(prefix) and not name.endswith("position_ids")]  # noqa: SIM118
        encoder.load_state_dict({level + name.removeprefix(prefix): file.get_tensor(name) for name in names})
    converted: nn.Module = encoder.to(dtype)
    return converted


def shipped_tokenizer(pad_token: str) -> Any:
    """The CLIP tokenizer that comes with the pocket model: every family here reads captions with it."""
    from transformers import CLIPTokenizer

    from engine.pocket import MODEL_FOLDER

    return CLIPTokenizer.from_pretrained(Path(MODEL_FOLDER) / "tokenizer", local_files_only=True, pad_token=pad_token)
