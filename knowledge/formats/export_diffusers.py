"""Our config as arguments of diffusers' training scripts (train_text_to_image_lora.py and its SDXL sister)."""

from __future__ import annotations

import shlex
from typing import Any

from knowledge.config import MIXED_PRECISION, TrainingConfig, fields, value_of
from knowledge.formats.export import Exported, Writing
from knowledge.formats.sd_scripts import ENDLESS
from knowledge.optimizer_arguments import all_arguments, unusual_arguments

SCRIPTS = {
    "sd15": "train_text_to_image_lora.py",
    "sd2": "train_text_to_image_lora.py",
    "sdxl": "train_text_to_image_lora_sdxl.py",
}
NEVER = 1_000_000_000
SCHEDULERS = ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant")


def to_diffusers(config: TrainingConfig, stem: str = "diffusers") -> Exported:
    """A command in a shell script."""
    job = Writing(config)
    arguments = _arguments(job)
    script = SCRIPTS.get(job.value("base_model.family"), SCRIPTS["sd15"])
    if config.base_model.family not in SCRIPTS:
        job.lose("base_model.family", "It knows no such model.")
    if config.base_model.family == "sd2":
        job.lose("base_model.family", "The command does not say it; the script looks at the model itself.")
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
        "mixed_precision": MIXED_PRECISION[job.value("memory.precision")],
        "seed": job.value("seed"),
        "output_dir": f"{job.value('output.folder')}/{job.value('output.name')}",
    }
    if not job.value("dataset.random_crop"):
        arguments["center_crop"] = True
    if len(folders) > 1 or any(f.repeats > 1 or f.regularisation or f.caption or f.masks for f in folders):
        job.lose(
            "dataset.folders",
            "It reads one folder, without repeats and regularisation, with a metadata file of captions.",
        )
    if config.network.algorithm != "lora":
        job.lose("network.algorithm", "It trains plain LoRA.")
    if not job.value("network.attention_only"):
        job.lose("network.attention_only", "It adapts attention layers alone.")
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
    arguments["lr_warmup_steps"] = 0 if warmup < 1 else int(warmup)
    betas, epsilon = (all_arguments(name, job.value("optimizer.arguments")).get(key) for key in ("betas", "eps"))
    if name in ("adamw", "adamw8bit") and isinstance(betas, tuple):
        arguments |= {"adam_beta1": betas[0], "adam_beta2": betas[1], "adam_epsilon": epsilon}
    if set(unusual_arguments(name, config.optimizer.arguments)) - {"betas", "eps"} or (
        config.optimizer.arguments and name not in ("adamw", "adamw8bit")
    ):
        job.lose("optimizer.arguments", "It takes AdamW's betas and epsilon alone.")
    limit = job.value("schedule.maximum_steps")
    arguments |= {"max_train_steps": limit} if limit else {"num_train_epochs": job.value("schedule.epochs")}
    if limit and job.value("schedule.epochs") < ENDLESS:
        job.lose("schedule.epochs", "It cannot hold both: only the step limit is written, and it ends the run.")
    job.done.add("schedule.epochs")
    if scheduler == "cosine_with_restarts" and job.value("schedule.cycles") > 1:
        job.lose("schedule.cycles", "Its script falls once.")
    if scheduler == "polynomial" and job.value("schedule.power") != 1:
        job.lose("schedule.power", "Its script falls in a straight line.")
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
    vae = job.value("base_model.vae")
    if vae and config.base_model.family == "sdxl":
        arguments["pretrained_vae_model_name_or_path"] = vae
    elif vae:
        job.lose("base_model.vae", "Its script takes the VAE of the model.")
    tracker = job.value("logging.tracker")
    if tracker != "none":
        arguments["report_to"] = tracker
    _samples_and_files(job, arguments)
    return arguments


def _samples_and_files(job: Writing, arguments: dict[str, Any]) -> None:
    prompts, every = job.value("sampling.prompts"), job.value("sampling.every_epochs")
    if prompts:
        arguments["validation_prompt"] = prompts[0]
        arguments["validation_epochs"] = every or 1
    if len(prompts) > 1:
        job.lose("sampling.prompts", "It draws one prompt, the first.")
    if every is None:
        job.lose("sampling.every_epochs", "It draws after every epoch unless told otherwise.")
    if job.config.sampling.at_start:
        job.lose("sampling.at_start", "It draws nothing before the first step.")
    steps = job.value("saving.every_steps")
    arguments["checkpointing_steps"] = steps or NEVER
    if steps is None:
        job.lose("saving.every_steps", f"It saves every so many steps; {NEVER:,} stands for never.")
    if job.value("saving.every_epochs") is not None:
        job.lose("saving.every_epochs", "It saves by steps alone.")
    keep = job.value("saving.keep_last")
    if keep is not None:
        arguments["checkpoints_total_limit"] = keep
    if job.value("saving.precision") != "fp32":
        job.lose("saving.precision", "It writes fp32.")
    if job.value("dataset.buckets"):
        job.lose("dataset.buckets", "It has no buckets: every picture is cut to a square.")
    if job.value("memory.cache_latents"):
        job.lose("memory.cache_latents", "It encodes every picture anew each time, with the same result.")
