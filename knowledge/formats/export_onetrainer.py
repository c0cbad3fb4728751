"""Our config as OneTrainer's JSON, which it lays over its own defaults."""

from __future__ import annotations

import json
from typing import Any

from knowledge.config import TrainingConfig, fields
from knowledge.formats.export import Exported, Writing
from knowledge.formats.onetrainer_files import SAMPLERS
from knowledge.formats.onetrainer_network import ALGORITHMS, LAYERS
from knowledge.formats.onetrainer_optimizer import written_optimizer
from knowledge.formats.onetrainer_training import DIALECT, PRECISIONS, UNLIKE_SCHEDULES, WEIGHTS
from knowledge.formats.sd_scripts import ENDLESS
from knowledge.formats.vocabulary import foreign_choice

FAMILIES = {
    "sd15": "STABLE_DIFFUSION_15",
    "sd2": "STABLE_DIFFUSION_21_BASE",
    "sdxl": "STABLE_DIFFUSION_XL_10_BASE",
}
OFFLOADED = 0.9
"""The share of blocks that it moves to memory, the most that its page offers."""
TO_THE_END = {"stop_training_after_unit": "NEVER"}
"""Text encoders stop there after 30 epochs unless they are told not to."""
VERSION = 11
"""Of its config; without one it takes a file for one of its oldest and moves the settings about."""
V_FAMILIES = {"sd2": "STABLE_DIFFUSION_21"}
"""The kinds that predict v by themselves there."""


def to_onetrainer(config: TrainingConfig, stem: str = "onetrainer") -> Exported:
    """One JSON file with the concepts inside it."""
    job = Writing(config)
    document: dict[str, Any] = {"__version": VERSION, "training_method": "LORA"}
    document |= {**_model(job), **_network(job), **_optimizer(job), **_schedule(job)}
    document |= _average(job)
    document |= {**_loss(job), **_dataset(job), **_output(job), **_samples(job)}
    job.lose_the_rest("It has no such setting, or means something else by it.")
    text = json.dumps(document, indent=4, ensure_ascii=False) + "\n"
    how = f"In OneTrainer: copy {stem}.json into training_presets and choose it."
    return Exported({f"{stem}.json": text}, document, {}, tuple(job.lost), how)


def _model(job: Writing) -> dict[str, Any]:
    family = job.value("base_model.family")
    if family not in FAMILIES:
        job.lose("base_model.family", "It knows no such model.")
    document: dict[str, Any] = {
        "model_type": FAMILIES.get(family, FAMILIES["sd15"]),
        "base_model_name": job.value("base_model.path"),
    }
    if job.value("base_model.prediction_type") == "v_prediction" and family in V_FAMILIES:
        document["model_type"] = V_FAMILIES[family]
    elif job.value("base_model.prediction_type") == "v_prediction":
        document["force_v_prediction"] = True
    if job.value("base_model.clip_skip") > 1:
        document["text_encoder_layer_skip"] = job.config.base_model.clip_skip - 1
    if job.value("base_model.zero_terminal_snr"):
        document["rescale_noise_scheduler_to_zero_terminal_snr"] = True
    if job.value("base_model.vae"):
        document["vae"] = {"model_name": job.config.base_model.vae}
    if job.value("network.start_from"):
        document["lora_model_name"] = job.config.network.start_from
    return document


def _held(job: Writing) -> dict[str, Any]:
    """In what the UNet's weights are kept."""
    names = {ours: theirs for theirs, ours in WEIGHTS.items()}
    form = job.value("memory.base_weights")
    return {"weight_dtype": names[form]} if form in names else {}


def _kept_small(job: Writing) -> dict[str, Any]:
    """How the UNet's blocks are kept while training, as its version 11 says it."""
    offloaded = job.value("memory.offload_blocks")
    return {
        "gradient_checkpointing": job.value("memory.gradient_checkpointing"),
        "offload_fraction": OFFLOADED if offloaded else 0.0,
    }


def _network(job: Writing) -> dict[str, Any]:
    algorithm = job.value("network.algorithm")
    kinds = {ours: theirs for theirs, ours in ALGORITHMS.items()}
    layers = "attn-only" if job.value("network.attention_only") else "attn-mlp"
    if job.config.network.adapts_convolutions:
        layers = "full"
    document: dict[str, Any] = {
        "peft_type": kinds.get(algorithm, "LORA"),
        "lora_alpha": job.value("network.alpha"),
        "layer_filter_preset": layers,
        "layer_filter": LAYERS[layers],
        "unet": {"train": job.value("network.train_unet"), **_held(job), **_kept_small(job)},
        "text_encoder": {"train": job.value("network.train_text_encoder"), **TO_THE_END},
    }
    if algorithm in ("lora", "locon"):
        document["dropout_probability"] = job.value("network.dropout")
    else:
        job.lose("network.dropout", "It leaves out something else for this type.")
    document["text_encoder_2"] = {"train": job.config.network.train_text_encoder, **TO_THE_END}
    for part in ("text_encoder", "text_encoder_2"):
        document[part]["dropout_probability"] = job.value("dataset.caption_dropout_rate")
    document["lokr_dim" if algorithm == "lokr" else "lora_rank"] = job.value("network.rank")
    if algorithm == "dora":
        document |= {"lora_decompose": True, "lora_decompose_output_axis": False}
    if algorithm == "lokr":
        document["lokr_decompose_factor"] = job.value("network.lokr_factor")
        document["lokr_full_matrix"] = job.value("network.lokr_full_matrix")
    if algorithm not in (*ALGORITHMS.values(), "locon", "dora"):
        job.lose(
            "network.algorithm", "It does not train this type, or keeps it in a form of its own; LoRA takes its place."
        )
    if job.config.network.adapts_convolutions:
        settings = job.config.network
        if (settings.conv_rank, settings.conv_alpha) != (settings.rank, settings.alpha):
            for name in ("network.conv_rank", "network.conv_alpha"):
                job.lose(name, "It gives convolutions the rank and alpha of the other layers.")
    job.done |= {"network.convolutions", "network.conv_rank", "network.conv_alpha", "network.lokr_factor"}
    job.done |= {"network.lokr_full_matrix", "network.dylora_block_size"}
    _stop_text_encoder(job, document)
    text = job.value("optimizer.text_encoder_learning_rate")
    if text is not None and job.config.network.train_text_encoder:
        document["text_encoder"]["learning_rate"] = text
        document["text_encoder_2"]["learning_rate"] = text
    second = job.value("optimizer.text_encoder_2_learning_rate")
    if second is not None and job.config.network.train_text_encoder:
        document["text_encoder_2"]["learning_rate"] = second
    return document


def _stop_text_encoder(job: Writing, document: dict[str, Any]) -> None:
    share, epochs = job.value("network.text_encoder_share"), job.config.schedule.epochs
    if share == 1:
        return
    after = max(1, round(share * epochs))
    if after != share * epochs:
        why = f"It counts whole epochs: after {after} of {epochs} there."
        job.lose("network.text_encoder_share", why)
    for part in ("text_encoder", "text_encoder_2"):
        document[part] |= {"stop_training_after": after, "stop_training_after_unit": "EPOCH"}


def _optimizer(job: Writing) -> dict[str, Any]:
    return {
        "optimizer": written_optimizer(job),
        "learning_rate": job.value("optimizer.learning_rate"),
        "clip_grad_norm": job.value("optimizer.maximum_gradient_norm"),
    }


def _schedule(job: Writing) -> dict[str, Any]:
    name = job.value("schedule.scheduler")
    word = "ADAFACTOR" if name == "adafactor" else foreign_choice("schedule.scheduler", DIALECT, name)
    if word in UNLIKE_SCHEDULES:
        job.lose("schedule.scheduler", UNLIKE_SCHEDULES[word])
    if word is None:
        job.lose("schedule.scheduler", "It does not have this schedule; cosine takes its place.")
    epochs, limit = job.value("schedule.epochs"), job.value("schedule.maximum_steps")
    if limit is not None:
        job.lose("schedule.maximum_steps", "It has no step limit; set epochs instead.")
        epochs = min(epochs, ENDLESS)
    return {
        "learning_rate_scheduler": word or "COSINE",
        "learning_rate_warmup_steps": job.value("schedule.warmup"),
        "learning_rate_min_factor": job.value("schedule.minimum_ratio"),
        **({"learning_rate_cycles": float(job.value("schedule.cycles"))} if name == "cosine_with_restarts" else {}),
        "epochs": epochs,
        "batch_size": job.value("schedule.batch_size"),
        "gradient_accumulation_steps": job.value("schedule.gradient_accumulation_steps"),
    }


def _average(job: Writing) -> dict[str, Any]:
    decay, every = job.value("ema.decay"), job.value("ema.every_steps")
    if decay is None:
        return {"ema": "OFF"}
    if job.value("ema.saved") == "both":
        job.lose("ema.saved", "It saves the average alone.")
    return {"ema": "GPU", "ema_decay": decay, "ema_update_step_interval": every}


def _loss(job: Writing) -> dict[str, Any]:
    function, gamma = job.value("loss.function"), job.value("loss.minimum_snr_gamma")
    if function not in ("l1", "l2"):
        job.lose("loss.function", "Its Huber loss bends elsewhere; the squared error takes its place.")
    document: dict[str, Any] = {"mse_strength": float(function != "l1"), "mae_strength": float(function == "l1")}
    document["loss_weight_fn"] = "CONSTANT" if gamma is None else "MIN_SNR_GAMMA"
    if gamma is not None:
        document["loss_weight_strength"] = gamma
        if job.config.loss.debiased:
            job.lose("loss.debiased", "It weights the loss in one way only, that of loss.minimum_snr_gamma.")
    elif job.value("loss.debiased"):
        document["loss_weight_fn"] = "DEBIASED_ESTIMATION"
    if job.value("noise.timestep_sampling") == "logit_normal":
        document |= {"timestep_distribution": "LOGIT_NORMAL", "noising_weight": 0.0, "noising_bias": 0.0}
    low, high = job.value("noise.minimum_timestep"), job.value("noise.maximum_timestep")
    document |= {"min_noising_strength": low / 1000, "max_noising_strength": high / 1000}
    document["offset_noise_weight"] = job.value("noise.offset")
    return document


def _dataset(job: Writing) -> dict[str, Any]:
    dataset = job.config.dataset
    image = {"enable_crop_jitter": job.value("dataset.random_crop"), "enable_random_flip": job.value("dataset.flip")}
    dropped = job.value("dataset.tag_dropout_rate")
    text: dict[str, Any] = {
        "tag_dropout_enable": dropped > 0,
        "tag_dropout_mode": "RANDOM",
        "tag_dropout_probability": dropped,
        "enable_tag_shuffling": job.value("dataset.shuffle_tags"),
        "keep_tags_count": job.value("dataset.keep_tokens"),
    }
    concepts = [
        {
            "name": folder.path.rpartition("/")[2] or folder.path,
            "path": folder.path,
            "balancing": float(folder.repeats),
            "balancing_strategy": "REPEATS",
            "type": "PRIOR_PREDICTION" if folder.regularisation else "STANDARD",
            "image": image,
            "text": text,
        }
        for folder in dataset.folders
    ]
    if any(folder.regularisation for folder in dataset.folders):
        job.lose("dataset.folders", "It preserves the prior in another way than regularisation pictures.")
    elif any(folder.masks or folder.caption for folder in dataset.folders):
        job.lose("dataset.folders", "Its masks lie beside the pictures, and each picture has a caption of its own.")
    job.done.add("dataset.folders")
    return {
        "concepts": concepts,
        "resolution": str(job.value("dataset.resolution")),
        "aspect_ratio_bucketing": job.value("dataset.buckets"),
        "latent_caching": job.value("memory.cache_latents"),
    }


def _output(job: Writing) -> dict[str, Any]:
    names = {ours: theirs for theirs, ours in PRECISIONS.items() if theirs != "TFLOAT_32"}
    checkpointing = job.value("memory.gradient_checkpointing")
    if job.value("memory.cache_location") != "disk":
        job.lose("memory.cache_location", "Its cache is always on disk.")
    document: dict[str, Any] = {
        "train_dtype": names[job.value("memory.precision")],
        "output_dtype": names[job.value("saving.precision")],
        "workspace_dir": job.value("output.folder"),
        "output_model_destination": f"models/{job.value('output.name')}.safetensors",
        "gradient_checkpointing": "ON" if checkpointing else "OFF",
        "lora_weight_dtype": "BFLOAT_16" if job.value("memory.full_half") else "FLOAT_32",
    }
    if job.config.memory.offload_blocks:  # as its versions before 11 say it
        document |= {"gradient_checkpointing": "CPU_OFFLOADED", "layer_offload_fraction": OFFLOADED}
    tracker = job.value("logging.tracker")
    document["tensorboard"] = tracker == "tensorboard"
    if tracker == "wandb":
        job.lose("logging.tracker", "It draws its charts in TensorBoard or nowhere.")
    for key, ours in (
        ("save_every", "saving.every"),
        ("backup_after", "saving.state_every"),
        ("sample_after", "sampling.every"),
    ):
        epochs = job.value(f"{ours}_epochs")
        steps = job.value(f"{ours}_steps") if f"{ours}_steps" in fields() else None
        number, unit = (epochs, "EPOCH") if epochs is not None else (steps, "STEP")
        document |= {key: number or 0, f"{key}_unit": unit if number else "NEVER"}
        if epochs is not None and steps is not None:
            job.lose(f"{ours}_steps", "It has one interval only, that in epochs.")
    return document


def _samples(job: Writing) -> dict[str, Any]:
    sampling = job.config.sampling
    job.done |= {name for name in fields() if name.startswith("sampling.")}
    if not sampling.prompts:
        return {"samples": []}
    samplers = {ours: theirs for theirs, ours in reversed(SAMPLERS.items())}
    if sampling.sampler not in samplers:
        job.lose("sampling.sampler", "It does not have this sampler; DDIM takes its place.")
    side = job.config.dataset.resolution
    common = {
        "enabled": True,
        "negative_prompt": sampling.negative_prompt,
        "width": sampling.width or side,
        "height": sampling.height or side,
        "seed": sampling.seed,
        "diffusion_steps": sampling.steps,
        "cfg_scale": sampling.guidance_scale,
        "noise_scheduler": samplers.get(sampling.sampler, "DDIM"),
    }
    return {
        "samples": [{"prompt": prompt, **common} for prompt in sampling.prompts],
        "sample_skip_first": 0 if sampling.at_start else 1,
    }
