"""The adapters in a LoRA file: which layers it changes by which algorithm, found by the names of its tensors.

Files carry the same tensors whichever program wrote them. What an adapter does to its layer is in effect.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from engine.tools.files import LoadedTensors, Tensors
from engine.tools.headers import shown
from engine.tools.metadata import document
from engine.tools.names import canonical
from engine.tools.part_shapes import refuse_misfit, said
from engine.tools.strangers import not_a_lora
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
RANKED = {
    "lora": ("down",),
    "locon": ("down",),
    "loha": ("hada_w1_b",),
    "lokr": ("lokr_w2_b", "lokr_w1_b"),
    "glora": ("a2",),
}
"""Parts by algorithm whose first side is the rank."""
COMMON_PARTS = {"alpha", "scale_vector"}
"""Names that tensors of other models end in as well, so that one of these alone is no half of an adapter."""
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
    """The change of one layer: `parts` are the names of its tensors in the file by their part, read in `precision`."""

    module: str
    algorithm: str
    parts: dict[str, str]
    tensors: Tensors = field(repr=False)
    default_alpha: float | None = None
    precision: torch.dtype = torch.float32

    def __str__(self) -> str:
        """The layer as a sentence begins with it."""
        return f'The layer "{shown(self.module)}" of {self.tensors.called}'

    @property
    def canonical(self) -> str | None:
        return canonical(self.module)

    def __getitem__(self, part: str) -> Tensor:
        """A part in the precision that ΔW is computed in."""
        return self.tensors[self.parts[part]].to(self.precision)

    def __contains__(self, part: str) -> bool:
        return part in self.parts

    def layout(self, part: str) -> tuple[torch.dtype, tuple[int, ...]]:
        """Number format and shape of a part."""
        return self.tensors.layout(self.parts[part])

    def shape(self, part: str) -> tuple[int, ...]:
        return self.layout(part)[1]

    def count(self, part: str) -> int:
        """How many numbers a part holds."""
        return math.prod(self.shape(part))

    @property
    def dtype(self) -> torch.dtype:
        """The number format of the largest part."""
        return self.layout(max(self.parts, key=self.count))[0]

    @property
    def parameters(self) -> int:
        return sum(self.count(part) for part in self.parts if part not in ("alpha", "on_input"))

    @property
    def rank(self) -> int | None:
        """Inner dimension; None for algorithms without one."""
        return next((self.shape(part)[0] for part in RANKED.get(self.algorithm, ()) if part in self.parts), None)

    @property
    def alpha(self) -> float | None:
        if "alpha" in self.parts:
            return float(self.tensors[self.parts["alpha"]].double().item())
        return self.default_alpha

    @property
    def keeps_alpha(self) -> bool:
        """False under diffusers' own names, which have none: there the scale is in the weights or the metadata."""
        return "up" not in self.parts or self.parts["up"].endswith("lora_up.weight")

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
    def by_output(self) -> bool:
        """Does DoRA's magnitude give each output a length, [out, 1, …], or each input, [1, in, 1, …]?

        PEFT has one per output always, and keeps them as [out], or for convolutions as [1, out, 1, 1].
        """
        shape = self.shape("dora_scale")
        return self.peft_magnitude or shape[0] > 1 or max(shape) == 1

    @property
    def peft_magnitude(self) -> bool:
        return "lora_magnitude_vector" in self.parts["dora_scale"] or len(self.shape("dora_scale")) == 1

    @property
    def needs_weight(self) -> bool:
        """Does the change depend on the base model's weight?"""
        return self.decomposed or self.algorithm in ("glora", "boft", "diag-oft", "ia3")

    @property
    def changes_weight(self) -> bool:
        """False for an adapter that only changes the bias."""
        return self.algorithm != "bias"


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
        algorithm = _algorithm(parts, tensors)
        if algorithm:
            adapter = Adapter(module, algorithm, parts, tensors)
            refuse_misfit(adapter)
            found[module] = replace(adapter, default_alpha=alphas(module, adapter.rank))
        elif parts.keys() - COMMON_PARTS:
            raise PlainError(
                f'{tensors.called} is damaged: of the layer "{shown(module)}" there is only '
                f"{' and '.join(map(said, parts))}, which changes nothing without the rest."
            )
    if not found:
        layouts = {name: tensors.layout(name)[1] for name in tensors}
        raise PlainError(not_a_lora(tensors.called, layouts))
    return found


def is_network(names: Iterable[str]) -> bool:
    """Does any tensor of these names belong to an adapter?"""
    return any(split and split[1] not in COMMON_PARTS for split in map(split_name, names))


def refuse_broken(found: Iterable[Adapter]) -> None:
    """Raises PlainError for weights that are not finite: whatever is computed from them would be noise as well."""
    for adapter in found:
        if not all(bool(torch.isfinite(adapter[part]).all()) for part in adapter.parts):
            raise PlainError(
                f"{adapter} holds numbers that are not finite (NaN or infinity): its training went off the "
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


def _algorithm(parts: Mapping[str, str], tensors: Tensors) -> str | None:
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
    return "bias" if parts.keys() == {"bias"} else None


def _peft_alphas(metadata: Mapping[str, str]) -> Callable[[str, int | None], float | None]:
    """The alpha that diffusers keeps in the metadata of PEFT files, by module and its rank.

    With rank-stabilised scaling (alpha / √rank) the alpha that does the same when it is divided by the rank.
    """
    config = document(metadata, "lora_adapter_metadata")

    def alpha(module: str, rank: int | None) -> float | None:
        component, _, path = module.partition(".")
        patterns = config.get(f"{component}.alpha_pattern")
        found = config.get(f"{component}.lora_alpha")
        for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
            if path == pattern or path.endswith("." + pattern):
                found = value
                break
        if not isinstance(found, int | float):
            return None
        stabilised = config.get(f"{component}.use_rslora") is True
        return float(found) * (rank**0.5 if stabilised and rank else 1.0)

    return alpha


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
