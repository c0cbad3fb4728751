"""The ranks and alphas of a network file that a run starts from, layer by layer, read from its first bytes."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from knowledge.answers import PlainError
from knowledge.blocks import LayerSettings, layer_settings
from knowledge.config import RANK_IN_FILE, NetworkSettings
from knowledge.tensor_file import read_document

NUMBERS: Mapping[str, str] = {"F16": "<e", "F32": "<f", "F64": "<d", "I64": "<q"}
"""How struct reads a single number of a safetensors file by its type; bf16 is the upper half of an F32."""


@dataclass(frozen=True)
class LayerInFile:
    """Rank and alpha of one adapter, and whether it stands on a convolution over more than one pixel."""

    rank: int
    alpha: float
    convolution: bool


def adapted_with(name: str, convolution: bool, network: NetworkSettings) -> LayerSettings | None:
    """What the layer of this saved name is adapted with; None where it is not adapted.

    Rank and alpha are the settings', or with network.rank_from_start those of the file; what that lacks is left out.
    Raises PlainError when the file cannot be read or holds no such network.
    """
    own = layer_settings(name, convolution, network)
    if own is None or not network.ranks_in_start:
        return own
    there = layers_in_file(network).get(name)
    return None if there is None else replace(own, rank=there.rank, alpha=there.alpha)


def with_ranks_of_start(network: NetworkSettings) -> NetworkSettings:
    """The settings with the largest ranks of the file that they start from in the place of one for all, for estimates
    that know one rank alone; as they are where no ranks come from a file."""
    if not network.ranks_in_start:
        return network
    layers = layers_in_file(network).values()
    largest = {
        name: max((layer.rank for layer in layers if layer.convolution == spatial), default=0)
        for name, spatial in (("rank", False), ("conv_rank", True))
    }
    known = {name: rank for name, rank in largest.items() if rank}
    return network.model_copy(update={"rank_from_start": False, **known})


def pull(network: NetworkSettings) -> float | None:
    """Alpha ÷ rank, by which every change is multiplied; the largest of the file where ranks come from one.

    None where that file cannot be read.
    """
    if not network.ranks_in_start:
        return network.alpha / network.rank
    try:
        layers = layers_in_file(network).values()
    except PlainError:
        return None
    return max((layer.alpha / layer.rank for layer in layers if layer.rank), default=None)


def rank_in_words(network: NetworkSettings) -> str:
    """The rank as one says it behind the algorithm: "rank 16", or "the ranks of first.safetensors"."""
    return f"the ranks of {Path(network.start_from).name}" if network.ranks_in_start else f"rank {network.rank}"


def start_problem(network: NetworkSettings) -> str:
    """Why the file that ranks come from cannot be used; empty where it can, or where none come from a file."""
    try:
        with_ranks_of_start(network)
    except PlainError as problem:
        return str(problem)
    return ""


def start_file(network: NetworkSettings) -> Path:
    """The file whose weights the network starts from. Raises PlainError where it is not there."""
    path = Path(network.start_from).expanduser()
    if not path.is_file():
        raise PlainError(f"network.start_from is {path}, and there is no such file.")
    return path


def layers_in_file(network: NetworkSettings) -> Mapping[str, LayerInFile]:
    """Every layer of the file that the settings start from, by saved name. Raises PlainError."""
    path = start_file(network)
    found = path.stat()
    layers = _layers(path, RANK_IN_FILE[network.algorithm], found.st_mtime_ns, found.st_size)
    if not layers:
        raise PlainError(
            f"network.rank_from_start is on, but {path} has no {network.algorithm} layers whose rank could be read. "
            "Set network.algorithm to the file's own (lora-wizard tools inspect tells it), or turn it off."
        )
    return layers


@lru_cache(maxsize=8)
def _layers(path: Path, told_by: tuple[str, int], changed: int, size: int) -> Mapping[str, LayerInFile]:
    """As `layers_in_file`; `told_by` are the tensor whose shape tells the rank, and which of its sides is the rank."""
    suffix, side = told_by
    try:
        with path.open("rb") as file:
            entries, begin = read_document(file)
            layers = {}
            for name, entry in entries.items():
                layer, dot, rest = name.partition(".")
                if dot and rest == suffix:
                    alpha = entries.get(f"{layer}.alpha")
                    rank, kernel = int(entry["shape"][side]), entry["shape"][2:]
                    value = float(rank) if alpha is None else _number(file, alpha, begin)
                    layers[layer] = LayerInFile(rank, value, any(length > 1 for length in kernel))
            return layers
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, struct.error):
        raise PlainError(f"network.start_from is {path}, which is no sound safetensors file.") from None


def _number(file: BinaryIO, entry: Mapping[str, Any], begin: int) -> float:
    start, end = entry["data_offsets"]
    file.seek(begin + start)
    content = file.read(end - start)
    if entry["dtype"] == "BF16":
        return float(struct.unpack("<f", b"\0\0" + content)[0])
    return float(struct.unpack(NUMBERS[entry["dtype"]], content)[0])
