"""Ranks and alphas that come from the file a run starts from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from knowledge.answers import PlainError
from knowledge.config import RANK_IN_FILE, NetworkSettings, TrainingConfig, with_values
from knowledge.facts import facts
from knowledge.formats.export import to_sd_scripts
from knowledge.formats.sd_scripts import translate
from knowledge.rules import check
from knowledge.starting_network import LayerInFile, adapted_with, layers_in_file, start_problem, with_ranks_of_start

LINEAR, SPATIAL = "lora_unet_mid_block_attentions_0_proj_in", "lora_unet_mid_block_resnets_0_conv1"


def settings(path: Path, **values: object) -> NetworkSettings:
    return NetworkSettings(start_from=str(path), rank_from_start=True, **values)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "first.safetensors"
    tensors = {
        f"{LINEAR}.lora_down.weight": torch.zeros(6, 20),
        f"{LINEAR}.lora_up.weight": torch.zeros(10, 6),
        f"{LINEAR}.alpha": torch.tensor(1.5, dtype=torch.bfloat16),
        f"{SPATIAL}.lora_down.weight": torch.zeros(3, 20, 3, 3),
        f"{SPATIAL}.lora_up.weight": torch.zeros(10, 3, 1, 1),
    }
    save_file(tensors, path)
    return path


def test_every_layer_has_the_rank_and_alpha_of_the_file(file):
    network = settings(file, algorithm="locon")
    # Without an alpha of its own a layer's is its rank, as everywhere.
    assert layers_in_file(network) == {LINEAR: LayerInFile(6, 1.5, False), SPATIAL: LayerInFile(3, 3.0, True)}
    own = adapted_with(LINEAR, False, network)
    assert (own.rank, own.alpha) == (6, 1.5)
    assert adapted_with("lora_unet_mid_block_attentions_0_proj_out", False, network) is None
    found = with_ranks_of_start(network)
    assert (found.rank, found.conv_rank, found.rank_from_start) == (6, 3, False)
    assert adapted_with(LINEAR, False, NetworkSettings()).rank == NetworkSettings().rank


def test_rules_judge_the_strength_that_the_file_has_and_no_rank_that_is_not_read(file):
    own = {"network.algorithm": "locon", "network.rank": 256, "network.alpha": 512.0, "network.conv_rank": 512}
    own |= {"base_model.family": "sd15", "base_model.path": "m", "optimizer.learning_rate": 2e-6}
    config = with_values(TrainingConfig(), own)
    taken = with_values(config, {"network.start_from": str(file), "network.rank_from_start": True})
    of_ranks = {"alpha-above-rank", "rank-large", "convolution-rank-above-rank"}
    assert of_ranks <= {finding.rule for finding in check(facts(config))}
    findings = {finding.rule: finding for finding in check(facts(taken))}
    assert not any("network.rank " in found.message or "network.alpha" in found.message for found in findings.values())
    assert not of_ranks & findings.keys()
    # The layer of rank 6 has alpha 1.5, the other's alpha is its rank; the strongest counts.
    assert facts(taken)["network.pull"] == 1.0
    assert "it acts like 2e-6" in findings["rate-without-effect"].message
    file.unlink()
    assert "network.pull" not in facts(taken)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64])
def test_an_alpha_is_read_in_every_type(tmp_path, dtype):
    tensors = {"a.lora_down.weight": torch.zeros(2, 4), "a.alpha": torch.tensor(8, dtype=dtype)}
    save_file(tensors, tmp_path / "a.safetensors")
    assert layers_in_file(settings(tmp_path / "a.safetensors"))["a"] == LayerInFile(2, 8.0, False)


def test_a_file_that_was_changed_is_read_anew(file):
    assert LINEAR in layers_in_file(settings(file))
    save_file({"b.lora_down.weight": torch.zeros(2, 4)}, file)
    assert set(layers_in_file(settings(file))) == {"b"}


@pytest.mark.parametrize(
    ("content", "algorithm", "words"),
    [
        (None, "lora", "no such file"),
        (b"", "lora", "no sound safetensors file"),
        (b'\x10\0\0\0\0\0\0\0{"a": 1', "lora", "no sound safetensors file"),
        (b"\x02\0\0\0\0\0\0\0[]", "lora", "no sound safetensors file"),
        (b"\x02\0\0\0\0\0\0\0{}", "lora", "no lora layers"),
        ("sound", "loha", "no loha layers"),
    ],
)
def test_a_file_that_tells_no_ranks_gets_one_sentence(file, content, algorithm, words):
    if content is None:
        file.unlink()
    elif content != "sound":
        file.write_bytes(content)
    network = settings(file, algorithm=algorithm)
    with pytest.raises(PlainError, match=words) as error:
        layers_in_file(network)
    assert "\n" not in str(error.value)
    assert start_problem(network) == str(error.value)
    assert start_problem(NetworkSettings()) == ""


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"network.algorithm": "lokr"}, "does not tell its ranks"),
        ({"network.block_ranks": ",".join(["4"] * 25)}, "block_ranks would set them too"),
    ],
)
def test_what_cannot_go_with_it_is_told(values, words):
    base = {"base_model.family": "sd15", "base_model.path": "m", "network.start_from": "a.safetensors"}
    with pytest.raises(ValueError, match=words):
        with_values(TrainingConfig(), base | {"network.rank_from_start": True} | values)


@pytest.mark.parametrize("algorithm", ["lora", "locon", "dora", "loha", "glora"])
def test_it_is_dim_from_weights_of_sd_scripts(algorithm):
    assert algorithm in RANK_IN_FILE
    values = {"network.start_from": "a.safetensors", "network.rank_from_start": True, "network.algorithm": algorithm}
    written = to_sd_scripts(with_values(TrainingConfig(), {"base_model.family": "sd15"} | values)).options
    assert (written["dim_from_weights"], written["network_weights"]) == (True, "a.safetensors")
    network = translate(written, kind="sd-scripts TOML").config.network
    assert (network.rank_from_start, network.start_from) == (True, "a.safetensors")


def test_what_sd_scripts_could_not_do_either_is_untied():
    network = translate({"dim_from_weights": True}, kind="sd-scripts TOML").config.network
    assert not network.rank_from_start
