"""Weights from safetensors files into a module, one tensor at a time: nothing lies in memory twice."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn


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
            names = list(file.keys())
        for name in names:
            # Opened anew for each: a file that stays open keeps all that was read of it in memory beside the copy.
            with safe_open(path, framework="pt") as file:
                tensor = file.get_tensor(name).to(dtype, copy=True)
            yield name, tensor
