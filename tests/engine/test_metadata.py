from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from short_runs import run_to_end

from calculator.steps import batches, run_length, views
from engine.dataset.folders import scan, suggest_folders
from engine.metadata import config_text, hashes, network_metadata
from knowledge.config import (
    BaseModelSettings,
    DatasetSettings,
    LossSettings,
    NetworkSettings,
    NoiseSettings,
    OptimizerSettings,
    OutputSettings,
    SamplingSettings,
    SavingSettings,
    ScheduleSettings,
    TrainingConfig,
    ValidationSettings,
)

DATA = Path(__file__).parents[1] / "data"
REFERENCE: dict[str, str] = json.loads((DATA / "network_metadata.json").read_text())
TENSORS = {"b.lora_up.weight": torch.ones(4, 2), "a.alpha": torch.tensor(2.0, dtype=torch.float16)}


def config(**values) -> TrainingConfig:
    return TrainingConfig(
        **{
            "base_model": BaseModelSettings(path="/home/somebody/models/tiny15", family="sd15"),
            "dataset": DatasetSettings(
                folders=suggest_folders(DATA / "pictures"),
                resolution=128,
                bucket_minimum_side=64,
                bucket_maximum_side=256,
            ),
            "network": NetworkSettings(rank=4, alpha=2.0, train_text_encoder=True),
            "optimizer": OptimizerSettings(learning_rate=1e-3, text_encoder_learning_rate=5e-4),
            "schedule": ScheduleSettings(epochs=1, maximum_steps=12),
            "output": OutputSettings(name="plain_te_unet.final", folder="/home/somebody/runs"),
        }
        | values
    )


def metadata(config: TrainingConfig, **more) -> dict[str, str]:
    dataset = scan(config.dataset)
    length = run_length(sum(batches(views(dataset, config.dataset), 1).values()), config.schedule)
    times = {"started_at": 1e9, "finished_at": 1e9 + 60}
    return network_metadata(config, dataset, length, TENSORS, step=12, epoch=1, **times, **more)


def test_every_key_is_as_sd_scripts_wrote_it():
    ours = metadata(config())
    different = {
        "ss_session_id",
        "ss_training_started_at",
        "ss_training_finished_at",
        "ss_sd_scripts_commit_hash",
        "ss_optimizer",  # we also say the weight decay
        "modelspec.date",
        "modelspec.implementation_version",
        "sshs_model_hash",
    }
    no_file = {"ss_sd_model_hash", "ss_new_sd_model_hash"}  # "IsADirectory" there
    assert REFERENCE.keys() - ours.keys() == no_file
    for name in REFERENCE.keys() - different - no_file:
        theirs, value = REFERENCE[name], ours[name]
        if theirs.startswith("{"):
            found, expected = json.loads(value), json.loads(theirs)
            if name == "ss_bucket_info":
                assert found.pop("mean_img_ar_error") == pytest.approx(expected.pop("mean_img_ar_error"), rel=1e-9)
            assert found == expected, name
        else:
            assert value == theirs, name


def test_values_are_text_and_survive_a_file(tmp_path):
    written = metadata(config())
    save_file(TENSORS, tmp_path / "a.safetensors", metadata=written)
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        assert file.metadata() == written


def test_no_path_leaves_this_computer():
    assert "somebody" not in json.dumps(metadata(config()))
    windows = config(base_model=BaseModelSettings(path="C:\\Users\\somebody\\model.safetensors", family="sd15"))
    assert "somebody" not in json.dumps(metadata(windows))
    assert metadata(windows)["ss_sd_model_name"] == "model.safetensors"


def test_the_config_can_be_read_back():
    document = json.loads(metadata(config())["lora_wizard.config"])
    assert TrainingConfig.model_validate(document).network == config().network


def test_the_model_hash_is_that_of_the_weights_alone(tmp_path):
    for name, extra in (("a", {}), ("b", {"note": "x" * 100})):
        save_file(TENSORS, tmp_path / name, metadata={"ss_x": "1"} | extra)
    found = hashes(TENSORS, {"ss_x": "1"})
    for name in "ab":
        content = (tmp_path / name).read_bytes()
        body = content[8 + int.from_bytes(content[:8], "little") :]
        assert hashlib.sha256(body).hexdigest() == found["sshs_model_hash"]
    assert found["sshs_legacy_hash"] == "e3b0c442"  # nothing lies beyond the first MiB, as in the reference
    assert found["modelspec.hash_sha256"] == "0x" + found["sshs_model_hash"]


def test_other_algorithms_name_the_module_that_makes_them():
    known = metadata(config(network=NetworkSettings(algorithm="lokr", lokr_factor=16)))
    assert known["ss_network_module"] == "lycoris.kohya"
    assert json.loads(known["ss_network_args"]) == {"algo": "lokr", "preset": "attn-mlp", "factor": "16"}
    known = metadata(config(network=NetworkSettings(algorithm="locon", conv_rank=4, conv_alpha=1.0)))
    assert json.loads(known["ss_network_args"]) == {"conv_dim": "4", "conv_alpha": "1"}


@pytest.mark.parametrize(
    ("network", "told"),
    [
        ({"dropout": 0.5, "module_dropout": 0.25}, {"module_dropout": "0.25"}),
        ({"algorithm": "dylora", "dylora_block_size": 8}, {"unit": "8"}),
        ({"attention_only": True}, {"algo": "lora", "preset": "attn-only"}),
        ({"algorithm": "loha"}, {"algo": "loha", "preset": "attn-mlp"}),
        (
            {"algorithm": "full", "convolutions": True, "conv_rank": 4},
            {"algo": "full", "preset": "full", "conv_dim": "4"},
        ),
        ({"algorithm": "lokr", "lokr_full_matrix": True}, {"factor": "8", "full_matrix": "True"}),
        ({"block_ranks": ",".join(["4"] * 25)}, {"block_dims": ",".join(["4"] * 25)}),
    ],
)
def test_the_arguments_of_a_network_are_told_in_the_words_of_the_module_that_makes_it(network, told):
    known = metadata(config(network=NetworkSettings(**network)))
    arguments = json.loads(known["ss_network_args"])
    assert {name: arguments.get(name) for name in told} == told
    assert known["ss_network_dropout"] == str(network.get("dropout"))


def test_lora_plus_and_a_range_of_timesteps_are_told():
    known = metadata(
        config(optimizer=OptimizerSettings(lora_plus_ratio=16.0), noise=NoiseSettings(minimum_timestep=200))
    )
    assert json.loads(known["ss_network_args"]) == {"loraplus_lr_ratio": "16"}
    assert known["modelspec.timestep_range"] == "200,1000"


def test_settings_that_sd_scripts_knows_are_told_by_its_names():
    known = metadata(
        config(
            base_model=BaseModelSettings(
                path="m", family="sd15", prediction_type="v_prediction", zero_terminal_snr=True, maximum_tokens=150
            ),
            network=NetworkSettings(rank_dropout=0.25, maximum_norm=1.0),
            loss=LossSettings(debiased=True, minimum_snr_gamma=5.0),
            noise=NoiseSettings(offset=0.05, offset_random=True, input_perturbation=0.1, multires_iterations=6),
        )
    )
    expected = {
        "base_model_version": "sd_v1_v",
        "zero_terminal_snr": "True",
        "max_token_length": "150",
        "network_args": '{"rank_dropout": "0.25"}',
        "scale_weight_norms": "1.0",
        "debiased_estimation": "True",
        "min_snr_gamma": "5.0",
        "noise_offset": "0.05",
        "noise_offset_random_strength": "True",
        "ip_noise_gamma": "0.1",
        "multires_noise_iterations": "6",
    }
    assert {name: known[f"ss_{name}"] for name in expected} == expected
    assert known["modelspec.prediction_type"] == "v"


def test_what_was_held_out_is_told_by_sd_scripts_names():
    known = metadata(config(validation=ValidationSettings(share=0.2, every_steps=50)), held_out=2)
    expected = {
        "ss_validation_split": "0.2",
        "ss_validate_every_n_epochs": "1",
        "ss_validate_every_n_steps": "50",
        "ss_num_validation_images": "2",
    }
    assert {name: known[name] for name in expected} == expected


def test_a_single_file_is_known_by_its_hashes(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"x" * 0x120000)
    known = metadata(config(base_model=BaseModelSettings(path=str(file), family="sd15", clip_skip=2)))
    assert known["ss_new_sd_model_hash"] == hashlib.sha256(b"x" * 0x120000).hexdigest()
    assert known["ss_sd_model_hash"] == hashlib.sha256(b"x" * 0x10000).hexdigest()[:8]
    assert known["ss_base_model_version"] == "sd_v1"
    assert known["modelspec.encoder_layer"] == "2"


def test_of_the_file_that_a_run_started_from_only_the_name_is_told():
    config = TrainingConfig.model_validate({"network": {"start_from": "/home/somebody/first.safetensors"}})
    assert '"start_from": "first.safetensors"' in config_text(config)


PRIVATE = {
    "output": OutputSettings(name="cat", folder="/home/somebody/runs", author="Jo Doe", description="my secret cat"),
    "sampling": SamplingSettings(prompts=("a private prompt",)),
}


@pytest.mark.parametrize(("kept", "keys"), [("full", 60), ("minimal", 14), ("none", 0)])
def test_the_metadata_that_is_kept_is_what_was_chosen(kept, keys):
    saving = SavingSettings(metadata=kept)
    written = metadata(config(**PRIVATE, saving=saving))
    assert len(written) >= keys if kept == "full" else len(written) == keys
    text = json.dumps(written)
    for private in ("Jo Doe", "my secret cat", "a private prompt", "sks toy", "ss_tag_frequency", "lora_wizard.config"):
        assert (private in text) == (kept == "full"), private
    assert "somebody" not in text  # a path, and with it a user's name, is in none
    assert all(("ss_network_dim" in written, "modelspec.architecture" in written)) == (kept != "none")


def test_what_was_said_of_the_network_stands_where_websites_look_for_it():
    dataset = config().dataset.model_copy(update={"trigger_word": "sks"})
    told = metadata(config(**PRIVATE, dataset=dataset))
    expected = {
        "modelspec.title": "cat",
        "modelspec.author": "Jo Doe",
        "modelspec.description": "my secret cat",
        "modelspec.trigger_phrase": "sks",
        "ss_training_comment": "my secret cat",
    }
    assert {name: told[name] for name in expected} == expected
    assert not {"modelspec.author", "modelspec.description", "modelspec.trigger_phrase"} & metadata(config()).keys()


def test_minimal_metadata_of_sd_scripts_own_is_what_its_no_metadata_leaves():
    written = metadata(config(saving=SavingSettings(metadata="minimal"), network=NetworkSettings(algorithm="locon")))
    assert {name for name in written if name.startswith("ss_")} == {
        "ss_v2",
        "ss_base_model_version",
        "ss_network_module",
        "ss_network_dim",
        "ss_network_alpha",
        "ss_network_args",
    }


def test_the_old_hash_is_that_of_the_file_with_the_metadata_it_has(tmp_path):
    """A1111's old hash reads from a fixed place in the file, so that it depends on the header before it."""
    tensors = {"a.lora_up.weight": torch.arange(600_000, dtype=torch.float32)}
    for kept in ("minimal", "full"):
        chosen = config(saving=SavingSettings(metadata=kept))
        dataset = scan(chosen.dataset)
        length = run_length(sum(batches(views(dataset, chosen.dataset), 1).values()), chosen.schedule)
        found = network_metadata(chosen, dataset, length, tensors, step=1, epoch=1, started_at=1e9, finished_at=2e9)
        kohya = {name: value for name, value in found.items() if name.startswith("ss_")}
        save_file(tensors, tmp_path / "a.safetensors", metadata=kohya)
        part = (tmp_path / "a.safetensors").read_bytes()[0x100000:0x110000]
        assert found["sshs_legacy_hash"] == hashlib.sha256(part).hexdigest()[:8]


@pytest.mark.parametrize("kept", ["full", "minimal", "none"])
def test_a_saved_file_holds_the_metadata_that_was_chosen(configure, kept):
    run, _ = run_to_end(configure(saving={"metadata": kept, "every_epochs": None}, schedule={"maximum_steps": 1}))
    with safe_open(run.checkpoints / "toy.safetensors", "pt") as file:
        found = file.metadata() or {}
    assert ("ss_network_dim" in found, "ss_learning_rate" in found) == (kept != "none", kept == "full")
