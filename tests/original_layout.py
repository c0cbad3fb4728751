"""Writes a diffusers folder as one file in the original layout: what people download, made for tests."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
Tensors = dict[str, torch.Tensor]


def write_original(folder: Path, path: Path, extra: Tensors | None = None) -> Path:
    """The folder's model as one file. `extra` adds tensors, such as the empty markers of v-prediction models."""
    tensors: Tensors = {}
    unet = part(folder / "unet")
    layers = 1 + max(int(m[1]) for name in unet if (m := re.match(r"down_blocks\.0\.resnets\.(\d+)", name)))
    tensors |= {f"model.diffusion_model.{unet_name(name, layers, unet)}": tensor for name, tensor in unet.items()}
    vae = part(folder / "vae")
    levels = 1 + max(int(m[1]) for name in vae if (m := re.match(r"decoder\.up_blocks\.(\d+)", name)))
    for name, tensor in vae.items():
        if re.search(r"attentions.*(to_q|to_k|to_v|to_out\.0)\.weight", name):
            tensor = tensor[:, :, None, None]
        tensors[f"first_stage_model.{vae_name(name, levels)}"] = tensor
    unet_config = json.loads((folder / "unet" / "config.json").read_text())
    if unet_config.get("use_linear_projection") and not (folder / "text_encoder_2").is_dir():
        return _save(tensors | sd2_text_encoder(part(folder / "text_encoder")) | (extra or {}), path)
    first = {f"text_model.{name.removeprefix('text_model.')}": t for name, t in part(folder / "text_encoder").items()}
    xl = (folder / "text_encoder_2").is_dir()
    prefix = "conditioner.embedders.0.transformer." if xl else "cond_stage_model.transformer."
    tensors |= {prefix + name: tensor for name, tensor in first.items()}
    if xl:
        second = open_clip(part(folder / "text_encoder_2"))
        tensors |= {f"conditioner.embedders.1.model.{name}": tensor for name, tensor in second.items()}
    return _save(tensors | (extra or {}), path)


def _save(tensors: Tensors, path: Path) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def sd2_text_encoder(encoder: Tensors) -> Tensors:
    """OpenCLIP's text encoder as files hold it; those of real size also have its last layer, which is not read."""
    made = open_clip(encoder)
    width = len(made["ln_final.weight"])
    if width == 1024:
        last, before = "transformer.resblocks.23.", "transformer.resblocks.22."
        made |= {last + name.removeprefix(before): 0 * t for name, t in made.items() if name.startswith(before)}
    made |= {"text_projection": torch.eye(width), "logit_scale": torch.tensor(4.6)}
    return {f"cond_stage_model.model.{name}": tensor for name, tensor in made.items()}


def part(folder: Path) -> Tensors:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def unet_name(name: str, layers: int, names: Tensors) -> str:
    for ours, original in UNET_ENDS.items():
        if name.startswith(f"{ours}."):
            return original + name.removeprefix(ours)
    side, block, kind, index, rest = re.fullmatch(
        r"(down_blocks\.|up_blocks\.|mid_block)(\d*)\.?(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", name
    ).groups()
    if kind == "resnets":
        layer, _, last = rest.rpartition(".")
        rest = f"{RESIDUAL[layer]}.{last}"
    if side == "mid_block":
        return f"middle_block.{1 if kind == 'attentions' else 2 * int(index)}.{rest}"
    place = {"resnets": 0, "attentions": 1}.get(kind, 0)
    if side == "down_blocks.":
        number = (layers + 1) * int(block) + (layers + 1 if kind == "downsamplers" else int(index) + 1)
        return f"input_blocks.{number}.{place}.{rest.replace('conv.', 'op.') if kind == 'downsamplers' else rest}"
    if kind == "upsamplers":
        has_attention = any(other.startswith(f"up_blocks.{block}.attentions.") for other in names)
        return f"output_blocks.{(layers + 1) * int(block) + layers}.{2 if has_attention else 1}.{rest}"
    return f"output_blocks.{(layers + 1) * int(block) + int(index)}.{place}.{rest}"


def vae_name(name: str, levels: int) -> str:
    name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = re.sub(
        r"mid_block\.attentions\.0\.(group_norm|to_q|to_k|to_v|to_out\.0)",
        lambda m: f"mid.attn_1.{VAE_ATTENTION[m[1]]}",
        name,
    )
    name = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d+)\.resnets\.(\d+)", lambda m: f"up.{levels - 1 - int(m[1])}.block.{m[2]}", name)
    return re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", name)


def open_clip(encoder: Tensors) -> Tensors:
    """OpenCLIP's names; queries, keys and values stand in one matrix there, and the projection is transposed."""
    made: Tensors = {}
    layers: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in encoder.items():
        name = name.removeprefix("text_model.")
        layer = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
        if layer:
            number, what, kind = layer.groups()
            if what in OPEN_CLIP:
                made[f"transformer.resblocks.{number}.{OPEN_CLIP[what]}.{kind}"] = tensor
            else:
                layers.setdefault(f"transformer.resblocks.{number}.attn.in_proj_{kind}", {})[what] = tensor
        elif name == "text_projection.weight":
            made["text_projection"] = tensor.T
        elif name.startswith("embeddings.token_embedding"):
            made["token_embedding.weight"] = tensor
        elif name.startswith("embeddings.position_embedding.weight"):
            made["positional_embedding"] = tensor
        elif name.startswith("final_layer_norm"):
            made[name.replace("final_layer_norm", "ln_final")] = tensor
    for name, parts in layers.items():
        made[name] = torch.cat([parts[f"self_attn.{which}_proj"] for which in "qkv"])
    return made
