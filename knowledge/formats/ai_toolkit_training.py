"""ai-toolkit's sections network and train, and how they are kept in memory and saved."""

from __future__ import annotations

from typing import Any

from knowledge.config import CONV_ALGORITHMS, CONVOLUTIONS_TOO
from knowledge.formats.sorting import take_argument, take_optimizer
from knowledge.formats.translation import Translation
from knowledge.formats.values import as_bool, as_number, is_empty

DIALECT = "ai_toolkit"

PRECISIONS = {
    "float32": "fp32", "fp32": "fp32", "float": "fp32", "float16": "fp16", "fp16": "fp16", "half": "fp16",
    "bf16": "bf16", "bfloat16": "bf16",
}  # fmt: skip
LOSSES = {"mse": "l2", "mae": "l1"}


def read_network(job: Translation) -> None:
    kind = str(job.get("network.type", "lora")).lower()
    conv = as_number(job.get("network.conv"))
    ours = {"lora": "lora", "locon": "lora", "lokr": "lokr", "dora": "dora"}.get(kind)
    if ours == "lora" and conv:
        ours = "locon"
    if "network.type" in job.source:
        if ours is None:
            job.unsupported("network.type", f'It trains "{kind}". A plain LoRA is trained here.')
        elif ours == kind:
            job.mapped("network.type", "network.algorithm", ours)
        else:
            job.changed(
                "network.type", "network.algorithm", ours, "With convolutions, which conv names." if conv else ""
            )
    elif ours:
        job.implied["network.algorithm"] = ours
    rank = as_number(job.get("network.rank")) or as_number(job.get("network.linear"))
    for key in ("network.rank", "network.linear"):
        if key in job.source:
            if key == "network.linear" and as_number(job.get("network.rank")):
                job.no_effect(key, "network.rank is set and overrides it.")
            else:
                job.mapped(key, "network.rank", rank)
    for key in ("network.linear_alpha", "network.alpha"):
        if key in job.source:
            if key == "network.alpha" and "network.linear_alpha" in job.source:
                job.no_effect(key, "linear_alpha is set and overrides it.")
            else:
                job.mapped(key, "network.alpha", job.source[key])
    for key, name in (("network.conv", "network.conv_rank"), ("network.conv_alpha", "network.conv_alpha")):
        if key in job.source and not is_empty(job.source[key]):
            if ours in CONVOLUTIONS_TOO | CONV_ALGORITHMS:
                job.mapped(key, name, job.source[key])
            else:
                job.unsupported(key, f"It adapts the 3×3 convolutions with {kind}.")
    if conv and ours in CONVOLUTIONS_TOO:
        job.implied["network.convolutions"] = True
    if conv and "network.conv_alpha" not in job.source:
        job.implied["network.conv_alpha"] = float(conv)
    if "network.lokr_factor" in job.source and ours != "lokr":
        job.no_effect("network.lokr_factor", "Only LoKr reads it.")
    elif ours == "lokr":
        job.implied["network.lokr_factor"] = -1
    if "network.lokr_full_rank" in job.source:
        if ours == "lokr":
            job.mapped(
                "network.lokr_full_rank", "network.lokr_full_matrix", as_bool(job.source["network.lokr_full_rank"])
            )
        else:
            job.no_effect("network.lokr_full_rank", "Only LoKr reads it.")
    elif ours == "lokr":
        job.implied["network.lokr_full_matrix"] = True


def read_train(job: Translation) -> None:
    steps = as_number(job.get("train.steps"))
    if steps is not None:
        why = "It runs for exactly so many steps; the epochs are set so high that they never end it."
        job.changed("train.steps", "schedule.maximum_steps", steps, why)
    general, unet = as_number(job.get("train.lr")), as_number(job.get("train.unet_lr"))
    if unet is not None:
        job.mapped("train.unet_lr", "optimizer.learning_rate", unet)
        if general is not None:
            job.no_effect("train.lr", "unet_lr is set and overrides it for the UNet.")
    elif general is not None:
        job.mapped("train.lr", "optimizer.learning_rate", general)
    if not is_empty(job.get("train.text_encoder_lr")):
        job.mapped(
            "train.text_encoder_lr", "optimizer.text_encoder_learning_rate", as_number(job.get("train.text_encoder_lr"))
        )
    if not is_empty(job.get("train.optimizer")):
        take_optimizer(job, "train.optimizer")
    optimizer = job.values.get("optimizer.name", "adamw")
    for key, value in job.source.items():
        if key == "train.optimizer_params.weight_decay":
            job.mapped(key, "optimizer.weight_decay", as_number(value))
        elif key.startswith("train.optimizer_params."):
            take_argument(job, key, optimizer, key.rpartition(".")[2], value)
    average = job.get("train.ema_config")
    if isinstance(average, dict):
        decay = as_number(average.get("ema_decay", 0.999))
        if as_bool(average.get("use_ema")) and decay is not None:
            job.mapped("train.ema_config", "ema.decay", decay)
        else:
            job.no_effect("train.ema_config", "It is switched off there.")
    if "train.dtype" in job.source:
        _precision(job, "train.dtype", "memory.precision")
    if "logging.use_wandb" in job.source:
        job.mapped(
            "logging.use_wandb", "logging.tracker", "wandb" if as_bool(job.source["logging.use_wandb"]) else "none"
        )
    if "model.quantize" in job.source:
        if as_bool(job.source["model.quantize"]):
            job.changed("model.quantize", "memory.base_weights", "fp8", "Eight bits by our rounding, not by quanto's.")
        else:
            job.mapped("model.quantize", "memory.base_weights", "same")
    if "model.layer_offloading" in job.source:
        job.mapped(
            "model.layer_offloading", "memory.offload_blocks", bool(as_bool(job.source["model.layer_offloading"]))
        )
    if "save.dtype" in job.source:
        _precision(job, "save.dtype", "saving.precision")
    loss = job.get("train.loss_type")
    if loss is not None:
        otherwise = f'Its loss is "{loss}". L2 is used here.'
        job.mapped_if_known("train.loss_type", "loss.function", LOSSES.get(str(loss)), otherwise)
    gamma = as_number(job.get("train.min_snr_gamma")) or as_number(job.get("train.snr_gamma"))
    for key in ("train.min_snr_gamma", "train.snr_gamma"):
        if as_number(job.get(key)):
            job.mapped(key, "loss.minimum_snr_gamma", gamma)
    accumulation = "train.gradient_accumulation", "train.gradient_accumulation_steps"
    product = math_product(as_number(job.get(key)) or 1 for key in accumulation)
    for key in accumulation:
        if key in job.source:
            if product == as_number(job.source[key]):
                job.mapped(key, "schedule.gradient_accumulation_steps", product)
            else:
                job.changed(
                    key,
                    "schedule.gradient_accumulation_steps",
                    product,
                    "It has two such numbers; here they are multiplied.",
                )
    most = as_number(job.get("train.max_denoising_steps"))
    if most is not None:
        job.changed(
            "train.max_denoising_steps", "noise.maximum_timestep", min(1000, most + 1), "The last one counts there."
        )
    if as_bool(job.get("train.skip_first_sample")):
        job.mapped("train.skip_first_sample", "sampling.at_start", False)
    scheduler = job.get("train.noise_scheduler")
    if scheduler is not None and str(scheduler) in ("ddpm", "ddim"):
        job.no_effect("train.noise_scheduler", "It is the noise of SD models, which is what is trained here.")


def math_product(numbers: Any) -> int:
    """The product of a few small numbers, as a whole number."""
    product = 1.0
    for number in numbers:
        product *= number
    return int(product)


def _precision(job: Translation, key: str, name: str) -> None:
    word = str(job.source[key])
    job.mapped_if_known(key, name, PRECISIONS.get(word), f'"{word}" is not among our precisions.')
