"""Layer names: every layer of real models there and back, and kohya's own names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from engine.tools.names import NAMINGS, canonical, checkpoint_targets, spelled, to_ldm

LAYERS = json.loads((Path(__file__).parent.parent / "data" / "network_layers.json").read_text(encoding="utf-8"))
SDXL = {
    "cross_attention_dim": 2048,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def unet_layers(request) -> tuple[str, list[str]]:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**({"cross_attention_dim": 768} if request.param == "sd15" else SDXL))
    leaves = [name for name, layer in unet.named_modules() if not list(layer.children()) and list(layer.parameters())]
    return request.param, leaves


@pytest.mark.parametrize("naming", NAMINGS)
def test_every_layer_of_the_unet_is_found_again_under_every_naming(naming, unet_layers):
    family, layers = unet_layers
    assert len(layers) > 300
    lost = [layer for layer in layers if canonical(spelled(f"unet.{layer}", naming, family)) != f"unet.{layer}"]
    assert lost == []


def test_no_two_layers_share_a_name(unet_layers):
    family, layers = unet_layers
    for naming in NAMINGS:
        assert len({spelled(f"unet.{layer}", naming, family) for layer in layers}) == len(layers)


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_names_of_sd_scripts_are_spelled_as_it_spells_them(family):
    names = names_in(LAYERS, family)
    assert len(names) > 300
    assert [name for name in names if spelled(canonical(name) or "", "sd-scripts", family) != name] == []


def names_in(document, family: str) -> list[str]:
    """The kohya names in the recorded layers of a family, however the record nests them."""
    found: list[str] = []

    def walk(node):
        if isinstance(node, dict):
            for key, value in node.items():
                if key.startswith("lora_"):
                    found.append(key)
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)
        elif isinstance(node, str) and node.startswith("lora_"):
            found.append(node)

    walk(document.get(family) or document.get(f"{family}_conv"))
    return found


def test_sdxl_names_are_those_that_training_saves(unet_layers):
    from engine.models.sdxl import original_path

    family, layers = unet_layers
    if family == "sdxl":
        adapted = [n for n in layers if any(part in n for part in (".attentions.", "conv1", "conv2", "samplers"))]
        assert [n for n in adapted if "norm" not in n and original_path(n, 2) != to_ldm(n)] == []


@pytest.mark.parametrize(
    ("tensor", "rows", "targets"),
    [
        ("model.diffusion_model.input_blocks.1.1.proj_in.weight", 320, ["unet.down_blocks.0.attentions.0.proj_in"]),
        ("model.diffusion_model.input_blocks.1.0.in_layers.2.bias", 320, ["unet.down_blocks.0.resnets.0.conv1"]),
        ("model.diffusion_model.time_embed.0.weight", 1280, ["unet.time_embedding.linear_1"]),
        (
            "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight",
            3072,
            ["text_encoder.text_model.encoder.layers.0.mlp.fc1"],
        ),
        (
            "conditioner.embedders.1.model.transformer.resblocks.3.attn.in_proj_weight",
            3840,
            [f"text_encoder_2.text_model.encoder.layers.3.self_attn.{x}_proj" for x in "qkv"],
        ),
        (
            "conditioner.embedders.1.model.transformer.resblocks.3.mlp.c_proj.weight",
            1280,
            ["text_encoder_2.text_model.encoder.layers.3.mlp.fc2"],
        ),
        ("first_stage_model.encoder.conv_in.weight", 128, []),
    ],
)
def test_tensors_of_single_files_lead_to_their_layers(tensor, rows, targets):
    found = checkpoint_targets(tensor, rows)
    assert [target.module for target in found] == targets
    if len(found) == 3:
        assert [(t.start, t.end) for t in found] == [(0, 1280), (1280, 2560), (2560, 3840)]


@pytest.mark.parametrize("name", ["lora_unet_double_blocks_0_img_attn_qkv", "transformer.blocks.0.attn", "nonsense"])
def test_names_of_other_models_are_not_mistaken_for_sd(name):
    assert canonical(name) is None
