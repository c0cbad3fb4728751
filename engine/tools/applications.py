"""Which programs read a network file, layer by layer: their key maps and their algorithms, as tables.

From running ComfyUI (a125cd84) and diffusers 0.42, and from reading Forge (dfdcbab6) and A1111 (873edba).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from engine.tools.adapters import NAMES, Adapter
from knowledge.families import family_facts, family_names
from knowledge.words import count

TEXT_LAYERS = re.compile(r"text_model\.encoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])$")
BASIC = frozenset({"lora", "locon"})
Rule = Callable[[str, Adapter, "File"], tuple[bool, str]]
"""From a module's name in the file, its adapter and what else the file is: is it read, and what goes wrong."""
LYCORIS = BASIC | {"loha", "lokr", "glora", "full", "norm", "bias"}


ALPHA_LOST = re.compile(r"unet\..*\.(to_q|to_k|to_v|to_out\.0)$|text_encoder(_2)?\..*\.self_attn\.|text_encoder\.")
"""Layers whose own alpha diffusers 0.42 does not find: it looks for it under another name than the layer's."""


@dataclass(frozen=True)
class File:
    """What a rule has to know of the whole file: its family, and the alpha of most layers in each part of the model."""

    family: str
    usual_alphas: Mapping[str, float | None]


@dataclass(frozen=True)
class Reading:
    """What one program does with a file: layers read of all, and what it gets wrong, in words."""

    application: str
    read: int
    layers: int
    remarks: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        if self.read == 0:
            return "no"
        return "yes" if self.read == self.layers and not self.remarks else "partly"


def readings(found: Mapping[str, Adapter], family: str) -> list[Reading]:
    """The verdict of each program that has the family's models on these adapters of a network for it.

    None on a network for a model whose layers are not known here: other programs may well know them.
    """
    if not any(adapter.canonical for adapter in found.values()):
        return []
    alphas: dict[str, Counter[float | None]] = {}
    for adapter in found.values():
        alphas.setdefault(_part(adapter), Counter())[adapter.alpha] += 1
    file = File(family, {part: counted.most_common(1)[0][0] for part, counted in alphas.items()})
    having = family_facts(family).applications if family in family_names() else APPLICATIONS
    return [_reading(name, rule, found, file) for name, rule in APPLICATIONS.items() if name in having]


def _reading(name: str, rule: Rule, found: Mapping[str, Adapter], file: File) -> Reading:
    read = 0
    remarks: dict[str, int] = {}
    for module, adapter in found.items():
        taken, remark = rule(module, adapter, file)
        read += taken
        if remark:
            remarks[remark] = remarks.get(remark, 0) + 1
    if name == "diffusers" and any("cannot load" in remark for remark in remarks):
        read = 0  # it raises at the first layer of a kind it does not know
    words = tuple(f"{text} ({count(number, 'layer')})" for text, number in remarks.items())
    return Reading(name, read, len(found), words)


def _kohya_named(module: str) -> bool:
    return module.startswith(("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_"))


def _comfyui(module: str, adapter: Adapter, file: File) -> tuple[bool, str]:
    name = adapter.canonical
    if name is None:
        return False, "layers it does not know by this name"
    if not (_kohya_named(module) or module.startswith("lycoris_")):
        if name.startswith("unet.") and ".to_" in name:
            return False, "ignores attention layers under diffusers' own names; convert with --names sd-scripts"
        if adapter.alpha is not None and "alpha" not in adapter.parts:
            return True, "ignores the alpha that stands in the metadata"
    if name.startswith("text_encoder") and not (TEXT_LAYERS.search(name) and _says_text_model(module)):
        return False, "ignores text-encoder layers under this name"
    if adapter.algorithm in ("ia3", "tlora"):
        return False, f"does not read {NAMES[adapter.algorithm]}"
    if "lokr_t2" in adapter:
        return False, "stops with an error at LoKr with Tucker decomposition"
    if _output_dora(adapter):
        return True, "renders DoRA over the outputs slightly wrong"
    if adapter.algorithm in ("boft", "diag-oft") and (adapter.alpha or "rescale" in adapter):
        return True, "renders OFT with a constraint or rescaling wrong"
    return True, ""


def _forge(module: str, adapter: Adapter, file: File) -> tuple[bool, str]:
    if adapter.algorithm not in LYCORIS:
        return False, f"does not read {NAMES[adapter.algorithm]}"
    return _comfyui(module, adapter, file)


def _a1111(module: str, adapter: Adapter, file: File) -> tuple[bool, str]:
    if not _kohya_named(module) or adapter.canonical is None:
        return False, "reads kohya names only"
    if adapter.algorithm not in LYCORIS | {"ia3", "boft", "diag-oft"}:
        return False, f"does not read {NAMES[adapter.algorithm]}"
    if file.family == "sdxl" and module == "lora_unet_up_blocks_0_upsamplers_0_conv":
        return False, "maps SDXL's first upsampler to a layer that does not exist"
    if adapter.decomposed and not _output_dora(adapter):
        return True, ""
    if adapter.decomposed:
        return True, "takes DoRA's norm over the inputs, so DoRA over the outputs renders wrong"
    return True, ""


def _diffusers(module: str, adapter: Adapter, file: File) -> tuple[bool, str]:
    if adapter.canonical is None:
        return False, "layers it does not know by this name"
    if adapter.algorithm not in BASIC or "mid" in adapter:
        kind = "LoRA with Tucker decomposition" if "mid" in adapter else NAMES[adapter.algorithm]
        return False, f"cannot load {kind}"
    if "bias" in adapter and _kohya_named(module):
        return False, "cannot load changes of biases"
    if adapter.decomposed and _kohya_named(module):
        return True, "drops DoRA's magnitudes with no more than a log line"
    usual = file.usual_alphas[_part(adapter)]
    if _kohya_named(module) and ALPHA_LOST.match(adapter.canonical) and adapter.alpha != usual:
        return True, "gives layers the alpha that most have instead of their own; convert with --names peft"
    return True, ""


def _part(adapter: Adapter) -> str:
    return (adapter.canonical or "").partition(".")[0]


def _output_dora(adapter: Adapter) -> bool:
    return adapter.decomposed and adapter.by_output


def _says_text_model(module: str) -> bool:
    return "text_model" in module


APPLICATIONS: dict[str, Rule] = {
    "ComfyUI": _comfyui,
    "A1111": _a1111,
    "Forge": _forge,
    "diffusers": _diffusers,
}
