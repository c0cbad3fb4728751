"""The change ΔW that an adapter makes to the weight of its layer, a matrix [out, in × kernel].

The formulas are those of the training forward pass of LyCORIS 4.1 (Yeh et al. 2023, arXiv:2309.14859).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from engine.tools.adapters import NAMES, Adapter
from engine.tools.part_shapes import size_of_change
from knowledge.answers import PlainError


def change(
    adapter: Adapter, weight: Tensor | None = None, strength: float = 1.0, precision: torch.dtype = torch.float32
) -> Tensor:
    """ΔW of one layer as a matrix [out, in × kernel], at `strength` (1: as trained), computed and given in `precision`.

    weight: the base model's weight [out, in, …]; needed by DoRA, GLoRA, OFT, BOFT and IA³. PlainError without it.
    """
    adapter = replace(adapter, precision=precision)
    weight = weight.to(precision) if weight is not None else None
    if adapter.needs_weight and weight is None:
        name = "DoRA" if adapter.decomposed else NAMES[adapter.algorithm]
        raise PlainError(
            f"{name} changes a layer depending on the base model's own weights, so this needs the base model it was "
            "trained on. Name it with --base."
        )
    if adapter.algorithm not in _CHANGES | _ROTATIONS:
        raise PlainError(f"{adapter} is {NAMES[adapter.algorithm]}, whose effect cannot be computed here.")
    misfit = PlainError(
        f"{adapter} has parts that do not fit together, or not the base model; the file is damaged or was trained "
        "on another family."
    )
    try:
        changed = _changed(adapter, weight, strength)
    except (RuntimeError, IndexError):  # of tensors whose shapes do not fit
        raise misfit from None
    rows, columns = size_of_change(adapter)
    count = weight.numel() if weight is not None else rows * columns if rows and columns else changed.numel()
    if changed.dim() > 2 or changed.numel() != count:  # torch stretched one of them over the other
        raise misfit
    return changed


def _changed(adapter: Adapter, weight: Tensor | None, strength: float) -> Tensor:
    if adapter.algorithm in _ROTATIONS:
        assert weight is not None
        return _ROTATIONS[adapter.algorithm](adapter, weight, strength)
    base = _CHANGES[adapter.algorithm](adapter, weight)
    if not adapter.decomposed:
        return base * strength
    assert weight is not None
    return _dora(base, weight, adapter["dora_scale"], 0 if adapter.by_output else 1, strength)


def bias_change(adapter: Adapter, strength: float = 1.0) -> Tensor | None:
    """The change of the layer's bias, where the adapter has one; PEFT scales it like the product that it belongs to."""
    if "bias" not in adapter:
        return None
    return adapter["bias"] * (strength if adapter.keeps_alpha else strength * adapter.scale)


def _lora(adapter: Adapter, _: Tensor | None) -> Tensor:
    up, down = adapter["up"].flatten(1), adapter["down"].flatten(1)
    return (_tucker(adapter["mid"], up, down) if "mid" in adapter else up @ down) * adapter.scale


def _tucker(core: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """A core with the kernel's axes between two matrices: [out, in × kernel]."""
    return torch.einsum("m n ..., i m, n j -> i j ...", core, up, down).flatten(1)


def _loha(adapter: Adapter, _: Tensor | None) -> Tensor:
    halves = []
    for side in ("1", "2"):
        a, b = adapter[f"hada_w{side}_a"], adapter[f"hada_w{side}_b"]
        if f"hada_t{side}" in adapter:
            halves.append(torch.einsum("i j ..., j r, i p -> p r ...", adapter[f"hada_t{side}"], b, a).flatten(1))
        else:
            halves.append(a.flatten(1) @ b.flatten(1))
    return halves[0] * halves[1] * adapter.scale


def _lokr(adapter: Adapter, _: Tensor | None) -> Tensor:
    left = adapter["lokr_w1"] if "lokr_w1" in adapter else adapter["lokr_w1_a"] @ adapter["lokr_w1_b"]
    if "lokr_w2" in adapter:
        right = adapter["lokr_w2"].flatten(1)
    elif "lokr_t2" in adapter:
        a, b = adapter["lokr_w2_a"], adapter["lokr_w2_b"]
        right = torch.einsum("i j ..., i p, j r -> p r ...", adapter["lokr_t2"], a, b).flatten(1)
    else:
        right = adapter["lokr_w2_a"] @ adapter["lokr_w2_b"].flatten(1)
    return torch.kron(left, right) * adapter.scale


def _full(adapter: Adapter, _: Tensor | None) -> Tensor:
    difference = adapter["diff"]
    return difference.flatten(1) if difference.dim() > 1 else difference


def _glora(adapter: Adapter, weight: Tensor | None) -> Tensor:
    assert weight is not None
    a1, a2, b1, b2 = (adapter[part].flatten(1) for part in ("a1", "a2", "b1", "b2"))
    own = _tucker(adapter["bm"], b1, b2) if "bm" in adapter else b1 @ b2
    through = torch.einsum("o i ..., i j -> o j ...", weight, a1 @ a2).flatten(1)
    return (own + through) * adapter.scale


def _oft_rotations(blocks: Tensor) -> Tensor:
    """Cayley transform: rotations from blocks, Liu et al. 2023 (arXiv:2311.06243)."""
    skew = blocks - blocks.transpose(-1, -2)
    identity = torch.eye(blocks.shape[-1], dtype=blocks.dtype)
    rotations: Tensor = (identity + skew) @ torch.linalg.inv(identity - skew)
    return rotations


def _oft_blocks(adapter: Adapter, rows: int) -> Tensor:
    """The blocks, their norm held to the constraint that the file keeps as alpha."""
    blocks = adapter["oft_blocks"]
    constraint = (adapter.alpha or 0.0) * rows
    if constraint > 0:
        norm = (blocks - blocks.transpose(-1, -2)).norm()
        blocks = blocks * (constraint / norm).clamp(max=1.0)  # blocks of zeros: a quotient of infinity, clamped
    return blocks


def _diag_oft(adapter: Adapter, weight: Tensor, strength: float) -> Tensor:
    """Rotations of groups of rows, Qiu et al. 2023 (arXiv:2306.07280)."""
    matrix = weight.flatten(1)
    rotations = _oft_rotations(_oft_blocks(adapter, len(matrix)))
    rotations = rotations * strength + (1 - strength) * torch.eye(rotations.shape[-1], dtype=rotations.dtype)
    grouped = matrix.reshape(rotations.shape[0], rotations.shape[1], -1)
    turned = torch.einsum("k n m, k n c -> k m c", rotations, grouped).reshape(matrix.shape)
    if "rescale" in adapter:
        turned = turned * adapter["rescale"].reshape(-1, 1)
    return turned - matrix


def _boft(adapter: Adapter, weight: Tensor, strength: float) -> Tensor:
    """Butterfly of rotations, Liu et al. 2023 (arXiv:2311.06243); strength acts on each stage, as in LyCORIS."""
    matrix = weight.flatten(1)
    rotations = _oft_rotations(_oft_blocks(adapter, len(matrix)))
    stages, _, size, _ = rotations.shape
    identity = torch.eye(size, dtype=rotations.dtype)
    turned, columns = matrix, matrix.shape[1]
    for stage in range(stages):
        blocks = rotations[stage] * strength + (1 - strength) * identity
        half = 2**stage * (size // 2)
        shuffled = turned.reshape(-1, 2, half, columns).transpose(1, 2).reshape(-1, size, columns)
        mixed = torch.einsum("b i j, b j c -> b i c", blocks, shuffled)
        turned = mixed.reshape(-1, half, 2, columns).transpose(1, 2).reshape(-1, columns)
    if "rescale" in adapter:
        turned = turned * adapter["rescale"].reshape(-1, 1)
    return turned - matrix


def _ia3(adapter: Adapter, weight: Tensor | None) -> Tensor:
    assert weight is not None
    vector = adapter["scale_vector"].flatten()
    on_input = bool(adapter["on_input"].item())
    axis = 1 if on_input else 0
    shape = [1] * weight.dim()
    shape[axis] = -1
    return (weight * vector.reshape(shape)).flatten(1)


def _dora(base: Tensor, weight: Tensor, magnitude: Tensor, kept: int, strength: float) -> Tensor:
    """W' = m · (W + ΔW) / ‖W + ΔW‖, Liu et al. 2024 (arXiv:2402.09353), equation 5; ΔW' = W' − W.

    kept: the axis along which m runs, 0 for outputs, 1 for inputs; the norm is taken over all the others.
    """
    merged = (weight.flatten(1) + base).reshape(weight.shape)
    others = [axis for axis in range(weight.dim()) if axis != kept]
    norm = torch.linalg.vector_norm(merged, dim=others, keepdim=True) + torch.finfo(merged.dtype).eps
    factor = magnitude.reshape(norm.shape) / norm
    decomposed: Tensor = (merged * (strength * (factor - 1) + 1) - weight).flatten(1)
    return decomposed


_CHANGES: dict[str, Callable[[Adapter, Tensor | None], Tensor]] = {
    "lora": _lora,
    "locon": _lora,
    "loha": _loha,
    "lokr": _lokr,
    "full": _full,
    "norm": _full,
    "glora": _glora,
    "ia3": _ia3,
}
_ROTATIONS: dict[str, Callable[[Adapter, Tensor, float], Tensor]] = {"diag-oft": _diag_oft, "boft": _boft}
