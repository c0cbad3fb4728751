"""sd-scripts' options (train_network.py): what each means in ours. TOML files, command lines, kohya_ss' forms and the
metadata of LoRA files are all brought into these options first."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from knowledge.config import choices, fields
from knowledge.formats.kohya_network import DEFAULT_RANK, read_network
from knowledge.formats.prompts import read_prompts
from knowledge.formats.translation import (
    Imported,
    Translation,
    alike,
    as_number,
    choice_of,
    facts_of,
    fitted,
    is_empty,
    refusal,
    rest,
    take_argument,
)
from knowledge.optimizer_arguments import unusual_arguments

DIALECT = "kohya"
ENDLESS = 100_000
"""Epochs that never end a run before maximum_steps does: the largest number that schedule.epochs takes."""
NEUTRAL = {"schedule.decay", "schedule.cycles", "schedule.power"}
"""Parameters that only one schedule reads: what the other trainer defaults to matters under that schedule alone."""
DEFAULT_STEPS = 1600
SAMPLERS = {
    "ddim": "ddim", "pndm": "pndm", "lms": "lms", "euler": "euler", "euler_a": "euler_ancestral", "heun": "heun",
    "dpm_2": "dpm2", "dpm_2_a": "dpm2_ancestral", "dpmsolver": "dpm_solver", "dpmsolver++": "dpmpp_2m",
    "dpmsingle": "dpmpp_2s",
}  # fmt: skip
"""Samplers by kohya's words; a k_ before one of them changes nothing."""
LISTS = ("network_args", "optimizer_args", "lr_scheduler_args")
"""Options that are lists of key=value: each key is judged by itself, under the list's name."""
OPTIMIZER_DECAY = {"adamw": 0.01, "adamw8bit": 0.01}
"""The weight decay of an optimizer that is given none; 0 for all others."""
RULED = frozenset(
    {
        "weighting_scheme", "down_lr_weight", "mid_lr_weight", "up_lr_weight", "block_dims", "block_alphas",
        "conv_block_dims", "conv_block_alphas", "block_lr_zero_threshold",
        "v2", "v_parameterization", "network_train_unet_only", "network_train_text_encoder_only", "network_module",
        "network_args", "algo", "learning_rate", "unet_lr", "text_encoder_lr", "use_8bit_adam",
        "use_lion_optimizer",
        "max_train_steps", "max_train_epochs", "save_state", "save_state_on_train_end", "save_last_n_epochs_state",
        "save_last_n_steps_state", "cache_latents", "cache_latents_to_disk", "cache_text_encoder_outputs",
        "cache_text_encoder_outputs_to_disk", "mixed_precision", "save_precision", "save_last_n_steps",
        "fp8_base", "fp8_base_unet",
        "sample_prompts", "no_metadata",
        "train_data_dir", "reg_data_dir", "in_json", "image_dir", "dataset_repeats", "caption_extention",
        "resolution",
    }
)  # fmt: skip
"""Options whose meaning is not that of the one parameter whose entry names them: a rule below speaks of each."""
SDXL_SIGNS = ("xl", "pony", "illustrious", "noob", "animagine")
SDXL_OPTIONS = ("cache_text_encoder_outputs", "cache_text_encoder_outputs_to_disk", "no_half_vae")
REPEATS = re.compile(r"(\d+)_(.*)")


def translate(
    options: Mapping[str, Any], *, kind: str, family: str | None = None, beside: Path | None = None
) -> Imported:
    """The config that these options of sd-scripts describe. `beside` is the folder that relative paths start from."""
    job = Translation(kind, DIALECT, expanded(options))
    job.implied |= implied(job, family)
    for rule in RULES:
        rule(job, beside)
    rest(job, "sd_scripts")
    return job.result()


def expanded(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with lists of key=value taken apart, each key below its list: optimizer_args.weight_decay."""
    flat: dict[str, Any] = {}
    for key, value in options.items():
        if key not in LISTS or is_empty(value):
            flat[key] = value
            continue
        if isinstance(value, dict):
            flat |= {f"{key}.{name}": setting for name, setting in value.items()}
            continue
        items = value.split() if isinstance(value, str) else list(value) if isinstance(value, list | tuple) else [value]
        for item in items:
            name, equals, setting = str(item).strip("\"' ").partition("=")
            flat[f"{key}.{name.strip()}"] = setting.strip("\"' ") if equals else True
    return flat


def implied(job: Translation, family: str | None) -> dict[str, Any]:
    """What follows from the options that are not given: the other trainer's defaults, by our names."""
    known = facts_of("sd_scripts")["options"]
    values = {}
    for key, name in alike(DIALECT).items():
        if key in RULED or key not in known or is_empty(known[key]) or "folders." in name or name in NEUTRAL:
            continue
        value = choice_of(name, DIALECT, known[key]) if choices(fields()[name]) else fitted(name, known[key])
        values[name] = None if refusal(name, value) else value
    return values | {
        "base_model.family": family or guessed_family(job),
        "base_model.path": "",
        "network.rank": DEFAULT_RANK,
        "network.alpha": 1.0,
        "network.train_text_encoder": True,
        "optimizer.learning_rate": 2e-6,
        "schedule.epochs": ENDLESS,
        "schedule.maximum_steps": DEFAULT_STEPS,
        "memory.precision": "fp32",
        "memory.cache_latents": False,
        "saving.precision": "fp32",
        "saving.every_epochs": None,
        "sampling.at_start": False,
        "dataset.buckets": False,
        "dataset.caption_extension": ".caption",
        "dataset.flip": False,
    }


def guessed_family(job: Translation) -> str:
    """SDXL when an option that only its script has is set, or when the model's name says so; else SD 1.5."""
    if any(job.on(key) for key in SDXL_OPTIONS):
        return "sdxl"
    name = Path(str(job.get("pretrained_model_name_or_path", ""))).name.lower()
    return "sdxl" if any(sign in name for sign in SDXL_SIGNS) else "sd15"


# Rules: one for each subject whose keys mean something only together.


def _model(job: Translation, beside: Path | None) -> None:
    if not is_empty(job.get("pretrained_model_name_or_path")):
        job.mapped("pretrained_model_name_or_path", "base_model.path", str(job.get("pretrained_model_name_or_path")))
    if job.on("v2"):
        job.mapped("v2", "base_model.family", "sd2")
    elif "v2" in job.source:
        job.no_effect("v2", "It is switched off there.")
    if "v_parameterization" in job.source:
        job.mapped(
            "v_parameterization",
            "base_model.prediction_type",
            "v_prediction" if job.on("v_parameterization") else "epsilon",
        )
    if "clip_skip" in job.source and not is_empty(job.get("clip_skip")) and _family(job) == "sdxl":
        job.no_effect("clip_skip", "SDXL always reads the last layer but one of its text encoders.")


def _family(job: Translation) -> str:
    return str(job.values.get("base_model.family", job.implied["base_model.family"]))


def _rates(job: Translation, beside: Path | None) -> None:
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


def _optimizer(job: Translation, beside: Path | None) -> None:
    name = "adamw"
    for flag, chosen in (("use_8bit_adam", "adamw8bit"), ("use_lion_optimizer", "lion")):
        if job.on(flag):
            name = chosen
            job.mapped(flag, "optimizer.name", chosen)
    word = job.get("optimizer_type")
    if not is_empty(word):
        known = choice_of("optimizer.name", DIALECT, word)
        if known is None:
            job.unsupported("optimizer_type", f'It trains with the optimizer "{word}". AdamW is used here.')
        else:
            name = known
            job.mapped("optimizer_type", "optimizer.name", known)
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


def _schedule(job: Translation, beside: Path | None) -> None:
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
        elif ours is None:
            job.unsupported("lr_scheduler", f'It follows the schedule "{word}". The rate stays constant here.')
        else:
            job.mapped("lr_scheduler", "schedule.scheduler", ours)
    warmup = as_number(job.get("lr_warmup_steps"))
    if warmup is not None and not own_rate:
        if word == "constant" and warmup > 0:
            job.no_effect("lr_warmup_steps", 'Its schedule "constant" has no warm-up; "constant_with_warmup" would.')
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


def _loss(job: Translation, beside: Path | None) -> None:
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


def _memory(job: Translation, beside: Path | None) -> None:
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
    for on_disk, key, name in (
        ("cache_latents_to_disk", "cache_latents", "memory.cache_latents"),
        ("cache_text_encoder_outputs_to_disk", "cache_text_encoder_outputs", "memory.cache_text_encoder_outputs"),
    ):
        if key in job.source:
            job.mapped(key, name, job.on(key) or job.on(on_disk))
        if on_disk in job.source and not job.done(on_disk):
            if key not in job.source and job.on(on_disk):
                job.mapped(on_disk, name, True)
            else:
                job.no_effect(on_disk, "Caches are kept on disk." if job.on(on_disk) else "It is switched off there.")
    if "max_token_length" in job.source and as_number(job.get("max_token_length")) in (None, 75):
        job.no_effect("max_token_length", "75 is the length that the text encoder has.")


def _dataset(job: Translation, beside: Path | None) -> None:
    if "resolution" in job.source and not is_empty(job.get("resolution")):
        take_resolution(job, "resolution", job.get("resolution"))
    step = as_number(job.get("bucket_reso_steps"))
    if step is not None and step % 8:
        fitting = max(8, int(step) // 8 * 8)
        job.changed(
            "bucket_reso_steps", "dataset.bucket_step", fitting, "A model sees pictures in squares of 8 pixels."
        )
    if "caption_extention" in job.source:
        job.no_effect("caption_extention", "A misspelling that it still accepts; caption_extension is read.")
    if is_empty(job.get("dataset_config")):
        folders = []
        for key, regularisation in (("train_data_dir", False), ("reg_data_dir", True)):
            if not is_empty(job.get(key)):
                found, why = kohya_folders(str(job.get(key)), regularisation, beside)
                folders += found
                job.changed(key, "dataset.folders", tuple(folders), why)
    else:
        for key in ("train_data_dir", "reg_data_dir"):
            if not is_empty(job.get(key)):
                job.no_effect(key, "dataset_config is set: folders, and the repeats in their names, are not read.")
        job.unsupported("dataset_config", "It names the file with the folders, which was not found beside this one.")
    if not is_empty(job.get("in_json")):
        job.unsupported(
            "in_json", "It reads captions from a JSON file. Here captions are text files beside the pictures."
        )
    if "dataset_repeats" in job.source:
        job.no_effect("dataset_repeats", "Only datasets from a JSON file read it.")


def take_resolution(job: Translation, key: str, value: Any) -> None:
    """One side there, or width and height; ours is the side of the square of the same area."""
    numbers = [as_number(part) for part in (value if isinstance(value, list) else re.split(r"[,x ]+", str(value)))]
    sides = [int(number) for number in numbers if number]
    if not sides:
        job.unsupported(key, "It is no size in pixels.")
        return
    side = sides[0] if len(set(sides)) == 1 else round(math.sqrt(sides[0] * sides[1]))
    fitting = max(16, side // 8 * 8)
    if len(set(sides)) > 1:
        job.changed(key, "dataset.resolution", fitting, "Not square there; here it is the square of the same area.")
    elif fitting != side:
        job.changed(key, "dataset.resolution", fitting, "It must be a multiple of 8.")
    else:
        job.mapped(key, "dataset.resolution", side)


def kohya_folders(path: str, regularisation: bool, beside: Path | None) -> tuple[list[dict[str, Any]], str]:
    """The folders N_name inside a folder, as ours, and a sentence on where the repeats came from."""
    root = Path(path) if Path(path).is_absolute() or beside is None else beside / path
    found = []
    if root.is_dir():
        for inner in sorted(root.iterdir()):
            match = REPEATS.fullmatch(inner.name)
            if inner.is_dir() and match and int(match.group(1)) > 0:
                found.append(_folder(str(inner), int(match.group(1)), regularisation, match.group(2).strip()))
    if found:
        return found, "Each folder with its repeats, which that trainer reads from the folder's name."
    missing = (
        "" if root.is_dir() else " It is not on this computer, so the repeats in its folders' names are not known."
    )
    return [_folder(path, 1, regularisation, "")], f"One folder, shown once an epoch.{missing}"


def _folder(path: str, repeats: int, regularisation: bool, caption: str) -> dict[str, Any]:
    folder: dict[str, Any] = {"path": path, "repeats": repeats, "regularisation": regularisation}
    if "dataset.folders.caption" in fields():
        folder["caption"] = caption
    return folder


def _sampling(job: Translation, beside: Path | None) -> None:
    if not is_empty(job.get("sample_sampler")):
        word = str(job.get("sample_sampler")).removeprefix("k_")
        if word in SAMPLERS:
            job.mapped("sample_sampler", "sampling.sampler", SAMPLERS[word])
        else:
            job.unsupported("sample_sampler", f'It draws samples with "{word}". DDIM is used here.')
    epochs, steps = as_number(job.get("sample_every_n_epochs")), as_number(job.get("sample_every_n_steps"))
    if not epochs and "sample_every_n_epochs" in job.source:
        job.no_effect("sample_every_n_epochs", "It is not set.")
    if "sample_every_n_steps" in job.source and (epochs or not steps):
        why = "sample_every_n_epochs is set and overrides it." if epochs else "It is not set."
        job.no_effect("sample_every_n_steps", why)
    if not is_empty(job.get("sample_prompts")):
        read_prompts(job, "sample_prompts", beside)


def _saving(job: Translation, beside: Path | None) -> None:
    for key in ("save_every_n_epochs", "save_every_n_steps", "save_last_n_epochs", "save_last_n_steps"):
        if key in job.source and as_number(job.get(key)) == 0:
            job.no_effect(key, "0 means not set.")
    every_epochs, every_steps = as_number(job.get("save_every_n_epochs")), as_number(job.get("save_every_n_steps"))
    kind = str(job.get("save_model_as", "safetensors"))
    if "save_model_as" in job.source and not is_empty(job.get("save_model_as")):
        if kind == "safetensors":
            job.no_effect("save_model_as", "Every file is .safetensors here.")
        else:
            job.unsupported(
                "save_model_as", f"It writes .{kind} files, which can carry code. Here they are .safetensors."
            )
    ratio, epochs = as_number(job.get("save_n_epoch_ratio")), as_number(job.get("max_train_epochs"))
    if ratio and epochs:
        every = max(1, int(epochs / ratio))
        job.changed("save_n_epoch_ratio", "saving.every_epochs", every, f"At least {ratio:g} files over the run.")
    elif ratio:
        job.no_effect("save_n_epoch_ratio", "It needs max_train_epochs.")
    if "save_last_n_epochs" in job.source and not job.done("save_last_n_epochs"):
        job.mapped("save_last_n_epochs", "saving.keep_last", as_number(job.get("save_last_n_epochs")))
    last = as_number(job.get("save_last_n_steps"))
    if last and not job.done("save_last_n_steps"):
        if every_steps and "saving.keep_last" not in job.values:
            files = max(1, round(last / every_steps))
            job.changed("save_last_n_steps", "saving.keep_last", files, "Counted in files here, in steps there.")
        else:
            job.no_effect("save_last_n_steps", "It needs save_every_n_steps.")
    states = [key for key in ("save_state", "save_state_on_train_end") if key in job.source]
    for key in states:
        if not job.on(key):
            job.no_effect(key, "It is switched off there.")
        elif "saving.state_every_epochs" not in job.values:
            every = int(every_epochs or (as_number(job.get("max_train_epochs")) or 1))
            job.changed(key, "saving.state_every_epochs", every, "A state to go on from, as often as a file is saved.")
        else:
            job.no_effect(key, "A state is saved at the end in any case.")
    if "no_metadata" in job.source:
        job.mapped("no_metadata", "saving.metadata", "minimal" if job.on("no_metadata") else "full")
    for key in ("save_last_n_epochs_state", "save_last_n_steps_state"):
        if key in job.source and not job.done(key):
            job.no_effect(key, "The newest two states are kept here.")


RULES: tuple[Callable[[Translation, Path | None], None], ...] = (
    _model,
    read_network,
    _rates,
    _optimizer,
    _schedule,
    _loss,
    _memory,
    _dataset,
    _sampling,
    _saving,
)
