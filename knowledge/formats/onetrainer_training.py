"""OneTrainer's settings of rates, optimizer, schedule, loss and memory."""

from __future__ import annotations

from pathlib import Path

from knowledge.formats.translation import Translation
from knowledge.formats.values import as_bool, as_number
from knowledge.formats.vocabulary import choice_of

DIALECT = "onetrainer"

PRECISIONS = {"FLOAT_32": "fp32", "TFLOAT_32": "fp32", "FLOAT_16": "fp16", "BFLOAT_16": "bf16"}
WEIGHTS = {"FLOAT_8": "fp8", "INT_8": "8bit", "NFLOAT_4": "nf4"}


def read_rates(job: Translation, beside: Path) -> None:
    general, unet = as_number(job.get("learning_rate")), as_number(job.get("unet.learning_rate"))
    text = as_number(job.get("text_encoder.learning_rate"))
    if unet is not None:
        job.mapped("unet.learning_rate", "optimizer.learning_rate", unet)
    if general is not None:
        if unet is None:
            job.mapped("learning_rate", "optimizer.learning_rate", general)
        elif text is None:
            why = "The UNet has a rate of its own, so this one goes to the text encoder alone."
            job.changed("learning_rate", "optimizer.text_encoder_learning_rate", general, why)
        else:
            job.no_effect("learning_rate", "Every part has a rate of its own.")
    if text is not None:
        job.mapped("text_encoder.learning_rate", "optimizer.text_encoder_learning_rate", text)
    second = as_number(job.get("text_encoder_2.learning_rate"))
    if second is not None:
        if second == (text if text is not None else general):
            job.no_effect("text_encoder_2.learning_rate", "It is the rate of the first text encoder.")
        elif job.values.get("base_model.family", "sd15") != "sdxl":
            job.no_effect("text_encoder_2.learning_rate", "Only SDXL has a second text encoder.")
        else:
            job.mapped("text_encoder_2.learning_rate", "optimizer.text_encoder_2_learning_rate", second)


UNLIKE_SCHEDULES = {
    "COSINE_WITH_RESTARTS": "There the rate swings down and up again like a wave; here it starts anew from the top.",
    "REX": "Its curve stays high for longer and falls faster at the end.",
}
"""Its schedules whose curve differs from ours of the same name, and how."""


def read_schedule(job: Translation, beside: Path) -> None:
    word = job.get("learning_rate_scheduler")
    if word is not None:
        ours = choice_of("schedule.scheduler", DIALECT, word)
        if ours is None:
            job.unsupported("learning_rate_scheduler", f"It follows the schedule {word}. The rate stays constant here.")
        elif word in UNLIKE_SCHEDULES:
            job.changed("learning_rate_scheduler", "schedule.scheduler", ours, UNLIKE_SCHEDULES[word])
        else:
            job.mapped("learning_rate_scheduler", "schedule.scheduler", ours)
    least = as_number(job.get("learning_rate_min_factor"))
    if least is not None:
        if job.values.get("schedule.scheduler", "constant") in ("constant", "adafactor"):
            job.no_effect("learning_rate_min_factor", "Its schedule does not fall.")
        else:
            job.mapped("learning_rate_min_factor", "schedule.minimum_ratio", least)
    warmup = as_number(job.get("learning_rate_warmup_steps"))
    if warmup is not None:
        if 0 < warmup < 1 or warmup == 0 or warmup > 1:
            job.mapped("learning_rate_warmup_steps", "schedule.warmup", warmup)
        else:
            job.changed(
                "learning_rate_warmup_steps", "schedule.warmup", 0.0, "1 means the whole run there; that is no warm-up."
            )
    cycles = as_number(job.get("learning_rate_cycles"))
    if cycles is not None:
        if job.values.get("schedule.scheduler") != "cosine_with_restarts":
            job.no_effect("learning_rate_cycles", "Only schedules with restarts read it here.")
        else:
            job.mapped("learning_rate_cycles", "schedule.cycles", cycles)


def read_average(job: Translation, beside: Path) -> None:
    """A moving average of the weights; off unless it says where to keep it."""
    place = str(job.get("ema", "OFF"))
    if place == "OFF":
        for key in ("ema", "ema_decay", "ema_update_step_interval"):
            if key in job.source:
                job.no_effect(key, "There is no average of the weights.")
        return
    job.implied |= {"ema.decay": 0.999, "ema.every_steps": 5}
    job.no_effect("ema", f"The average is kept on the card, whatever it says of {place}.")
    for key, name in (("ema_decay", "ema.decay"), ("ema_update_step_interval", "ema.every_steps")):
        value = as_number(job.get(key))
        if value is not None:
            job.mapped(key, name, value)


def read_loss(job: Translation, beside: Path) -> None:
    mse = as_number(job.get("mse_strength", 1.0)) or 0.0
    mae = as_number(job.get("mae_strength", 0.0)) or 0.0
    function = "l1" if mae and not mse else "l2"
    for key, strength, wanted in (("mse_strength", mse, "l2"), ("mae_strength", mae, "l1")):
        if key not in job.source:
            continue
        if not strength:
            job.no_effect(key, "0 switches it off there.")
        elif function == wanted and strength == 1:
            job.mapped(key, "loss.function", wanted)
        elif function == wanted:
            job.changed(
                key, "loss.function", wanted, "At full strength: a factor on the loss changes little under Adam."
            )
        else:
            job.unsupported(key, f"It mixes two losses. Here it is {function} alone.")
    if "mae_strength" not in job.values:
        job.implied["loss.function"] = function
    huber = as_number(job.get("huber_strength"))
    if huber:
        job.unsupported("huber_strength", "It mixes in a Huber loss.")
    weighting = job.get("loss_weight_fn")
    gamma = as_number(job.get("loss_weight_strength"))
    if weighting == "MIN_SNR_GAMMA":
        job.mapped("loss_weight_fn", "loss.minimum_snr_gamma", gamma if gamma is not None else 5.0)
        if gamma is not None:
            job.mapped("loss_weight_strength", "loss.minimum_snr_gamma", gamma)
    elif weighting == "DEBIASED_ESTIMATION":
        job.mapped("loss_weight_fn", "loss.debiased", True)
        if "loss_weight_strength" in job.source:
            job.no_effect("loss_weight_strength", "Only MIN_SNR_GAMMA and P2 read it.")
    else:
        if weighting not in (None, "CONSTANT"):
            job.unsupported("loss_weight_fn", f"It weights the loss by {weighting}. Here all timesteps weigh the same.")
        elif weighting is not None:
            job.no_effect("loss_weight_fn", "It is what happens here anyway: all timesteps weigh the same.")
        if "loss_weight_strength" in job.source:
            job.no_effect("loss_weight_strength", "Only MIN_SNR_GAMMA and P2 read it.")
    logit_normal = job.get("timestep_distribution") == "LOGIT_NORMAL"
    for key in ("noising_weight", "noising_bias"):
        if key in job.source and not (logit_normal and as_number(job.source[key])):
            job.no_effect(key, "Its distribution of timesteps does not need it, or it is 0.")
    for key, name in (
        ("min_noising_strength", "noise.minimum_timestep"),
        ("max_noising_strength", "noise.maximum_timestep"),
    ):
        share = as_number(job.get(key)) if key in job.source else None
        if share is not None:
            job.changed(key, name, round(share * 1000), "As a timestep instead of a share.")


def read_tracker(job: Translation, beside: Path) -> None:
    if "tensorboard" in job.source:
        job.mapped("tensorboard", "logging.tracker", "tensorboard" if as_bool(job.source["tensorboard"]) else "none")


def read_memory(job: Translation, beside: Path) -> None:
    for key, name in (("train_dtype", "memory.precision"), ("output_dtype", "saving.precision")):
        word = job.get(key)
        if word is not None:
            job.mapped_if_known(key, name, PRECISIONS.get(str(word)), f"{word} is not among our precisions.")
    if "unet.weight_dtype" in job.source:
        form = WEIGHTS.get(str(job.source["unet.weight_dtype"]))
        if form:
            job.mapped("unet.weight_dtype", "memory.base_weights", form)
        else:
            job.no_effect("unet.weight_dtype", "The base model is held in the precision that is calculated in.")
    if "lora_weight_dtype" in job.source:
        if job.source["lora_weight_dtype"] == "BFLOAT_16":
            job.mapped("lora_weight_dtype", "memory.full_half", True)
        elif job.source["lora_weight_dtype"] == "FLOAT_32":
            job.mapped("lora_weight_dtype", "memory.full_half", False)
        else:
            job.unsupported("lora_weight_dtype", "Trained weights are kept in fp32 or bf16 here.")
    for key in ("unet.offload_fraction", "layer_offload_fraction"):
        if key not in job.source:
            continue
        if as_number(job.source[key]):
            why = "All blocks are offloaded here, not a share of them."
            job.changed(key, "memory.offload_blocks", True, why)
        else:
            job.no_effect(key, "0 switches it off there.")
    if "unet.activation_offloading" in job.source:
        job.no_effect("unet.activation_offloading", "Changes memory alone; blocks can be offloaded here.")
    own = job.source.get("unet.gradient_checkpointing")
    if own is not None:
        job.mapped("unet.gradient_checkpointing", "memory.gradient_checkpointing", as_bool(own))
    if "gradient_checkpointing" in job.source:
        general = job.source["gradient_checkpointing"]
        if own is not None:
            job.no_effect("gradient_checkpointing", "The UNet has its own setting for it, which counts.")
        elif general is None:
            job.no_effect("gradient_checkpointing", "It is not set.")
        else:
            switch = as_bool(general)
            job.mapped(
                "gradient_checkpointing",
                "memory.gradient_checkpointing",
                str(general).upper() != "OFF" if switch is None else switch,
            )
    for part in ("text_encoder", "text_encoder_2", "vae"):
        key = f"{part}.gradient_checkpointing"
        if key in job.source:
            job.no_effect(key, "Changes speed, memory or where files lie, not what is learnt.")
