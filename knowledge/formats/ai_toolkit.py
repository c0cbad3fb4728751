"""ai-toolkit's YAML: one job with one process, its sections network, save, datasets, train, model and sample."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from knowledge.answers import PlainError
from knowledge.config import CONV_ALGORITHMS, CONVOLUTIONS_TOO
from knowledge.formats.sd_scripts import ENDLESS
from knowledge.formats.sd_scripts import SAMPLERS as KOHYA_SAMPLERS
from knowledge.formats.translation import (
    NO_MODEL,
    Imported,
    Translation,
    alike,
    as_bool,
    as_number,
    choice_of,
    facts_of,
    is_empty,
    rest,
    take_argument,
)

DIALECT = "ai_toolkit"
PRECISIONS = {
    "float32": "fp32", "fp32": "fp32", "float": "fp32", "float16": "fp16", "fp16": "fp16", "half": "fp16",
    "bf16": "bf16", "bfloat16": "bf16",
}  # fmt: skip
LOSSES = {"mse": "l2", "mae": "l1"}
SAMPLERS = KOHYA_SAMPLERS | {"ddpm": "ddpm", "dpm++": "dpmpp_2m", "lcm": "lcm"}
OTHER_MODELS = ("is_flux", "is_v3", "is_pixart", "is_pixart_sigma", "is_auraflow", "is_lumina2", "is_ssd", "is_vega")
DEFAULTS: dict[str, Any] = {
    "base_model.family": "sd15",
    "base_model.path": NO_MODEL,
    "network.rank": 4,
    "network.alpha": 1.0,
    "optimizer.learning_rate": 1e-6,
    "schedule.epochs": ENDLESS,
    "schedule.maximum_steps": 1000,
    "memory.precision": "fp32",
    "memory.gradient_checkpointing": True,
    "memory.cache_latents": False,
    "saving.precision": "fp16",
    "saving.every_epochs": None,
    "saving.every_steps": 1000,
    "saving.keep_last": 5,
    "sampling.every_steps": 100,
    "sampling.guidance_scale": 7.0,
    "dataset.caption_extension": ".txt",
}
"""What its settings are when the file does not say, by our names; those equal to our defaults are left out."""


def read_yaml(text: str, path: Path) -> Imported:
    """The config that this file describes. Raises PlainError when it is no job of ai-toolkit."""
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
        where = f", line {mark.line + 1}" if mark else ""
        raise PlainError(f"{path} is not valid YAML: {str(error).splitlines()[0]}{where}.", 2) from None
    process = process_of(document)
    if process is None:
        raise PlainError(f"{path} is YAML, but no job of ai-toolkit: it has no config.process.", 2)
    if not {"network", "train", "datasets"} & process.keys():
        kind = process.get("type") or document.get("job")
        raise PlainError(f'{path} is a job of ai-toolkit that trains nothing (its type is "{kind}").', 2)
    job = Translation("ai-toolkit YAML", DIALECT, flattened(document, process))
    job.implied |= DEFAULTS
    for rule in RULES:
        rule(job)
    _by_entry(job)
    rest(job, "ai_toolkit")
    return job.result()


def process_of(document: Any) -> dict[str, Any] | None:
    """The first process of a job; None when this is none."""
    config = document.get("config") if isinstance(document, dict) else None
    processes = config.get("process") if isinstance(config, dict) else None
    return processes[0] if isinstance(processes, list) and processes and isinstance(processes[0], dict) else None


def flattened(document: Mapping[str, Any], process: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by section and name; those of datasets by their number."""
    flat: dict[str, Any] = {}
    if "job" in document:
        flat["job"] = document["job"]
    if "name" in document["config"]:
        flat["config.name"] = document["config"]["name"]
    for key, value in process.items():
        if key == "datasets" and isinstance(value, list):
            for number, dataset in enumerate(value, 1):
                flat |= {f"datasets.{number}.{inner}": setting for inner, setting in dataset.items()}
        elif isinstance(value, dict) and key in ("network", "save", "train", "model", "sample", "logging"):
            flat |= {f"{key}.{inner}": setting for inner, setting in value.items()}
            parameters = flat.get("train.optimizer_params")
            if isinstance(parameters, dict) and parameters:
                del flat["train.optimizer_params"]
                flat |= {f"train.optimizer_params.{name}": setting for name, setting in parameters.items()}
        else:
            flat[key] = value
    if "meta" in document:
        flat["meta"] = document["meta"]
    return flat


def _job(job: Translation) -> None:
    if "job" in job.source:
        job.no_effect("job", "It names the kind of job.")
    if "config.name" in job.source:
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", str(job.source["config.name"]).replace("[name]", "lora")).strip("-._")
        if name == job.source["config.name"]:
            job.mapped("config.name", "output.name", name)
        else:
            job.changed(
                "config.name", "output.name", (name or "my-lora")[:100], "Letters, digits, dots and dashes only."
            )
    if not is_empty(job.get("training_folder")):
        job.mapped("training_folder", "output.folder", str(job.source["training_folder"]))


def _model(job: Translation) -> None:
    if not is_empty(job.get("model.name_or_path")):
        job.mapped("model.name_or_path", "base_model.path", str(job.source["model.name_or_path"]))
    architecture = str(job.get("model.arch", "")).lower()
    if architecture:
        family = {"sd1": "sd15", "sd15": "sd15", "sd2": "sd2", "sdxl": "sdxl"}.get(architecture)
        if family:
            job.mapped("model.arch", "base_model.family", family)
        else:
            job.unsupported("model.arch", "This program does not train it. SD 1.5 is assumed.")
            job.other_kind = f'a model of the kind "{architecture}"'
    if "model.is_xl" in job.source:
        job.mapped("model.is_xl", "base_model.family", "sdxl" if as_bool(job.source["model.is_xl"]) else "sd15")
    if as_bool(job.source.get("model.is_v2")):
        job.mapped("model.is_v2", "base_model.family", "sd2")
    elif "model.is_v2" in job.source:
        job.no_effect("model.is_v2", "It is switched off there.")
    for word in OTHER_MODELS:
        key = f"model.{word}"
        if as_bool(job.source.get(key)):
            job.unsupported(key, "This program does not train it. SD 1.5 is assumed.")
            job.other_kind = f'a model of the kind "{word.removeprefix("is_")}"'
        elif key in job.source:
            job.no_effect(key, "It is switched off there.")
    if "model.is_v_pred" in job.source:
        kind = "v_prediction" if as_bool(job.source["model.is_v_pred"]) else "epsilon"
        job.mapped("model.is_v_pred", "base_model.prediction_type", kind)


def _network(job: Translation) -> None:
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


def _train(job: Translation) -> None:
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
        word = str(job.get("train.optimizer"))
        name = choice_of("optimizer.name", DIALECT, word)
        if name:
            job.mapped("train.optimizer", "optimizer.name", name)
        else:
            job.unsupported("train.optimizer", f'It trains with "{word}". AdamW is used here.')
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
        if str(loss) in LOSSES:
            job.mapped("train.loss_type", "loss.function", LOSSES[str(loss)])
        else:
            job.unsupported("train.loss_type", f'Its loss is "{loss}". L2 is used here.')
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
    if word in PRECISIONS:
        job.mapped(key, name, PRECISIONS[word])
    else:
        job.unsupported(key, f'"{word}" is not among our precisions.')


def _datasets(job: Translation) -> None:
    numbers = sorted({int(key.split(".")[1]) for key in job.source if re.match(r"datasets\.\d+\.", key)})
    folders = []
    for number in numbers:
        prefix = f"datasets.{number}."
        own = {key.removeprefix(prefix): value for key, value in job.source.items() if key.startswith(prefix)}
        path = own.get("folder_path") or own.get("dataset_path")
        if is_empty(path):
            continue
        folder: dict[str, Any] = {
            "path": str(path),
            "repeats": int(as_number(own.get("num_repeats")) or 1),
            "regularisation": as_bool(own.get("is_reg", False)) is True,
        }
        if own.get("default_caption"):
            folder["caption"] = str(own["default_caption"])
        folders.append(folder)
        key = "folder_path" if "folder_path" in own else "dataset_path"
        job.changed(prefix + key, "dataset.folders", tuple(folders), "Each dataset is a folder.")
        for word, column in (("num_repeats", "repeats"), ("is_reg", "regularisation"), ("default_caption", "caption")):
            if word in own:
                job.no_effect(prefix + word, f"It is in dataset.folders, as {column}.")
        _dataset_settings(job, prefix, own, first=number == numbers[0])
    if folders:
        job.values["dataset.folders"] = tuple(folders)


def _dataset_settings(job: Translation, prefix: str, own: Mapping[str, Any], first: bool) -> None:
    """Settings that ours has once for all folders."""
    names = {
        "caption_ext": "dataset.caption_extension",
        "resolution": "dataset.resolution",
        "flip_x": "dataset.flip",
        "flip_aug": "dataset.flip",
        "shuffle_tokens": "dataset.shuffle_tags",
        "keep_tokens": "dataset.keep_tokens",
        "caption_dropout_rate": "dataset.caption_dropout_rate",
        "buckets": "dataset.buckets",
        "cache_latents": "memory.cache_latents",
        "cache_latents_to_disk": "memory.cache_latents",
    }
    for word, value in own.items():
        key = prefix + word
        if job.done(key) or word not in names:
            continue
        name, why = names[word], ""
        if word == "resolution" and isinstance(value, list):
            sides = [int(side) for side in value if as_number(side)]
            value, why = max(sides or [512]), "The largest of several; here there is one."
        if word == "caption_ext" and not str(value).startswith("."):
            value, why = f".{value}", "With its dot."
        if not first and job.values.get(name) != value:
            job.unsupported(key, "It differs from the first dataset; here it holds for all folders.")
        elif why:
            job.changed(key, name, value, why)
        else:
            job.mapped(key, name, value)


def _sample(job: Translation) -> None:
    prompts = job.get("sample.prompts")
    samples = job.get("sample.samples")
    if not prompts and isinstance(samples, list):
        prompts = [str(sample.get("prompt", "")) for sample in samples if isinstance(sample, dict)]
        if prompts:
            job.changed("sample.samples", "sampling.prompts", tuple(prompts), "Only the prompts of them.")
    if isinstance(job.get("sample.prompts"), list):
        trigger = str(job.get("trigger_word") or "")
        texts = tuple(str(prompt).replace("[trigger]", trigger).strip() for prompt in job.source["sample.prompts"])
        if texts == tuple(job.source["sample.prompts"]):
            job.mapped("sample.prompts", "sampling.prompts", texts)
        else:
            job.changed("sample.prompts", "sampling.prompts", texts, "With the trigger word in place of [trigger].")
    if job.source.get("sample.neg") is not None:
        negative = job.source["sample.neg"]
        job.mapped("sample.neg", "sampling.negative_prompt", "" if negative is False else str(negative))
    sampler = job.get("sample.sampler")
    if sampler is not None:
        if str(sampler) in SAMPLERS:
            job.mapped("sample.sampler", "sampling.sampler", SAMPLERS[str(sampler)])
        else:
            job.unsupported("sample.sampler", f'It draws samples with "{sampler}". DDIM is used here.')


def _by_entry(job: Translation) -> None:
    """Settings that mean what the entry naming them says, by section and name or by name alone."""
    same, unlike = alike(DIALECT), facts_of("ai_toolkit")["unlike"]
    sections = {
        "train": ("schedule", "optimizer", "noise", "network", "memory"),
        "sample": ("sampling",),
        "save": ("saving",),
    }
    for key, value in job.source.items():
        if job.done(key) or is_empty(value) or key in unlike:
            continue
        section, _, word = key.partition(".")
        name = same.get(key) or same.get(word)
        fits = name is not None and (name.split(".")[0] in sections.get(section, ()) or name.split(".")[0] == section)
        if name is not None and fits and word not in ("lr_scheduler", "seed"):
            job.mapped(key, name, value)
        elif key == "trigger_word":
            job.mapped(key, "dataset.trigger_word", str(value))
        elif key in ("train.lr_scheduler", "sample.seed"):
            ours = choice_of("schedule.scheduler", "kohya", value) if word == "lr_scheduler" else value
            if ours is None:
                job.unsupported(key, f'It follows the schedule "{value}". The rate stays constant here.')
            else:
                job.mapped(key, "schedule.scheduler" if word == "lr_scheduler" else "sampling.seed", ours)


RULES: tuple[Callable[[Translation], None], ...] = (_job, _model, _network, _train, _datasets, _sample)
