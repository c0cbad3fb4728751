"""OneTrainer's files."""

from __future__ import annotations

from collections import Counter

import pytest
from foreign import OLDER_ONETRAINER, outcome, read

from knowledge.config import TrainingConfig, with_values
from knowledge.formats.export_onetrainer import to_onetrainer


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


@pytest.mark.parametrize(
    ("preset", "pattern", "attention_only", "algorithm"),
    [
        ("attn-only", "attn", True, "lora"),
        ("attn-mlp", "attentions", False, "lora"),
        ("full", "", False, "locon"),
        ("attn-only", "", True, "lora"),  # the pattern that its window would fill in
        ("custom", "attn", True, "lora"),
        ("full", "attentions", False, "lora"),  # it trains by the pattern
    ],
)
def test_layers_are_chosen_by_pattern_and_the_preset_names_it(preset, pattern, attention_only, algorithm, tmp_path):
    document = {"training_method": "LORA", "layer_filter_preset": preset, "layer_filter": pattern}
    imported = read(tmp_path, "x.json", document)
    network = imported.config.network
    assert (network.attention_only, network.algorithm) == (attention_only, algorithm)
    assert not imported.listed("unknown") + imported.listed("unsupported")


def test_a_pattern_of_ones_own_is_told(tmp_path):
    document = {"training_method": "LORA", "layer_filter_preset": "custom", "layer_filter": "up_blocks.1"}
    imported = read(tmp_path, "x.json", document)
    assert imported.config.network.algorithm == "lora"
    assert {note.key for note in imported.listed("unsupported")} == {"layer_filter_preset", "layer_filter"}


def test_an_export_writes_the_pattern_by_which_it_trains():
    for settings, pattern in (({"attention_only": True}, "attn"), ({}, "attentions"), ({"algorithm": "locon"}, "")):
        config = with_values(TrainingConfig(), {f"network.{name}": value for name, value in settings.items()})
        assert to_onetrainer(config).options["layer_filter"] == pattern


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


def test_what_onetrainer_does_unasked_is_part_of_its_recipe(tmp_path):
    imported = read(tmp_path, "x.json", {"training_method": "LORA", "optimizer": {"optimizer": "PRODIGY"}})
    assert imported.config.network.text_encoder_share == 0.3  # its text encoder stops after 30 of 100 epochs
    assert not imported.config.optimizer.arguments["safeguard_warmup"]
    longer = read(tmp_path, "y.json", {"training_method": "LORA", "epochs": 20})
    assert longer.config.network.text_encoder_share == 1.0


def test_a_block_for_the_optimizer_becomes_its_arguments(tmp_path):
    block = {"optimizer": "ADAMW", "beta1": 0.8, "beta2": 0.95, "eps": 1e-6, "amsgrad": False, "d_coef": 2.0}
    block |= {"fused": True, "stochastic_rounding": True, "weight_decay": 0.02, "k": 3}
    imported = read(tmp_path, "x.json", {"training_method": "LORA", "optimizer": block})
    arguments = dict(imported.config.optimizer.arguments)
    assert arguments == {"betas": (0.8, 0.95), "eps": 1e-6}
    assert outcome(imported, "optimizer.beta1") == outcome(imported, "optimizer.eps") == "mapped"
    assert outcome(imported, "optimizer.d_coef") == outcome(imported, "optimizer.fused") == "no_effect"
    assert outcome(imported, "optimizer.k") == "unsupported"
    half = read(tmp_path, "y.json", {"training_method": "LORA", "optimizer": {"optimizer": "ADAMW", "beta1": 0.8}})
    assert half.config.optimizer.arguments["betas"] == (0.8, 0.999)


def test_a_wave_of_restarts_is_not_a_row_of_jumps(tmp_path):
    for word, outcome_ in (("COSINE_WITH_RESTARTS", "changed"), ("COSINE_WITH_HARD_RESTARTS", "mapped")):
        imported = read(tmp_path, "x.json", {"training_method": "LORA", "learning_rate_scheduler": word})
        assert imported.config.schedule.scheduler == "cosine_with_restarts"
        assert outcome(imported, "learning_rate_scheduler") == outcome_


def test_a_fused_pass_beside_clipping_gives_way_and_says_so(tmp_path):
    block = {"optimizer": "ADAFACTOR", "fused_back_pass": True}
    imported = read(tmp_path, "x.json", {"training_method": "LORA", "clip_grad_norm": 1.0, "optimizer": block})
    assert not imported.config.memory.fused_backward
    assert outcome(imported, "optimizer.fused_back_pass") == "changed"
    document = {"training_method": "LORA", "clip_grad_norm": 0.0, "train_dtype": "BFLOAT_16", "optimizer": block}
    assert read(tmp_path, "y.json", document).config.memory.fused_backward


def test_parts_of_other_models_and_versions_of_blocks_are_known(tmp_path):
    part = {"__version": 0, "include": True, "train": False, "weight_dtype": "FLOAT_8", "model_name": ""}
    document = {"training_method": "LORA", "unet": {"__version": 0, "train": True}, "optimizer": {"__version": 0}}
    document |= {"connectors": part, "low_noise_transformer": part, "cache_in_ram": True, "coft_eps": 1e-5}
    document |= {"enable_async_offloading": True, "text_encoder_train_dtype": "BFLOAT_16"}
    imported = read(tmp_path, "x.json", document)
    assert imported.listed("unknown") == []
    for key in ("connectors", "low_noise_transformer", "unet.__version", "optimizer.__version", "cache_in_ram"):
        assert outcome(imported, key) == "no_effect"
    assert outcome(imported, "coft_eps") == "unsupported"
