"""Several LoRAs made one, LoRAs added to a base checkpoint, and the difference of two checkpoints made a LoRA."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from engine.tools.adapters import Adapter, refuse_broken
from engine.tools.checkpoints import Checkpoint, Place
from engine.tools.decompose import (
    Keep,
    Singular,
    distance,
    error_of,
    kernel_shape,
    leading,
    lora_matrices,
    share,
    singular_of_product,
)
from engine.tools.effect import bias_change, change
from engine.tools.names import Naming, block_of, spelled
from engine.tools.part_shapes import size_of_change
from engine.tools.precision import cast, cast_exactly
from engine.tools.progress import Progress, no_progress
from engine.tools.resize import Resized, ResizedLayer, Weights, no_base
from knowledge.answers import PlainError


@dataclass(frozen=True)
class Weighted:
    """One network file of a merge: its adapters by canonical name, its strength in the UNet and in text encoders."""

    found: Mapping[str, Adapter]
    strength: float = 1.0
    text_strength: float | None = None

    def by_layer(self) -> dict[str, Adapter]:
        return {adapter.canonical or module: adapter for module, adapter in self.found.items()}

    def strength_at(self, layer: str) -> float:
        in_text = layer.startswith("text_encoder")
        return self.text_strength if in_text and self.text_strength is not None else self.strength


def combine(
    networks: Sequence[Weighted],
    *,
    keep: Keep | None = None,
    naming: Naming = "sd-scripts",
    family: str = "sd15",
    dtype: torch.dtype = torch.float16,
    weights: Weights = no_base,
    progress: Progress = no_progress,
) -> Resized:
    """One network whose ΔW is the weighted sum. Without `keep` ranks are laid side by side, which loses nothing.

    Raises PlainError when a layer has no low-rank form and no `keep` says how much of it to hold.
    """
    layered = [(network, network.by_layer()) for network in networks]
    names = list(dict.fromkeys(name for _, layers in layered for name in layers))
    tensors: dict[str, Tensor] = {}
    report, untouched = [], 0
    for done, name in enumerate(names, 1):
        present = [(layers[name], network.strength_at(name)) for network, layers in layered if name in layers]
        refuse_broken(adapter for adapter, _ in present)
        module = spelled(name, naming, family) if present[0][0].canonical else name
        shifts = _shifts(module, present, dtype)
        tensors |= shifts
        main = [(a, s) for a, s in present if a.algorithm not in ("norm", "bias") and not _is_vector(a)]
        _refuse_other_sizes([adapter for adapter, _ in present])
        if not main:
            untouched += 1
            continue
        if all(_is_product(adapter) for adapter, _ in main) and not any(a.decomposed for a, _ in main):
            up = torch.cat([a["up"].flatten(1).double() * (a.scale * strength) for a, strength in main], dim=1)
            down = torch.cat([adapter["down"].flatten(1) for adapter, _ in main])
            kernel = kernel_shape(main[0][0], family)
            if keep is None:
                written = _side_by_side(module, up, down, kernel, dtype)
                tensors |= written
                halves = (written[f"{module}.{half}.weight"].flatten(1) for half in ("lora_up", "lora_down"))
                norm, off = distance(up, down, up[:, :0], down[:0]), distance(up, down, *halves)
                report.append(ResizedLayer(module, block_of(name), None, up.shape[1], 1.0, off / (norm or 1.0), norm))
                progress(done, len(names))
                continue
            values = singular_of_product(up, down)
        else:
            if keep is None:
                adapter = next(a for a, _ in main if not _is_product(a) or a.decomposed)
                raise PlainError(
                    f"{adapter} is not plain LoRA, so ranks cannot be laid side by side. "
                    "Say how much to keep: --rank 32 or --norm 0.99."
                )
            weight = weights(name)
            whole = sum((change(a, weight, s) for a, s in main), torch.zeros(()))
            values = leading(whole, keep.most(name, module, block_of(name)))
            kernel = kernel_shape(main[0][0], family)
        report.append(_written(tensors, module, name, values, keep, kernel, dtype))
        progress(done, len(names))
    return Resized(tensors, report, untouched)


def _refuse_other_sizes(found: Sequence[Adapter]) -> None:
    """Raises PlainError where adapters of one layer change matrices of different sizes."""
    for side, what in enumerate(("outputs", "inputs")):
        known = [(adapter, size) for adapter in found if (size := size_of_change(adapter)[side]) is not None]
        for adapter, size in known[1:]:
            if size != known[0][1]:
                other = f"{known[0][1]} in {known[0][0].tensors.called}"
                raise PlainError(f"{adapter} has {size} {what}, but {other}: they are for different models.")


def _is_product(adapter: Adapter) -> bool:
    return adapter.algorithm in ("lora", "locon") and "mid" not in adapter


def _is_vector(adapter: Adapter) -> bool:
    return adapter.algorithm == "full" and len(adapter.shape("diff")) < 2


def _shifts(module: str, present: Sequence[tuple[Adapter, float]], dtype: torch.dtype) -> dict[str, Tensor]:
    """Summed changes of biases and norm layers, which need no rank."""
    tensors: dict[str, Tensor] = {}
    for adapter, strength in present:
        for part in ("bias", "diff"):
            if part in adapter and (part == "bias" or adapter.algorithm == "norm" or _is_vector(adapter)):
                norm = adapter.algorithm == "norm"
                suffix = {"bias": "b_norm" if norm else "diff_b", "diff": "w_norm" if norm else "diff"}[part]
                name = f"{module}.{suffix}"
                old = tensors[name].float() if name in tensors else 0.0
                tensors[name] = cast(old + adapter[part] * strength, dtype)
    return tensors


def _side_by_side(
    module: str, up: Tensor, down: Tensor, kernel: tuple[int, ...], dtype: torch.dtype
) -> dict[str, Tensor]:
    rank = up.shape[1]
    if kernel:
        up, down = up.reshape(*up.shape, *(1 for _ in kernel)), down.reshape(rank, -1, *kernel)
    return {
        f"{module}.lora_up.weight": cast(up, dtype),
        f"{module}.lora_down.weight": cast(down, dtype),
        f"{module}.alpha": cast_exactly(torch.tensor(float(rank)), dtype),
    }


def _written(
    tensors: dict[str, Tensor],
    module: str,
    name: str,
    values: Singular,
    keep: Keep,
    kernel: tuple[int, ...],
    dtype: torch.dtype,
) -> ResizedLayer:
    """Add one layer's LoRA tensors; its row of the report."""
    rank = keep.rank_of(values.values, name, module, block_of(name))
    up, down, alpha = lora_matrices(values, rank, kernel, None, dtype)
    tensors |= {f"{module}.lora_up.weight": up, f"{module}.lora_down.weight": down, f"{module}.alpha": alpha}
    kept, error = share(values.kept_energy(rank), values.energy), error_of(values, up, down, float(alpha) / rank)
    return ResizedLayer(module, block_of(name), None, rank, kept, error, math.sqrt(values.energy))


@dataclass(frozen=True)
class Merged:
    """How many layers of the networks found their place in the checkpoint, and which did not."""

    layers: int
    homeless: tuple[str, ...]


def merge_into(
    checkpoint: Checkpoint, networks: Sequence[Weighted], output: Path | str, progress: Progress = no_progress
) -> Merged:
    """Write `checkpoint` to `output` with the networks' changes added, each measured against the untouched weights.

    All algorithms, exactly; one tensor is in memory at a time. Raises PlainError when not a single layer fits.
    """
    layered = [(network, network.by_layer()) for network in networks]
    wanted = {name for _, layers in layered for name in layers}
    homeless = tuple(sorted(wanted - checkpoint.where.keys()))
    if len(homeless) == len(wanted):
        raise PlainError(
            f"None of the {len(wanted)} layers exists in {checkpoint.path}: the LoRA is for another family of models."
        )
    for _, layers in layered:
        refuse_broken(layers.values())
    for name in sorted(wanted & checkpoint.where.keys()):
        _check_shapes(name, [layers[name] for _, layers in layered if name in layers], checkpoint)

    def changed(place: Place, tensor: Tensor) -> Tensor:
        touching = [
            (target, layers[target.module], network.strength_at(target.module))
            for target in place.targets
            for network, layers in layered
            if target.module in layers
        ]
        if not touching:
            return tensor
        precision = torch.float64 if tensor.dtype == torch.float64 else torch.float32
        result = tensor.to(precision, copy=True)
        for target, adapter, strength in touching:
            rows = slice(target.start, target.end)
            if place.bias:
                shift = bias_change(adapter, strength)
                if shift is not None:
                    result[rows] += shift.reshape(result[rows].shape)
            elif adapter.changes_weight:
                original = tensor[rows]
                result[rows] += change(adapter, original, strength, precision).reshape(original.shape)
        return result.to(tensor.dtype)

    checkpoint.rewrite(Path(output), changed, progress)
    return Merged(len(wanted) - len(homeless), homeless)


def _check_shapes(name: str, found: Sequence[Adapter], checkpoint: Checkpoint) -> None:
    place, target = checkpoint.where[name]
    rows = (target.end or place.shape[0]) - target.start
    there = (rows, math.prod(place.shape[1:]))
    for adapter in found:
        for own, other, what in zip(size_of_change(adapter), there, ("outputs", "inputs"), strict=True):
            if own is not None and own != other and adapter.changes_weight:
                raise PlainError(
                    f"{adapter} has {own} {what}, but that of {checkpoint.path} has {other}. The LoRA is for another "
                    "model."
                )


@dataclass(frozen=True)
class Extracted:
    """The difference of two checkpoints as LoRA. `reach`: the share of the whole difference that lies in its layers."""

    network: Resized
    reach: float
    equal_layers: int

    @property
    def kept(self) -> float:
        """Share of the whole difference, all tensors counted, that the LoRA holds."""
        return self.reach * self.network.kept


def extract(
    base: Checkpoint,
    tuned: Checkpoint,
    keep: Keep,
    *,
    conv_rank: int | None = None,
    naming: Naming = "sd-scripts",
    dtype: torch.dtype = torch.float16,
    progress: Progress = no_progress,
) -> Extracted:
    """The difference tuned − base as LoRA on attention and text encoders; with `conv_rank` on convolutions too."""
    family = base.family
    missing = base.where.keys() - tuned.where.keys()
    if len(missing) > len(base.where) // 2:
        raise PlainError(f"{base.path} and {tuned.path} are of different families: most layers have no counterpart.")
    tensors: dict[str, Tensor] = {}
    report, equal, inside, outside = [], 0, 0.0, 0.0
    places = [place for place in base.places() if place.targets]
    for done, place in enumerate(places, 1):
        whole = base.read(place)
        for target in place.targets:
            if target.module not in tuned.where:
                continue
            if place.bias:
                continue
            original = whole[target.start : target.end]
            other = tuned.weight(target.module)
            assert other is not None
            if other.shape != original.shape:
                raise PlainError(
                    f"{target.module} has shape {list(original.shape)} in one checkpoint and {list(other.shape)} in "
                    "the other: they are of different families."
                )
            difference = other.float() - original.float()
            energy = float(difference.double().square().sum())
            if not math.isfinite(energy):
                raise PlainError(f"{target.module} of {base.path} or {tuned.path} holds numbers that are not finite.")
            conv = original.dim() == 4 and original.shape[-1] > 1
            if energy == 0:
                equal += 1
            elif not _extractable(target.module, original, conv_rank is not None):
                outside += energy
            else:
                inside += energy
                limits = Keep(rank=conv_rank) if conv else keep
                kernel = tuple(original.shape[2:])
                module = spelled(target.module, naming, family)
                most = limits.most(target.module, module, block_of(target.module))
                values = leading(difference.flatten(1), most)
                report.append(_written(tensors, module, target.module, values, limits, kernel, dtype))
        progress(done, len(places))
    if not report:
        raise PlainError(f"{base.path} and {tuned.path} have the same weights; there is nothing to extract.")
    return Extracted(Resized(tensors, report, 0), share(inside, inside + outside), equal)


def _extractable(module: str, weight: Tensor, convolutions: bool) -> bool:
    """Layers that sd-scripts would train: attention and text encoders; with convolutions, residual blocks as well."""
    if weight.dim() < 2 or "norm" in module.rsplit(".", 1)[-1] or "embedding" in module:
        return False
    if ".attentions." in module or ".encoder.layers." in module:
        return True
    return convolutions and any(part in module for part in (".resnets.", "samplers."))
