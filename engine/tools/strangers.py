"""What a file without a LoRA in it is instead, told by the names of its tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from engine.tools.files import EMBEDDING
from engine.tools.headers import shown
from knowledge.words import count

Layouts = Mapping[str, tuple[int, ...]]
"""The shape of every tensor by name."""
EMBEDDING_WIDTHS = {768, 1024, 1280, 2048}
"""Of the text encoders of SD 1.5, SD 2, and SDXL."""
INTO = "To build a LoRA into it: lora-wizard tools merge LORA --into FILE"


def _named(*marks: str) -> Callable[[Layouts], bool]:
    return lambda layouts: any(mark in name for name in layouts for mark in marks)


def _is_embedding(layouts: Layouts) -> bool:
    rows = [shape for shape in layouts.values() if len(shape) in (1, 2) and shape[-1] in EMBEDDING_WIDTHS]
    return 0 < len(layouts) <= 4 and len(rows) > 0 and not any(name.endswith((".weight", ".bias")) for name in layouts)


STRANGERS: tuple[tuple[Callable[[Layouts], bool], str, str], ...] = (
    (_named("double_blocks.", "single_transformer_blocks."), "a Flux model", ""),
    (_named("joint_blocks.", "joint_transformer_blocks."), "a Stable Diffusion 3 model", ""),
    (_named("control_model.", "controlnet_"), "a ControlNet", ""),
    (_named("image_proj.", "ip_adapter."), "an IP-Adapter", ""),
    (_named("model.diffusion_model."), "a whole Stable Diffusion checkpoint", INTO),
    (_named("down_blocks.0.resnets.0.conv1"), "the UNet of a diffusers folder", "Name the folder that holds unet/."),
    (_named("first_stage_model.", "decoder.conv_in.", "decoder.up_blocks."), "a VAE", ""),
    (_named("text_model.encoder.", "resblocks."), "a text encoder", ""),
    (_is_embedding, "an embedding (textual inversion)", EMBEDDING),
)
"""In this order: how it is told, what it is, what to do with it."""


def what_it_is(layouts: Layouts) -> tuple[str, str]:
    """What a file with these tensors is, and what to do with it; both empty for what is not known here."""
    return next(((what, then) for told, what, then in STRANGERS if told(layouts)), ("", ""))


def not_a_lora(called: str, layouts: Layouts) -> str:
    """The sentence on a file that is no LoRA."""
    what, then = what_it_is(layouts)
    if what:
        return f"{called} is not a LoRA but {what}.{f' {then}' if then else ''}"
    sample = ", ".join(f'"{shown(name)}"' for name in list(layouts)[:2])
    return f"{called} is not a LoRA: none of its {count(len(layouts), 'tensor')} belongs to one ({sample} …)."
