"""Which family of base models a LoRA file is for, judged by the names and the shapes of its layers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from engine.tools.adapters import Adapter
from engine.tools.part_shapes import size_of_change


def families(found: Mapping[str, Adapter]) -> Iterator[str]:
    """The base families whose layers these adapters fit, judged by names and by the width of the text conditioning."""
    names = [adapter.canonical or module for module, adapter in found.items()]
    joined = " ".join(found)
    for marks, family in FOREIGN_MARKS.items():
        if any(mark in joined for mark in marks):
            yield family
            return
    widths = {
        size_of_change(adapter)[1]
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
        size_of_change(a)[1]
        for a in found.values()
        if (n := a.canonical) and n.startswith("text_encoder.") and "q_proj" in n
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
