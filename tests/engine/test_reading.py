from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.models.load import load
from engine.models.reading import weight_files
from knowledge.answers import PlainError
from knowledge.config import BaseModelSettings


def test_a_unet_left_for_later_takes_no_memory_until_the_model_is_completed(tiny_sd15: Path):
    settings = BaseModelSettings(path=str(tiny_sd15), family="sd15")
    model = load(settings, torch.float32, unet_later=True)
    assert all(weights.is_meta for weights in model.unet.parameters())
    model.complete()
    whole = load(settings, torch.float32).unet.state_dict()
    assert all(torch.equal(weights, whole[name]) for name, weights in model.unet.state_dict().items())
    assert not any(weights.requires_grad for weights in model.unet.parameters())


@pytest.fixture
def folder(tiny_sd15: Path, tmp_path: Path) -> Path:
    """A UNet's folder without its weights."""
    (tmp_path / "unet").mkdir()
    return tmp_path / "unet"


def test_all_shards_that_the_index_names_are_read_and_no_other_file(folder: Path):
    for name in ("unet-00001-of-00002", "unet-00002-of-00002", "left-over"):
        save_file({name: torch.zeros(1)}, folder / f"{name}.safetensors")
    weight_map = {f"{part}.weight": f"unet-0000{part}-of-00002.safetensors" for part in (2, 1)}
    (folder / "unet.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert [path.name for path in weight_files(folder)] == [
        "unet-00001-of-00002.safetensors",
        "unet-00002-of-00002.safetensors",
    ]


def test_full_precision_goes_before_half_and_half_is_read_where_it_is_alone(folder: Path):
    save_file({"x": torch.zeros(1)}, folder / "unet.fp16.safetensors")
    assert [path.name for path in weight_files(folder)] == ["unet.fp16.safetensors"]
    save_file({"x": torch.zeros(1)}, folder / "unet.safetensors")
    assert [path.name for path in weight_files(folder)] == ["unet.safetensors"]


def test_a_unet_that_lacks_a_tensor_is_one_clear_sentence(tiny_sd15: Path, tmp_path: Path):
    import shutil

    copy = tmp_path / "broken"
    shutil.copytree(tiny_sd15, copy)
    path = copy / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    del tensors["conv_in.weight"]
    save_file(tensors, path)
    with pytest.raises(PlainError, match="cannot be loaded"):
        load(BaseModelSettings(path=str(copy), family="sd15"), torch.float32)
