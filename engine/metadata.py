"""What a network file tells of itself: kohya's ss_* keys, which A1111 and Forge read; modelspec; hashes; our config.

Never a path or a secret: only the last part of any file's or folder's name leaves this computer.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Collection, Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import fmean
from typing import Any

from safetensors.torch import save as to_bytes
from torch import Tensor

from calculator.buckets import place
from calculator.steps import Run, views, views_of_pictures
from engine.dataset.captions import tags
from knowledge.config import Algorithm, OptimizerSettings, TrainingConfig
from knowledge.facts import DatasetFacts
from knowledge.families import family_facts
from knowledge.formats.kohya_network import arguments_of_blocks
from knowledge.optimizer_arguments import all_arguments
from knowledge.optimizers import OPTIMIZERS
from knowledge.starting_network import layers_in_file

NETWORK_MODULES: dict[Algorithm, tuple[str, dict[str, str]]] = {
    "lora": ("networks.lora", {}),
    "locon": ("networks.lora", {}),
    "dora": ("lycoris.kohya", {"algo": "lora", "dora_wd": "True", "wd_on_output": "False"}),
    "loha": ("lycoris.kohya", {"algo": "loha"}),
    "lokr": ("lycoris.kohya", {"algo": "lokr"}),
    "dylora": ("networks.dylora", {}),
    "glora": ("lycoris.kohya", {"algo": "glora"}),
    "oft": ("lycoris.kohya", {"algo": "diag-oft"}),
    "boft": ("lycoris.kohya", {"algo": "boft"}),
    "ia3": ("lycoris.kohya", {"algo": "ia3"}),
    "full": ("lycoris.kohya", {"algo": "full"}),
}
"""The module and its arguments with which sd-scripts would have made a network of this algorithm."""


MINIMAL = frozenset(
    {
        # what sd-scripts leaves of its own with no_metadata
        "ss_v2", "ss_base_model_version", "ss_network_module", "ss_network_dim", "ss_network_alpha", "ss_network_args",
        # what says how to use the file, not how it was made or by whom
        "modelspec.sai_model_spec", "modelspec.architecture", "modelspec.implementation", "modelspec.title",
        "modelspec.resolution", "modelspec.prediction_type", "modelspec.timestep_range", "modelspec.encoder_layer",
        "modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash",
    }
)  # fmt: skip
"""The keys that saving.metadata "minimal" keeps."""


def network_metadata(
    config: TrainingConfig,
    dataset: DatasetFacts,
    length: Run,
    tensors: Mapping[str, Tensor],
    *,
    step: int,
    epoch: int,
    started_at: float,
    finished_at: float | None = None,
    held_out: int = 0,
) -> dict[str, str]:
    """What is written into the header of a network file saved after this step, with the hashes of its weights; how much
    of it, saving.metadata says. `dataset` is what is trained on, `held_out` the pictures beside it.

    Times in seconds since 1970. Values are text, as safetensors wants them; what does not apply is "None", as
    sd-scripts writes it.
    """
    if config.saving.metadata == "none":
        return {}
    finished_at = time.time() if finished_at is None else finished_at
    kohya = {
        f"ss_{name}": _text(value)
        for name, value in (
            _run(config, length, step, epoch, started_at, finished_at)
            | _network(config)
            | _base_model(config)
            | _dataset(config, dataset, held_out)
        ).items()
    }
    described = _modelspec(config, finished_at)
    if config.saving.metadata == "minimal":
        kohya, described = ({k: v for k, v in part.items() if k in MINIMAL} for part in (kohya, described))
        return kohya | described | hashes(tensors, kohya)
    own = {"lora_wizard.version": program_version(), "lora_wizard.config": config_text(config)}
    return kohya | described | own | hashes(tensors, kohya)


def config_text(config: TrainingConfig) -> str:
    """The config as JSON in which every path is cut down to its last part."""
    document = config.model_dump(mode="json")
    document["base_model"]["path"] = _name(config.base_model.path)
    document["base_model"]["vae"] = _name(config.base_model.vae)
    document["network"]["start_from"] = _name(config.network.start_from)
    document["output"]["folder"] = _name(config.output.folder)
    for folder in document["dataset"]["folders"]:
        folder["path"], folder["masks"] = _name(folder["path"]), _name(folder["masks"])
    return json.dumps(document, ensure_ascii=False)


def hashes(tensors: Mapping[str, Tensor], kohya: Mapping[str, str]) -> dict[str, str]:
    """The hashes by which websites and interfaces know a file again, whatever else its header says."""
    content = to_bytes(dict(tensors), dict(kohya))
    header = int.from_bytes(content[:8], "little")
    body = hashlib.sha256(content[8 + header :]).hexdigest()
    return {
        "sshs_model_hash": body,
        "sshs_legacy_hash": hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8],
        "modelspec.hash_sha256": f"0x{body}",
    }


def program_version() -> str:
    try:
        return version("lora-wizard")
    except PackageNotFoundError:  # run from a checkout that was never installed
        return "checkout"


def _run(
    config: TrainingConfig, length: Run, step: int, epoch: int, started_at: float, finished_at: float
) -> dict[str, Any]:
    """How it was trained."""
    schedule, optimizer, loss, noise = config.schedule, config.optimizer, config.loss, config.noise
    network, memory, validation = config.network, config.memory, config.validation
    text_encoder_rate: Any = optimizer.text_encoder_learning_rate or optimizer.learning_rate
    if optimizer.text_encoder_2_learning_rate is not None:
        text_encoder_rate = [text_encoder_rate, optimizer.text_encoder_2_learning_rate]
    warmup = schedule.warmup * length.total_steps if schedule.warmup < 1 else schedule.warmup
    return {
        "session_id": int.from_bytes(hashlib.sha256(f"{config.output.name} {started_at}".encode()).digest()[:4], "big"),
        "training_started_at": started_at,
        "training_finished_at": finished_at,
        "output_name": config.output.name,
        "training_comment": config.output.description or None,
        "sd_scripts_commit_hash": "(unknown)",
        "learning_rate": optimizer.learning_rate,
        "unet_lr": optimizer.learning_rate if network.train_unet else None,
        "text_encoder_lr": text_encoder_rate if network.train_text_encoder else None,
        "optimizer": _optimizer(optimizer, schedule.scheduler),
        "lr_scheduler": schedule.scheduler,
        "lr_warmup_steps": round(warmup),
        "max_grad_norm": optimizer.maximum_gradient_norm,
        "max_train_steps": length.total_steps,
        "num_epochs": length.epochs,
        "num_batches_per_epoch": length.batches_per_epoch,
        "batch_size_per_device": schedule.batch_size,
        "total_batch_size": schedule.batch_size,
        "gradient_accumulation_steps": schedule.gradient_accumulation_steps,
        "gradient_checkpointing": memory.gradient_checkpointing,
        "mixed_precision": "no" if memory.precision == "fp32" else memory.precision,
        "full_fp16": False,
        "full_bf16": memory.full_half,
        "fp8_base": memory.base_weights == "fp8",
        "fp8_base_unet": memory.base_weights == "fp8",
        "lowram": False,
        "cache_latents": memory.cache_latents,
        "seed": config.seed,
        "steps": step,
        "epoch": epoch,
        "loss_type": loss.function,
        "huber_schedule": loss.huber_schedule,
        "huber_c": loss.huber_threshold,
        "huber_scale": 1.0,
        "min_snr_gamma": loss.minimum_snr_gamma,
        "debiased_estimation": loss.debiased,
        "prior_loss_weight": loss.prior_weight,
        "noise_offset": noise.offset or None,
        "noise_offset_random_strength": noise.offset_random,
        "adaptive_noise_scale": noise.offset_adaptive or None,
        "multires_noise_iterations": noise.multires_iterations or None,
        "multires_noise_discount": noise.multires_discount,
        "ip_noise_gamma": noise.input_perturbation or None,
        "ip_noise_gamma_random_strength": False,
        "scale_weight_norms": network.maximum_norm,
        "validation_seed": None,
        "validation_split": validation.share,
        "validate_every_n_epochs": validation.every_epochs if validation.share else None,
        "validate_every_n_steps": validation.every_steps if validation.share else None,
        "max_validation_steps": None,
    }


def _optimizer(settings: OptimizerSettings, scheduler: str) -> str:
    """The optimizer's class with all that it was given, as sd-scripts writes it."""
    given = {"weight_decay": settings.weight_decay, **all_arguments(settings.name, settings.arguments, scheduler)}
    words = ",".join(
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in given.items()
    )
    return f"{OPTIMIZERS[settings.name].kind.replace(':', '.')}({words})"


def _network(config: TrainingConfig) -> dict[str, Any]:
    """The shape of the network."""
    network = config.network
    module, known = NETWORK_MODULES[network.algorithm]
    if network.attention_only and network.algorithm == "lora":  # its own module for LoRA cannot leave layers out
        module, known = "lycoris.kohya", {"algo": "lora"}
    arguments = dict(known)
    if module == "lycoris.kohya":
        layers = "full" if network.adapts_convolutions else "attn-only" if network.attention_only else "attn-mlp"
        arguments = {**arguments, "preset": layers}
    if network.adapts_convolutions:
        arguments |= {"conv_dim": str(network.conv_rank), "conv_alpha": f"{network.conv_alpha:g}"}
    if network.algorithm == "lokr":
        arguments |= {"factor": str(network.lokr_factor)} | (
            {"full_matrix": "True"} if network.lokr_full_matrix else {}
        )
    if module == "networks.lora":
        arguments |= arguments_of_blocks(network, config.base_model.family)
    if network.algorithm == "dylora":
        arguments |= {"unit": str(network.dylora_block_size)}
    there = layers_in_file(network).values() if network.ranks_in_start else ()
    changed = {
        "rank_dropout": network.rank_dropout,
        "module_dropout": network.module_dropout,
        "loraplus_lr_ratio": config.optimizer.lora_plus_ratio if config.optimizer.lora_plus_ratio > 1 else 0,
    }
    arguments = arguments | {name: f"{value:g}" for name, value in changed.items() if value}
    return {
        "network_module": module,
        "network_dim": _common([own.rank for own in there], network.rank),
        "network_alpha": _common([own.alpha for own in there], network.alpha),
        "network_dropout": network.dropout or None,
    } | ({"network_args": json.dumps(arguments)} if arguments else {})


def _common(values: Collection[float], given: float) -> float | str:
    """The one value that all layers have; "Dynamic" where they differ, as sd-scripts' resizing writes it."""
    different = set(values) or {given}
    return different.pop() if len(different) == 1 else "Dynamic"


def _base_model(config: TrainingConfig) -> dict[str, Any]:
    """What it was trained on."""
    base, path = config.base_model, Path(config.base_model.path).expanduser()
    suffix = "_v" if base.prediction_type == "v_prediction" else ""
    known = {
        "base_model_version": family_facts(base.family).base_model_version + suffix,
        "v2": base.family == "sd2",
        "clip_skip": base.clip_skip if base.clip_skip > 1 else None,
        "max_token_length": base.maximum_tokens if base.maximum_tokens > 75 else None,
        "zero_terminal_snr": base.zero_terminal_snr,
        "sd_model_name": _name(base.path),
    }
    known |= _hashes_of(path, "sd_model_hash", "new_sd_model_hash")
    if base.vae:
        known |= {"vae_name": _name(base.vae)}
        known |= _hashes_of(Path(base.vae).expanduser(), "vae_hash", "new_vae_hash")
    return known


def _hashes_of(path: Path, legacy_name: str, name: str) -> dict[str, str]:
    """A file's two hashes under these names; none for a folder."""
    if not path.is_file():
        return {}
    status = path.stat()
    legacy, digest = _file_hashes(path, status.st_size, status.st_mtime_ns)
    return {legacy_name: legacy, name: digest}


@lru_cache(maxsize=8)
def _file_hashes(path: Path, size: int, changed: int) -> tuple[str, str]:
    """A1111's old hash of a file, and its SHA-256; size and time of change only tell another file of the same name."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0x100000)
        return hashlib.sha256(file.read(0x10000)).hexdigest()[:8], digest


def _dataset(config: TrainingConfig, dataset: DatasetFacts, held_out: int) -> dict[str, Any]:
    """The pictures, in numbers and tags."""
    settings = config.dataset
    names = [_name(folder.path) for folder in settings.folders]
    directories: dict[bool, dict[str, dict[str, int]]] = {False: {}, True: {}}
    frequency: dict[str, dict[str, int]] = {}
    for name, folder in zip(names, dataset.folders, strict=True):
        directories[folder.regularisation][name] = {"n_repeats": folder.repeats, "img_count": len(folder.pictures)}
        counted = Counter(tag.lower() for picture in folder.pictures for tag in tags(picture.caption or ""))
        frequency[name] = dict(counted)
    return {
        "num_train_images": dataset.views_per_epoch,
        "num_reg_images": sum(len(f.pictures) * f.repeats for f in dataset.folders if f.regularisation),
        "num_validation_images": held_out,
        "dataset_dirs": json.dumps(directories[False], ensure_ascii=False),
        "reg_dataset_dirs": json.dumps(directories[True], ensure_ascii=False),
        "tag_frequency": json.dumps(frequency, ensure_ascii=False),
        "bucket_info": json.dumps(_bucket_info(config, dataset)) if settings.buckets else None,
        "resolution": f"({settings.resolution}, {settings.resolution})",
        "enable_bucket": settings.buckets,
        "bucket_no_upscale": settings.bucket_no_upscale,
        "min_bucket_reso": settings.bucket_minimum_side,
        "max_bucket_reso": settings.bucket_maximum_side,
        "resize_interpolation": None,
        "shuffle_caption": settings.shuffle_tags,
        "keep_tokens": settings.keep_tokens,
        "flip_aug": settings.flip,
        "color_aug": settings.colour_augmentation,
        "random_crop": settings.random_crop,
        "face_crop_aug_range": None,
        "caption_dropout_rate": settings.caption_dropout_rate,
        "caption_dropout_every_n_epochs": settings.caption_dropout_every_epochs or 0,
        "caption_tag_dropout_rate": settings.tag_dropout_rate,
    }


def _bucket_info(config: TrainingConfig, dataset: DatasetFacts) -> dict[str, Any]:
    errors = []
    for folder, index in views_of_pictures(dataset):  # each picture once, whatever its repeats, as in sd-scripts
        picture = dataset.folders[folder].pictures[index]
        width, height = place(picture.width, picture.height, config.dataset).bucket
        errors.append(abs(width / height - picture.width / picture.height))
    return {
        "buckets": {
            str(number): {"resolution": list(bucket), "count": count}
            for number, (bucket, count) in enumerate(views(dataset, config.dataset).items())
        },
        "mean_img_ar_error": fmean(errors),
    }


def _modelspec(config: TrainingConfig, finished_at: float) -> dict[str, str]:
    """The keys of Stability AI's model specification 1.0.1, those without a value left out."""
    base, dataset, output = config.base_model, config.dataset, config.output
    family = family_facts(base.family)
    predicts_v = base.prediction_type == "v_prediction"
    minimum, maximum = config.noise.minimum_timestep, config.noise.maximum_timestep
    known = {
        "sai_model_spec": "1.0.1",
        "architecture": (family.v_architecture if predicts_v else "") or family.architecture,
        "implementation": family.implementation,
        "implementation_version": f"lora-wizard/{program_version()}",
        "title": output.name,
        "resolution": f"{dataset.resolution}x{dataset.resolution}",
        "date": time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(finished_at)),
        "author": output.author,
        "description": output.description,
        "trigger_phrase": dataset.trigger_word,
        "prediction_type": {"epsilon": "epsilon", "v_prediction": "v"}[base.prediction_type],
        "timestep_range": f"{minimum},{maximum}" if (minimum, maximum) != (0, 1000) else "",
        "encoder_layer": str(base.clip_skip) if base.clip_skip > 1 else "",
    }
    return {f"modelspec.{name}": value for name, value in known.items() if value}


def _name(path: str) -> str:
    """The last part of a path that may be written on another system."""
    return path.replace("\\", "/").rstrip("/").rpartition("/")[2]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else str(value)
