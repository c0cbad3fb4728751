"""Tensor files, read one tensor at a time; nothing in a file is ever executed.

Reading a safetensors file here needs memory for its header and for one tensor, whatever the size of the file.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from engine.tools.headers import DTYPE_NAMES, DTYPES, broken, opened, read_header, shown
from knowledge.answers import PlainError

PICKLES = {".pt", ".ckpt", ".bin", ".pth"}
EMBEDDING = "It belongs into the folder of embeddings, not of LoRAs."


class TensorFile(Mapping[str, Tensor]):
    """The tensors of one safetensors file by name, each read from disk when it is asked for and not kept."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.called = str(path)
        self.header = read_header(self.path)

    @property
    def metadata(self) -> dict[str, str]:
        return self.header.metadata

    def layout(self, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
        """Number format and shape of a tensor, without reading it."""
        entry = self.header.entries[name]
        return DTYPES[entry.dtype], entry.shape

    def __getitem__(self, name: str) -> Tensor:
        entry = self.header.entries[name]
        if entry.start == entry.end:
            return torch.empty(entry.shape, dtype=DTYPES[entry.dtype])
        with opened(self.path) as file:
            file.seek(self.header.body_start + entry.start)
            data = bytearray(entry.end - entry.start)
            if file.readinto(data) != len(data):  # type: ignore[attr-defined]
                raise broken(self.path, "it was cut off while it was being read")
        return torch.frombuffer(data, dtype=DTYPES[entry.dtype]).reshape(entry.shape)

    def __contains__(self, name: object) -> bool:
        return name in self.header.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.header.entries)

    def __len__(self) -> int:
        return len(self.header.entries)


class LoadedTensors(Mapping[str, Tensor]):
    """Tensors that are already in memory: those of a pickle file, or of a test."""

    def __init__(
        self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, called: str = "the network"
    ) -> None:
        self.called = called
        self.tensors = dict(tensors)
        self.metadata = dict(metadata or {})

    def layout(self, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
        """Number format and shape of a tensor."""
        return self.tensors[name].dtype, tuple(self.tensors[name].shape)

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


Tensors = TensorFile | LoadedTensors


def open_tensors(path: Path | str) -> Tensors:
    """The tensors of a .safetensors file, or of a pickle (.pt, .ckpt, .bin) read in the mode that runs no code."""
    path = Path(path)
    return _read_pickle(path) if path.suffix.lower() in PICKLES else TensorFile(path)


def _read_pickle(path: Path) -> LoadedTensors:
    with opened(path):
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of pickle protocols, which a user can do nothing about
            # mapped, tensors are read when they are asked for: merging into 0.4 GB takes 0.41 GB of memory and not
            # 0.81, with the 0.15 GB of PyTorch itself; files of before PyTorch 1.6 cannot be mapped
            mapped = zipfile.is_zipfile(path)
            document = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:
        if "weights_only" in str(error) or "Unsupported" in str(error):
            raise PlainError(
                f"{path} holds more than tensors: loading it would run code from the file, so it was not loaded. "
                "Look for the same model as .safetensors."
            ) from None
        raise PlainError(f"{path} cannot be read as a PyTorch file; it may be damaged or of another kind.") from None
    if isinstance(document, dict) and "string_to_param" in document:
        raise PlainError(f"{path} is not a LoRA but an embedding (textual inversion). {EMBEDDING}")
    for inner in ("state_dict", "model", "module"):
        if isinstance(document, dict) and isinstance(document.get(inner), dict):
            document = document[inner]
    tensors = {str(k): v for k, v in document.items() if isinstance(v, Tensor)} if isinstance(document, dict) else {}
    if not tensors:
        raise PlainError(f"{path} holds no named tensors, so it is neither a LoRA nor a model.")
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_meta or tensor.dtype not in DTYPE_NAMES:
            raise PlainError(f'{path}: the tensor "{shown(name)}" is kept in a way that cannot be read here.')
    return LoadedTensors(tensors, called=str(path))
