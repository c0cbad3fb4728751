"""One layer, many names: what sd-scripts, diffusers, PEFT and single-file checkpoints call the layers of SD models.

The canonical name is the module path in diffusers, with the component before it: `unet.down_blocks.0.attentions.0.…`,
`text_encoder.text_model.encoder.layers.0.…`, `text_encoder_2.…`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Literal

from knowledge.families import FamilyFacts, families, family_facts

Naming = Literal["sd-scripts", "diffusers-paths", "peft"]
NAMINGS: dict[str, str] = {
    "sd-scripts": "kohya names; SDXL's UNet in its original layout (input_blocks), as sd-scripts writes it",
    "diffusers-paths": "kohya names; the UNet in diffusers' layout (down_blocks) for every family",
    "peft": "diffusers' own names (unet.….lora_A), for diffusers and nothing else",
}

COMPONENTS = ("unet", "text_encoder", "text_encoder_2")
PREFIXES = {
    "lora_unet": "unet",
    "lora_te1": "text_encoder",
    "lora_te2": "text_encoder_2",
    "lora_te": "text_encoder",
    "lycoris": "unet",
}
"""First word of a kohya name → component. `lycoris` is what LyCORIS writes when it wraps a model by itself."""

# fmt: off
COMPOUNDS = (
    "down_blocks", "up_blocks", "mid_block", "transformer_blocks", "proj_in", "proj_out", "to_q", "to_k", "to_v",
    "to_out", "time_emb_proj", "conv_shortcut", "conv_in", "conv_out", "conv_norm_out", "time_embedding",
    "add_embedding", "linear_1", "linear_2", "text_model", "self_attn", "q_proj", "k_proj", "v_proj", "out_proj",
    "layer_norm1", "layer_norm2", "final_layer_norm", "token_embedding", "position_embedding", "text_projection",
    "class_embedding", "input_blocks", "middle_block", "output_blocks", "in_layers", "emb_layers", "out_layers",
    "skip_connection", "time_embed", "label_emb", "group_norm",
)
# fmt: on
"""Words of module paths that hold an underscore themselves; everything else in a kohya name is split at underscores."""

RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
OUTSIDE_BLOCKS = {
    "input_blocks.0.0": "conv_in",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
}
OPEN_CLIP = {
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
}
RESNETS_PER_BLOCK = 2
"""The same in SD 1, SD 2 and SDXL; a down block has this many residual blocks, an up block one more."""


@cache
def _compounds() -> re.Pattern[str]:
    longest_first = sorted(COMPOUNDS, key=len, reverse=True)
    return re.compile("(" + "|".join(longest_first) + r")(?=_|$)")


def dotted(underscored: str) -> str:
    """The module path of a kohya name without its prefix: down_blocks_0_attentions_0 → down_blocks.0.attentions.0"""
    parts, rest = [], underscored
    while rest:
        compound = _compounds().match(rest)
        word = compound.group(1) if compound else rest.split("_", 1)[0]
        parts.append(word)
        rest = rest[len(word) + 1 :]
    return ".".join(parts)


def canonical(module: str) -> str | None:
    """The canonical name of a module as any of the namings writes it; None when it is of no SD model."""
    if name := _listed_name(module):
        return name
    component, path = _component_and_path(module)
    if component is None:
        return None
    if component == "unet":
        path = _from_ldm(path)
        known = path.startswith(("down_blocks.", "mid_block.", "up_blocks.")) or path in OUTSIDE_BLOCKS.values()
        return f"unet.{path}" if known else None
    path = path if path.startswith("text_model.") or path == "text_projection" else f"text_model.{path}"
    return (
        f"{component}.{path}"
        if path.startswith(("text_model.encoder", "text_model.final", "text_model.embed"))
        else None
    )


def _listed_name(module: str) -> str | None:
    """The same of a layer that its family lists by itself; its component is the part's folder in diffusers."""
    for family in families():
        for layer in family.listed["unet"].layers if "unet" in family.listed else ():
            in_files, in_diffusers = (
                f"{begin}{re.escape(path).replace(re.escape('{}'), r'([0-9]+)')}"
                for begin, path in (
                    (f"{family.prefixes['unet']}_", layer.path.replace(".", "_")),
                    (rf"(?:base_model\.model\.)?{family.predictor}\.", layer.path),
                )
            )
            found = re.fullmatch(in_files, module) or re.fullmatch(in_diffusers, module)
            if found:
                return f"{family.predictor}.{layer.path.replace('{}', ''.join(found.groups()))}"
    return None


def _component_and_path(module: str) -> tuple[str | None, str]:
    for prefix, component in PREFIXES.items():
        if module.startswith(prefix + "_"):
            return component, dotted(module[len(prefix) + 1 :])
    module = module.removeprefix("base_model.model.")
    for component in COMPONENTS:
        if module.startswith(component + "."):
            return component, module[len(component) + 1 :]
    if module.startswith(("down_blocks.", "mid_block.", "up_blocks.")):
        return "unet", module
    return None, module


def _from_ldm(path: str) -> str:
    """diffusers' path of a UNet module in the original layout (Stability's): input_blocks.1.1.… → down_blocks.0.…"""
    for original, ours in OUTSIDE_BLOCKS.items():
        if path == original or path.startswith(original + "."):
            return _inner(ours, path[len(original) + 1 :])
    block = re.match(r"(input|output)_blocks\.(\d+)\.(\d+)(?:\.(.*))?$", path)
    if not block:
        return path
    side, number, position, rest = block.group(1), int(block.group(2)), int(block.group(3)), block.group(4) or ""
    per_block = RESNETS_PER_BLOCK + 1
    if side == "input":
        level, index = divmod(number - 1, per_block)
        if index == RESNETS_PER_BLOCK:
            return f"down_blocks.{level}.downsamplers.0.conv"
        kind = "attentions" if position else "resnets"
        return _inner(f"down_blocks.{level}.{kind}.{index}", rest)
    level, index = divmod(number, per_block)
    if rest == "conv":
        return f"up_blocks.{level}.upsamplers.0.conv"
    kind = "attentions" if position else "resnets"
    return _inner(f"up_blocks.{level}.{kind}.{index}", rest)


def _inner(block: str, rest: str) -> str:
    rest = RESNET.get(rest, rest) if "resnets" in block else rest
    return f"{block}.{rest}" if rest else block


def to_ldm(path: str, attention_levels: frozenset[int] | None = None) -> str:
    """The original layout's path of a diffusers UNet path. `attention_levels`: up blocks that hold attention.

    They decide one thing, the place of the upsampler after them; SDXL's (0 and 1) are assumed.
    """
    levels = frozenset({0, 1}) if attention_levels is None else attention_levels
    for original, ours in OUTSIDE_BLOCKS.items():
        if path == ours or path.startswith(ours + "."):
            rest = path[len(ours) + 1 :]
            return f"{original}.{_original_resnet(rest) if 'resnets' in ours else rest}".rstrip(".")
    block = re.match(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)(?:\.(.*))?$", path)
    if not block:
        return path
    side, level, kind, index = block.group(1), int(block.group(2)), block.group(3), int(block.group(4))
    rest = block.group(5) or ""
    per_block = RESNETS_PER_BLOCK + 1
    if kind == "downsamplers":
        return f"input_blocks.{per_block * (level + 1)}.0.op"
    if kind == "upsamplers":
        return f"output_blocks.{per_block * level + RESNETS_PER_BLOCK}.{2 if level in levels else 1}.conv"
    number = per_block * level + index + (1 if side == "down" else 0)
    position = 0 if kind == "resnets" else 1
    rest = _original_resnet(rest) if kind == "resnets" else rest
    return f"{'input' if side == 'down' else 'output'}_blocks.{number}.{position}.{rest}".rstrip(".")


def _original_resnet(rest: str) -> str:
    return {ours: original for original, ours in RESNET.items()}.get(rest, rest)


def spelled(module: str, naming: Naming, family: str) -> str:
    """A canonical name as `naming` writes it for this family, without the part that names the tensor."""
    component, path = module.split(".", 1)
    if naming == "peft":
        return module
    if component not in COMPONENTS:
        listed = next(facts for facts in families() if facts.predictor == component)
        return f"{listed.prefixes['unet']}_{path.replace('.', '_')}"
    known = _layout(family)
    if component == "unet":
        original = naming == "sd-scripts" and known.original_names
        return "lora_unet_" + (to_ldm(path) if original else path).replace(".", "_")
    two_encoders = len(known.text_encoders) > 1
    prefix = {"text_encoder": "lora_te1" if two_encoders else "lora_te", "text_encoder_2": "lora_te2"}[component]
    return f"{prefix}_{path.replace('.', '_')}"


def _layout(family: str) -> FamilyFacts:
    """The family whose names the layers of this one have; of one that is not trained here SD 1.x's are as good."""
    try:
        return family_facts("sdxl" if family == "sdxl-refiner" else family)
    except KeyError:
        return family_facts("sd15")


@dataclass(frozen=True)
class Target:
    """Where a module's weight lies in a checkpoint: rows [start, end) of the tensor; end None means to the last.

    `transposed` is OpenCLIP's text projection, stored the other way round.
    """

    module: str
    start: int = 0
    end: int | None = None


def checkpoint_targets(name: str, rows: int) -> list[Target]:
    """The modules whose weight, or bias, a tensor of a single-file checkpoint holds; `rows` is its first dimension.

    OpenCLIP stores query, key and value as one tensor of three times the width: three targets.
    """
    stem = re.sub(r"(?:\.(?:weight|bias)|_weight|_bias)$", "", name)
    if stem.startswith("model.diffusion_model."):
        path = _from_ldm(stem.removeprefix("model.diffusion_model."))
        return [Target(f"unet.{path}")]
    for prefix, component in (
        ("cond_stage_model.transformer.", "text_encoder"),
        ("conditioner.embedders.0.transformer.", "text_encoder"),
    ):
        if stem.startswith(prefix):
            path = stem.removeprefix(prefix)
            return [Target(f"{component}.{path if path.startswith('text_model.') else f'text_model.{path}'}")]
    open_clip = re.match(
        r"(cond_stage_model|conditioner\.embedders\.[01])\.model\.transformer\.resblocks\.(\d+)\.(.*)$", stem
    )
    if not open_clip:
        return []
    component = "text_encoder" if open_clip.group(1) == "cond_stage_model" else "text_encoder_2"
    layer, inner = f"{component}.text_model.encoder.layers.{open_clip.group(2)}", open_clip.group(3)
    if inner == "attn.in_proj":
        third = rows // 3
        return [Target(f"{layer}.self_attn.{x}_proj", i * third, (i + 1) * third) for i, x in enumerate("qkv")]
    return [Target(f"{layer}.{OPEN_CLIP.get(inner, inner)}")]


def folder_target(component: str, name: str) -> Target:
    """The module whose weight or bias a tensor of a diffusers folder holds; `component` is the folder inside it."""
    path = re.sub(r"\.(?:weight|bias)$", "", name)
    if component.startswith("text_encoder") and not path.startswith(("text_model.", "text_projection")):
        path = f"text_model.{path}"  # transformers 5.6 dropped this level from CLIPTextModel
    return Target(f"{component}.{path}")


UNET_BLOCK = re.compile(r"unet\.(down_blocks|up_blocks)\.(\d+)|unet\.(mid_block)")


FOREIGN_BLOCK = re.compile(r"(?:^|[._])((?:single_|joint_|double_)?(?:transformer_)?blocks|layers)[._]\d")
"""The kind of block in the names of other models' layers: Flux, SD 3, Wan …"""


def block_of(module: str) -> str:
    """The block of the model a canonical name lies in, in words for a table: "UNet down 1", "text encoder"."""
    found = UNET_BLOCK.match(module)
    if found:
        return "UNet middle" if found.group(3) else f"UNet {found.group(1).split('_')[0]} {found.group(2)}"
    foreign = None if module.startswith(COMPONENTS) else FOREIGN_BLOCK.search(module)
    if foreign:
        return foreign.group(1).replace("_", " ")
    component = module.split(".", 1)[0]
    return {"unet": "UNet outside", "text_encoder": "text encoder", "text_encoder_2": "text encoder 2"}.get(
        component, "other"
    )


def block_order(blocks: Iterable[str]) -> list[str]:
    """Blocks in the order in which the model uses them."""
    groups = ("text encoder", "UNet outside", "UNet down", "UNet middle", "UNet up")
    places = {group: place for place, group in enumerate(groups)}
    return sorted(blocks, key=lambda b: (next((i for g, i in places.items() if b.startswith(g)), len(groups)), b))


def is_convolution(module: str, family: str) -> bool:
    """Is this UNet layer a convolution? SD 1 enters and leaves attention through 1×1 convolutions; others do not."""
    last = module.rsplit(".", 1)[-1]
    if last in ("proj_in", "proj_out"):
        return family in ("sd15", "pocket")
    return last in ("conv1", "conv2", "conv", "conv_in", "conv_out", "conv_shortcut")


def kernel_of(module: str) -> int:
    """Side of the kernel of a convolution in SD UNets."""
    return 1 if module.rsplit(".", 1)[-1] in ("proj_in", "proj_out", "conv_shortcut") else 3
