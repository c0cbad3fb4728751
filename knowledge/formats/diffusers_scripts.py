"""Commands of diffusers' scripts that train a LoRA, by their arguments' meaning."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from knowledge.config import MIXED_PRECISION
from knowledge.formats.sorting import rest, take_name, take_optimizer
from knowledge.formats.translation import Imported, Translation
from knowledge.formats.values import as_number, is_empty
from knowledge.formats.vocabulary import choice_of
from knowledge.optimizer_arguments import all_arguments, unusual_arguments

DIALECT = "diffusers"
SCRIPTS = {
    "train_text_to_image_lora.py": "sd15",
    "train_text_to_image_lora_sdxl.py": "sdxl",
    "train_dreambooth_lora.py": "sd15",
    "train_dreambooth_lora_sdxl.py": "sdxl",
}
"""The scripts that we know, and what they train unless the model is of another kind."""
PRECISIONS = {theirs: ours for ours, theirs in MIXED_PRECISION.items()}
DEFAULTS: dict[str, Any] = {
    "base_model.path": "",
    "network.rank": 4,
    "optimizer.learning_rate": 1e-4,
    "schedule.epochs": 100,
    "schedule.batch_size": 16,
    "dataset.buckets": False,
    "memory.cache_latents": False,
    "saving.precision": "fp32",
    "saving.every_epochs": None,
    "saving.every_steps": 500,
    "sampling.at_start": False,
    "sampling.every_epochs": 1,
    "output.folder": ".",
}
"""What its settings are when the command does not say, by our names; those equal to our defaults are left out."""
WARMUP = 500


def read_script(options: Mapping[str, Any], script: str) -> Imported:
    """The config that this command of a script of diffusers trains."""
    job = Translation("diffusers command line", DIALECT, options)
    job.implied |= DEFAULTS | {"base_model.family": SCRIPTS[script]}
    for rule in (_model, _network, _pictures, _optimizer, _schedule, _files):
        rule(job)
    rest(job, "diffusers")
    job.warnings.append(
        "diffusers' scripts cut every picture to a square, and read captions from metadata.jsonl or one prompt. Here "
        "each picture has a text file."
    )
    return job.result()


def _model(job: Translation) -> None:
    path = job.get("pretrained_model_name_or_path")
    if not is_empty(path):
        job.mapped("pretrained_model_name_or_path", "base_model.path", str(path))
        if "stable-diffusion-2" in str(path).lower():
            job.implied["base_model.family"] = "sd2"
    if job.get("prediction_type") in ("epsilon", "v_prediction"):
        job.mapped("prediction_type", "base_model.prediction_type", job.get("prediction_type"))
    if "mixed_precision" in job.source:
        word = str(job.get("mixed_precision"))
        job.mapped("mixed_precision", "memory.precision", PRECISIONS.get(word, word))


def _network(job: Translation) -> None:
    rank = as_number(job.get("rank")) or 4
    if "lora_layers" not in job.source:  # where it is, it names layers one by one
        job.implied["network.attention_only"] = True
    if "lora_alpha" not in job.source:
        job.implied["network.alpha"] = rank
    if job.on("use_dora"):
        job.mapped("use_dora", "network.algorithm", "dora")
    elif "use_dora" in job.source:
        job.no_effect("use_dora", "It is switched off there.")


def _pictures(job: Translation) -> None:
    folders = []
    for key, regularisation, prompt in (
        ("train_data_dir", False, None),
        ("instance_data_dir", False, "instance_prompt"),
        ("class_data_dir", True, "class_prompt"),
    ):
        path = job.get(key)
        if is_empty(path) or (regularisation and not job.on("with_prior_preservation")):
            continue
        caption = str(job.get(prompt, "")) if prompt else ""
        repeats = 1 if regularisation else max(1, int(as_number(job.get("repeats")) or 1))
        folder = {"path": str(path), "repeats": repeats, "regularisation": regularisation, "caption": caption}
        folders.append(folder)
        job.changed(key, "dataset.folders", tuple(folders), "A folder here.")
        if prompt in job.source:
            job.no_effect(str(prompt), "It is in dataset.folders, as the caption of the folder.")
    if folders:
        job.values["dataset.folders"] = tuple(folders)
    for key in ("with_prior_preservation", "repeats"):
        if key in job.source:
            job.no_effect(key, "It is in dataset.folders.")
    job.implied["dataset.random_crop"] = not job.on("center_crop")
    if "center_crop" in job.source:
        job.mapped("center_crop", "dataset.random_crop", not job.on("center_crop"))


def _optimizer(job: Translation) -> None:
    name = "adamw"
    if job.on("use_8bit_adam"):
        name = "adamw8bit"
        job.mapped("use_8bit_adam", "optimizer.name", name)
    elif not is_empty(job.get("optimizer")):
        name = take_optimizer(job, "optimizer") or name
    usual = all_arguments(name, {})
    found: dict[str, Any] = {}
    betas = [as_number(job.get(key)) for key in ("adam_beta1", "adam_beta2")]
    if "betas" in usual and any(beta is not None for beta in betas):
        own = usual["betas"]
        assert isinstance(own, tuple)
        found["betas"] = tuple(own[place] if beta is None else beta for place, beta in enumerate(betas))
    epsilon = as_number(job.get("adam_epsilon"))
    if epsilon is not None and isinstance(usual.get("eps"), float):
        found["eps"] = epsilon
    for key, argument in (("adam_beta1", "betas"), ("adam_beta2", "betas"), ("adam_epsilon", "eps")):
        if key in job.source and argument in found:
            job.added(key, "optimizer.arguments", {argument: found[argument]})
        elif key in job.source:
            job.no_effect(key, f"{name} takes no such number here.")
    job.values["optimizer.arguments"] = unusual_arguments(name, found)


def _schedule(job: Translation) -> None:
    word = str(job.get("lr_scheduler", "constant"))
    if "lr_scheduler" in job.source:
        ours = choice_of("schedule.scheduler", "kohya", word)
        otherwise = f'It follows the schedule "{word}". The rate stays constant here.'
        job.mapped_if_known("lr_scheduler", "schedule.scheduler", ours, otherwise)
    warmup = as_number(job.get("lr_warmup_steps"))
    if word == "constant":
        if warmup is not None:
            job.no_effect("lr_warmup_steps", 'Its schedule "constant" has no warm-up; "constant_with_warmup" would.')
    elif warmup is None:
        job.implied["schedule.warmup"] = float(WARMUP)
    else:
        job.mapped("lr_warmup_steps", "schedule.warmup", warmup)
    for key, wanted, name in (
        ("lr_num_cycles", "cosine_with_restarts", "schedule.cycles"),
        ("lr_power", "polynomial", "schedule.power"),
    ):
        if key in job.source and ours != wanted:
            job.no_effect(key, f"Only the schedule {wanted} reads it.")
        elif key in job.source:
            job.mapped(key, name, job.source[key])
    if as_number(job.get("max_train_steps")) and "num_train_epochs" in job.source:
        job.no_effect("num_train_epochs", "max_train_steps is set and overrides it.")


def _files(job: Translation) -> None:
    target = job.get("output_dir")
    if not is_empty(target):
        path = Path(str(target).replace("\\", "/"))
        take_name(job, "output_dir", path.name, "Its last part is the name of the file here, the rest the folder.")
        job.inside("output.folder", str(path.parent))
    prompt = job.get("validation_prompt")
    if not is_empty(prompt):
        job.mapped("validation_prompt", "sampling.prompts", (str(prompt),))
    word = job.get("report_to")
    if word in ("tensorboard", "wandb"):
        job.mapped("report_to", "logging.tracker", word)
    elif word is not None:
        job.unsupported("report_to", f"It draws its charts with {word}.")
