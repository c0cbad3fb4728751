"""Sizes of networks agree with LyCORIS' own modules and with files on the disk, to the byte."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calculator.network_size import butterfly, factorization, file_bytes, network_layers, trainable_parameters
from knowledge.architectures import architecture, read_architecture
from knowledge.config import BaseModelSettings, NetworkSettings

RECORDED = json.loads((Path(__file__).parent.parent / "data" / "network_layers.json").read_text())

NETWORKS = {
    "lora": NetworkSettings(rank=4),
    "lora with text encoder": NetworkSettings(rank=5, train_text_encoder=True),
    "text encoder alone": NetworkSettings(rank=5, train_unet=False, train_text_encoder=True),
    "locon": NetworkSettings(algorithm="locon", rank=4, conv_rank=3, train_text_encoder=True),
    "dora": NetworkSettings(algorithm="dora", rank=4, train_text_encoder=True),
    "loha": NetworkSettings(algorithm="loha", rank=3),
    "lokr": NetworkSettings(algorithm="lokr", rank=2, lokr_factor=-1, train_text_encoder=True),
    "lokr with whole factors": NetworkSettings(algorithm="lokr", rank=512, lokr_factor=4),
    "lokr of full matrices": NetworkSettings(algorithm="lokr", lokr_full_matrix=True, convolutions=True),
    "loha on convolutions": NetworkSettings(algorithm="loha", rank=3, convolutions=True, conv_rank=2),
    "lokr on convolutions": NetworkSettings(algorithm="lokr", rank=3, convolutions=True, conv_rank=2),
    "dylora": NetworkSettings(algorithm="dylora", rank=4, dylora_block_size=2),
    "glora": NetworkSettings(algorithm="glora", rank=4, train_text_encoder=True),
    "oft": NetworkSettings(algorithm="oft", rank=6, train_text_encoder=True),
    "boft": NetworkSettings(algorithm="boft", rank=12, train_text_encoder=True),
    "ia3": NetworkSettings(algorithm="ia3", train_text_encoder=True),
    "full": NetworkSettings(algorithm="full", convolutions=True, train_text_encoder=True),
    "blocks": NetworkSettings(
        algorithm="locon",
        block_ranks=",".join(str(place % 4) for place in range(25)),
        conv_block_ranks=",".join(str(1 + place % 3) for place in range(25)),
        block_rates=",".join(["1"] * 20 + ["0"] * 5),
    ),
    "full without convolutions": NetworkSettings(algorithm="full"),
    "attention alone": NetworkSettings(rank=4, attention_only=True, train_text_encoder=True),
    "LoHa on attention alone": NetworkSettings(algorithm="loha", rank=3, attention_only=True),
}


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_the_calculated_network_is_the_one_that_the_engine_makes(family, network, request, tmp_path):
    import torch

    from engine.checkpoints import network_tensors, save_network
    from engine.models.load import load
    from engine.networks import create_network

    folder = request.getfixturevalue(f"tiny_{family}")
    base = load(BaseModelSettings(path=str(folder), family=family), torch.float32)
    real = create_network(base, network, seed=0)
    shapes = {name: tuple(tensor.shape) for name, tensor in real.saved_tensors().items()}
    numbers = read_architecture(folder, family)
    ours = {
        f"{layer.name}.{suffix}": shape
        for layer in network_layers(numbers, network)
        for suffix, shape in layer.tensors.items()
    }
    assert ours == shapes
    assert trainable_parameters(numbers, network) == sum(p.numel() for p in real.parameters() if p.requires_grad)
    metadata = {"ss_output_name": "ein Löwe", "quoted": '{"a": "b\\n"}'}
    tensors = {name: torch.ones_like(tensor) for name, tensor in network_tensors(real, "fp16").items()}
    for known in ({}, metadata):
        size = save_network(tensors, tmp_path / "network.safetensors", known)
        assert size == file_bytes(numbers, network, "fp16", known)


@pytest.mark.parametrize(("family", "recorded"), [("sd15", "sd15_conv"), ("sdxl", "sdxl_conv")])
def test_full_size_networks_have_the_recorded_layers(family, recorded):
    expected = RECORDED[recorded]
    conv = {name.replace("dim", "rank"): value for name, value in expected["kwargs"].items()}
    network = NetworkSettings(
        algorithm="locon",
        rank=expected["dim"],
        alpha=float(expected["alpha"]),
        conv_rank=int(conv["conv_rank"]),
        train_text_encoder=True,
    )
    ours = {
        layer.name: [list(layer.tensors["lora_down.weight"]), list(layer.tensors["lora_up.weight"])]
        for layer in network_layers(architecture(family), network)
    }
    theirs = {name: shapes for name, *shapes in expected["modules"]}
    assert {name: ours[name] for name in theirs} == theirs
    # LyCORIS also adapts what sd-scripts leaves out: nothing but the layers that change the resolution
    assert set(ours) == set(theirs)


def test_a_rank_16_sd15_lora_has_the_familiar_size():
    # Attention alone holds the 3,188,736 weights that diffusers' training script reports at rank 16.
    layers = network_layers(architecture("sd15"), NetworkSettings(rank=16))
    attention = network_layers(architecture("sd15"), NetworkSettings(rank=16, attention_only=True))
    assert (len(layers), len(attention)) == (192, 128)
    assert {layer.name for layer in attention} == {layer.name for layer in layers if "_attn" in layer.name}
    assert sum(layer.trainable for layer in attention) == 3_188_736
    assert attention[0].trainable == 16 * 320 + 320 * 16


@settings(deadline=None)
@given(dimension=st.integers(1, 2048), factor=st.integers(-1, 64).filter(lambda f: f != 0))
def test_factorization_is_that_of_lycoris(dimension, factor):
    from lycoris.functional import factorization as reference

    assert factorization(dimension, factor) == tuple(reference(dimension, factor))


@settings(deadline=None)
@given(dimension=st.integers(1, 640).map(lambda half: 2 * half), largest=st.integers(1, 128))
def test_butterfly_is_that_of_lycoris(dimension, largest):
    from lycoris.functional import power2factorization as reference

    size, blocks = reference(dimension, largest)
    if size is None:
        with pytest.raises(ValueError, match="power of two"):
            butterfly(dimension, largest)
    else:
        assert butterfly(dimension, largest) == (size, blocks)
