"""sd-scripts' options for rates, optimizer, schedule, loss and memory, read together where they hang together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from knowledge.config import choices, fields
from knowledge.formats.kohya_network import DIALECT
from knowledge.formats.sorting import take_argument, take_optimizer
from knowledge.formats.translation import Translation
from knowledge.formats.values import as_number, is_empty
from knowledge.formats.vocabulary import alike, choice_of, facts_of
from knowledge.optimizer_arguments import unusual_arguments

WITH_A_MINIMUM = ("cosine_with_min_lr", "warmup_stable_decay")
"""Its schedules that do not end at zero where a minimum is set."""
OPTIMIZER_DECAY = {"adamw": 0.01, "adamw8bit": 0.01, "paged_adamw8bit": 0.01, "stable_adamw": 0.01}
"""The weight decay of an optimizer that is given none; 0 for all others."""


def read_rates(job: Translation, beside: Path | None) -> None:
    """One rate there goes to every part without a rate of its own; a rate of 0 leaves the part untrained."""
    general = as_number(job.get("learning_rate"))
    unet = as_number(job.get("unet_lr"))
    text = _first_number(job.get("text_encoder_lr"))
    trains_text = bool(job.values.get("network.train_text_encoder", True))
    if unet is not None:
        if unet == 0:
            job.changed("unet_lr", "network.train_unet", False, "A rate of 0 leaves the UNet as it is.")
        else:
            job.mapped("unet_lr", "optimizer.learning_rate", unet)
    if general is not None:
        if unet is None:
            job.mapped("learning_rate", "optimizer.learning_rate", general)
        elif trains_text and text is None and general > 0:
            why = "The UNet has a rate of its own, so this one goes to the text encoder alone."
            job.changed("learning_rate", "optimizer.text_encoder_learning_rate", general, why)
        else:
            job.no_effect("learning_rate", "Every part that is trained has a rate of its own.")
    elif unet is not None and trains_text and text is None:
        job.implied["optimizer.text_encoder_learning_rate"] = 2e-6
    if text is None:
        return
    if not trains_text:
        job.no_effect("text_encoder_lr", "The text encoder is not trained.")
    elif text == 0:
        job.changed(
            "text_encoder_lr", "network.train_text_encoder", False, "A rate of 0 leaves the text encoder as it is."
        )
    elif isinstance(job.get("text_encoder_lr"), list) and len(set(job.get("text_encoder_lr"))) > 1:
        why = "Its LoRA trains both text encoders at the first rate, whatever the second says."
        job.changed("text_encoder_lr", "optimizer.text_encoder_learning_rate", text, why)
    else:
        job.mapped("text_encoder_lr", "optimizer.text_encoder_learning_rate", text)


def _first_number(value: Any) -> float | None:
    if isinstance(value, list | tuple):
        return as_number(value[0]) if value else None
    if isinstance(value, str) and value.split():
        return as_number(value.split()[0])
    return as_number(value)


def read_optimizer(job: Translation, beside: Path | None) -> None:
    name = "adamw"
    for flag, chosen in (("use_8bit_adam", "adamw8bit"), ("use_lion_optimizer", "lion")):
        if job.on(flag):
            name = chosen
            job.mapped(flag, "optimizer.name", chosen)
    if not is_empty(job.get("optimizer_type")):
        name = take_optimizer(job, "optimizer_type") or name
    job.implied["optimizer.name"] = name
    job.implied["optimizer.weight_decay"] = OPTIMIZER_DECAY.get(name, 0.0)
    if name == "adafactor":
        _relative_step(job)
    _optimizer_arguments(job, name)


def _relative_step(job: Translation) -> None:
    """Adafactor sets its own rate there unless it is told not to; that is a schedule of ours."""
    keys = {word: f"optimizer_args.{word}" for word in ("relative_step", "warmup_init")}
    warmup_init = job.on(keys["warmup_init"])
    relative = warmup_init or keys["relative_step"] not in job.source or job.on(keys["relative_step"])
    if relative:
        job.implied["schedule.scheduler"] = "adafactor"
        job.implied["schedule.warmup_init"] = warmup_init
    if keys["relative_step"] in job.source:
        if relative:
            job.mapped(keys["relative_step"], "schedule.scheduler", "adafactor")
        else:
            job.no_effect(keys["relative_step"], "The rate follows its schedule, as here.")
    if keys["warmup_init"] in job.source:
        job.mapped(keys["warmup_init"], "schedule.warmup_init", warmup_init)


def _optimizer_arguments(job: Translation, optimizer: str) -> None:
    """Arguments that have a setting of their own become that; the others go to the optimizer as they are."""
    own_settings = {key: ours for key, ours in alike(DIALECT).items() if ours.startswith("optimizer.")}
    renamed = facts_of("sd_scripts")["optimizer_arguments"].get(optimizer, {})
    unasked = facts_of("sd_scripts")["optimizer_defaults"].get(optimizer, {})
    job.implied["optimizer.arguments"] = unusual_arguments(optimizer, unasked, job.so_far("schedule.scheduler"))
    for key, value in job.source.items():
        if not key.startswith("optimizer_args.") or job.done(key):
            continue
        written = key.partition(".")[2]
        if written in own_settings and written not in ("learning_rate", "unet_lr"):
            job.mapped(key, own_settings[written], value)
        else:
            take_argument(job, key, optimizer, renamed.get(written, written), value)


def read_schedule(job: Translation, beside: Path | None) -> None:
    word = str(job.get("lr_scheduler", "constant"))
    ours = choice_of("schedule.scheduler", DIALECT, word)
    own_rate = job.so_far("schedule.scheduler") == "adafactor"
    if own_rate:
        for key in ("lr_scheduler", "lr_warmup_steps"):
            if key in job.source and not job.done(key):
                job.no_effect(key, "Adafactor sets its own rate unless relative_step is off.")
        ours = "adafactor"
    elif "lr_scheduler" in job.source:
        if ours == "adafactor":
            job.unsupported("lr_scheduler", "Its schedule adafactor needs relative_step. The rate stays constant here.")
        else:
            otherwise = f'It follows the schedule "{word}". The rate stays constant here.'
            job.mapped_if_known("lr_scheduler", "schedule.scheduler", ours, otherwise)
    warmup = as_number(job.get("lr_warmup_steps"))
    if warmup is not None and not own_rate:
        if word == "constant" and warmup > 0:
            job.no_effect("lr_warmup_steps", 'Its schedule "constant" has no warm-up; "constant_with_warmup" would.')
            job.warnings.append(
                'sd-scripts stops at a warm-up under the schedule "constant"; its older versions pass over it.'
            )
        else:
            job.mapped("lr_warmup_steps", "schedule.warmup", warmup)
    for key, wanted, name in (
        ("lr_scheduler_num_cycles", "cosine_with_restarts", "schedule.cycles"),
        ("lr_scheduler_power", "polynomial", "schedule.power"),
        ("lr_decay_steps", "warmup_stable_decay", "schedule.decay"),
        ("lr_scheduler_min_lr_ratio", "", "schedule.minimum_ratio"),
    ):
        value = as_number(job.get(key))
        if value is None or job.done(key):
            continue
        if wanted and ours != wanted:
            job.no_effect(key, f"Only the schedule {wanted} reads it.")
        elif name == "schedule.minimum_ratio" and word not in WITH_A_MINIMUM:
            job.no_effect(key, f"Only the schedules {' and '.join(WITH_A_MINIMUM)} read it.")
        elif name in fields():
            job.mapped(key, name, value)
    if ours == "warmup_stable_decay" and "lr_decay_steps" not in job.source:
        job.implied["schedule.decay"] = 0.0
    epochs, steps = as_number(job.get("max_train_epochs")), as_number(job.get("max_train_steps"))
    if epochs is not None:
        job.mapped("max_train_epochs", "schedule.epochs", epochs)
        job.implied["schedule.maximum_steps"] = None
        if steps is not None:
            job.no_effect("max_train_steps", "max_train_epochs is set and overrides it.")
    elif steps is not None:
        why = "It runs for exactly so many steps; the epochs are set so high that they never end it."
        job.changed("max_train_steps", "schedule.maximum_steps", steps, why)


def read_loss(job: Translation, beside: Path | None) -> None:
    if "weighting_scheme" in job.source:
        job.no_effect("weighting_scheme", "Only its scripts for Flux and SD 3 read it.")
    huber = str(job.get("loss_type", "l2")) in ("huber", "smooth_l1")
    for key in ("huber_c", "huber_schedule", "huber_scale"):
        if key in job.source and not huber:
            job.no_effect(key, "Only the losses huber and smooth_l1 read it.")
    if "huber_scale" in job.source and not job.done("huber_scale") and as_number(job.get("huber_scale")) == 1:
        job.no_effect("huber_scale", "It is what the other trainer does anyway.")
    if as_number(job.get("min_snr_gamma")) == 0:
        job.no_effect("min_snr_gamma", "0 switches it off there.")
    offset = as_number(job.get("noise_offset"))
    for key in ("noise_offset_random_strength", "adaptive_noise_scale"):
        if key in job.source and not offset:
            job.no_effect(key, "There is no noise offset for it to change.")
    if not as_number(job.get("multires_noise_iterations")) and "multires_noise_discount" in job.source:
        job.no_effect("multires_noise_discount", "Multi-resolution noise is off.")
    if "ip_noise_gamma_random_strength" in job.source and not as_number(job.get("ip_noise_gamma")):
        job.no_effect("ip_noise_gamma_random_strength", "Input perturbation is off.")
    for key in ("ip_noise_gamma", "scale_weight_norms", "adaptive_noise_scale"):
        if key in job.source and key not in alike(DIALECT) and not job.done(key) and as_number(job.get(key)) == 0:
            job.no_effect(key, "0 switches it off there.")


def read_memory(job: Translation, beside: Path | None) -> None:
    names = {"no": "fp32", "fp16": "fp16", "bf16": "bf16", "float": "fp32", "fp32": "fp32"}
    for key, name in (("mixed_precision", "memory.precision"), ("save_precision", "saving.precision")):
        word = job.get(key)
        if is_empty(word):
            continue
        if str(word) in names:
            job.mapped(key, name, names[str(word)])
        else:
            job.unsupported(key, f'It computes in "{word}". fp32 is used here.')
    for key in ("fp8_base", "fp8_base_unet"):
        if job.on(key):
            why = "Here with a scale for each row, which is more exact; norms and biases stay as they are."
            job.changed(key, "memory.base_weights", "fp8", why)
        elif key in job.source:
            job.no_effect(key, "It is switched off there.")
    if job.on("no_token_padding") and not job.done("no_token_padding"):
        job.changed(
            "no_token_padding", "base_model.pad_captions", False, "Its switch says that they are not filled up."
        )
    _read_caches(job)
    if "max_token_length" in job.source and as_number(job.get("max_token_length")) in (None, 75):
        job.no_effect("max_token_length", "75 is the length that the text encoder has.")


CACHES = (
    ("cache_latents_to_disk", "cache_latents", "memory.cache_latents"),
    ("cache_text_encoder_outputs_to_disk", "cache_text_encoder_outputs", "memory.cache_text_encoder_outputs"),
)
"""The switch to disk, which implies the other, the switch itself, and our name."""


def _read_caches(job: Translation) -> None:
    """It has a place for each of the two; here both are kept in one, on disk where either was."""
    on = [(on_disk, key) for on_disk, key, _ in CACHES if job.on(key) or job.on(on_disk)]
    if on:
        job.implied["memory.cache_location"] = "disk" if any(job.on(on_disk) for on_disk, _ in on) else "memory"
    location = job.implied.get("memory.cache_location")
    for on_disk, key, name in CACHES:
        apart = job.on(key) and not job.on(on_disk) and location == "disk"
        if key in job.source and apart:
            job.changed(key, name, True, "Both caches are kept in one place here: on disk, as the other was.")
        elif key in job.source:
            job.mapped(key, name, job.on(key) or job.on(on_disk))
        if on_disk not in job.source or job.done(on_disk):
            continue
        if key not in job.source and job.on(on_disk):
            job.mapped(on_disk, name, True)
        elif job.on(on_disk) or (job.on(key) and not apart):
            job.mapped(on_disk, "memory.cache_location", location)
        else:
            job.no_effect(on_disk, "It is switched off there.")


def read_tracker(job: Translation, beside: Path | None) -> None:
    """Where the figures of the run are drawn. A folder for logs alone does not ask for it."""
    word = str(job.get("log_with", "")).lower()
    if not word:
        return
    if word in choices(fields()["logging.tracker"]):
        job.mapped("log_with", "logging.tracker", word)
    elif word == "all":
        job.changed("log_with", "logging.tracker", "wandb", "In both there; here in one.")
    else:
        job.unsupported("log_with", f"It draws its charts with {word}.")
    if word in ("tensorboard", "all") and is_empty(job.get("logging_dir")):
        job.warnings.append("sd-scripts stops at log_with without a logging_dir.")
