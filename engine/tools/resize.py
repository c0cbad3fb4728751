"""Smaller ranks: each layer's change rewritten with its largest singular values; other algorithms become plain LoRA."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.tools.adapters import Adapter, refuse_broken
from engine.tools.decompose import Keep, error_of, kernel_shape, lora_matrices, share, singular_of
from engine.tools.names import block_of
from engine.tools.precision import cast
from engine.tools.progress import Progress, no_progress
from knowledge.answers import PlainError

Weights = Callable[[str], Tensor | None]
"""The base model's weight of a layer by canonical name; None where there is none."""


@dataclass(frozen=True)
class ResizedLayer:
    """What became of one layer: `kept` is the share of ‖ΔW‖ that its new rank holds.

    `error` is ‖ΔW − ΔW'‖ / ‖ΔW‖ of the tensors as they are written, their rounding counted.
    """

    module: str
    block: str
    old_rank: int | None
    new_rank: int
    kept: float
    error: float
    norm: float


@dataclass(frozen=True)
class Resized:
    """The new tensors and what was lost. `kept` is the share of the Frobenius norm over all layers."""

    tensors: dict[str, Tensor]
    layers: list[ResizedLayer]
    untouched: int

    @property
    def kept(self) -> float:
        whole = sum(layer.norm**2 for layer in self.layers)
        return share(sum((layer.kept * layer.norm) ** 2 for layer in self.layers), whole)

    @property
    def error(self) -> float:
        """‖ΔW − ΔW'‖ / ‖ΔW‖ over all layers."""
        whole = sum(layer.norm**2 for layer in self.layers)
        return float((sum((layer.error * layer.norm) ** 2 for layer in self.layers) / whole) ** 0.5) if whole else 0.0

    @property
    def ranks(self) -> tuple[int, int]:
        """Smallest and largest new rank."""
        ranks = [layer.new_rank for layer in self.layers] or [0]
        return min(ranks), max(ranks)


def no_base(_: str) -> Tensor | None:
    """The weights of a base model that was not given."""
    return None


def resize(
    found: Mapping[str, Adapter],
    keep: Keep,
    *,
    family: str = "sd15",
    alpha: float | None = None,
    dtype: torch.dtype | None = None,
    weights: Weights = no_base,
    progress: Progress = no_progress,
) -> Resized:
    """Every layer as LoRA with the rank that `keep` asks for.

    alpha: of every layer of the result; None keeps each layer's alpha / rank. Layers that only shift norms or biases
    stay as they are; DoRA's magnitudes stay and the direction is resized.
    """
    tensors: dict[str, Tensor] = {}
    layers, untouched = [], 0
    for done, (module, adapter) in enumerate(found.items(), 1):
        refuse_broken([adapter])
        if adapter.algorithm in ("norm", "bias") or (adapter.algorithm == "full" and len(adapter.shape("diff")) < 2):
            tensors |= {name: adapter.tensors[name] for name in adapter.parts.values()}
            untouched += 1
            continue
        name = adapter.canonical or module
        block = block_of(name)
        values = singular_of(adapter, weights(name), keep.most(name, module, block))
        rank = keep.rank_of(values.values, name, module, block)
        out = dtype or adapter.dtype
        if not adapter.keeps_alpha and alpha is not None:
            raise PlainError(f"{adapter} has diffusers' names, which know no alpha: convert it to sd-scripts first.", 2)
        ratio = adapter.scale if adapter.keeps_alpha and adapter.algorithm in ("lora", "locon") else 1.0
        new_alpha = ratio * rank if alpha is None else alpha
        up, down, stored = lora_matrices(values, rank, kernel_shape(adapter, family), new_alpha, out)
        tensors |= named(adapter, up, down, stored, out)
        kept = share(values.kept_energy(rank), values.energy)
        error = error_of(values, up, down, float(stored) / rank)
        layers.append(ResizedLayer(module, block, adapter.rank, rank, kept, error, values.energy**0.5))
        progress(done, len(found))
    if not layers:
        raise PlainError("None of its layers has a rank: it changes norms and biases alone, which cannot be resized.")
    return Resized(tensors, layers, untouched)


def named(adapter: Adapter, up: Tensor, down: Tensor, alpha: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a LoRA layer under names like those of its file; its bias and magnitude come along."""
    own = {part: adapter.parts[part] for part in ("dora_scale", "bias") if part in adapter}
    rest = {name: cast(adapter.tensors[name], dtype) for name in own.values()}
    if adapter.keeps_alpha:
        matrices = {"lora_up.weight": up, "lora_down.weight": down, "alpha": alpha}
    else:
        matrices = {"lora_B.weight": up, "lora_A.weight": down}
    return {f"{adapter.module}.{name}": tensor for name, tensor in matrices.items()} | rest
