"""The layers that we work out from a model's numbers are those of the real model, weight for weight."""

import json
from pathlib import Path

import pytest

from knowledge.architectures import architecture, architecture_in
from knowledge.families import DATA

POCKET = Path(__file__).parent.parent.parent / "engine" / "pocket" / "model"
PARTS = [
    (folder.parent.name, folder.name)
    for folder in sorted(DATA.glob("*/*"))
    if folder.name in ("unet", "vae", "text_encoder", "text_encoder_2")
]


def real_model(part, config):
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    with torch.device("meta"):
        if part == "unet":
            return UNet2DConditionModel.from_config(dict(config))
        if part == "vae":
            return AutoencoderKL.from_config(dict(config))
        projected = "CLIPTextModelWithProjection" in config["architectures"]
        return (CLIPTextModelWithProjection if projected else CLIPTextModel)(CLIPTextConfig(**config))


@pytest.mark.parametrize(("family", "part"), PARTS)
def test_every_layer_has_the_weights_of_the_real_one(family, part):
    known = architecture(family)
    real = {}
    for name, weight in real_model(part, known.configs[part]).named_parameters():
        path = name.rsplit(".", 1)[0].removeprefix("text_model.")
        real[path] = real.get(path, 0) + weight.numel()
    assert {layer.path: layer.weights for layer in known.layers[part]} == real
    assert known.weights[part] == sum(real.values())


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_the_shipped_pocket_model_has_the_pocket_familys_numbers(part):
    theirs = json.loads((POCKET / part / "config.json").read_text())
    ours = architecture("pocket").configs[part]
    assert {name: value for name, value in ours.items() if name in theirs and theirs[name] != value} == {}


def test_a_folder_that_is_no_model_of_the_family_has_no_architecture(tmp_path):
    assert architecture_in(POCKET, "sd15").latent_factor == 4
    assert architecture_in(POCKET, "sdxl") is None
    assert architecture_in(tmp_path / "nowhere", "sd15") is None
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text("half a")
    assert architecture_in(tmp_path, "sd15") is None
