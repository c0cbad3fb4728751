"""There and back again is the same training, over all settings; what may get lost on the way is listed here."""

from __future__ import annotations

import json

import pytest
from foreign import EVERY_SETTING, configs
from hypothesis import HealthCheck, given, settings

from knowledge.blocks import numbers
from knowledge.config import TrainingConfig, value_of, with_values
from knowledge.formats.export import to_sd_scripts
from knowledge.formats.export_diffusers import to_diffusers
from knowledge.formats.export_gui import to_kohya_gui
from knowledge.formats.export_onetrainer import to_onetrainer
from knowledge.formats.meaning import idle
from knowledge.formats.reader import read_foreign
from knowledge.formats.sd_scripts import translate
from knowledge.optimizer_arguments import all_arguments

WRITERS = {
    "sd-scripts": (to_sd_scripts, "x.toml"),
    "kohya_ss": (to_kohya_gui, "x.json"),
    "onetrainer": (to_onetrainer, "x.json"),
    "diffusers": (to_diffusers, "x.sh"),
}
BLOCKS = {
    "network.block_ranks", "network.block_alphas", "network.conv_block_ranks", "network.conv_block_alphas",
    "network.block_rates", "network.block_rate_threshold",
}  # fmt: skip
NOWHERE = {
    "base_model.pad_captions",
    "memory.make_room",
    "memory.selective_checkpointing",
    "dataset.trigger_word",
    "ema.saved",
    "saving.metadata",
}


def of_sd_scripts(config: TrainingConfig) -> set[str]:
    """What sd-scripts cannot say of this config."""
    network, schedule, sampling = config.network, config.schedule, config.sampling
    own_schedule = schedule.scheduler == "adafactor"
    v_prediction = config.base_model.prediction_type == "v_prediction"
    lost = {
        *NOWHERE, "ema.decay", "ema.every_steps", "network.text_encoder_share", "noise.timestep_sampling",
        "loss.unmasked_weight", "memory.offload_blocks", "memory.fused_backward", "saving.state_every_epochs",
        "optimizer.text_encoder_2_learning_rate",
    }  # fmt: skip
    conditions = {
        "schedule.epochs": schedule.maximum_steps is not None,
        "schedule.scheduler": schedule.scheduler == "rex" or (own_schedule and config.optimizer.name != "adafactor"),
        "schedule.warmup": own_schedule,
        "schedule.warmup_init": config.optimizer.name != "adafactor",
        "schedule.minimum_ratio": schedule.scheduler not in ("cosine", "warmup_stable_decay"),
        "loss.scaled_like_noise_prediction": not v_prediction,
        "loss.v_prediction_like": v_prediction,
        "memory.base_weights": config.memory.base_weights in ("8bit", "nf4"),
        "memory.cache_text_encoder_outputs": config.base_model.family != "sdxl",
        "network.convolutions": network.algorithm in ("loha", "lokr", "full"),
        "network.attention_only": network.algorithm == "dylora",
        "sampling.sampler": True,
        "sampling.every_steps": sampling.every_epochs is not None,
        "saving.keep_last": config.saving.every_epochs is None and config.saving.every_steps is None,
        "validation.every_epochs": config.validation.every_epochs is None,
    }
    lost |= {name for name, holds in conditions.items() if holds}
    by_itself = network.algorithm in ("lora", "locon") and not network.attention_only
    return lost | (set() if by_itself else BLOCKS)


def of_onetrainer(config: TrainingConfig) -> set[str]:
    """What OneTrainer cannot say of this config."""
    network, schedule = config.network, config.schedule
    lost = NOWHERE | BLOCKS | {
        "network.maximum_norm", "network.rank_dropout", "network.module_dropout", "optimizer.lora_plus_ratio", "seed",
        "base_model.maximum_tokens", "dataset.caption_prefix", "dataset.caption_suffix", "dataset.caption_extension",
        "dataset.weighted_captions", "dataset.wildcards", "dataset.caption_dropout_every_epochs",
        "dataset.keep_tokens_separator", "dataset.bucket_step", "dataset.bucket_minimum_side", "dataset.alpha_masks",
        "dataset.bucket_maximum_side", "dataset.bucket_no_upscale", "dataset.colour_augmentation",
        "memory.cache_location", "network.rank_from_start",
        "noise.input_perturbation", "noise.multires_iterations", "noise.multires_discount", "noise.offset_random",
        "noise.offset_adaptive", "loss.v_prediction_like", "loss.scaled_like_noise_prediction", "loss.prior_weight",
        "loss.unmasked_weight", "loss.huber_threshold", "loss.huber_schedule", "validation.share",
        "validation.every_epochs", "validation.every_steps", "saving.keep_last", "output.author",
        "output.description", "schedule.maximum_steps", "memory.cache_text_encoder_outputs",
    }  # fmt: skip
    known = {"constant", "linear", "cosine", "cosine_with_restarts", "adafactor"}
    stops = network.text_encoder_share * schedule.epochs
    conditions = {
        "network.algorithm": network.algorithm not in ("lora", "locon", "dora", "loha", "lokr"),
        "network.dropout": network.algorithm not in ("lora", "locon"),
        "network.conv_rank": True,
        "network.conv_alpha": True,
        "network.text_encoder_share": stops != round(stops),
        "optimizer.name": config.optimizer.name == "stable_adamw",
        "optimizer.arguments": True,
        "schedule.scheduler": schedule.scheduler not in known,
        "schedule.warmup_init": config.optimizer.name != "adafactor",
        "schedule.power": schedule.scheduler == "polynomial",
        "schedule.decay": schedule.scheduler == "warmup_stable_decay",
        "loss.function": config.loss.function not in ("l1", "l2"),
        "loss.debiased": config.loss.minimum_snr_gamma is not None,
        "memory.fused_backward": True,
        "sampling.sampler": True,
        "sampling.every_steps": config.sampling.every_epochs is not None,
        "saving.every_steps": config.saving.every_epochs is not None,
        "logging.tracker": config.logging.tracker == "wandb",
        "dataset.folders": any(f.regularisation or f.masks or f.caption for f in config.dataset.folders),
    }
    return lost | {name for name, holds in conditions.items() if holds}


EXPRESSED_BY_DIFFUSERS = {
    "base_model.path", "base_model.prediction_type", "dataset.resolution", "dataset.flip",
    "dataset.random_crop", "network.rank", "optimizer.learning_rate", "optimizer.weight_decay",
    "optimizer.maximum_gradient_norm", "schedule.epochs", "schedule.maximum_steps", "schedule.batch_size",
    "schedule.gradient_accumulation_steps", "loss.minimum_snr_gamma", "noise.offset", "memory.precision",
    "memory.gradient_checkpointing", "seed", "output.name", "output.folder",
}  # fmt: skip
"""What diffusers' scripts say of every config; of some they say more."""


def of_diffusers(config: TrainingConfig) -> set[str]:
    """What diffusers' scripts cannot say of this config."""
    schedule, folders = config.schedule, config.dataset.folders
    lost = set(EVERY_SETTING) - EXPRESSED_BY_DIFFUSERS
    fields = {
        "schedule.scheduler": schedule.scheduler in ("constant", "linear", "cosine"),
        "schedule.warmup": schedule.warmup >= 1 or schedule.warmup == 0,
        "optimizer.name": config.optimizer.name in ("adamw", "adamw8bit"),
        "network.algorithm": config.network.algorithm == "lora",
        "network.alpha": config.network.alpha == config.network.rank,
        "network.train_unet": config.network.train_unet,
        "network.train_text_encoder": config.base_model.family == "sdxl" or not config.network.train_text_encoder,
        "sampling.prompts": len(config.sampling.prompts) < 2,
        "logging.tracker": True,
        "base_model.vae": config.base_model.family == "sdxl" or not config.base_model.vae,
        "dataset.folders": len(folders) == 1
        and not (folders[0].repeats > 1 or folders[0].regularisation or folders[0].caption or folders[0].masks),
        "base_model.family": config.base_model.family != "sd2",
    }
    return lost - {name for name, told in fields.items() if told} | (
        {"schedule.epochs"} if schedule.maximum_steps is not None else set()
    )


CANNOT = {
    "sd-scripts": of_sd_scripts,
    "kohya_ss": of_sd_scripts,
    "onetrainer": of_onetrainer,
    "diffusers": of_diffusers,
}


def meaning(config: TrainingConfig, name: str) -> object:
    """A setting's value by what it does: some have more than one way to say the same."""
    value = value_of(config, name)
    if name in ("sampling.width", "sampling.height"):
        return value or config.dataset.resolution
    if name == "optimizer.text_encoder_2_learning_rate":
        first = config.optimizer.text_encoder_learning_rate or config.optimizer.learning_rate
        return None if value == first else value
    if name == "optimizer.arguments":
        return all_arguments(config.optimizer.name, value, config.schedule.scheduler)
    if name == "network.block_rates":  # SDXL's first and last block hold no layer that is trained
        rates = numbers(value)
        return rates[1:-1] if config.base_model.family == "sdxl" else rates
    if name == "dataset.folders":
        return tuple(folder.model_dump() for folder in value)
    return value


def written_and_read(kind, config, folder):
    write, first = WRITERS[kind]
    exported = write(config, "x")
    for name, text in exported.files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return exported, read_foreign(folder / first)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("out")


@pytest.mark.parametrize("kind", WRITERS)
@settings(max_examples=35, deadline=None, suppress_health_check=list(HealthCheck))
@given(config=configs())
def test_out_and_in_again_is_the_same_training_but_for_what_cannot_be_said(kind, config, folder):
    exported, imported = written_and_read(kind, config, folder)
    assert imported.problems == ()
    assert imported.listed("unknown") == []
    lost, vain = {entry.name for entry in exported.lost}, idle(config)
    of_another = {"optimizer.arguments"} if "optimizer.name" in lost else set()
    assert lost <= CANNOT[kind](config), "it can say that"
    assert not lost & vain, "nothing is lost of what says nothing"
    for name in set(EVERY_SETTING) - lost - vain - idle(imported.config) - of_another:
        theirs, ours = meaning(imported.config, name), meaning(config, name)
        assert theirs == (pytest.approx(ours, rel=1e-9) if isinstance(ours, float) else ours), name


EACH = {
    "network.algorithm": ["lora", "locon", "dylora", "dora", "loha", "lokr", "glora", "oft", "boft", "ia3", "full"],
    "base_model.prediction_type": ["epsilon", "v_prediction"],
    "memory.base_weights": ["same", "fp8", "8bit", "nf4"],
    "logging.tracker": ["none", "tensorboard", "wandb"],
}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("family", ["sd15", "sd2", "sdxl"])
@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in EACH.items() for value in values])
def test_every_choice_comes_back_or_is_said_to_be_lost(kind, family, name, value, tmp_path):
    config = with_values(TrainingConfig(), {"base_model.path": "m", "base_model.family": family, name: value})
    exported, imported = written_and_read(kind, config, tmp_path)
    lost = {entry.name: entry.why for entry in exported.lost}
    assert imported.config.base_model.family == family or "base_model.family" in lost
    assert name in lost or value_of(imported.config, name) == value
    assert (name in lost) <= (name in CANNOT[kind](config))
    assert all(why.endswith(".") for why in lost.values())


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


def test_fp16_weights_are_not_taken_over():
    imported = translate({"full_fp16": True, "mixed_precision": "fp16"}, kind="sd-scripts TOML")
    assert not imported.config.memory.full_half
    assert {note.outcome for note in imported.notes if note.key == "full_fp16"} == {"unsupported"}
    careless = translate({"full_bf16": True, "mixed_precision": "fp16"}, kind="sd-scripts TOML")
    assert careless.config is not None
    assert not careless.config.memory.full_half


def test_a_step_limit_and_a_warm_up_in_percent_do_not_become_steps_in_a_form(tmp_path):
    config = with_values(
        TrainingConfig(),
        {"base_model.path": "m", "base_model.family": "sd15", "schedule.maximum_steps": 700, "schedule.warmup": 0.1},
    )
    exported, imported = written_and_read("kohya_ss", config, tmp_path)
    assert exported.options["lr_warmup"] == 10
    assert imported.config.schedule.warmup == pytest.approx(0.1)
