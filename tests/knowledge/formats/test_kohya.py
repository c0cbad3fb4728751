"""sd-scripts' files: options, datasets, commands, and LoRA Easy Training Scripts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from foreign import EASY_TRAINING, outcome, read

from knowledge.answers import PlainError


def test_folders_carry_their_repeats_in_their_names(tmp_path):
    for name in ("10_sks toy", "2_style", "notes"):
        (tmp_path / "img" / name).mkdir(parents=True)
    imported = read(tmp_path, "x.toml", 'train_data_dir = "img"\nnetwork_dim = 8\n')
    folders = imported.config.dataset.folders
    assert [(Path(f.path).name, f.repeats) for f in folders] == [("10_sks toy", 10), ("2_style", 2)]


def test_a_dataset_file_cascades_and_ignores_folder_names(tmp_path):
    (tmp_path / "data.toml").write_text(
        """
[general]
shuffle_caption = true
caption_extension = ".txt"
[[datasets]]
resolution = 768
batch_size = 3
  [[datasets.subsets]]
  image_dir = "10_a"
  num_repeats = 2
  keep_tokens = 1
  [[datasets.subsets]]
  image_dir = "reg"
  is_reg = true
  keep_tokens = 2
  oddity = 1
""",
        encoding="utf-8",
    )
    imported = read(tmp_path, "x.toml", 'dataset_config = "data.toml"\ntrain_data_dir = "img"\ntrain_batch_size = 9\n')
    config = imported.config
    assert [(f.path, f.repeats, f.regularisation) for f in config.dataset.folders] == [
        ("10_a", 2, False),
        ("reg", 1, True),
    ]
    assert (config.dataset.resolution, config.schedule.batch_size, config.dataset.keep_tokens) == (768, 3, 1)
    assert config.dataset.shuffle_tags
    assert outcome(imported, "train_data_dir") == "no_effect"
    assert outcome(imported, "datasets.1.subsets.2.keep_tokens") == "unsupported"
    assert outcome(imported, "datasets.1.subsets.2.oddity") == "unknown"
    assert max(Counter(note.key for note in imported.notes).values()) == 1


def test_a_command_line_is_read_as_it_was_typed(tmp_path):
    imported = read(
        tmp_path,
        "train.sh",
        """#!/bin/sh
# my training
accelerate launch --num_cpu_threads_per_process 2 sdxl_train_network.py \\
  --pretrained_model_name_or_path="/models/base model.safetensors" --network_dim 8 \\
  --network_args "conv_dim=4" "conv_alpha=2" --network_module=networks.lora \\
  --learning_rate 1e-4 --max_train_epochs 5 --cache_latents
""",
    )
    config = imported.config
    assert config.base_model.family == "sdxl"
    assert config.base_model.path == "/models/base model.safetensors"
    assert (config.network.algorithm, config.network.conv_rank, config.network.rank) == ("locon", 4, 8)
    assert (config.schedule.epochs, config.memory.cache_latents) == (5, True)


def test_derrians_groups_are_read(tmp_path):
    imported = read(
        tmp_path,
        "x.toml",
        """
[[subsets]]
image_dir = "pics"
num_repeats = 4
[train_mode]
train_mode = "lora"
[general_args.args]
max_train_epochs = 6
seed = 3
[general_args.dataset_args]
resolution = 640
batch_size = 2
[network_args.args]
network_dim = 12
[optimizer_args.args]
optimizer_type = "Prodigy"
[optimizer_args.args.optimizer_args]
weight_decay = "0.1"
""",
    )
    config = imported.config
    assert (config.dataset.folders[0].repeats, config.dataset.resolution, config.schedule.batch_size) == (4, 640, 2)
    assert (config.network.rank, config.optimizer.name, config.optimizer.weight_decay) == (12, "prodigy", 0.1)


def test_what_is_special_in_easy_training_scripts_has_its_meaning(tmp_path):
    imported = read(tmp_path, "x.toml", EASY_TRAINING)
    config = imported.config
    assert (config.base_model.family, config.network.algorithm) == ("sdxl", "loha")
    assert config.schedule.warmup == 0.05
    assert imported.listed("unknown") == []
    assert outcome(imported, "warmup_ratio") == outcome(imported, "sdxl") == "mapped"
    assert outcome(imported, "datasets.1.subsets.1.name") == "no_effect"
    assert read(tmp_path, "y.toml", EASY_TRAINING.replace("sdxl = true", "sdxl = false")).config.base_model.family == (
        "sd15"
    )


@pytest.mark.parametrize(
    ("content", "folders"),
    [
        ('[[datasets.subsets]]\nimage_dir = "a"\n', ["a"]),
        ('[datasets.first]\n[[datasets.first.subsets]]\nimage_dir = "a"\n', ["a"]),
        ('general = 3\n[[datasets]]\n[[datasets.subsets]]\nimage_dir = "a"\n', ["a"]),
        ("datasets = [1, 2]\n", []),
        ("[[datasets]]\nsubsets = 3\n", []),
    ],
)
def test_dataset_files_of_a_wrong_shape_are_read_as_they_are_meant(content, folders, tmp_path):
    imported = read(tmp_path, "x.toml", content)
    assert [folder["path"] for folder in imported.values["dataset.folders"]] == folders
    told = any("[[datasets]]" in warning for warning in imported.warnings)
    assert told == content.startswith(("[datasets", "[[datasets.subsets"))


SCRIPT = """
$pretrained_model = "./models/base.safetensors"  # the base model
$network_dim = 24
$repeats = 1
$repeats = 2
$extra = [System.Collections.ArrayList]::new()
accelerate launch train_network.py `
  --pretrained_model_name_or_path=$pretrained_model `
  --network_dim=$network_dim --min_snr_gamma=${network_dim} --seed=$repeats --caption_extension=.txt $extra
"""


def test_variables_of_a_script_are_those_that_it_sets_itself(tmp_path):
    imported = read(tmp_path, "x.ps1", SCRIPT)
    config = imported.config
    assert (config.base_model.path, config.network.rank) == ("./models/base.safetensors", 24)
    assert config.loss.minimum_snr_gamma == 24
    assert "$extra" in imported.warnings[0]
    assert "$repeats" in imported.warnings[0]  # set twice
    assert "$network_dim" not in imported.warnings[0]


@pytest.mark.parametrize(
    "command",
    [
        "python networks/resize_lora.py --save_to small.safetensors --new_rank 4 --model big.safetensors",
        "pip install --upgrade x",
    ],
)
def test_a_command_that_trains_nothing_is_refused(command, tmp_path):
    with pytest.raises(PlainError, match="trains nothing"):
        read(tmp_path, "x.sh", command)


def test_mask_folders_count_under_masked_loss_alone(tmp_path):
    subsets = '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "a"\nconditioning_data_dir = "m"\n'
    (tmp_path / "data.toml").write_text(subsets, encoding="utf-8")
    with_masks = read(tmp_path, "x.toml", 'dataset_config = "data.toml"\nmasked_loss = true\n')
    without = read(tmp_path, "y.toml", 'dataset_config = "data.toml"\nnetwork_dim = 4\n')
    assert with_masks.config.dataset.folders[0].masks == "m"
    assert without.config.dataset.folders[0].masks == ""
