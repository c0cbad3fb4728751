"""There and back again is the same training."""

from __future__ import annotations

import json

import pytest
from foreign import CHANGES
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from knowledge.config import TrainingConfig, fields, value_of, with_values
from knowledge.formats.export import WHERE, to_sd_scripts
from knowledge.formats.export_gui import to_kohya_gui
from knowledge.formats.export_onetrainer import to_onetrainer
from knowledge.formats.reader import read_foreign
from knowledge.formats.sd_scripts import translate


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
    "memory.cache_location": st.sampled_from(["disk", "memory"]),
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
