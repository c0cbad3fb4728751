"""ai-toolkit's YAML: one job with one process, its sections network, save, datasets, train, model and sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from knowledge.answers import PlainError
from knowledge.formats.ai_toolkit_files import read_datasets, read_sample
from knowledge.formats.ai_toolkit_training import DIALECT, read_network, read_train
from knowledge.formats.repairs import NO_MODEL
from knowledge.formats.sd_scripts import ENDLESS
from knowledge.formats.sorting import rest, take_name
from knowledge.formats.translation import Imported, Translation
from knowledge.formats.values import as_bool, is_empty
from knowledge.formats.vocabulary import alike, choice_of, facts_of

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


def read_job(document: Mapping[str, Any], path: Path) -> Imported:
    """The config that this job describes. Raises PlainError when it trains nothing."""
    process = process_of(document)
    assert process is not None, "the reader looks for one first"
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
                if isinstance(dataset, dict):
                    flat |= {f"datasets.{number}.{inner}": setting for inner, setting in dataset.items()}
                else:
                    flat[f"datasets.{number}"] = dataset
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
        take_name(job, "config.name", str(job.source["config.name"]).replace("[name]", "lora"))
    if not is_empty(job.get("training_folder")):
        job.mapped("training_folder", "output.folder", str(job.source["training_folder"]))


def _other_kinds(job: Translation) -> None:
    """What it trains instead of a network, or besides one."""
    for key, what in (("embedding", "an embedding"), ("adapter", "an adapter for a picture as prompt")):
        if not is_empty(job.get(key)):
            job.unsupported(key, f"It trains {what}.")
            if not any(name.startswith("network.") for name in job.source):
                job.other_kind = what
                for part in ("train.train_unet", "train.train_text_encoder"):
                    if part in job.source:
                        job.unsupported(part, f"It trains {what}; here the UNet is trained.")


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
        elif key == "train.lr_scheduler":
            ours = choice_of("schedule.scheduler", "kohya", value)
            otherwise = f'It follows the schedule "{value}". The rate stays constant here.'
            job.mapped_if_known(key, "schedule.scheduler", ours, otherwise)
        elif key == "sample.seed":
            job.mapped(key, "sampling.seed", value)


RULES: tuple[Callable[[Translation], None], ...] = (
    _job,
    _other_kinds,
    _model,
    read_network,
    read_train,
    read_datasets,
    read_sample,
)
