"""The parts of a diffusers folder, and weights into a module one tensor at a time: nothing lies in memory twice."""

from __future__ import annotations

import importlib
import json
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from knowledge.answers import PlainError

PORTION_BYTES = 64 * 2**20
"""After so much of it a file is opened anew: one that stays open keeps in memory all that was read of it."""


def class_named(name: str) -> Any:
    """The class that stands as module:Class."""
    module, _, kind = name.partition(":")
    return getattr(importlib.import_module(module), kind)


def read_folder(folder: Path, kinds: Mapping[str, str], predictor: str, dtype: torch.dtype) -> dict[str, Any]:
    """The parts of a diffusers folder by name, tokenizers and the scheduler's config among them; the VAE in float32.

    The part that predicts, which stands in the folder `predictor`, is "unet", and without its weights.
    """
    parts: dict[str, Any] = {}
    for name, kind in kinds.items():
        inside = _inside(folder, predictor if name == "unet" else name)
        if name == "unet":
            parts[name] = without_weights(class_named(kind), inside)
        else:
            wanted = torch.float32 if name == "vae" else dtype
            part = class_named(kind).from_pretrained(
                inside, local_files_only=True, use_safetensors=True, torch_dtype=wanted, **_variant(inside)
            )
            parts[name] = part.to(wanted)
    for name in kinds:
        if name.startswith("text_encoder"):
            tokenizer = name.replace("text_encoder", "tokenizer")
            parts[tokenizer] = _tokenizer(_inside(folder, tokenizer))
    parts["scheduler"] = json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    return parts


def _inside(folder: Path, name: str) -> Path:
    if not (folder / name).is_dir():
        raise PlainError(f"The model folder is not complete: {folder / name} is missing. Download it again.")
    return folder / name


def _tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def _variant(folder: Path) -> dict[str, str]:
    """Half-precision folders call their files *.fp16.safetensors; without the plain ones we read those."""
    plain = any(not path.name.endswith(".fp16.safetensors") for path in folder.glob("*.safetensors"))
    return {} if plain or not any(folder.glob("*.fp16.safetensors")) else {"variant": "fp16"}


def without_weights(kind: Any, folder: Path) -> nn.Module:
    """A diffusers model of this kind as its folder configures it; its weights take no memory yet."""
    with torch.device("meta"):
        module: nn.Module = kind.from_config(kind.load_config(folder))
    return module


def read_weights(module: nn.Module, files: list[Path], dtype: torch.dtype) -> None:
    """Give the module its weights, in `dtype`. Raises RuntimeError when a tensor is missing, strange or misshapen."""
    module.load_state_dict(dict(_tensors(files, dtype)), assign=True)
    module.requires_grad_(False)


def weight_files(folder: Path) -> list[Path]:
    """The files of a part's weights: full precision where there is one, else the .fp16 variant; all of its shards."""
    found = sorted(folder.glob("*.safetensors"))
    halves = [path for path in found if ".fp16" in path.suffixes]
    files = [path for path in found if path not in halves] or halves
    indexes = [
        path for path in folder.glob("*.safetensors.index*.json") if (".fp16" in path.suffixes) == (files == halves)
    ]
    if indexes:
        names = set(json.loads(indexes[0].read_text(encoding="utf-8"))["weight_map"].values())
        files = [folder / name for name in sorted(names)]
    if not files:
        raise OSError(f"{folder} holds no .safetensors file")
    return files


def _tensors(files: list[Path], dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    for path in files:
        with safe_open(path, framework="pt") as file:
            names = deque(file.keys())
        while names:
            read = 0
            with safe_open(path, framework="pt") as file:
                while names and read < PORTION_BYTES:
                    name = names.popleft()
                    tensor = file.get_tensor(name)
                    read += tensor.nbytes
                    yield name, tensor.to(dtype, copy=True)
