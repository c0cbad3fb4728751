"""ai-toolkit's datasets and samples."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from knowledge.formats.sd_scripts_files import SAMPLERS as KOHYA_SAMPLERS
from knowledge.formats.translation import Translation
from knowledge.formats.values import as_bool, as_number, is_empty

SAMPLERS = KOHYA_SAMPLERS | {"ddpm": "ddpm", "dpm++": "dpmpp_2m", "lcm": "lcm"}


def read_datasets(job: Translation) -> None:
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
    }
    _read_latents(job, prefix, own, first)
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


def read_sample(job: Translation) -> None:
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
        otherwise = f'It draws samples with "{sampler}". DDIM is used here.'
        job.mapped_if_known("sample.sampler", "sampling.sampler", SAMPLERS.get(str(sampler)), otherwise)


def _read_latents(job: Translation, prefix: str, own: Mapping[str, Any], first: bool) -> None:
    """Its switch for a cache on disk counts before the one for a cache in memory, and each is enough by itself."""
    on_disk, in_memory = (as_bool(own.get(word)) is True for word in ("cache_latents_to_disk", "cache_latents"))
    key = f"{prefix}cache_latents_to_disk"
    if first and in_memory and not on_disk:
        job.implied["memory.cache_location"] = "memory"
    if key not in job.source:
        return
    if not first:
        job.no_effect(key, "What the first dataset says holds for all folders here.")
    elif on_disk and not in_memory:
        job.mapped(key, "memory.cache_latents", True)
        if f"{prefix}cache_latents" in job.source:
            job.no_effect(f"{prefix}cache_latents", "They are cached on disk.")
    elif on_disk or in_memory:
        job.mapped(key, "memory.cache_location", "disk" if on_disk else "memory")
    else:
        job.no_effect(key, "It is switched off there.")
