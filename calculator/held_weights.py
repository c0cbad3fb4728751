"""Frozen weights that are held smaller than they are computed with, or in main memory: their bytes, and what making
them whole costs each time that a layer is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from knowledge.architectures import HELD_BLOCK, Architecture, Layer
from knowledge.config import BaseWeights

HELD: Mapping[BaseWeights, Callable[[Layer, int], float]] = {
    "same": lambda layer, size: size * layer.matrix,
    "fp8": lambda layer, size: layer.matrix + 4.0 * layer.outputs,
    "8bit": lambda layer, size: layer.matrix + 4.0 * -(-layer.matrix // HELD_BLOCK["8bit"]),
    "nf4": lambda layer, size: -(-layer.matrix // 2) + 4.0 * -(-layer.matrix // HELD_BLOCK["nf4"]),
}
"""Bytes of one layer's weights and their scales, by the form that they are held in."""

PASSES: Mapping[BaseWeights, int] = {"same": 0, "fp8": 3, "8bit": 1, "nf4": 1}
"""How often a whole weight is written or read again while it is made: fp8 is cast and then scaled in place."""
KERNELS: Mapping[BaseWeights, int] = {"same": 0, "fp8": 3, "8bit": 1, "nf4": 1}
"""Kernels that make one weight whole; fp8's also cast the scale."""
TENSORS: Mapping[BaseWeights, int] = {"same": 1, "fp8": 2, "8bit": 3, "nf4": 3}
"""What a weight consists of and is copied as: its numbers, their scales, the table of what each number stands for."""


@dataclass(frozen=True)
class Making:
    """What it takes to make all layers of the blocks whole once: bytes moved on the card, bytes copied to it from main
    memory, kernels started."""

    traffic: float
    copied: float
    launches: int


def _held_layers(architecture: Architecture) -> list[Layer]:
    return [layer for layer in architecture.layers["unet"] if layer.group]


@lru_cache(maxsize=64)
def held_bytes(architecture: Architecture, form: BaseWeights, size: int, offloaded: bool = False) -> int:
    """Bytes of the UNet on the device: the layers of its blocks in their form, or not at all; the rest as it is."""
    held = _held_layers(architecture)
    rest = architecture.weights["unet"] - sum(layer.matrix for layer in held)
    return round(size * rest + (0 if offloaded else sum(HELD[form](layer, size) for layer in held)))


def whole_layer(architecture: Architecture, form: BaseWeights, size: int, offloaded: bool) -> int:
    """Bytes of the largest layer made whole for its computation, where weights are held otherwise; 0 else."""
    if form == "same" and not offloaded:
        return 0
    return size * max(layer.matrix for layer in _held_layers(architecture))


@lru_cache(maxsize=64)
def making(architecture: Architecture, form: BaseWeights, size: int, offloaded: bool) -> Making:
    """What making every held layer whole once takes; `size` are the bytes of a number that is computed with."""
    held = _held_layers(architecture)
    kept = sum(HELD[form](layer, size) for layer in held)
    whole = sum(size * layer.matrix for layer in held)
    unpacked = kept + PASSES[form] * whole if form != "same" else 0.0
    kernels = KERNELS[form] + (TENSORS[form] if offloaded else 0)
    return Making(unpacked + (kept if offloaded else 0), kept if offloaded else 0.0, kernels * len(held))
