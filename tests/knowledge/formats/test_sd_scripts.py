"""sd-scripts' options by meaning, not by name."""

from __future__ import annotations

import pytest
from foreign import options, outcome

from knowledge.formats.sd_scripts import ENDLESS, translate


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


def test_lycoris_presets_say_whether_attention_alone_is_adapted():
    for preset, alone in (("attn-only", True), ("attn-mlp", False)):
        imported = translate(
            {"network_module": "lycoris.kohya", "network_args": ["algo=lora", f"preset={preset}"]}, kind="test"
        )
        network = imported.config.network
        assert (network.algorithm, network.attention_only) == ("lora", alone)
        assert outcome(imported, "network_args.preset") == "mapped"
    own = translate({"network_module": "networks.lora", "network_args": ["preset=attn-only"]}, kind="test")
    assert not own.config.network.attention_only  # its own module reads no preset


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


def test_a_log_folder_is_not_the_output_folder():
    imported = options(output_dir="out", logging_dir="logs")
    assert imported.config.output.folder == "out"
    assert outcome(imported, "logging_dir") == "no_effect"


def test_held_out_pictures_come_over_from_sd_scripts():
    imported = translate({"validation_split": 0.1, "validate_every_n_epochs": 2, "validation_seed": 7}, kind="test")
    assert imported.config is not None
    assert (imported.config.validation.share, imported.config.validation.every_epochs) == (0.1, 2)
    assert [note.key for note in imported.listed("unsupported")] == ["validation_seed"]


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


@pytest.mark.parametrize(
    ("theirs", "ours", "outcome_"),
    [("fox", "fox", "mapped"), ("my fox (v2)", "my-fox-v2", "changed"), ("狐", "my-lora", "changed")],
)
def test_a_name_that_is_no_file_name_of_ours_is_made_one(theirs, ours, outcome_):
    imported = options(output_name=theirs)
    assert (imported.config.output.name, outcome(imported, "output_name")) == (ours, outcome_)


def test_a_cosine_with_a_minimum_is_ours_with_a_minimum():
    imported = options(lr_scheduler="cosine_with_min_lr", lr_scheduler_min_lr_ratio=0.1)
    assert (imported.config.schedule.scheduler, imported.config.schedule.minimum_ratio) == ("cosine", 0.1)
    assert outcome(options(lr_scheduler="linear", lr_scheduler_min_lr_ratio=0.1), "lr_scheduler_min_lr_ratio") == (
        "no_effect"
    )


@pytest.mark.parametrize(
    ("word", "ours", "outcome_"),
    [
        ("pytorch_optimizer.CAME", "came", "mapped"),
        ("pytorch_optimizer.ADOPT", "adopt", "mapped"),
        ("PagedAdamW8bit", "paged_adamw8bit", "mapped"),
        ("DAdaptLion", "dadapt_adam", "changed"),
        ("SGDNesterov8bit", "sgd", "changed"),
        ("Muon", "adamw", "unsupported"),
    ],
)
def test_an_optimizer_that_is_only_near_is_a_change(word, ours, outcome_):
    imported = options(optimizer_type=word)
    assert (imported.config.optimizer.name, outcome(imported, "optimizer_type")) == (ours, outcome_)


def test_what_stops_sd_scripts_itself_is_a_warning():
    assert "stops at a warm-up" in options(lr_scheduler="constant", lr_warmup_steps=10).warnings[0]
    assert any("logging_dir" in warning for warning in options(log_with="tensorboard").warnings)


@pytest.mark.parametrize(
    ("key", "value", "outcome_"),
    [
        ("lr_restart_cycles", 1, "no_effect"),
        ("save_half", True, "no_effect"),
        ("fine_tuning", True, "no_effect"),
        ("contrastive_flow_matching", True, "unsupported"),
        ("edm2_loss_weighting", True, "unsupported"),
        ("discrete_flow_shift", 3.0, "no_effect"),
        ("t5xxl", "t5.safetensors", "no_effect"),
    ],
)
def test_keys_of_forks_other_models_and_older_versions_are_known(key, value, outcome_):
    assert outcome(options(**{key: value}), key) == outcome_


def test_ranks_beyond_reason_mean_whole_matrices_in_lokr():
    arguments = {"network_module": "lycoris.kohya", "network_args": ["algo=lokr", "conv_dim=100000", "conv_alpha=1"]}
    config = options(**arguments, network_dim=100000, network_alpha=1).config
    assert (config.network.rank, config.network.alpha) == (1024, 1024.0)  # LyCORIS leaves whole matrices unscaled
    assert (config.network.conv_rank, config.network.conv_alpha) == (1024, 1024.0)
    alike = options(network_module="lycoris.kohya", network_args=["algo=lokr"], network_dim=100000).config
    assert (alike.network.conv_rank, alike.network.conv_alpha) == (1024, 1024.0)
