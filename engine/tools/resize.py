"""Smaller ranks: each layer's change rewritten with its largest singular values; other algorithms become plain LoRA."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.tools.adapters import Adapter, refuse_broken
from engine.tools.decompose import Keep, kernel_shape, lora_matrices, share, singular_of
from engine.tools.names import block_of
from engine.tools.progress import Progress, no_progress

Weights = Callable[[str], Tensor | None]
"""The base model's weight of a layer by canonical name; None where there is none."""


@dataclass(frozen=True)
class ResizedLayer:
    """What became of one layer; `kept` is the share of ‖ΔW‖ left, measured against the tensors as written."""

    module: str
    block: str
    old_rank: int | None
    new_rank: int
    kept: float
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
        return float((1 - self.kept**2) ** 0.5)

    @property
    def ranks(self) -> tuple[int, int]:
        """Smallest and largest new rank."""
        return min(layer.new_rank for layer in self.layers), max(layer.new_rank for layer in self.layers)


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
        ratio = adapter.scale if adapter.algorithm in ("lora", "locon") else 1.0
        out = dtype or adapter.dtype
        new_alpha = ratio * rank if alpha is None else alpha
        up, down, stored = lora_matrices(values, rank, kernel_shape(adapter, family), new_alpha, out)
        tensors |= named(module, adapter, up, down, stored, out)
        norm = values.energy**0.5
        layers.append(
            ResizedLayer(module, block, adapter.rank, rank, share(values.kept_energy(rank), values.energy), norm)
        )
        progress(done, len(found))
    return Resized(tensors, layers, untouched)


def named(module: str, like: Adapter, up: Tensor, down: Tensor, alpha: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a LoRA layer under the names of its file; its bias and magnitude come along."""
    rest = {
        like.parts[part]: like.tensors[like.parts[part]].to(dtype) for part in ("dora_scale", "bias") if part in like
    }
    if any(name.endswith("lora_A.weight") for name in like.parts.values()):
        scale = float(alpha) / down.shape[0]  # PEFT files carry no alpha of their own: it goes into the weights
        return {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up * scale, **rest}
    return {f"{module}.lora_up.weight": up, f"{module}.lora_down.weight": down, f"{module}.alpha": alpha, **rest}
