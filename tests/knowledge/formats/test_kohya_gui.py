"""kohya_ss' forms."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from foreign import FORM, outcome, read

from knowledge.formats.reader import read_foreign


def test_a_form_is_read_with_all_its_fields(tmp_path):
    imported = read(tmp_path, "x.json", FORM)
    config = imported.config
    assert [note.key for note in imported.notes][: len(FORM)] == list(FORM)
    assert (config.network.rank, config.optimizer.name, config.dataset.resolution) == (32, "adamw8bit", 768)
    assert (config.schedule.epochs, config.schedule.maximum_steps) == (10, None)
    assert config.schedule.warmup == pytest.approx(0.1)  # percent there
    assert config.noise.offset == 0.05
    assert config.noise.multires_iterations == 0  # noise_offset_type gates it
    assert config.loss.minimum_snr_gamma is None  # 0 means unset
    assert any("caps the run" in warning for warning in imported.warnings)


def test_a_form_without_a_text_encoder_rate_trains_the_unet_alone(tmp_path):
    config = read(tmp_path, "x.json", FORM | {"text_encoder_lr": 0}).config
    assert (config.network.train_unet, config.network.train_text_encoder) == (True, False)


def test_percent_of_warm_up_under_constant_does_nothing(tmp_path):
    imported = read(tmp_path, "x.json", FORM | {"lr_scheduler": "constant"})
    assert outcome(imported, "lr_warmup") == "no_effect"


def test_raw_parameters_are_taken_apart(tmp_path):
    imported = read(tmp_path, "x.json", FORM | {"additional_parameters": "--max_grad_norm=0.5 --strange 1"})
    assert imported.config.optimizer.maximum_gradient_norm == 0.5
    assert outcome(imported, "additional_parameters.max_grad_norm") == "mapped"
    assert outcome(imported, "additional_parameters.strange") == "unknown"


@pytest.mark.parametrize(
    "kind",
    [
        "LyCORIS/LoHa",
        "LyCORIS/LoKr",
        "LyCORIS/LoCon",
        "LyCORIS/iA3",
        "LyCORIS/BOFT",
        "Kohya LoCon",
        "LoRA-FA",
        "Flux1",
        "?",
    ],
)
def test_every_kind_of_network_of_the_form_ends_in_a_list(kind, tmp_path):
    form = FORM | {"LoRA_type": kind, "conv_dim": 8, "conv_alpha": 4, "factor": 4, "LyCORIS_preset": "attn-mlp"}
    form |= {"dora_wd": False, "use_tucker": False, "train_norm": False, "unit": 1, "block_dims": ""}
    imported = read(tmp_path, "x.json", form)
    assert imported.config is not None
    assert Counter(note.key for note in imported.notes) == Counter(list(form))
    assert imported.listed("unknown") == []


@pytest.mark.parametrize(
    ("fields", "form"),
    [
        ({"train_dir": "x", "image_folder": "y", "learning_rate_te": 5e-6}, "fine-tuning"),
        ({"create_caption": True, "full_path": True}, "fine-tuning"),
        ({"init_word": "cat", "num_vectors_per_token": 8, "template": "caption"}, "textual inversion"),
        ({"learning_rate_te1": 5e-6, "fused_optimizer_groups": 0}, "DreamBooth"),
    ],
)
def test_a_file_of_another_form_of_kohya_ss_says_which_and_knows_its_fields(fields, form, tmp_path):
    path = tmp_path / "form.json"
    path.write_text(json.dumps({"pretrained_model_name_or_path": "a/b"} | fields), encoding="utf-8")
    imported = read_foreign(path)
    assert f"kohya_ss' {form} form" in " ".join(imported.warnings)
    assert not imported.listed("unknown")


@pytest.mark.parametrize(
    ("fields", "tracker"),
    [
        ({"use_wandb": True}, "wandb"),
        ({"use_wandb": False}, "none"),
        ({"log_with": "tensorboard", "use_wandb": True, "logging_dir": "logs"}, "tensorboard"),
        ({"log_with": "all", "logging_dir": "logs"}, "wandb"),
        ({"log_with": ""}, "none"),
    ],
)
def test_the_tracker_of_older_and_newer_forms_is_ours(fields, tracker, tmp_path):
    imported = read(tmp_path, "x.json", FORM | fields)
    assert imported.config.logging.tracker == tracker
    assert imported.listed("unknown") == []


def test_raw_parameters_override_the_form_and_replace_whole_lists(tmp_path):
    raw = "--learning_rate 5e-4 --network_args algo=loha preset=attn-mlp"
    form = FORM | {"LoRA_type": "LyCORIS/LoKr", "factor": 4, "unet_lr": 0, "text_encoder_lr": 0}
    imported = read(tmp_path, "x.json", form | {"additional_parameters": raw})
    assert (imported.config.network.algorithm, imported.config.optimizer.learning_rate) == ("loha", 5e-4)
    assert outcome(imported, "factor") == outcome(imported, "learning_rate") == "no_effect"
    assert outcome(imported, "additional_parameters.learning_rate") == "mapped"


@pytest.mark.parametrize(
    ("kind", "algorithm"), [("Kohya DyLoRA", "dylora"), ("Kohya LoHa", "loha"), ("Kohya LoKr", "lokr")]
)
def test_networks_of_sd_scripts_itself_are_told_from_those_of_lycoris(kind, algorithm, tmp_path):
    imported = read(tmp_path, "x.json", FORM | {"LoRA_type": kind, "conv_dim": 0, "unit": 2, "factor": -1})
    assert (imported.config.network.algorithm, imported.config.network.convolutions) == (algorithm, False)


@pytest.mark.parametrize("attention", [True, False, "xformers", "sdpa", "none", ""])
def test_every_way_to_write_the_attention_of_the_form_is_known(attention, tmp_path):
    imported = read(tmp_path, "x.json", FORM | {"xformers": attention})
    assert outcome(imported, "xformers") == "no_effect"
    assert imported.listed("unknown") == []


def test_a_form_reads_the_same_whether_its_numbers_are_numbers_or_text(tmp_path):
    numbers = {"lr_warmup": 10, "network_dim": 32, "max_train_epochs": 5, "text_encoder_lr": 5e-5, "clip_skip": 2}
    as_text = {key: str(value) for key, value in numbers.items()}
    as_floats = {key: float(value) for key, value in numbers.items()}
    first, *others = [read(tmp_path, "x.json", FORM | given).config for given in (numbers, as_text, as_floats)]
    assert others == [first, first]


def test_quoted_arguments_of_the_optimizer_are_taken_apart(tmp_path):
    given = {"optimizer": "Prodigy", "optimizer_args": '"decouple=True" "weight_decay=0.05" "d_coef=0.8"'}
    imported = read(tmp_path, "x.json", FORM | given)
    assert imported.config.optimizer.weight_decay == 0.05
    assert imported.config.optimizer.arguments["d_coef"] == 0.8
    assert imported.listed("unknown") == []


def test_a_preset_for_whole_matrices_of_lokr_is_read(tmp_path):
    given = {"LoRA_type": "LyCORIS/LoKr", "network_dim": 100000, "network_alpha": 100000, "conv_dim": 100000}
    given |= {"conv_alpha": 100000, "factor": 8, "decompose_both": False, "use_cp": False, "LyCORIS_preset": "full"}
    config = read(tmp_path, "x.json", FORM | given).config
    assert (config.network.algorithm, config.network.rank, config.network.lokr_factor) == ("lokr", 1024, 8)
    assert config.network.conv_alpha == 1024


def test_folder_repeats_are_ignored_under_a_dataset_config(tmp_path):
    (tmp_path / "img" / "10_fox").mkdir(parents=True)
    (tmp_path / "data.toml").write_text('[[datasets]]\n[[datasets.subsets]]\nimage_dir = "20_fox"\nnum_repeats = 3\n')
    imported = read(tmp_path, "x.json", FORM | {"dataset_config": "data.toml"})
    assert [(folder.path, folder.repeats) for folder in imported.config.dataset.folders] == [("20_fox", 3)]
    assert outcome(imported, "train_data_dir") == "no_effect"
    assert any("1600 steps" in warning for warning in imported.warnings)
