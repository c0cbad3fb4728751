"""The same network under other names or in another precision: sd-scripts, diffusers' paths, PEFT."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.tools.adapters import NAMES, Adapter, adapters
from engine.tools.files import DTYPE_NAMES, DTYPES, LoadedTensors
from engine.tools.names import Naming, spelled
from knowledge.answers import PlainError

ALPHAS = "lora_wizard.alphas"
"""Metadata of PEFT files: by module the alpha that was multiplied into lora_B, and the precision it had before."""
KOHYA_PARTS = {
    "up": "lora_up.weight",
    "down": "lora_down.weight",
    "mid": "lora_mid.weight",
    "bias": "diff_b",
    "scale_vector": "weight",
    **{part: f"{part}.weight" for part in ("a1", "a2", "b1", "b2", "bm", "q_layer", "p_layer")},
}
PEFT_PARTS = {
    "up": "lora_B.weight",
    "down": "lora_A.weight",
    "dora_scale": "lora_magnitude_vector",
    "bias": "lora_B.bias",
}


@dataclass(frozen=True)
class Converted:
    """Tensors and metadata under the new names; `unknown` are modules of no SD model, left under their old names."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    unknown: tuple[str, ...]


def convert(
    found: Mapping[str, Adapter],
    metadata: Mapping[str, str],
    naming: Naming,
    family: str,
    dtype: torch.dtype | None = None,
) -> Converted:
    """The network as `naming` writes it for this family. Raises PlainError when PEFT cannot hold its algorithm."""
    tensors: dict[str, Tensor] = {}
    unknown, alphas = [], {}
    folded = json.loads(metadata.get(ALPHAS, "{}"))
    for module, adapter in found.items():
        name = adapter.canonical
        if name is None:
            unknown.append(module)
            name = module
        spelling = spelled(name, naming, family) if adapter.canonical else module
        if naming == "peft":
            tensors |= _peft(spelling, adapter, dtype)
            if adapter.alpha is not None:
                alphas[spelling] = [adapter.alpha, DTYPE_NAMES[adapter.tensors.layout(adapter.parts["up"])[0]]]
        else:
            tensors |= _kohya(spelling, adapter, dtype, folded.get(module))
    kept = {key: value for key, value in metadata.items() if key not in (ALPHAS, "lora_adapter_metadata")}
    return Converted(tensors, kept | ({ALPHAS: json.dumps(alphas)} if alphas else {}), tuple(unknown))


def _kohya(module: str, adapter: Adapter, dtype: torch.dtype | None, folded: list[Any] | None) -> dict[str, Tensor]:
    """kohya's tensors. `folded`: alpha and precision of lora_up before it was multiplied in, where a PEFT file says."""
    tensors = {}
    alpha = folded[0] if folded else adapter.alpha
    for part, name in adapter.parts.items():
        tensor = adapter.tensors[name]
        if part == "up" and folded and adapter.rank:
            tensor = (tensor.float() / (folded[0] / adapter.rank)).to(DTYPES[folded[1]])
        if part == "dora_scale" and adapter.peft_magnitude:
            tensor = tensor.reshape(-1, *[1] * (len(adapter.shape("down")) - 1))
        suffix = KOHYA_PARTS.get(part, part)
        suffix = {"diff": "w_norm", "bias": "b_norm"}.get(part, suffix) if adapter.algorithm == "norm" else suffix
        tensors[f"{module}.{suffix}"] = _cast(tensor, dtype)
    if "alpha" not in adapter.parts and adapter.rank is not None:
        value = float(alpha) if alpha is not None else float(adapter.rank)
        tensors[f"{module}.alpha"] = torch.tensor(value, dtype=dtype or adapter.dtype)
    return tensors


def _scaled(tensor: Tensor, scale: float) -> Tensor:
    """tensor × scale; in float32 where its own precision would lose bits of the smallest numbers."""
    exact = tensor.float() * scale
    narrow = exact.to(tensor.dtype)
    return narrow if torch.equal((narrow.float() / scale).to(tensor.dtype), tensor) else exact


def _peft(module: str, adapter: Adapter, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """diffusers' own tensors; alpha / rank is multiplied into lora_B, because these carry no alpha."""
    if adapter.algorithm not in ("lora", "locon") or "mid" in adapter:
        raise PlainError(
            f'"{adapter.module}" is {NAMES[adapter.algorithm]}, which diffusers cannot load. '
            "Make it plain LoRA in the same step: add --rank 16."
        )
    if adapter.decomposed and not adapter.by_output:
        raise PlainError(
            f'"{adapter.module}" is DoRA over the inputs; diffusers knows only DoRA over the outputs and would render '
            "something else. Make it plain LoRA in the same step: add --rank 16 and --base."
        )
    tensors = {}
    for part, name in adapter.parts.items():
        if part == "alpha":
            continue
        tensor = adapter.tensors[name]
        if part == "up" and adapter.scale != 1.0:
            tensor = _scaled(tensor, adapter.scale)
        if part == "dora_scale":
            kernel = len(adapter.shape("down")) - 2
            tensor = tensor.reshape(1, -1, *[1] * kernel) if kernel else tensor.reshape(-1)
        tensors[f"{module}.{PEFT_PARTS[part]}"] = _cast(tensor, dtype)
    return tensors


def _cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    if dtype is None or not tensor.is_floating_point():
        return tensor
    largest = float(tensor.abs().max()) if tensor.numel() else 0.0
    if largest > torch.finfo(dtype).max:
        name = str(dtype).removeprefix("torch.")
        raise PlainError(f"A weight of {largest:.3g} does not fit into {name}. Use bf16 or fp32.")
    return tensor.to(dtype)


def converted(
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    naming: Naming,
    family: str,
    dtype: torch.dtype | None = None,
) -> Converted:
    """`convert` for tensors in memory."""
    return convert(adapters(LoadedTensors(tensors, metadata)), metadata, naming, family, dtype)
