"""Our config as arguments of diffusers' training scripts (train_text_to_image_lora.py and its SDXL sister)."""

from __future__ import annotations

import shlex
from typing import Any

from knowledge.config import TrainingConfig, fields, value_of
from knowledge.formats.export import Exported, Writing

SCRIPTS = {
    "sd15": "train_text_to_image_lora.py",
    "sd2": "train_text_to_image_lora.py",
    "sdxl": "train_text_to_image_lora_sdxl.py",
}
SCHEDULERS = ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant")
PRECISIONS = {"fp32": "no", "fp16": "fp16", "bf16": "bf16"}


def to_diffusers(config: TrainingConfig, stem: str = "diffusers") -> Exported:
    """A command in a shell script."""
    job = Writing(config)
    arguments = _arguments(job)
    script = SCRIPTS.get(job.value("base_model.family"), SCRIPTS["sd15"])
    if config.base_model.family not in SCRIPTS:
        job.lose("base_model.family", "It knows no such model.")
    job.lose_the_rest("Its script has no such argument.")
    words = [
        f"  --{key}" + ("" if value is True else f"={shlex.quote(str(value))}") for key, value in arguments.items()
    ]
    command = " \\\n".join([f"accelerate launch {script}", *words])
    files = {f"{stem}.sh": f"#!/bin/sh\n{command}\n"}
    return Exported(files, arguments, {}, tuple(job.lost), f"sh {stem}.sh")


def _arguments(job: Writing) -> dict[str, Any]:
    config = job.config
    folders = job.value("dataset.folders")
    arguments: dict[str, Any] = {
        "pretrained_model_name_or_path": job.value("base_model.path"),
        "train_data_dir": folders[0].path if folders else "pictures",
        "resolution": job.value("dataset.resolution"),
        "train_batch_size": job.value("schedule.batch_size"),
        "gradient_accumulation_steps": job.value("schedule.gradient_accumulation_steps"),
        "learning_rate": job.value("optimizer.learning_rate"),
        "adam_weight_decay": job.value("optimizer.weight_decay"),
        "max_grad_norm": job.value("optimizer.maximum_gradient_norm"),
        "rank": job.value("network.rank"),
        "mixed_precision": PRECISIONS[job.value("memory.precision")],
        "seed": job.value("seed"),
        "output_dir": f"{job.value('output.folder')}/{job.value('output.name')}",
        "center_crop": True,
    }
    if len(folders) > 1 or any(folder.repeats > 1 or folder.regularisation for folder in folders):
        job.lose(
            "dataset.folders",
            "It reads one folder, without repeats and regularisation, with a metadata file of captions.",
        )
    if config.network.algorithm != "lora":
        job.lose("network.algorithm", "It trains plain LoRA on attention layers.")
    job.done |= {name for name in fields() if name.startswith(("network.conv_", "network.lokr_", "network.algorithm"))}
    if job.value("network.alpha") != config.network.rank:
        job.lose("network.alpha", "Its alpha is the rank.")
    name = job.value("optimizer.name")
    if name == "adamw8bit":
        arguments["use_8bit_adam"] = True
    elif name != "adamw":
        job.lose("optimizer.name", "It trains with AdamW.")
    scheduler, warmup = job.value("schedule.scheduler"), job.value("schedule.warmup")
    if scheduler in SCHEDULERS:
        arguments["lr_scheduler"] = "constant_with_warmup" if scheduler == "constant" and warmup else scheduler
    else:
        job.lose("schedule.scheduler", "It does not have this schedule; cosine takes its place.")
        arguments["lr_scheduler"] = "cosine"
    if warmup and warmup < 1:
        job.lose("schedule.warmup", "It counts warm-up in steps; a share of the run cannot be said.")
    else:
        arguments["lr_warmup_steps"] = int(warmup)
    limit = job.value("schedule.maximum_steps")
    arguments |= {"max_train_steps": limit} if limit else {"num_train_epochs": job.value("schedule.epochs")}
    job.done.add("schedule.epochs")
    for ours, theirs in (("loss.minimum_snr_gamma", "snr_gamma"), ("noise.offset", "noise_offset")):
        if job.value(ours):
            arguments[theirs] = value_of(config, ours)
    for ours, theirs in (("memory.gradient_checkpointing", "gradient_checkpointing"), ("dataset.flip", "random_flip")):
        if job.value(ours):
            arguments[theirs] = True
    if job.value("network.train_text_encoder"):
        if config.base_model.family == "sdxl":
            arguments["train_text_encoder"] = True
        else:
            job.lose("network.train_text_encoder", "It trains the UNet alone.")
    if job.value("base_model.prediction_type") == "v_prediction":
        arguments["prediction_type"] = "v_prediction"
    prompts = job.value("sampling.prompts")
    job.done |= {name for name in fields() if name.startswith("sampling.")}
    if prompts:
        arguments["validation_prompt"] = prompts[0]
    if job.value("saving.every_steps"):
        arguments["checkpointing_steps"] = config.saving.every_steps
    job.done |= {
        "memory.cache_latents",
        "memory.cache_location",
        "dataset.buckets",
        "dataset.bucket_step",
        "saving.precision",
    }
    return arguments
