"""What is written for other trainers, and what they cannot express."""

from __future__ import annotations

import json

from foreign import DATA, configs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from knowledge.config import TrainingConfig, with_values
from knowledge.formats.export import to_sd_scripts
from knowledge.formats.export_diffusers import to_diffusers

OPTIONS = json.loads((DATA / "sd_scripts_options.json").read_text(encoding="utf-8"))
KINDS = {"int": int, "float": (int, float), "int_or_float": (int, float), "str": str, "Path": str, None: bool}
PLAIN_SUBSET = {"image_dir", "num_repeats", "is_reg", "class_tokens", "alpha_mask"}
MASKED_SUBSET = {"image_dir", "num_repeats", "conditioning_data_dir"}
"""What sd-scripts' own schema lets stand in a folder of either kind; it stops at anything else."""
FOLDERS = (
    {"path": "a", "caption": "fox"},
    {"path": "b", "regularisation": True, "masks": "m"},
    {"path": "c", "masks": "m", "caption": "fox"},
)


@settings(max_examples=35, deadline=None, suppress_health_check=list(HealthCheck))
@given(config=configs(), folders=st.sampled_from([FOLDERS[:1], FOLDERS[:2], FOLDERS]))
def test_sd_scripts_own_parser_would_take_what_is_written(config, folders):
    config, family = with_values(config, {"dataset.folders": folders}), config.base_model.family
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
