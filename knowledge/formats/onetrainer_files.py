"""OneTrainer's concepts, samples and intervals."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from knowledge.config import fields
from knowledge.formats.sorting import take_name
from knowledge.formats.text import json_at
from knowledge.formats.translation import Translation
from knowledge.formats.values import as_bool, as_number, is_empty

SAMPLERS = {
    "DDIM": "ddim",
    "EULER": "euler",
    "EULER_A": "euler_ancestral",
    "DPMPP": "dpmpp_2m",
    "DPMPP_SDE": "dpmpp_2m_sde",
    "UNIPC": "unipc",
    "EULER_KARRAS": "euler_karras",
    "DPMPP_KARRAS": "dpmpp_2m_karras",
    "DPMPP_SDE_KARRAS": "dpmpp_2m_sde_karras",
    "UNIPC_KARRAS": "unipc_karras",
}
UNITS = {"EPOCH": "epochs", "STEP": "steps"}


def tables(value: Any) -> list[dict[str, Any]]:
    """The tables in a list of them; nothing of anything else."""
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def read_dataset(job: Translation, beside: Path) -> None:
    resolution = job.get("resolution")
    if resolution is not None:
        sides = [int(number) for number in re.findall(r"\d+", str(resolution))]
        if not sides:
            job.unsupported("resolution", "It is no size in pixels.")
        elif len(sides) > 1:
            job.changed(
                "resolution", "dataset.resolution", sides[0] // 8 * 8, "The first of several; here there is one."
            )
        else:
            job.mapped("resolution", "dataset.resolution", sides[0])
    share = as_number(job.get("text_encoder.dropout_probability"))
    if share is not None:
        job.mapped("text_encoder.dropout_probability", "dataset.caption_dropout_rate", share)
    second = as_number(job.get("text_encoder_2.dropout_probability"))
    if second is not None:
        if second == (share or 0):
            job.no_effect("text_encoder_2.dropout_probability", "It says the same as for the first.")
        else:
            job.unsupported("text_encoder_2.dropout_probability", "It drops captions for one encoder alone.")
    concepts = job.get("concepts")
    name = job.get("concept_file_name")
    if concepts is None and not is_empty(name):
        path = Path(str(name)) if Path(str(name)).is_absolute() else beside / str(name)
        concepts = json_at(path)
        if concepts is None:
            job.unsupported(
                "concept_file_name", "It names the file with the folders, which was not found beside this one."
            )
    if concepts:
        key = "concepts" if job.get("concepts") is not None else "concept_file_name"
        used = [concept for concept in tables(concepts) if concept.get("enabled", True)]
        job.changed(key, "dataset.folders", tuple(_folder(concept) for concept in used), "Each concept is a folder.")
        _concept_settings(job, used)
        if job.get("concepts") is not None and "concept_file_name" in job.source:
            job.no_effect("concept_file_name", "The concepts stand in this file.")


def _folder(concept: Mapping[str, Any]) -> dict[str, Any]:
    repeats = max(1, round(as_number(concept.get("balancing")) or 1))
    return {
        "path": str(concept.get("path") or "."),
        "repeats": repeats,
        "regularisation": str(concept.get("type", "STANDARD")) == "PRIOR_PREDICTION",
    }


def _concept_settings(job: Translation, concepts: list[dict[str, Any]]) -> None:
    """Settings that ours has once for all folders: those of the first concept."""
    if not concepts:
        return
    image, text = (held if isinstance(held := concepts[0].get(part), dict) else {} for part in ("image", "text"))
    for held, key, name in (
        (image, "enable_random_flip", "dataset.flip"),
        (text, "enable_tag_shuffling", "dataset.shuffle_tags"),
        (text, "keep_tags_count", "dataset.keep_tokens"),
    ):
        if key in held:
            job.inside(name, held[key])
    if as_bool(text.get("tag_dropout_enable")):
        if text.get("tag_dropout_mode") == "RANDOM":
            job.inside("dataset.tag_dropout_rate", text.get("tag_dropout_probability", 0.0))
        else:
            job.warnings.append(
                f"It drops tags in its mode {text.get('tag_dropout_mode', 'FULL')}. Here none are dropped."
            )
    if any(concept.get("balancing_strategy") == "SAMPLES" for concept in concepts):
        job.warnings.append("A concept is balanced by a number of samples; here its number is read as repeats.")
    if as_bool(image.get("enable_crop_jitter", True)):
        if as_bool(job.get("latent_caching", True)):
            job.warnings.append(
                "OneTrainer cuts pictures a little differently each time (crop jitter). Here the middle is kept."
            )
        else:
            job.values["dataset.random_crop"] = True


def read_sampling(job: Translation, beside: Path) -> None:
    for key, name in (
        ("sample_after", "sampling.every"),
        ("save_every", "saving.every"),
        ("backup_after", "saving.state_every"),
    ):
        _interval(job, key, name)
    samples = [sample for sample in tables(job.get("samples")) if sample.get("enabled", True)]
    if samples:
        first = samples[0]
        job.changed(
            "samples",
            "sampling.prompts",
            tuple(str(s.get("prompt", "")) for s in samples),
            "Settings of the first, for all.",
        )
        for word, name in (
            ("negative_prompt", "negative_prompt"),
            ("diffusion_steps", "steps"),
            ("cfg_scale", "guidance_scale"),
        ):
            if first.get(word) is not None:
                job.inside(f"sampling.{name}", first[word])
        for word in ("width", "height", "seed"):
            if first.get(word) is not None:
                job.inside(f"sampling.{word}", first[word])
        sampler = SAMPLERS.get(str(first.get("noise_scheduler", "DDIM")))
        if sampler:
            job.values["sampling.sampler"] = sampler
        job.values.setdefault("sampling.guidance_scale", 7.0)
    if not is_empty(job.get("sample_definition_file_name")):
        why = "The prompts stand in this file." if samples else "Set sampling.prompts; the file was not read."
        job.no_effect("sample_definition_file_name", why)
    if "sample_skip_first" in job.source:
        if as_number(job.get("sample_skip_first")):
            job.changed("sample_skip_first", "sampling.at_start", False, "The first samples are left out.")
        else:
            job.mapped("sample_skip_first", "sampling.at_start", True)
    target = job.get("output_model_destination")
    if not is_empty(target):
        bare = Path(str(target).replace("\\", "/")).stem
        take_name(job, "output_model_destination", bare, "The name without its folder.")


def _interval(job: Translation, key: str, name: str) -> None:
    """An interval and its unit, as every_epochs or every_steps."""
    unit_key = f"{key}_unit"
    unit = str(job.get(unit_key, {"sample_after": "MINUTE", "save_every": "NEVER", "backup_after": "MINUTE"}[key]))
    value = as_number(job.get(key))
    ours = f"{name}_{UNITS.get(unit, '')}"
    if unit in UNITS and ours in fields() and value:
        if key in job.source:
            job.mapped(key, ours, value)
        if unit_key in job.source:
            job.no_effect(unit_key, "It is the unit of the number before.")
        return
    for one in (key, unit_key):
        if one in job.source:
            if unit == "NEVER" or not value:
                job.no_effect(one, "It is switched off there.")
            else:
                job.unsupported(one, f"It counts in {unit.lower()}s. Here that is epochs or steps.")
