"""Networks whose ranks and alphas come from the file they start from, on the tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from calculator.network_size import network_layers
from engine.checkpoints import network_tensors, save_network, start_from
from engine.metadata import _network
from engine.models.load import load
from engine.networks import create_network
from engine.tools.model_card import CardFile, Facts, model_card
from knowledge.answers import PlainError
from knowledge.architectures import read_architecture
from knowledge.config import BaseModelSettings, NetworkSettings, TrainingConfig

BY_BLOCK = {
    "algorithm": "locon",
    "block_ranks": ",".join(str(1 + number % 3) for number in range(25)),
    "block_alphas": ",".join(["1.5"] * 25),
    "conv_block_ranks": ",".join(["3"] * 25),
    "train_text_encoder": True,
}


def test_a_network_takes_every_rank_and_alpha_from_the_file_it_starts_from(tiny_sd15: Path, tmp_path: Path):
    model = load(BaseModelSettings(path=str(tiny_sd15), family="sd15"), torch.float32)
    file = tmp_path / "first.safetensors"
    save_network(network_tensors(create_network(model, NetworkSettings(**BY_BLOCK), 1), "fp32"), file, {})
    settings = NetworkSettings(
        algorithm="locon", rank=7, alpha=7.0, start_from=str(file), rank_from_start=True, train_text_encoder=True
    )
    network = create_network(model, settings, 2)
    start_from(network, file)
    there, here = load_file(file), network_tensors(network, "fp32")
    assert set(there) == set(here)
    assert all(torch.equal(tensor, here[name]) for name, tensor in there.items())
    layers = network_layers(read_architecture(tiny_sd15, "sd15"), settings)  # as the plan counts them
    planned = {f"{layer.name}.{part}": shape for layer in layers for part, shape in layer.tensors.items()}
    assert planned == {name: tuple(tensor.shape) for name, tensor in here.items()}
    metadata = _network(TrainingConfig(network=settings))
    assert metadata["network_dim"] == "Dynamic"  # of one, two and three
    assert metadata["network_alpha"] == "Dynamic"
    with pytest.raises(ValueError, match="is"):
        create_network(model, settings.model_copy(update={"rank_from_start": False}), 2).take(there)


def test_a_part_that_the_file_lacks_is_told(tiny_sd15: Path, tmp_path: Path):
    model = load(BaseModelSettings(path=str(tiny_sd15), family="sd15"), torch.float32)
    file = tmp_path / "unet.safetensors"
    save_network(network_tensors(create_network(model, NetworkSettings(rank=2, alpha=1.0), 1), "fp16"), file, {})
    settings = NetworkSettings(start_from=str(file), rank_from_start=True)
    assert _network(TrainingConfig(network=settings))["network_dim"] == 2
    with pytest.raises(PlainError, match="no layers of text_encoder"):
        create_network(model, settings.model_copy(update={"train_text_encoder": True}), 2)


def test_the_page_of_such_a_network_names_the_file_instead_of_a_rank_that_was_not_read():
    network = NetworkSettings(start_from="folder/first.safetensors", rank_from_start=True, rank=77)
    config = TrainingConfig(network=network)
    card = model_card(config, Facts("me/second", "mit", [CardFile("second.safetensors", 1000, "abc")], []))
    assert "| Rank | those of first.safetensors |" in card
    assert "77" not in card
