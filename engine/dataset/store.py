"""Tensors under keys that say what they were made from, so that a stale one is never found: on disk or in memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from engine.run_folder import unwritten, whole_file
from knowledge.answers import PlainError
from knowledge.config import CacheLocation


class Store(Protocol):
    """Where a cache keeps its tensors; all that its users know of it."""

    def __contains__(self, key: str) -> bool: ...

    def read(self, key: str) -> dict[str, Tensor]:
        """The tensors under this key. Raises KeyError where there are none, or only the remains of some."""
        ...

    def write(self, key: str, tensors: Mapping[str, Tensor]) -> None: ...


class MemoryStore:
    """Tensors in main memory, gone with the process; every process that trains begins with none."""

    def __init__(self, folder: Path | None = None) -> None:
        """`folder` is where they would lie on disk; nothing is written there."""
        self._kept: dict[str, dict[str, Tensor]] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._kept

    def read(self, key: str) -> dict[str, Tensor]:
        return dict(self._kept[key])

    def write(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        # A clone, because a tensor on the CPU may be a small part of something large.
        self._kept[key] = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


class DiskStore:
    """A folder of small safetensors files, one to a key. A file that is damaged counts as absent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __contains__(self, key: str) -> bool:
        try:
            with safe_open(self._path(key), framework="pt"):  # compares the file's length with its header
                return True
        except (OSError, SafetensorError):
            return False

    def read(self, key: str) -> dict[str, Tensor]:
        try:
            return load_file(self._path(key))
        except (OSError, SafetensorError):
            raise KeyError(key) from None

    def write(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise unwritten(f"The cache in {self.folder}", problem, path.parent) from problem
        with whole_file(path) as partial:
            try:
                save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, partial)
            except SafetensorError as problem:
                raise unwritten(f"The cache in {self.folder}", problem, path.parent) from problem

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"


_SAYS_NOTHING = frozenset({"architectures", "dtype", "torch_dtype", "transformers_version"})
"""What a configuration says beside how to compute; the type of the weights is read off the weights."""

STORES: Mapping[CacheLocation, Callable[[Path], Store]] = {"disk": DiskStore, "memory": MemoryStore}


def gone(what: str) -> PlainError:
    """What to say when something that was cached cannot be found any more."""
    return PlainError(f"Cached {what} are gone or damaged. Resume the run: they will be made again.")


def digest(*facts: Any) -> str:
    """One key for several plain facts; any other fact, or another order, gives another key."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def file_digest(path: Path | str) -> str:
    """SHA-256 of a file's content."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def module_digest(*modules: nn.Module) -> str:
    """SHA-256 of all that decides what the modules compute: configurations, and weights with their names and types.

    Another VAE, or the same one in fp16, differs; so does a text encoder whose config.json was mended.
    """
    total = hashlib.sha256()
    for module in modules:
        total.update(digest(_configuration(module)).encode())
        for name, weights in module.state_dict().items():
            total.update(f"{name} {weights.dtype} {tuple(weights.shape)}".encode())
            total.update(weights.detach().contiguous().view(-1).view(torch.uint8).cpu().numpy())
    return total.hexdigest()


def vocabulary_digest(tokenizer: Any) -> str:
    """SHA-256 of what a tokenizer makes numbers with: its words, and the marks that it puts around and behind them."""
    numbers = tokenizer.get_vocab()
    words = "\n".join(sorted(numbers, key=numbers.__getitem__))
    marks = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    return digest(words, sorted(numbers.values()), marks)


def _configuration(module: nn.Module) -> dict[str, str]:
    """A part's configuration without where it came from and what wrote it; nothing of a module that has none."""
    config: Any = getattr(module, "config", {})
    values = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    return {name: repr(value) for name, value in values.items() if name[0] != "_" and name not in _SAYS_NOTHING}
