"""A network file looked into: what it is, what it changes how strongly, what is broken in it, and who can read it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.tools.adapters import NAMES, Adapter, adapters, algorithms
from engine.tools.applications import Reading, readings
from engine.tools.effect import change
from engine.tools.families import families
from engine.tools.files import Tensors, open_tensors
from engine.tools.headers import DTYPE_NAMES, body_hash, file_hash
from engine.tools.metadata import document, folders, tag_frequency, trigger_words
from engine.tools.names import block_of, block_order
from engine.tools.progress import Progress, no_progress
from engine.tools.resize import Weights, no_base
from engine.verification import ACTS_THROUGH, acts
from knowledge.families import family_of_version

FOREIGN_VERSIONS = {"flux1": "flux", "sd3": "sd3"}
"""How ss_base_model_version begins in files for models that are not trained here."""
PRECISION_NAMES = {"F32": "fp32", "F16": "fp16", "BF16": "bf16", "F64": "fp64", "F8_E4M3": "fp8"}


@dataclass(frozen=True)
class Layer:
    """One layer: `norm` is ‖ΔW‖ (Frobenius), None where it depends on a base model that was not given."""

    module: str
    block: str
    algorithm: str
    rank: int | None
    alpha: float | None
    parameters: int
    norm: float | None
    finite: bool
    silent: bool = False
    """Some factor of its change is zero, so that it changes nothing, whatever the base model."""


@dataclass(frozen=True)
class Block:
    """The layers of one block of the model together."""

    name: str
    layers: int
    ranks: tuple[int, ...]
    alphas: tuple[float, ...]
    parameters: int
    norm: float | None
    mean_norm: float | None


@dataclass(frozen=True)
class Report:
    """Everything that `tools inspect` tells."""

    path: str
    bytes: int
    families: tuple[str, ...]
    algorithms: tuple[str, ...]
    precisions: tuple[str, ...]
    parameters: int
    layers: tuple[Layer, ...]
    hashes: dict[str, str]
    hash_as_stated: bool | None
    readings: tuple[Reading, ...]
    metadata: dict[str, str]
    triggers: tuple[str, ...]
    tags: tuple[tuple[str, int], ...]
    folders: tuple[tuple[str, int, int], ...]

    @property
    def blocks(self) -> list[Block]:
        names = block_order({layer.block for layer in self.layers})
        return [_block(name, [layer for layer in self.layers if layer.block == name]) for name in names]

    @property
    def dead(self) -> list[str]:
        """Layers that change nothing: they were never trained, or only as zeros."""
        return [layer.module for layer in self.layers if layer.norm == 0 or layer.silent]

    @property
    def broken(self) -> list[str]:
        """Layers with a weight that is not a number or infinite: the file draws noise or black pictures."""
        return [layer.module for layer in self.layers if not layer.finite]


def _block(name: str, layers: list[Layer]) -> Block:
    norms = [layer.norm for layer in layers if layer.norm is not None and layer.finite]
    return Block(
        name,
        len(layers),
        tuple(sorted({layer.rank for layer in layers if layer.rank is not None})),
        tuple(sorted({layer.alpha for layer in layers if layer.alpha is not None})),
        sum(layer.parameters for layer in layers),
        sum(norm**2 for norm in norms) ** 0.5 if norms else None,
        sum(norms) / len(norms) if norms else None,
    )


def inspect(path: Path | str, *, weights: Weights = no_base, progress: Progress = no_progress) -> Report:
    """The report on a LoRA file; one layer is in memory at a time. Raises PlainError for anything that is not one."""
    path = Path(path)
    tensors = open_tensors(path)
    found = adapters(tensors)
    layers = []
    for done, adapter in enumerate(found.values(), 1):
        layers.append(_layer(adapter, weights))
        progress(done, len(found))
    formats = Counter(DTYPE_NAMES.get(tensors.layout(name)[0], "?") for name in tensors)
    whole = file_hash(path)
    hashes = {"sha256": whole, "AutoV2": whole[:10]}
    stated = tensors.metadata.get("sshs_model_hash")
    if path.suffix.lower() == ".safetensors":
        body = body_hash(path)
        hashes |= {"sshs_model_hash": body, "AutoV3": body[:12]}
    return Report(
        path=str(path),
        bytes=path.stat().st_size,
        families=tuple(dict.fromkeys([*_stated_family(tensors.metadata), *families(found)])),
        algorithms=tuple(NAMES[name] for name in algorithms(found)),
        precisions=tuple(PRECISION_NAMES.get(name, name) for name, _ in formats.most_common()),
        parameters=sum(layer.parameters for layer in layers),
        layers=tuple(layers),
        hashes=hashes,
        hash_as_stated=None
        if stated is None or "sshs_model_hash" not in hashes
        else stated == hashes["sshs_model_hash"],
        readings=tuple(readings(found, family_of(tensors, found))),
        metadata=dict(tensors.metadata),
        triggers=tuple(trigger_words(tensors.metadata)),
        tags=tuple(tag_frequency(tensors.metadata)),
        folders=tuple(folders(tensors.metadata)),
    )


def _layer(adapter: Adapter, weights: Weights) -> Layer:
    name = adapter.canonical or adapter.module
    finite = all(bool(torch.isfinite(adapter[part]).all()) for part in adapter.parts)
    weight = weights(name) if adapter.needs_weight else None
    norm = None
    if adapter.algorithm == "bias":
        norm = float(adapter["bias"].norm())
    elif finite and adapter.algorithm != "tlora" and (weight is not None or not adapter.needs_weight):
        norm = float(change(adapter, weight).double().norm())
    if norm is not None and not math.isfinite(norm):  # numbers so large that what they multiply to is none
        finite, norm = False, None
    return Layer(
        adapter.module,
        block_of(name),
        adapter.algorithm,
        adapter.rank,
        None if adapter.alpha == 0 and adapter.rank is None else adapter.alpha,  # a rotation without a constraint
        adapter.parameters,
        norm,
        finite,
        silent=finite and adapter.algorithm in ACTS_THROUGH and not adapter.decomposed and not acts(adapter),
    )


def _stated_family(metadata: Mapping[str, str]) -> list[str]:
    """The family that the metadata states: our own config first, then sd-scripts' word."""
    own = document(metadata, "lora_wizard.config").get("base_model")
    if isinstance(own, dict) and isinstance(own.get("family"), str):
        return [own["family"]]
    version = metadata.get("ss_base_model_version", "")
    foreign = [family for start, family in FOREIGN_VERSIONS.items() if version.startswith(start)]
    return [family] if (family := family_of_version(version)) else foreign


def family_of(tensors: Tensors, found: Mapping[str, Adapter]) -> str:
    """The one family to write names for; sd15 when neither metadata nor shapes say more."""
    return next(iter([*_stated_family(tensors.metadata), *families(found)]), "sd15")
