"""Foreign configs: every key in exactly one list, meanings and not names, and there and back again."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from knowledge.answers import PlainError
from knowledge.config import Algorithm, TrainingConfig, fields, value_of, with_values
from knowledge.formats import ai_toolkit, onetrainer
from knowledge.formats.export import WHERE, to_sd_scripts
from knowledge.formats.export_diffusers import to_diffusers
from knowledge.formats.export_gui import to_kohya_gui
from knowledge.formats.export_onetrainer import to_onetrainer
from knowledge.formats.reader import is_foreign, read_foreign
from knowledge.formats.sd_scripts import ENDLESS, LISTS, translate
from knowledge.formats.translation import TITLES, Imported, facts_of

NETWORK = Path(__file__).parent.parent / "data" / "network_fp16.safetensors"
FORM = {
    "LoRA_type": "Standard",
    "pretrained_model_name_or_path": "model.safetensors",
    "train_data_dir": "img",
    "epoch": 10,
    "max_train_epochs": 0,
    "max_train_steps": 0,
    "learning_rate": 0.0001,
    "unet_lr": 0.0001,
    "text_encoder_lr": 5e-05,
    "network_dim": 32,
    "network_alpha": 16,
    "optimizer": "AdamW8bit",
    "optimizer_args": "",
    "lr_scheduler": "cosine",
    "lr_warmup": 10,
    "max_resolution": "768,768",
    "train_batch_size": 2,
    "mixed_precision": "bf16",
    "save_precision": "fp16",
    "xformers": "xformers",
    "sdxl": False,
    "caption_extension": ".txt",
    "noise_offset_type": "Original",
    "noise_offset": 0.05,
    "multires_noise_iterations": 6,
    "min_snr_gamma": 0,
    "additional_parameters": "",
}


def read(tmp_path: Path, name: str, content: object) -> Imported:
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return read_foreign(path)


def outcome(imported: Imported, key: str) -> str:
    return next(note.outcome for note in imported.notes if note.key == key)


def options(**given: object) -> Imported:
    return translate(given, kind="test")


# Every key


def test_every_option_of_sd_scripts_is_known_and_ends_in_one_list():
    facts = facts_of("sd_scripts")
    everything = {**facts["options"], **dict.fromkeys(set(facts["unset"]) - set(LISTS), "x")}
    imported = translate(everything, kind="test")
    assert {note.key for note in imported.notes} == set(everything)
    assert imported.listed("unknown") == []


@pytest.mark.parametrize("key", sorted(facts_of("sd_scripts")["unset"]))
def test_every_option_alone_ends_in_one_list(key):
    for value in ("x", 3, 0, True, None):
        keys = [note.key for note in translate({key: value}, kind="test").notes]
        assert len(keys) == 1


def test_a_misspelt_key_is_unknown_and_its_neighbour_is_named():
    imported = options(max_grad_normm=1.0)
    note = imported.listed("unknown")[0]
    assert (note.key, note.why) == ("max_grad_normm", 'Did you mean "max_grad_norm"?')


def test_the_five_lists_are_all_there_are():
    assert list(TITLES) == ["mapped", "changed", "no_effect", "unsupported", "unknown"]


@pytest.mark.parametrize("value", ["nonsense", -1, 10**9, [], {}, "1e-4", True, None, "0"])
@pytest.mark.parametrize(
    "key", ["network_dim", "learning_rate", "resolution", "text_encoder_lr", "lr_warmup_steps", "seed"]
)
def test_nonsense_values_never_crash(key, value):
    assert [note.key for note in translate({key: value}, kind="test").notes] == [key]


# sd-scripts' meanings


def test_what_is_not_said_follows_sd_scripts_and_not_us():
    config = options(pretrained_model_name_or_path="m.safetensors").config
    assert config is not None
    assert (config.network.rank, config.network.alpha) == (4, 1.0)
    assert config.optimizer.learning_rate == 2e-6
    assert (config.schedule.epochs, config.schedule.maximum_steps) == (ENDLESS, 1600)
    assert config.network.train_text_encoder
    assert not config.dataset.buckets
    assert config.dataset.caption_extension == ".caption"


def test_one_rate_goes_to_the_part_without_a_rate_of_its_own():
    config = options(learning_rate=3e-4, unet_lr=1e-4).config
    assert (config.optimizer.learning_rate, config.optimizer.text_encoder_learning_rate) == (1e-4, 3e-4)
    config = options(learning_rate=3e-4, unet_lr=1e-4, network_train_unet_only=True).config
    assert config.optimizer.text_encoder_learning_rate is None
    assert outcome(options(learning_rate=3e-4, unet_lr=1e-4, text_encoder_lr=[1e-5]), "learning_rate") == "no_effect"


def test_a_rate_of_zero_leaves_a_part_untrained():
    config = options(learning_rate=1e-4, text_encoder_lr=[0]).config
    assert not config.network.train_text_encoder
    assert not options(text_encoder_lr=[1e-4], unet_lr=0).config.network.train_unet


def test_two_rates_for_two_encoders_become_one_and_say_so():
    imported = options(text_encoder_lr=[1e-5, 2e-5])
    assert outcome(imported, "text_encoder_lr") == "changed"
    assert imported.config.optimizer.text_encoder_learning_rate == 1e-5


def test_epochs_override_steps():
    imported = options(max_train_epochs=7, max_train_steps=100)
    assert (imported.config.schedule.epochs, imported.config.schedule.maximum_steps) == (7, None)
    assert outcome(imported, "max_train_steps") == "no_effect"


def test_constant_has_no_warm_up_there():
    imported = options(lr_scheduler="constant", lr_warmup_steps=100)
    assert outcome(imported, "lr_warmup_steps") == "no_effect"
    assert imported.config.schedule.warmup == 0
    config = options(lr_scheduler="constant_with_warmup", lr_warmup_steps=100).config
    assert (config.schedule.scheduler, config.schedule.warmup) == ("constant", 100)


@pytest.mark.parametrize(
    ("arguments", "algorithm"),
    [
        ({"network_module": "networks.lora"}, "lora"),
        ({"network_module": "networks.lora", "network_args": ["conv_dim=8", "conv_alpha=4"]}, "locon"),
        ({"network_module": "lycoris.kohya", "network_args": ["algo=loha", "preset=attn-mlp"]}, "loha"),
        ({"network_module": "lycoris.kohya", "network_args": ["algo=lokr", "factor=4"]}, "lokr"),
        ({"network_module": "lycoris.kohya", "network_args": ["algo=lora", "preset=attn-mlp"]}, "lora"),
        ({"network_module": "lycoris.kohya", "network_args": ["algo=lora", "preset=full"]}, "locon"),
        ({"network_module": "lycoris.kohya", "network_args": ["algo=lora", "dora_wd=True"]}, "dora"),
        ({"network_module": "networks.dylora", "network_args": ["unit=2"]}, "dylora"),
        ({"network_module": "lycoris.kohya", "network_args": ["algo=diag-oft"]}, "oft"),
        ({"network_module": "lycoris.kohya", "network_args": "algo=loha dora_wd=False preset=attn-mlp"}, "loha"),
    ],
)
def test_the_algorithm_is_read_from_module_and_arguments_together(arguments, algorithm):
    imported = translate(arguments, kind="test")
    assert imported.config.network.algorithm == algorithm
    assert imported.listed("unknown") == []


def test_what_we_do_not_train_is_said_with_what_it_would_have_been():
    imported = translate({"network_module": "lycoris.kohya", "network_args": ["algo=tlora"]}, kind="test")
    assert "tlora" in imported.listed("unsupported")[0].why
    assert "Flux" in options(weighting_scheme="sigma").notes[0].why


def test_a_resolution_that_is_not_square_becomes_the_square_of_its_area():
    imported = options(resolution="512,768")
    assert imported.config.dataset.resolution == 624  # √(512 · 768) = 627.07, down to a multiple of 8
    assert outcome(imported, "resolution") == "changed"


def test_a_combination_that_stops_sd_scripts_is_untied():
    imported = options(cache_text_encoder_outputs=True, shuffle_caption=True, network_train_unet_only=True)
    assert imported.config is not None
    assert outcome(imported, "cache_text_encoder_outputs") == "changed"


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


EASY_TRAINING = """
[[subsets]]
image_dir = "pics"
num_repeats = 4
name = "fox"
[general_args.args]
sdxl = true
max_train_epochs = 8
[network_args.args]
network_dim = 16
[network_args.args.network_args]
algo = "loha"
[optimizer_args.args]
optimizer_type = "AdamW8bit"
lr_scheduler = "cosine"
learning_rate = 0.0005
warmup_ratio = 0.05
[saving_args.args]
tag_occurrence = true
save_toml = true
"""


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


# kohya_ss' meanings


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


# OneTrainer and ai-toolkit


def test_onetrainer_is_sparse_over_its_own_defaults(tmp_path):
    document = {
        "training_method": "LORA",
        "model_type": "STABLE_DIFFUSION_XL_10_BASE",
        "base_model_name": "stabilityai/stable-diffusion-xl-base-1.0",
        "layer_filter_preset": "attn-mlp",
        "learning_rate": 0.0003,
        "resolution": "1024",
        "batch_size": 4,
        "text_encoder": {"train": False, "weight_dtype": "FLOAT_16"},
        "optimizer": {"optimizer": "PRODIGY", "d_coef": 1.0, "weight_decay": 0.02},
        "concepts": [{"path": "pics", "balancing": 5.0, "image": {"enable_crop_jitter": False}}],
        "loss_weight_fn": "MIN_SNR_GAMMA",
        "save_every": 2,
        "save_every_unit": "EPOCH",
        "bogus": 1,
    }
    imported = read(tmp_path, "x.json", document)
    config = imported.config
    assert config.base_model.family == "sdxl"
    assert (config.network.algorithm, config.network.rank, config.network.alpha) == ("lora", 16, 1.0)
    assert (config.schedule.epochs, config.schedule.warmup) == (100, 200.0)
    assert (config.optimizer.name, config.optimizer.weight_decay) == ("prodigy", 0.02)
    assert not config.network.train_text_encoder
    assert config.dataset.folders[0].repeats == 5
    assert config.loss.minimum_snr_gamma == 5.0
    assert config.saving.every_epochs == 2
    assert [note.key for note in imported.listed("unknown")] == ["bogus"]


OLDER_ONETRAINER = {
    "training_method": "LORA",
    "model_type": "STABLE_DIFFUSION_15",
    "optimizer": "ADAFACTOR",
    "weight_decay": 0.03,
    "train_unet": True,
    "unet_learning_rate": 0.0002,
    "train_text_encoder": False,
    "train_text_encoder_epochs": 30,
    "save_after": 3,
    "save_after_unit": "EPOCH",
    "min_snr_gamma": 5,
    "lora_layer_preset": "attn-mlp",
    "token_count": 1,
}


def test_settings_of_older_onetrainers_have_their_meaning_under_their_own_names(tmp_path):
    imported = read(tmp_path, "x.json", OLDER_ONETRAINER)
    config = imported.config
    assert (config.optimizer.name, config.optimizer.weight_decay) == ("adafactor", 0.03)
    assert config.optimizer.learning_rate == 0.0002
    assert (config.network.train_text_encoder, config.network.algorithm) == (False, "lora")
    assert (config.saving.every_epochs, config.loss.minimum_snr_gamma) == (3, 5.0)
    assert Counter(note.key for note in imported.notes) == Counter(list(OLDER_ONETRAINER))
    assert imported.listed("unknown") == []


def test_a_newer_name_counts_where_both_stand(tmp_path):
    imported = read(tmp_path, "x.json", OLDER_ONETRAINER | {"unet": {"learning_rate": 0.0007}})
    assert imported.config.optimizer.learning_rate == 0.0007
    keys = [note.key for note in imported.notes]
    assert len(keys) == len(set(keys)) == len(OLDER_ONETRAINER) + 1


AI_TOOLKIT = """
job: extension
config:
  name: "my_lora v1"
  process:
    - type: sd_trainer
      training_folder: output
      trigger_word: p3r5on
      network: {type: lora, linear: 24, linear_alpha: 12}
      save: {dtype: float16, save_every: 250, max_step_saves_to_keep: 4}
      datasets:
        - folder_path: /pics
          caption_ext: txt
          caption_dropout_rate: 0.05
          shuffle_tokens: no
          resolution: [512, 768]
          num_repeats: 2
      train: {batch_size: 2, steps: 900, lr: 1e-4, optimizer: adamw8bit, dtype: bf16, noise_scheduler: ddpm}
      model: {name_or_path: stabilityai/sdxl, is_xl: true}
      sample: {sampler: ddim, sample_every: 100, width: 1024, height: 768, prompts: ["[trigger] on a horse"], neg: ""}
"""


def test_ai_toolkit_is_read_with_yamls_traps(tmp_path):
    imported = read(tmp_path, "x.yaml", AI_TOOLKIT)
    config = imported.config
    assert config.optimizer.learning_rate == 1e-4  # YAML 1.1 reads 1e-4 as text
    assert not config.dataset.shuffle_tags  # and no as false
    assert (config.network.rank, config.network.alpha) == (24, 12)
    assert (config.base_model.family, config.memory.precision) == ("sdxl", "bf16")
    assert (config.schedule.epochs, config.schedule.maximum_steps) == (ENDLESS, 900)
    assert (config.dataset.resolution, config.dataset.caption_extension) == (768, ".txt")
    assert config.sampling.prompts == ("p3r5on on a horse",)
    assert (config.sampling.width, config.sampling.height, config.saving.every_steps) == (1024, 768, 250)
    assert config.output.name == "my_lora-v1"
    assert imported.listed("unknown") == []
    assert max(Counter(note.key for note in imported.notes).values()) == 1


# LoRA files


def test_a_lora_of_sd_scripts_tells_its_recipe():
    imported = read_foreign(NETWORK)
    config = imported.config
    assert config.base_model.family == "sd15"
    assert (config.network.rank, config.network.train_text_encoder) == (4, False)
    assert config.schedule.scheduler == "cosine"
    assert config.loss.minimum_snr_gamma == 5.0
    assert [folder.repeats for folder in config.dataset.folders] == [10, 2]
    assert imported.listed("unknown") == []


def test_our_own_file_gives_its_config_back(tmp_path):
    from engine.tools.files import replace_metadata

    config = with_values(TrainingConfig(), {"network.rank": 24, "dataset.trigger_word": "sks"})
    target = tmp_path / "x.safetensors"
    replace_metadata(NETWORK, target, {"lora_wizard.config": config.model_dump_json()})
    assert read_foreign(target).config == config


# Files that are none


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.json", "{"),
        ("x.json", "[1]"),
        ("x.json", "{}"),
        ("x.toml", "= 3"),
        ("x.toml", "schema_version = 1"),
        ("x.yaml", "a: [1"),
        ("x.yaml", "a: 1"),
        ("x.sh", "echo hello"),
        ("x.safetensors", "nothing"),
    ],
)
def test_what_is_no_config_gets_one_sentence(name, content, tmp_path):
    with pytest.raises(PlainError, match=name.replace(".", r"\.")):
        read(tmp_path, name, content)


def test_answers_of_ours_are_not_foreign(tmp_path):
    ours, theirs = tmp_path / "a.toml", tmp_path / "b.toml"
    ours.write_text("schema_version = 1\n", encoding="utf-8")
    theirs.write_text("network_dim = 4\n", encoding="utf-8")
    assert (is_foreign(ours), is_foreign(theirs), is_foreign(tmp_path / "c.json")) == (False, True, True)


# There and back

ALGORITHMS = get_args(Algorithm)
SAFE_TEXT = st.text("abc, -()", max_size=12).map(str.strip)
CHANGES = {
    "network.algorithm": st.sampled_from(ALGORITHMS),
    "network.convolutions": st.booleans(),
    "network.conv_rank": st.integers(1, 1024),
    "network.lokr_full_matrix": st.booleans(),
    "network.dylora_block_size": st.sampled_from([1, 2, 4]),
    "network.rank": st.integers(1, 1024),
    "network.alpha": st.floats(0.01, 4096),
    "network.dropout": st.floats(0, 0.9),
    "network.train_text_encoder": st.booleans(),
    "optimizer.name": st.sampled_from(["adamw", "adamw8bit", "lion", "adafactor", "prodigy"]),
    "optimizer.learning_rate": st.floats(1e-8, 10),
    "optimizer.weight_decay": st.floats(0, 10),
    "optimizer.maximum_gradient_norm": st.floats(0, 1e6),
    "schedule.epochs": st.integers(1, 1000),
    "schedule.batch_size": st.integers(1, 1024),
    "schedule.gradient_accumulation_steps": st.integers(1, 64),
    "schedule.scheduler": st.sampled_from(
        ["constant", "linear", "cosine", "cosine_with_restarts", "polynomial", "adafactor"]
    ),
    "schedule.warmup": st.one_of(st.floats(0, 0.9), st.integers(1, 1000).map(float)),
    "loss.function": st.sampled_from(["l2", "l1", "huber", "smooth_l1"]),
    "loss.minimum_snr_gamma": st.one_of(st.none(), st.floats(0.1, 100)),
    "loss.prior_weight": st.floats(0, 100),
    "noise.offset": st.floats(0, 1),
    "noise.minimum_timestep": st.integers(0, 400),
    "noise.maximum_timestep": st.integers(500, 1000),
    "memory.precision": st.sampled_from(["fp32", "fp16", "bf16"]),
    "memory.gradient_checkpointing": st.booleans(),
    "memory.cache_latents": st.booleans(),
    "saving.precision": st.sampled_from(["fp32", "fp16", "bf16"]),
    "saving.every_epochs": st.one_of(st.none(), st.integers(1, 100)),
    "saving.every_steps": st.one_of(st.none(), st.integers(1, 100)),
    "dataset.resolution": st.integers(32, 128).map(lambda n: n * 8),
    "dataset.buckets": st.booleans(),
    "dataset.bucket_no_upscale": st.booleans(),
    "dataset.flip": st.booleans(),
    "dataset.shuffle_tags": st.booleans(),
    "dataset.keep_tokens": st.integers(0, 255),
    "dataset.caption_dropout_rate": st.floats(0, 1),
    "dataset.caption_prefix": SAFE_TEXT,
    "base_model.prediction_type": st.sampled_from(["epsilon", "v_prediction"]),
    "base_model.family": st.sampled_from(["sd15", "sdxl"]),
    "seed": st.integers(0, 2**40),
    "base_model.zero_terminal_snr": st.booleans(),
    "base_model.maximum_tokens": st.sampled_from([75, 150, 225]),
    "base_model.vae": st.sampled_from(["", "vae.safetensors"]),
    "network.start_from": st.sampled_from(["", "first.safetensors"]),
    "dataset.alpha_masks": st.booleans(),
    "dataset.tag_dropout_rate": st.floats(0, 1),
    "dataset.caption_dropout_every_epochs": st.one_of(st.none(), st.integers(1, 9)),
    "network.rank_dropout": st.floats(0, 0.9),
    "network.module_dropout": st.floats(0, 0.9),
    "network.maximum_norm": st.one_of(st.none(), st.floats(0.1, 10)),
    "optimizer.lora_plus_ratio": st.floats(1, 32),
    "loss.debiased": st.booleans(),
    "loss.scaled_like_noise_prediction": st.booleans(),
    "loss.v_prediction_like": st.floats(0, 10),
    "schedule.warmup_init": st.booleans(),
    "noise.offset_random": st.booleans(),
    "noise.offset_adaptive": st.floats(-1, 1),
    "noise.input_perturbation": st.floats(0, 1),
    "noise.multires_iterations": st.integers(0, 10),
}


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    changes=st.fixed_dictionaries({}, optional={name: values for name, values in CHANGES.items() if name in fields()}),
    prompts=st.booleans(),
)
def test_out_to_sd_scripts_and_in_again_is_the_same_training(changes, prompts, tmp_path_factory):
    base = {
        "base_model.path": "models/base.safetensors",
        "base_model.family": "sd15",
        "dataset.folders": ({"path": "a b", "repeats": 3}, {"path": "reg", "regularisation": True}),
    }
    if prompts:
        base |= {
            "sampling.prompts": ("a cat", "a dog, running"),
            "sampling.negative_prompt": "bad",
            "sampling.width": 640,
        }
    try:
        config = with_values(TrainingConfig(), base | changes)
    except ValidationError:
        assume(False)
        raise
    exported = to_sd_scripts(config)
    folder = tmp_path_factory.mktemp("out")
    for name, text in exported.files.items():
        (folder / name).write_text(text, encoding="utf-8")
    imported = read_foreign(folder / "sd-scripts.toml")
    assert imported.problems == ()
    assert imported.listed("unknown") == []
    lost = {entry.name for entry in exported.lost}
    silent = {name for name, (other, wanted) in WHERE.items() if value_of(config, other) not in wanted}
    with_convolutions = imported.config.network.adapts_convolutions
    silent |= set() if with_convolutions else {"network.conv_rank", "network.conv_alpha"}
    # LoCon adapts the convolutions whatever the switch for the others says.
    silent |= {"network.convolutions"} if config.network.algorithm == "locon" else set()
    silent |= set() if config.network.algorithm == "lokr" else {"network.lokr_factor", "network.lokr_full_matrix"}
    silent |= set() if config.network.algorithm == "dylora" else {"network.dylora_block_size"}
    silent |= set() if prompts else {name for name in fields() if name.startswith("sampling.")}
    silent |= set() if config.noise.multires_iterations else {"noise.multires_discount"}
    silent |= set() if config.noise.offset else {"noise.offset_random", "noise.offset_adaptive"}
    silent |= set() if config.network.train_text_encoder else {"optimizer.text_encoder_learning_rate"}
    if config.schedule.maximum_steps is None:
        silent -= {"schedule.epochs"}
    for name in fields():
        if name.startswith("dataset.folders.") or name in lost | silent:
            continue
        assert value_of(imported.config, name) == value_of(config, name), name


OPTIONS = json.loads((Path(__file__).parent.parent / "data" / "sd_scripts_options.json").read_text(encoding="utf-8"))
KINDS = {"int": int, "float": (int, float), "int_or_float": (int, float), "str": str, "Path": str, None: bool}
PLAIN_SUBSET = {"image_dir", "num_repeats", "is_reg", "class_tokens", "alpha_mask"}
MASKED_SUBSET = {"image_dir", "num_repeats", "conditioning_data_dir"}
"""What sd-scripts' own schema lets stand in a folder of either kind; it stops at anything else."""
FOLDERS = (
    {"path": "a", "caption": "fox"},
    {"path": "b", "regularisation": True, "masks": "m"},
    {"path": "c", "masks": "m", "caption": "fox"},
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    changes=st.fixed_dictionaries(
        {},
        optional={name: values for name, values in CHANGES.items() if name in fields()}
        | {
            "memory.cache_text_encoder_outputs": st.booleans(),
            "dataset.alpha_masks": st.booleans(),
            "noise.offset_adaptive": st.sampled_from([0.0, 0.1]),
        },
    ),
    family=st.sampled_from(["sd15", "sdxl"]),
    folders=st.sampled_from([FOLDERS[:1], FOLDERS[:2], FOLDERS]),
)
def test_sd_scripts_own_parser_would_take_what_is_written(changes, family, folders):
    base = {"base_model.path": "m.safetensors", "dataset.folders": folders}
    try:
        config = with_values(TrainingConfig(), base | changes | {"base_model.family": family})
    except ValidationError:
        assume(False)
        raise
    exported = to_sd_scripts(config)
    known = OPTIONS["train_network"] | (OPTIONS["sdxl_extra"] if family == "sdxl" else {})
    for name, value in exported.options.items():
        assert name in known, name
        option = known[name]
        listed = value if option.get("nargs") in ("*", "+") else [value]
        assert isinstance(listed, list), name
        for one in listed:
            assert isinstance(one, KINDS[option.get("type")]), (name, one)
            assert isinstance(one, bool) == (option.get("type") is None and option.get("nargs") == 0), (name, one)
            assert one in option.get("choices", [one]), (name, one)
    if exported.options.get("adaptive_noise_scale"):
        assert exported.options["noise_offset"]
    assert not {"alpha_mask", "class_tokens", "is_reg"} & exported.dataset["general"].keys()
    for dataset in exported.dataset["datasets"]:
        masked = {"conditioning_data_dir" in subset for subset in dataset["subsets"]}
        assert len(masked) == 1
        for subset in dataset["subsets"]:
            assert subset.keys() <= (MASKED_SUBSET if masked == {True} else PLAIN_SUBSET)


def test_what_sd_scripts_cannot_express_is_said():
    config = with_values(
        TrainingConfig(),
        {
            "dataset.trigger_word": "sks",
            "schedule.scheduler": "rex",
            "schedule.maximum_steps": 100,
            "base_model.path": "m",
        },
    )
    lost = {entry.name: entry.why for entry in to_sd_scripts(config).lost}
    assert set(lost) >= {"dataset.trigger_word", "schedule.scheduler", "schedule.epochs", "base_model.family"}
    assert all(why.endswith(".") for why in lost.values())


SHARED = {
    "network.algorithm": st.sampled_from(["lora", "loha", "lokr"]),
    "network.lokr_full_matrix": st.booleans(),
    "network.rank": st.integers(1, 1024),
    "network.alpha": st.floats(0.01, 4096),
    "network.train_text_encoder": st.booleans(),
    "optimizer.name": st.sampled_from(["adamw", "adamw8bit", "lion", "adafactor", "prodigy"]),
    "optimizer.learning_rate": st.floats(1e-8, 10),
    "optimizer.weight_decay": st.floats(0, 10),
    "schedule.epochs": st.integers(1, 1000),
    "schedule.batch_size": st.integers(1, 1024),
    "schedule.scheduler": st.sampled_from(["constant", "linear", "cosine"]),
    "schedule.warmup": st.one_of(st.floats(0, 0.9), st.integers(2, 1000).map(float)),
    "loss.minimum_snr_gamma": st.one_of(st.none(), st.floats(0.1, 100)),
    "ema.decay": st.one_of(st.none(), st.floats(0.1, 0.999)),
    "noise.offset": st.floats(0, 1),
    "memory.precision": st.sampled_from(["fp32", "fp16", "bf16"]),
    "memory.gradient_checkpointing": st.booleans(),
    "memory.cache_latents": st.booleans(),
    "saving.precision": st.sampled_from(["fp32", "fp16", "bf16"]),
    "dataset.resolution": st.integers(32, 128).map(lambda n: n * 8),
    "dataset.buckets": st.booleans(),
    "dataset.shuffle_tags": st.booleans(),
    "dataset.keep_tokens": st.integers(0, 255),
    "base_model.prediction_type": st.sampled_from(["epsilon", "v_prediction"]),
    "base_model.family": st.sampled_from(["sd15", "sdxl"]),
}


@pytest.mark.parametrize("kind", ["kohya_ss", "onetrainer"])
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(changes=st.fixed_dictionaries({}, optional=SHARED))
def test_out_to_a_form_and_in_again_is_the_same_training(kind, changes, tmp_path_factory):
    write = {"kohya_ss": to_kohya_gui, "onetrainer": to_onetrainer}[kind]
    base = {
        "base_model.path": "m.safetensors",
        "base_model.family": "sd15",
        "dataset.folders": ({"path": "a", "repeats": 3},),
    }
    try:
        config = with_values(TrainingConfig(), base | changes)
    except ValidationError:
        assume(False)
        raise
    exported = write(config, "x")
    folder = tmp_path_factory.mktemp("out")
    for name, text in exported.files.items():
        (folder / name).write_text(text, encoding="utf-8")
    imported = read_foreign(folder / "x.json")
    assert imported.problems == ()
    assert imported.listed("unknown") == []
    silent = set() if config.network.algorithm == "lokr" else {"network.lokr_full_matrix"}
    for name in {"dataset.folders", *base, *changes} - silent - {entry.name for entry in exported.lost}:
        theirs, ours = value_of(imported.config, name), value_of(config, name)
        if isinstance(ours, float) and name == "schedule.warmup":
            assert theirs == pytest.approx(ours, rel=1e-9)
        else:
            assert theirs == ours, name


def test_diffusers_arguments_say_what_they_leave_out():
    config = with_values(
        TrainingConfig(),
        {"network.algorithm": "dora", "network.alpha": 4.0, "base_model.family": "sdxl", "optimizer.name": "adamw8bit"},
    )
    exported = to_diffusers(config)
    script = exported.files["diffusers.sh"]
    assert "accelerate launch train_text_to_image_lora_sdxl.py" in script
    assert "--rank=16" in script
    assert "--use_8bit_adam" in script
    assert {"network.algorithm", "network.alpha"} <= {entry.name for entry in exported.lost}


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2000),
    st.floats(),
    st.sampled_from(
        ["", "x", "1e-4", "0", "True", "none", "a b", "C:\\pics", "x\ny", [], {}, [1, 2], ["a=1", "b"], {"a": 1}]
    ),
)
KEYS = {
    kind: sorted({*facts_of(kind)["options"], *facts_of(kind)["unset"]})
    for kind in ("sd_scripts", "onetrainer", "ai_toolkit")
}


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(given=st.dictionaries(st.sampled_from([*KEYS["sd_scripts"], "typo"]), ODD, max_size=25))
def test_any_options_of_sd_scripts_end_in_one_list_each(given):
    imported = translate(given, kind="test")
    listed = [note.key for note in imported.notes]
    assert len(listed) == len(set(listed))
    assert all(key in listed or any(one.startswith(f"{key}.") for one in listed) for key in given)
    assert (imported.config is None) == bool(imported.problems)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(given=st.dictionaries(st.sampled_from([*KEYS["onetrainer"], "typo"]), ODD, max_size=25))
def test_any_settings_of_onetrainer_end_in_one_list_each(given):
    nested: dict = {}
    for key, value in given.items():
        part, _, inner = key.rpartition(".")
        if part:
            nested.setdefault(part, {})[inner] = value
        else:
            nested[key] = value
    imported = onetrainer.read_json(nested, Path("x.json"))
    assert sorted(note.key for note in imported.notes) == sorted(onetrainer.flattened(nested))


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(given=st.dictionaries(st.sampled_from([*KEYS["ai_toolkit"], "typo"]), ODD, max_size=25))
def test_any_settings_of_ai_toolkit_end_in_one_list_each(given):
    process: dict = {"type": "sd_trainer"}
    dataset: dict = {"folder_path": "pics"}
    for key, value in given.items():
        section, _, inner = key.partition(".")
        if section == "datasets":
            dataset[inner] = value
        elif inner:
            process.setdefault(section, {})[inner] = value
        elif key not in ("network", "save", "train", "model", "sample"):
            process[key] = value
    process["datasets"] = [dataset]
    document = {"config": {"name": "x", "process": [process]}}
    imported = ai_toolkit.read_yaml(json.dumps(document), Path("x.yaml"))
    assert sorted(note.key for note in imported.notes) == sorted(ai_toolkit.flattened(document, process))


def test_mask_folders_count_under_masked_loss_alone(tmp_path):
    subsets = '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "a"\nconditioning_data_dir = "m"\n'
    (tmp_path / "data.toml").write_text(subsets, encoding="utf-8")
    with_masks = read(tmp_path, "x.toml", 'dataset_config = "data.toml"\nmasked_loss = true\n')
    without = read(tmp_path, "y.toml", 'dataset_config = "data.toml"\nnetwork_dim = 4\n')
    assert with_masks.config.dataset.folders[0].masks == "m"
    assert without.config.dataset.folders[0].masks == ""


def test_a_log_folder_is_not_the_output_folder():
    imported = options(output_dir="out", logging_dir="logs")
    assert imported.config.output.folder == "out"
    assert outcome(imported, "logging_dir") == "no_effect"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (
            "flux.json",
            '{"__version": 6, "training_method": "LORA", "model_type": "FLUX_DEV_1", "base_model_name": "a/b"}',
        ),
        ("flux.yaml", "config: {process: [{train: {lr: 1e-4}, model: {name_or_path: a/b, is_flux: true}}]}"),
        ("qwen.yaml", "config: {process: [{train: {lr: 1e-4}, model: {name_or_path: a/b, arch: qwen_image}}]}"),
        ("gui.json", '{"LoRA_type": "Flux1", "pretrained_model_name_or_path": "a/b", "flux1_checkbox": true}'),
        ("run.sh", "python flux_train_network.py --pretrained_model_name_or_path a/b --network_dim 8"),
    ],
)
def test_a_recipe_for_another_kind_of_model_says_so_first_and_brings_no_base_model(name, content, tmp_path):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    imported = read_foreign(path)
    assert "which this program does not" in imported.warnings[0]
    assert imported.config is not None
    assert imported.config.base_model.path == imported.values["base_model.path"] == "base-model"
    assert any(note.value == "a/b" and note.outcome == "unsupported" for note in imported.notes)


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


def test_a_model_config_of_the_hub_is_no_recipe(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"model_type": "qwen3", "hidden_size": 1024}', encoding="utf-8")
    with pytest.raises(PlainError, match="no trainer that is known"):
        read_foreign(path)


def test_toml_of_no_trainer_is_not_taken_for_answers_of_ours(tmp_path):
    path = tmp_path / "prompts.toml"
    path.write_text('[[prompts]]\ntarget = "cat"\n', encoding="utf-8")
    with pytest.raises(PlainError, match="no config of a trainer"):
        read_foreign(path)


def test_a_job_of_ai_toolkit_that_trains_nothing_is_refused(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text("job: generate\nconfig: {process: [{type: to_folder, output_folder: x}]}", encoding="utf-8")
    with pytest.raises(PlainError, match="trains nothing"):
        read_foreign(path)


def test_held_out_pictures_come_over_from_sd_scripts():
    imported = translate({"validation_split": 0.1, "validate_every_n_epochs": 2, "validation_seed": 7}, kind="test")
    assert imported.config is not None
    assert (imported.config.validation.share, imported.config.validation.every_epochs) == (0.1, 2)
    assert [note.key for note in imported.listed("unsupported")] == ["validation_seed"]


# -- Stable Diffusion 2 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("form", ["sd-scripts", "kohya_ss", "onetrainer", "ai-toolkit"])
def test_sd2_and_what_it_predicts_are_read_from_every_format(form, prediction, tmp_path):
    v = prediction == "v_prediction"
    written = {
        "sd-scripts": (
            "a.toml",
            f'network_module = "networks.lora"\nv2 = true\nv_parameterization = {str(v).lower()}\n',
        ),
        "kohya_ss": ("a.json", json.dumps({"LoRA_type": "Standard", "v2": True, "v_parameterization": v})),
        "onetrainer": (
            "a.json",
            json.dumps({"training_method": "LORA", "model_type": "STABLE_DIFFUSION_21" + ("" if v else "_BASE")}),
        ),
        "ai-toolkit": (
            "a.yaml",
            f"job: extension\nconfig:\n  name: a\n  process:\n  - type: sd_trainer\n    network: {{type: lora}}\n"
            f"    model: {{name_or_path: m, is_v2: true, is_v_pred: {str(v).lower()}}}\n",
        ),
    }
    name, text = written[form]
    (tmp_path / name).write_text(text)
    config = read_foreign(tmp_path / name).config
    assert (config.base_model.family, config.base_model.prediction_type) == ("sd2", prediction)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_sd2_comes_back_from_what_is_exported(prediction, tmp_path):
    config = TrainingConfig.model_validate(
        {"base_model": {"path": "m.safetensors", "family": "sd2", "prediction_type": prediction}}
    )
    for write in (to_sd_scripts, to_kohya_gui, to_onetrainer):
        exported = write(config, "out")
        for name, text in exported.files.items():
            (tmp_path / name).write_text(text)
        first = next(name for name in exported.files if name.startswith("out.") and "dataset" not in name)
        back = read_foreign(tmp_path / first).config
        assert (back.base_model.family, back.base_model.prediction_type) == ("sd2", prediction), write
        assert not [lost for lost in exported.lost if lost.name.startswith("base_model")]


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("ddim", "ddim"), ("pndm", "pndm"), ("lms", "lms"), ("euler", "euler"), ("euler_a", "euler_ancestral"),
        ("heun", "heun"), ("dpm_2", "dpm2"), ("dpm_2_a", "dpm2_ancestral"), ("dpmsolver", "dpm_solver"),
        ("dpmsolver++", "dpmpp_2m"), ("dpmsingle", "dpmpp_2s"), ("k_lms", "lms"), ("k_euler", "euler"),
        ("k_euler_a", "euler_ancestral"), ("k_dpm_2", "dpm2"), ("k_dpm_2_a", "dpm2_ancestral"),
    ],
)  # fmt: skip
def test_every_sampler_of_sd_scripts_has_its_own_here(theirs, ours):
    assert options(sample_sampler=theirs, sample_prompts="").values["sampling.sampler"] == ours


def test_no_metadata_there_is_minimal_metadata_here():
    assert options(no_metadata=True).values["saving.metadata"] == "minimal"
    assert options(no_metadata=False).values.get("saving.metadata", "full") == "full"


# -- memory ------------------------------------------------------------------------------------------------------------

SMALL = {"memory.precision": "bf16", "memory.full_half": True, "memory.base_weights": "fp8"}


@pytest.mark.parametrize("write", [to_sd_scripts, to_kohya_gui, to_onetrainer])
def test_weights_kept_small_come_back_from_what_is_exported(write, tmp_path):
    offloads = {"memory.offload_blocks": True} if write is to_onetrainer else {}
    config = with_values(TrainingConfig(), {"base_model.path": "m", "base_model.family": "sdxl", **SMALL, **offloads})
    exported = write(config, "out")
    for name, text in exported.files.items():
        (tmp_path / name).write_text(text)
    first = next(name for name in exported.files if name.startswith("out.") and "dataset" not in name)
    back = read_foreign(tmp_path / first).config
    for name, value in (SMALL | offloads).items():
        assert value_of(back, name) == value, name
    assert not [lost for lost in exported.lost if lost.name.startswith("memory.")]


def test_what_sd_scripts_cannot_hold_is_told_and_fp16_weights_are_not_taken_over():
    config = with_values(TrainingConfig(), {"memory.base_weights": "nf4", "memory.offload_blocks": True})
    lost = {each.name for each in to_sd_scripts(config, "out").lost}
    assert {"memory.base_weights", "memory.offload_blocks"} <= lost
    imported = translate({"full_fp16": True, "mixed_precision": "fp16"}, kind="sd-scripts TOML")
    assert not imported.config.memory.full_half
    assert {note.outcome for note in imported.notes if note.key == "full_fp16"} == {"unsupported"}
    careless = translate({"full_bf16": True, "mixed_precision": "fp16"}, kind="sd-scripts TOML")
    assert careless.config is not None
    assert not careless.config.memory.full_half


def test_a_quantised_and_offloaded_base_is_read_from_ai_toolkit(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "job: extension\nconfig:\n  name: a\n  process:\n  - type: sd_trainer\n    network: {type: lora}\n"
        "    model: {name_or_path: m, is_xl: true, quantize: true, layer_offloading: true}\n"
    )
    memory = read_foreign(tmp_path / "a.yaml").config.memory
    assert (memory.base_weights, memory.offload_blocks) == ("fp8", True)
