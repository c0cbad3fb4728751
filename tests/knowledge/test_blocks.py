"""Blocks are numbered, left out and given ranks, alphas and rates as sd-scripts does it."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from calculator.network_size import network_layers
from knowledge.architectures import architecture
from knowledge.blocks import block_of, layer_settings
from knowledge.config import NetworkSettings, TrainingConfig, with_values
from knowledge.formats.export import to_sd_scripts
from knowledge.formats.sd_scripts import translate

RECORDED = json.loads((Path(__file__).parent.parent / "data" / "network_blocks.json").read_text())
"""Networks that sd-scripts (48d368f) made with arguments for blocks: name, rank and alpha of each layer of the UNet."""


def imported(arguments, **options):
    listed = [f"{key}={value}" for key, value in arguments.items()]
    known = {"network_module": "networks.lora", "network_args": listed, "pretrained_model_name_or_path": "m"}
    return translate(known | options, kind="test")


@pytest.mark.parametrize("recorded", RECORDED)
def test_a_network_of_blocks_is_the_one_that_sd_scripts_makes(recorded):
    known = RECORDED[recorded]
    config = imported(known["kwargs"], network_dim=known["dim"], network_alpha=known["alpha"]).config
    network = config.network.model_copy(update={"train_text_encoder": False})
    made = {}
    for layer in network_layers(architecture("sd15"), network):
        own = layer_settings(layer.name, layer.layer.kernel > 1, network)
        made[layer.name] = [own.rank, own.alpha]
    assert made == {name: [rank, alpha] for name, rank, alpha in known["modules"]}


def test_every_layer_of_sdxl_stands_in_a_block_that_sd_scripts_numbers():
    layers = network_layers(architecture("sdxl"), NetworkSettings(algorithm="locon"))
    found = {block_of(layer.name) for layer in layers}
    # Nine down, of which the first has no layer, three in the middle, nine up.
    assert found == set(range(2, 22))
    assert block_of("lora_unet_input_blocks_8_1_proj_in") == 9
    assert block_of("lora_unet_middle_block_1_proj_in") == 11
    assert block_of("lora_unet_output_blocks_0_1_proj_in") == 13
    assert block_of("lora_te1_text_model_encoder_layers_0_mlp_fc1") is None


def test_curves_become_numbers_and_a_threshold_leaves_blocks_out():
    known = imported({"down_lr_weight": "linear", "mid_lr_weight": "0.2", "block_lr_zero_threshold": "0.1"})
    rates = [float(rate) for rate in known.config.network.block_rates.split(",")]
    assert rates == pytest.approx([place / 11 for place in range(12)] + [0.2] + [1.0] * 12, abs=1e-6)
    network = known.config.network
    # 1/11 is below a tenth, 2/11 above it.
    assert layer_settings("lora_unet_down_blocks_0_attentions_0_proj_in", False, network) is None
    assert layer_settings("lora_unet_down_blocks_0_attentions_1_proj_in", False, network).rate == pytest.approx(2 / 11)
    sines = imported({"up_lr_weight": "sine+.25"}).config.network.block_rates.split(",")[13:]
    assert [float(sines[0]), float(sines[-1])] == [0.25, 1.25]
    wrong = imported({"down_lr_weight": "spiral"})
    assert [note.key for note in wrong.listed("unsupported")] == ["network_args.down_lr_weight"]


@pytest.mark.parametrize(("family", "count"), [("sd15", 25), ("sdxl", 23)])
def test_blocks_go_out_to_sd_scripts_and_come_in_again(family, count):
    lists = {
        "network.block_ranks": ",".join(str(1 + place % 5) for place in range(count)),
        "network.block_alphas": ",".join(["2.5"] * count),
        "network.conv_block_ranks": ",".join(["3"] * count),
        "network.block_rates": ",".join(["1", *["0.5"] * (count - 2), "1"]),
        "network.block_rate_threshold": 0.25,
    }
    base = {"base_model.family": family, "base_model.path": "m", "network.algorithm": "locon"}
    config = with_values(TrainingConfig(), base | lists)
    written = to_sd_scripts(config)
    assert not [entry for entry in written.lost if "block" in entry.name]
    again = translate(written.options, kind="test", family=family).config
    assert {name: getattr(again.network, name.removeprefix("network.")) for name in lists} == lists
    other = to_sd_scripts(with_values(config, {"network.algorithm": "loha"}))
    assert "network.block_ranks" in {entry.name for entry in other.lost}


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("block_ranks", "1,2", "has 2 numbers, and sd15 has 25 blocks"),
        ("block_ranks", ",".join(["1.5"] * 25), "whole number"),
        ("block_alphas", ",".join(["0"] * 25), "above 0"),
        ("block_rates", "1,,2", "match"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(name, text, words):
    with pytest.raises(ValidationError, match=words):
        with_values(TrainingConfig(), {"base_model.family": "sd15", f"network.{name}": text})
