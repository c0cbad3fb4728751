"""The same network under other names or in another precision: sd-scripts, diffusers' paths, PEFT."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.tools.adapters import NAMES, Adapter, adapters
from engine.tools.files import LoadedTensors, Tensors
from engine.tools.headers import DTYPE_NAMES, DTYPES
from engine.tools.metadata import document
from engine.tools.names import Naming, spelled
from engine.tools.precision import Rounding, cast_exactly
from engine.tools.progress import Progress, no_progress
from engine.tools.writing import write_stream
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
    """Tensors and metadata under the new names; `unknown` are modules of no SD model, left under their old names.

    `rounding`: ‖written − exact‖ / ‖exact‖ over all weights; 0 when every number kept its value.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    unknown: tuple[str, ...]
    rounding: float


def convert(
    found: Mapping[str, Adapter],
    metadata: Mapping[str, str],
    naming: Naming,
    family: str,
    dtype: torch.dtype | None = None,
) -> Converted:
    """The network as `naming` writes it for this family. Raises PlainError when PEFT cannot hold its algorithm."""
    tensors: dict[str, Tensor] = {}
    unknown, alphas, rounding = [], {}, Rounding()
    folded = document(metadata, ALPHAS)
    for module, adapter in found.items():
        name = adapter.canonical
        if name is None:
            unknown.append(module)
            name = module
        spelling = spelled(name, naming, family) if adapter.canonical else module
        if naming == "peft":
            tensors |= _peft(spelling, adapter, dtype, rounding)
            if adapter.alpha is not None:
                alphas[spelling] = [adapter.alpha, DTYPE_NAMES[adapter.layout("up")[0]]]
        else:
            tensors |= _kohya(spelling, adapter, dtype, _folded(folded.get(module)), rounding)
    kept = {key: value for key, value in metadata.items() if key not in (ALPHAS, "lora_adapter_metadata")}
    kept |= {ALPHAS: json.dumps(alphas)} if alphas else {}
    return Converted(tensors, kept, tuple(unknown), rounding.error)


Folded = tuple[float, torch.dtype]


def _folded(told: Any) -> Folded | None:
    """Alpha and precision of lora_up before alpha / rank was multiplied in, where the metadata tell of it."""
    match told:
        case [float() | int() as alpha, str() as dtype] if alpha > 0 and dtype in DTYPES:
            return float(alpha), DTYPES[dtype]
    return None


def _kohya(
    module: str, adapter: Adapter, dtype: torch.dtype | None, folded: Folded | None, rounding: Rounding
) -> dict[str, Tensor]:
    """kohya's tensors."""
    tensors = {}
    for part, name in adapter.parts.items():
        tensor, own = adapter.tensors[name], dtype
        if part == "up" and folded and adapter.rank:
            tensor, own = tensor.double() / (folded[0] / adapter.rank), dtype or folded[1]
        if part == "bias" and not adapter.keeps_alpha:
            tensor = tensor * adapter.scale
        if part == "dora_scale" and adapter.peft_magnitude:
            tensor = tensor.reshape(-1, *[1] * (len(adapter.shape("down")) - 1))
        suffix = KOHYA_PARTS.get(part, part)
        suffix = {"diff": "w_norm", "bias": "b_norm"}.get(part, suffix) if adapter.algorithm == "norm" else suffix
        tensors[f"{module}.{suffix}"] = cast_exactly(tensor, own) if part == "alpha" else rounding.cast(tensor, own)
    if "alpha" not in adapter.parts and adapter.rank is not None:
        alpha = folded[0] if folded else adapter.rank if adapter.alpha is None else adapter.alpha
        tensors[f"{module}.alpha"] = cast_exactly(torch.tensor(alpha, dtype=torch.float64), dtype or adapter.dtype)
    return tensors


def _room(exact: Tensor, scale: float, dtype: torch.dtype) -> torch.dtype:
    """The precision for a matrix multiplied by `scale`: its own where dividing gives its bits back, else float32."""
    narrow, original = exact.to(dtype), (exact / scale).to(dtype)
    whole = torch.equal((narrow.double() / scale).to(dtype), original)
    return dtype if whole or dtype == torch.float64 else torch.float32


def _peft(module: str, adapter: Adapter, dtype: torch.dtype | None, rounding: Rounding) -> dict[str, Tensor]:
    """diffusers' own tensors; alpha / rank is multiplied into lora_B, because these carry no alpha."""
    if adapter.algorithm not in ("lora", "locon") or "mid" in adapter:
        raise PlainError(
            f"{adapter} is {NAMES[adapter.algorithm]}, which diffusers cannot load. "
            "Make it plain LoRA in the same step: add --rank 16."
        )
    if adapter.decomposed and not adapter.by_output:
        raise PlainError(
            f"{adapter} is DoRA over the inputs; diffusers knows only DoRA over the outputs and would render "
            "something else. Make it plain LoRA in the same step: add --rank 16 and --base."
        )
    tensors = {}
    for part, name in adapter.parts.items():
        if part == "alpha":
            continue
        tensor, own = adapter.tensors[name], dtype
        if part == "up" and adapter.scale != 1.0:
            exact = tensor.double() * adapter.scale
            tensor, own = exact, dtype or _room(exact, adapter.scale, tensor.dtype)
        if part == "dora_scale":
            kernel = len(adapter.shape("down")) - 2
            tensor = tensor.reshape(1, -1, *[1] * kernel) if kernel else tensor.reshape(-1)
        tensors[f"{module}.{PEFT_PARTS[part]}"] = rounding.cast(tensor, own)
    return tensors


def copied(
    tensors: Tensors, path: Path, dtype: torch.dtype | None, *, hashes: bool, progress: Progress = no_progress
) -> float:
    """Write the tensors under their own names as .safetensors, one in memory at a time; ‖written − exact‖ / ‖exact‖.

    hashes: of a network file, as sd-scripts writes them.
    """
    rounding, layout = Rounding(), {}
    alphas = {name: cast_exactly(tensors[name], dtype) for name in tensors if name.endswith(".alpha")}
    for name in tensors:
        own, shape = tensors.layout(name)
        layout[name] = (own if dtype is None or not own.is_floating_point else dtype, shape)
    layout |= {name: (alpha.dtype, tuple(alpha.shape)) for name, alpha in alphas.items()}
    stream = (
        (name, alphas[name] if name in alphas else rounding.cast(tensors[name], to)) for name, (to, _) in layout.items()
    )
    metadata = {key: text for key, text in tensors.metadata.items() if key != "modelspec.hash_sha256"}
    write_stream(path, layout, stream, metadata, hashes=hashes, progress=progress)
    return rounding.error


def converted(
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    naming: Naming,
    family: str,
    dtype: torch.dtype | None = None,
) -> Converted:
    """`convert` for tensors in memory."""
    return convert(adapters(LoadedTensors(tensors, metadata)), metadata, naming, family, dtype)
