"""What a LoRA file does to each layer: its adapters found by their tensors, and the change ΔW each makes, in float32.

The formulas are those of the training forward pass of LyCORIS 4.1 (Yeh et al. 2023, arXiv:2309.14859); files carry the
same tensors whichever program wrote them. A weight is handled as a matrix [out, in × kernel].
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from engine.tools.files import LoadedTensors, Tensors
from engine.tools.names import canonical
from knowledge.answers import PlainError

SUFFIXES = {
    "lora_up.weight": "up",
    "lora_down.weight": "down",
    "lora_mid.weight": "mid",
    "lora_B.weight": "up",
    "lora_A.weight": "down",
    "lora_B.default.weight": "up",
    "lora_A.default.weight": "down",
    "lora.up.weight": "up",
    "lora.down.weight": "down",
    "lora_linear_layer.up.weight": "up",
    "lora_linear_layer.down.weight": "down",
    "lora_magnitude_vector": "dora_scale",
    "lora_magnitude_vector.weight": "dora_scale",
    "alpha": "alpha",
    "dora_scale": "dora_scale",
    "lora_B.bias": "bias",
    "diff": "diff",
    "diff_b": "bias",
    "w_norm": "diff",
    "b_norm": "bias",
    "on_input": "on_input",
    "oft_blocks": "oft_blocks",
    "rescale": "rescale",
    **{f"hada_{part}": f"hada_{part}" for part in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{f"lokr_{part}": f"lokr_{part}" for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t1", "t2")},
    **{f"{part}.weight": part for part in ("a1", "a2", "b1", "b2", "bm")},
    **{f"{part}_layer.weight": f"{part}_layer" for part in ("q", "p")},
    "lambda_layer": "lambda_layer",
    "weight": "scale_vector",
}
"""End of a tensor's name → its part in the adapter. `weight` alone is IA³'s."""
ENDINGS = sorted(SUFFIXES, key=len, reverse=True)
PROCESSOR = re.compile(r"\.processor\.(to_q|to_k|to_v|to_out)_lora\.(up|down)\.weight$")
"""The oldest diffusers files put the layers below the attention processor."""

MADE_OF = {
    "glora": ("a1", "a2", "b1", "b2"),
    "loha": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
    "tlora": ("q_layer", "p_layer"),
    "lora": ("up", "down"),
    "ia3": ("scale_vector", "on_input"),
    "full": ("diff",),
}
NAMES = {
    "lora": "LoRA",
    "locon": "LoCon",
    "dora": "DoRA",
    "loha": "LoHa",
    "lokr": "LoKr",
    "glora": "GLoRA",
    "boft": "BOFT",
    "diag-oft": "Diag-OFT",
    "full": "full difference",
    "norm": "norm layers",
    "ia3": "IA³",
    "tlora": "T-LoRA",
    "bias": "bias only",
}


@dataclass(frozen=True)
class Adapter:
    """The change of one layer: `parts` are the names of its tensors in the file by their part."""

    module: str
    algorithm: str
    parts: dict[str, str]
    tensors: Tensors = field(repr=False)
    default_alpha: float | None = None

    @property
    def canonical(self) -> str | None:
        return canonical(self.module)

    def __getitem__(self, part: str) -> Tensor:
        """A part in float32: what ΔW is computed in."""
        return self.tensors[self.parts[part]].float()

    def __contains__(self, part: str) -> bool:
        return part in self.parts

    def shape(self, part: str) -> tuple[int, ...]:
        return self.tensors.layout(self.parts[part])[1]

    @property
    def dtype(self) -> torch.dtype:
        """The number format of the largest part."""
        return max((self.tensors.layout(name) for name in self.parts.values()), key=lambda x: _count(x[1]))[0]

    @property
    def parameters(self) -> int:
        return sum(_count(self.shape(part)) for part in self.parts if part not in ("alpha", "on_input"))

    @property
    def rank(self) -> int | None:
        """Inner dimension; None for algorithms without one."""
        dimension = {"down": 0, "hada_w1_b": 0, "lokr_w2_b": 0, "lokr_w1_b": 0, "a2": 0}
        return next((self.shape(part)[axis] for part, axis in dimension.items() if part in self.parts), None)

    @property
    def alpha(self) -> float | None:
        if "alpha" in self.parts:
            return float(self.tensors[self.parts["alpha"]].float().item())
        return self.default_alpha

    @property
    def scale(self) -> float:
        """alpha / rank: the factor on the product of the matrices; 1 without an alpha."""
        rank, alpha = self.rank, self.alpha
        if rank is None or alpha is None or alpha == 0:
            return 1.0  # LyCORIS: alpha 0 means "as the rank"
        if "lokr_w1" in self.parts and "lokr_w2" in self.parts:
            return 1.0
        return alpha / rank

    @property
    def decomposed(self) -> bool:
        """Is this DoRA: magnitude and direction apart?"""
        return "dora_scale" in self.parts

    @property
    def needs_weight(self) -> bool:
        """Does the change depend on the base model's weight?"""
        return self.decomposed or self.algorithm in ("glora", "boft", "diag-oft", "ia3")

    @property
    def changes_weight(self) -> bool:
        """False for an adapter that only changes the bias."""
        return self.algorithm != "bias"


def _count(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


def adapters(tensors: Tensors) -> dict[str, Adapter]:
    """The adapters of a file by the name of their module, in the file's order. Raises PlainError when there is none."""
    grouped: dict[str, dict[str, str]] = {}
    for name in tensors:
        split = split_name(name)
        if split:
            grouped.setdefault(split[0], {})[split[1]] = name
    alphas = _peft_alphas(tensors.metadata)
    found = {}
    for module, parts in grouped.items():
        algorithm = _algorithm(parts, tensors, module)
        if algorithm:
            found[module] = Adapter(module, algorithm, parts, tensors, alphas(module))
    if not found:
        sample = ", ".join(f'"{name}"' for name in list(tensors)[:2])
        raise PlainError(f"This is not a LoRA file: none of its {len(tensors)} tensors belongs to one ({sample} …).")
    return found


def refuse_broken(found: Iterable[Adapter]) -> None:
    """Raises PlainError for weights that are not finite: whatever is computed from them would be noise as well."""
    for adapter in found:
        if not all(bool(torch.isfinite(adapter[part]).all()) for part in adapter.parts):
            raise PlainError(
                f'"{adapter.module}" holds numbers that are not finite (NaN or infinity): its training went off the '
                "rails. See which layers are sound: lora-wizard tools inspect FILE --layers"
            )


def split_name(name: str) -> tuple[str, str] | None:
    """Module and part of a tensor's name; None when the name is of no adapter."""
    name = PROCESSOR.sub(r".\1.lora.\2.weight", name)
    for ending in ENDINGS:
        if name.endswith("." + ending):
            module = name[: -len(ending) - 1]
            return (f"{module}.0" if module.endswith(".to_out") else module), SUFFIXES[ending]
    return None


def _algorithm(parts: Mapping[str, str], tensors: Tensors, module: str) -> str | None:
    if "oft_blocks" in parts:
        return "boft" if len(tensors.layout(parts["oft_blocks"])[1]) == 4 else "diag-oft"
    if any(part.startswith("lokr_w1") for part in parts):
        return "lokr"
    for algorithm, needed in MADE_OF.items():
        if all(part in parts for part in needed):
            if algorithm == "lora" and len(tensors.layout(parts["down"])[1]) == 4:
                kernels = [tensors.layout(parts[part])[1][-1] for part in ("down", "mid") if part in parts]
                return "locon" if max(kernels) > 1 else "lora"
            return "norm" if algorithm == "full" and parts["diff"].endswith("w_norm") else algorithm
    if "up" in parts or "down" in parts:
        other = "lora_down" if "up" in parts else "lora_up"
        raise PlainError(f'The layer "{module}" is incomplete: its {other} is missing, so the file is damaged.')
    return "bias" if "bias" in parts else None


def _peft_alphas(metadata: Mapping[str, str]) -> Callable[[str], float | None]:
    """The alpha that diffusers keeps in the metadata of PEFT files, by module."""
    try:
        config = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    except ValueError:
        config = {}

    def alpha(module: str) -> float | None:
        component, _, path = module.partition(".")
        default = config.get(f"{component}.lora_alpha")
        patterns = config.get(f"{component}.alpha_pattern") or {}
        for pattern, value in patterns.items():
            if path == pattern or path.endswith("." + pattern):
                return float(value)
        return float(default) if default is not None else None

    return alpha


def change(adapter: Adapter, weight: Tensor | None = None, strength: float = 1.0) -> Tensor:
    """ΔW of one layer as a float32 matrix [out, in × kernel], at `strength` (1: as trained).

    weight: the base model's weight [out, in, …]; needed by DoRA, GLoRA, OFT, BOFT and IA³. PlainError without it.
    """
    if adapter.needs_weight and weight is None:
        name = "DoRA" if adapter.decomposed else NAMES[adapter.algorithm]
        raise PlainError(
            f"{name} changes a layer depending on the base model's own weights, so this needs the base model it was "
            "trained on. Name it with --base."
        )
    if adapter.algorithm in _ROTATIONS:
        assert weight is not None
        return _ROTATIONS[adapter.algorithm](adapter, weight.float(), strength)
    if adapter.algorithm not in _CHANGES:
        raise PlainError(f'"{adapter.module}" is {NAMES[adapter.algorithm]}, whose effect cannot be computed here.')
    try:
        base = _CHANGES[adapter.algorithm](adapter, weight.float() if weight is not None else None)
    except RuntimeError:
        raise PlainError(
            f'The parts of the layer "{adapter.module}" do not fit together, or not the base model; the '
            "file is damaged or was trained on another family."
        ) from None
    if not adapter.decomposed:
        return base * strength
    assert weight is not None
    return _dora(base, weight.float(), adapter["dora_scale"], strength)


def bias_change(adapter: Adapter, strength: float = 1.0) -> Tensor | None:
    """The change of the layer's bias, where the adapter has one."""
    return adapter["bias"] * strength if "bias" in adapter else None


def _lora(adapter: Adapter, _: Tensor | None) -> Tensor:
    up, down = adapter["up"].flatten(1), adapter["down"]
    if "mid" in adapter:
        product = _tucker(adapter["mid"], up, down.flatten(1))
    elif up.shape[1] != down.shape[0]:
        raise PlainError(
            f'The layer "{adapter.module}" cannot be multiplied out: lora_up has {up.shape[1]} columns and lora_down '
            f"{down.shape[0]} rows. Files of the DyLoRA algorithm look like this and are not supported."
        )
    else:
        product = up @ down.flatten(1)
    return product * adapter.scale


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
    identity = torch.eye(blocks.shape[-1])
    rotations: Tensor = (identity + skew) @ torch.linalg.inv(identity - skew)
    return rotations


def _oft_blocks(adapter: Adapter, rows: int) -> Tensor:
    """The blocks, their norm held to the constraint that the file keeps as alpha."""
    blocks = adapter["oft_blocks"]
    constraint = (adapter.alpha or 0.0) * rows
    if constraint > 0:
        norm = (blocks - blocks.transpose(-1, -2)).norm() + 1e-8
        blocks = blocks * (constraint / norm).clamp(max=1.0)
    return blocks


def _diag_oft(adapter: Adapter, weight: Tensor, strength: float) -> Tensor:
    """Rotations of groups of rows, Qiu et al. 2023 (arXiv:2306.07280)."""
    matrix = weight.flatten(1)
    rotations = _oft_rotations(_oft_blocks(adapter, len(matrix)))
    rotations = rotations * strength + (1 - strength) * torch.eye(rotations.shape[-1])
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
    identity = torch.eye(size)
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


def _dora(base: Tensor, weight: Tensor, magnitude: Tensor, strength: float) -> Tensor:
    """W' = m · (W + ΔW) / ‖W + ΔW‖, Liu et al. 2024 (arXiv:2402.09353), equation 5; ΔW' = W' − W.

    The magnitude's own shape says whether the norm runs over inputs ([out, 1], or PEFT's [out]) or outputs ([1, in]).
    """
    merged = (weight.flatten(1) + base).reshape(weight.shape)
    if magnitude.dim() == 1:
        magnitude = magnitude.reshape(-1, *[1] * (weight.dim() - 1))
    kept = next((axis for axis, size in enumerate(magnitude.shape) if size > 1), 0)
    others = [axis for axis in range(weight.dim()) if axis != kept]
    norm = torch.linalg.vector_norm(merged, dim=others, keepdim=True) + torch.finfo(torch.float32).eps
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


def algorithms(found: Mapping[str, Adapter]) -> list[str]:
    """The algorithms of a file in the order of how many layers use them; DoRA is named before what it decomposes."""
    counts: dict[str, int] = {}
    for adapter in found.values():
        name = "dora" if adapter.decomposed and adapter.algorithm in ("lora", "locon") else adapter.algorithm
        counts[name] = counts.get(name, 0) + 1
    return sorted(counts, key=lambda name: -counts[name])


def in_memory(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> dict[str, Adapter]:
    """The adapters of tensors that are already in memory."""
    return adapters(LoadedTensors(tensors, metadata))


def input_width(adapter: Adapter) -> int | None:
    """Columns of ΔW as a matrix: in × kernel; None where the file alone does not say."""
    if "down" in adapter:
        return _count(adapter.shape("down")[1:])
    if "hada_w1_b" in adapter:
        kernel = _count(adapter.shape("hada_t1")[2:]) if "hada_t1" in adapter else 1
        return _count(adapter.shape("hada_w1_b")[1:]) * kernel
    if adapter.algorithm == "lokr":
        left = adapter.shape("lokr_w1" if "lokr_w1" in adapter else "lokr_w1_b")[1]
        right = _count(adapter.shape("lokr_w2" if "lokr_w2" in adapter else "lokr_w2_b")[1:])
        return left * right
    if "diff" in adapter and len(adapter.shape("diff")) > 1:
        return _count(adapter.shape("diff")[1:])
    if "b2" in adapter:
        return _count(adapter.shape("b2")[1:])
    return None


def output_width(adapter: Adapter) -> int | None:
    """Rows of ΔW as a matrix; None where the file alone does not say."""
    first = next((part for part in ("up", "hada_w1_a", "diff", "b1") if part in adapter), None)
    if first is not None:
        return adapter.shape(first)[0]
    if adapter.algorithm == "lokr":
        left = adapter.shape("lokr_w1" if "lokr_w1" in adapter else "lokr_w1_a")[0]
        return left * adapter.shape("lokr_w2" if "lokr_w2" in adapter else "lokr_w2_a")[0]
    if "oft_blocks" in adapter:
        return _count(adapter.shape("oft_blocks")[-3:-1])
    return None


def families(found: Mapping[str, Adapter]) -> Iterator[str]:
    """The base families whose layers these adapters fit, judged by names and by the width of the text conditioning."""
    names = [adapter.canonical or module for module, adapter in found.items()]
    joined = " ".join(found)
    for marks, family in FOREIGN_MARKS.items():
        if any(mark in joined for mark in marks):
            yield family
            return
    widths = {
        input_width(adapter)
        for module, adapter in found.items()
        if (name := adapter.canonical) and re.search(r"attn2\.to_[kv]$", name)
    }
    by_width = {768: "sd15", 1024: "sd2", 2048: "sdxl", 1280: "sdxl-refiner"}
    for width in sorted(w for w in widths if w):
        if width in by_width:
            yield by_width[width]
    if widths:
        return
    if any(name.startswith("text_encoder_2.") for name in names) or "lora_te1_" in joined:
        yield "sdxl"
    encoder = {
        input_width(a) for a in found.values() if (n := a.canonical) and n.startswith("text_encoder.") and "q_proj" in n
    }
    yield from (
        by_width[width]
        for width in sorted(w for w in encoder if w)
        if width in (768, 1024) and "lora_te1_" not in joined
    )


FOREIGN_MARKS = {
    ("double_blocks", "single_transformer_blocks"): "flux",
    ("joint_blocks", "joint_transformer_blocks"): "sd3",
    ("lora_prior_unet", "prior_te"): "cascade",
    ("diffusion_model.blocks.", "lora_unet_blocks_"): "video or image transformer (Wan, Cosmos, Anima …)",
    ("diffusion_model.layers.", "lora_unet_layers_"): "Lumina or Z-Image",
    ("transformer_blocks_0_img_mlp", "transformer_blocks.0.img_mlp"): "Qwen-Image",
}
FAMILY_NAMES = {
    "pocket": "the pocket model",
    "sd15": "Stable Diffusion 1.5",
    "sd2": "Stable Diffusion 2",
    "sdxl": "Stable Diffusion XL",
    "sdxl-refiner": "the SDXL refiner",
    "flux": "Flux.1",
    "sd3": "Stable Diffusion 3",
    "cascade": "Stable Cascade",
}
