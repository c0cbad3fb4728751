"""OneTrainer's JSON: sparse over its defaults, nested by part of the model, folders as concepts."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from knowledge.config import CONV_ALGORITHMS, CONVOLUTIONS_TOO, fields
from knowledge.formats.translation import (
    Imported,
    Translation,
    as_bool,
    as_number,
    choice_of,
    facts_of,
    is_empty,
    rest,
)

DIALECT = "onetrainer"
PRECISIONS = {"FLOAT_32": "fp32", "TFLOAT_32": "fp32", "FLOAT_16": "fp16", "BFLOAT_16": "bf16"}
NESTED = (
    "optimizer", "unet", "prior", "transformer", "unconditional_transformer", "text_encoder", "text_encoder_2",
    "text_encoder_3", "text_encoder_4", "vae", "effnet_encoder", "decoder", "decoder_text_encoder", "decoder_vqgan",
)  # fmt: skip
OTHER_PARTS = (
    "prior",
    "transformer",
    "unconditional",
    "text_encoder_3",
    "text_encoder_4",
    "effnet",
    "decoder",
    "quantization",
)
ALGORITHMS = {"LORA": "lora", "LOHA": "loha", "LOKR": "lokr"}
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
WEIGHTS = {"FLOAT_8": "fp8", "INT_8": "8bit", "NFLOAT_4": "nf4"}
UNITS = {"EPOCH": "epochs", "STEP": "steps"}
DEFAULTS: dict[str, Any] = {
    "base_model.family": "sd15",
    "base_model.path": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "network.algorithm": "locon",
    "network.rank": 16,
    "network.alpha": 1.0,
    "network.train_text_encoder": True,
    "optimizer.learning_rate": 3e-6,
    "schedule.epochs": 100,
    "schedule.warmup": 200.0,
    "memory.precision": "fp16",
    "memory.gradient_checkpointing": True,
    "saving.precision": "fp32",
    "saving.every_epochs": None,
    "sampling.at_start": True,
}
"""What its settings are when the file does not say, by our names; those equal to our defaults are left out."""


def read_json(document: Mapping[str, Any], path: Path) -> Imported:
    """The config that this file describes; settings of older versions are told under the names they have in it."""
    settings, older = renewed(flattened(document))
    job = Translation("OneTrainer JSON", DIALECT, settings)
    job.implied |= DEFAULTS
    for rule in RULES:
        rule(job, path.parent)
    for key in job.source:
        if not job.done(key) and key.startswith(OTHER_PARTS):
            job.no_effect(key, "Only models of another kind read it.")
        elif not job.done(key) and key.startswith("optimizer."):
            _optimizer_setting(job, key)
    rest(job, "onetrainer")
    imported = job.result()
    notes = [dataclasses.replace(note, key=older.get(note.key, note.key)) for note in imported.notes]
    return dataclasses.replace(imported, notes=tuple(note for note in notes if note.key))


def renewed(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The settings under the names of today, and by these the older names that the file had, "" for what they imply.

    An older name beside its new one stays as it is: the new one counts.
    """
    names = facts_of("onetrainer")["older"]
    now: dict[str, Any] = {}
    older: dict[str, str] = {}
    for key, value in settings.items():
        new = names.get(key)
        if new is None or new in settings or isinstance(value, dict):
            now[key] = value
            continue
        now[new], older[new] = value, key
        if key == "min_snr_gamma" and as_number(value) and "loss_weight_fn" not in settings:
            now["loss_weight_fn"], older["loss_weight_fn"] = "MIN_SNR_GAMMA", ""
    return now, older


def flattened(document: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with those of optimizer and model parts by dotted name."""
    flat: dict[str, Any] = {}
    for key, value in document.items():
        if key in NESTED and isinstance(value, dict) and value:
            flat |= {f"{key}.{inner}": setting for inner, setting in value.items()}
        else:
            flat[key] = value
    return flat


def tables(value: Any) -> list[dict[str, Any]]:
    """The tables in a list of them; nothing of anything else."""
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _model(job: Translation, beside: Path) -> None:
    kind = job.get("model_type")
    if kind is not None:
        family = choice_of("base_model.family", DIALECT, kind)
        if family is None:
            job.unsupported("model_type", "This program does not train it. SD 1.5 is assumed.")
            job.other_kind = f"a model of the kind {kind}"
        else:
            job.mapped("model_type", "base_model.family", family)
            if family == "sd2" and not str(kind).endswith("_BASE"):
                job.implied["base_model.prediction_type"] = "v_prediction"
    method = job.get("training_method")
    if method is not None:
        if method == "LORA":
            job.no_effect("training_method", "A LoRA is what is trained here.")
        else:
            job.unsupported("training_method", f"It trains {method}, not a LoRA. A LoRA is trained here.")
    if not is_empty(job.get("base_model_name")):
        job.mapped("base_model_name", "base_model.path", str(job.get("base_model_name")))
    if as_bool(job.get("force_v_prediction")):
        job.mapped("force_v_prediction", "base_model.prediction_type", "v_prediction")
    if as_bool(job.get("force_epsilon_prediction")):
        job.mapped("force_epsilon_prediction", "base_model.prediction_type", "epsilon")
    skip = as_number(job.get("text_encoder_layer_skip"))
    if skip is not None:
        why = "It counts skipped layers from 0, clip skip counts from 1."
        job.changed("text_encoder_layer_skip", "base_model.clip_skip", skip + 1, why)


def _network(job: Translation, beside: Path) -> None:
    kind = str(job.get("peft_type", "LORA"))
    ours = ALGORITHMS.get(kind)
    everything = str(job.get("layer_filter_preset", "full")) == "full"
    if ours == "lora" and everything:
        ours = "locon"
    if as_bool(job.get("lora_decompose")) and kind == "LORA":
        ours = "dora"
        job.mapped("lora_decompose", "network.algorithm", "dora")
    elif as_bool(job.get("lora_decompose")):
        job.no_effect("lora_decompose", "Only plain LoRA reads it.")
    if "peft_type" in job.source:
        if ours is None:
            job.unsupported("peft_type", f"It trains {kind}. A plain LoRA is trained here.")
        else:
            job.mapped("peft_type", "network.algorithm", ours)
    elif ours != "dora":
        job.implied["network.algorithm"] = ours or "lora"
    if "layer_filter_preset" in job.source:
        if ours in CONV_ALGORITHMS:
            job.changed(
                "layer_filter_preset",
                "network.algorithm",
                "locon",
                "All layers there; here LoCon, which adds convolutions.",
            )
        elif everything and ours in CONVOLUTIONS_TOO:
            why = "All layers there; here the convolutions are added."
            job.changed("layer_filter_preset", "network.convolutions", True, why)
        elif everything:
            why = "It adapts every layer. Here attention and feed-forward layers are adapted."
            job.unsupported("layer_filter_preset", why)
        else:
            job.no_effect("layer_filter_preset", "Attention and feed-forward layers are what is adapted here.")
    if as_bool(job.get("lora_decompose_output_axis")):
        why = "It takes DoRA's norm over the outputs, which ComfyUI renders wrong. Here it is over the inputs."
        job.unsupported("lora_decompose_output_axis", why)
    rank_key, alpha_key = ("lokr_dim" if ours == "lokr" else "lora_rank"), "lora_alpha"
    for key in ("lora_rank", "lokr_dim"):
        if key in job.source:
            if key == rank_key:
                job.mapped(key, "network.rank", job.source[key])
            else:
                job.no_effect(key, f"{kind} does not read it.")
    if alpha_key in job.source:
        job.mapped(alpha_key, "network.alpha", job.source[alpha_key])
    if "lokr_decompose_factor" in job.source:
        if ours == "lokr":
            job.mapped("lokr_decompose_factor", "network.lokr_factor", job.source["lokr_decompose_factor"])
        else:
            job.no_effect("lokr_decompose_factor", "Only LoKr reads it.")
    if everything and ours in CONVOLUTIONS_TOO:
        job.implied["network.convolutions"] = True
    if everything:
        job.implied["network.conv_rank"] = job.values.get("network.rank", 16)
        job.implied["network.conv_alpha"] = job.values.get("network.alpha", 1.0)
    if ours == "lokr":
        job.implied["network.lokr_factor"] = -1
        if "lokr_full_matrix" in job.source:
            job.mapped("lokr_full_matrix", "network.lokr_full_matrix", as_bool(job.source["lokr_full_matrix"]))
    for key in list(job.source):
        if key.startswith(("lokr_", "oft_")) and not job.done(key) and ours != "lokr":
            job.no_effect(key, f"{kind} does not read it.")
    for part, name in (("unet", "network.train_unet"), ("text_encoder", "network.train_text_encoder")):
        if f"{part}.train" in job.source:
            job.mapped(f"{part}.train", name, job.source[f"{part}.train"])
    _stop_text_encoder(job)
    second = job.source.get("text_encoder_2.train")
    if second is not None:
        first = as_bool(job.get("text_encoder.train", True))
        if as_bool(second) == first or job.values.get("base_model.family", "sd15") != "sdxl":
            job.no_effect("text_encoder_2.train", "It says the same as for the first, or there is only one.")
        else:
            job.unsupported("text_encoder_2.train", "It trains one of the two text encoders. Here it is both or none.")


def _stop_text_encoder(job: Translation) -> None:
    key = "text_encoder.stop_training_after"
    if key not in job.source:
        return
    after, epochs = as_number(job.source[key]), as_number(job.get("epochs", 100))
    unit = str(job.get(f"{key}_unit", "EPOCH"))
    if unit == "NEVER" or not after or not epochs or (unit == "EPOCH" and after >= epochs):
        job.no_effect(key, "The text encoder is trained to the end.")
    elif unit == "EPOCH":
        job.changed(
            key, "network.text_encoder_share", after / epochs, "It counts epochs; here it is a share of the run."
        )
    else:
        job.unsupported(key, f"It counts {unit.lower()}s. Here the text encoder is trained to the end.")


def _rates(job: Translation, beside: Path) -> None:
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


def _optimizer_setting(job: Translation, key: str) -> None:
    word = key.rpartition(".")[2]
    if word == "optimizer":
        name = choice_of("optimizer.name", DIALECT, job.source[key])
        if name is None:
            job.unsupported(key, f"It trains with {job.source[key]}. AdamW is used here.")
        else:
            job.mapped(key, "optimizer.name", name)
    elif word == "weight_decay" and job.source[key] is not None:
        job.mapped(key, "optimizer.weight_decay", job.source[key])
    elif word in ("relative_step", "scale_parameter") and job.get("learning_rate_scheduler") == "ADAFACTOR":
        job.no_effect(key, "It goes with its schedule, as here.")
    elif is_empty(job.source[key]) or as_bool(job.source[key]) is False:
        job.no_effect(key, "It is not set.")
    elif word in ("fused", "fused_back_pass", "foreach", "capturable", "differentiable", "stochastic_rounding"):
        job.no_effect(key, "Changes speed, memory or where files lie, not what is learnt.")
    elif word in ("beta1", "beta2", "eps") or f"optimizer.{word}" not in fields():
        job.unsupported(key, f"It sets {word} of the optimizer; here that stays at the optimizer's own default.")


def _schedule(job: Translation, beside: Path) -> None:
    word = job.get("learning_rate_scheduler")
    if word is not None:
        ours = choice_of("schedule.scheduler", DIALECT, word)
        if ours is None:
            job.unsupported("learning_rate_scheduler", f"It follows the schedule {word}. The rate stays constant here.")
        else:
            job.mapped("learning_rate_scheduler", "schedule.scheduler", ours)
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


def _average(job: Translation, beside: Path) -> None:
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


def _loss(job: Translation, beside: Path) -> None:
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
    else:
        if weighting not in (None, "CONSTANT"):
            job.unsupported("loss_weight_fn", f"It weights the loss by {weighting}. Here all timesteps weigh the same.")
        elif weighting is not None:
            job.no_effect("loss_weight_fn", "It is what happens here anyway: all timesteps weigh the same.")
        if "loss_weight_strength" in job.source:
            job.no_effect("loss_weight_strength", "Only MIN_SNR_GAMMA and P2 read it.")
    for key, name in (
        ("min_noising_strength", "noise.minimum_timestep"),
        ("max_noising_strength", "noise.maximum_timestep"),
    ):
        share = as_number(job.get(key)) if key in job.source else None
        if share is not None:
            job.changed(key, name, round(share * 1000), "As a timestep instead of a share.")


def _memory(job: Translation, beside: Path) -> None:
    for key, name in (("train_dtype", "memory.precision"), ("output_dtype", "saving.precision")):
        word = job.get(key)
        if word is None:
            continue
        if str(word) in PRECISIONS:
            job.mapped(key, name, PRECISIONS[str(word)])
        else:
            job.unsupported(key, f"{word} is not among our precisions.")
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
    if "layer_offload_fraction" in job.source:
        share = as_number(job.source["layer_offload_fraction"]) or 0
        if share:
            why = "All blocks are offloaded here, not a share of them."
            job.changed("layer_offload_fraction", "memory.offload_blocks", True, why)
        else:
            job.no_effect("layer_offload_fraction", "0 switches it off there.")
    checkpointing = as_bool(job.source.get("gradient_checkpointing"))
    for key in ("gradient_checkpointing", "unet.gradient_checkpointing"):
        if key in job.source:
            value = job.source[key]
            value = value not in ("OFF", False, None) if checkpointing is None else value
            job.mapped(key, "memory.gradient_checkpointing", value)
    for part in ("text_encoder", "text_encoder_2", "vae"):
        key = f"{part}.gradient_checkpointing"
        if key in job.source:
            job.no_effect(key, "Changes speed, memory or where files lie, not what is learnt.")


def _dataset(job: Translation, beside: Path) -> None:
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
    concepts = job.get("concepts")
    name = job.get("concept_file_name")
    if concepts is None and not is_empty(name):
        path = Path(str(name)) if Path(str(name)).is_absolute() else beside / str(name)
        if path.is_file():
            try:
                concepts = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                concepts = None
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
            job.values[name] = held[key]
    if any(concept.get("balancing_strategy") == "SAMPLES" for concept in concepts):
        job.warnings.append("A concept is balanced by a number of samples; here its number is read as repeats.")
    if image.get("enable_crop_jitter", True):
        job.warnings.append(
            "OneTrainer cuts pictures a little differently each time (crop jitter). Here the middle is kept."
        )


def _sampling(job: Translation, beside: Path) -> None:
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
                job.values[f"sampling.{name}"] = first[word]
        for word in ("width", "height", "seed"):
            if first.get(word) is not None:
                job.values[f"sampling.{word}"] = first[word]
        sampler = SAMPLERS.get(str(first.get("noise_scheduler", "DDIM")))
        if sampler:
            job.values["sampling.sampler"] = sampler
        job.values["sampling.guidance_scale"] = float(job.values.get("sampling.guidance_scale", 7.0))
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
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(str(target).replace("\\", "/")).stem).strip("-._") or "my-lora"
        job.changed("output_model_destination", "output.name", name[:100], "The name without its folder.")


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


RULES: tuple[Callable[[Translation, Path], None], ...] = (
    _model,
    _network,
    _rates,
    _schedule,
    _average,
    _loss,
    _memory,
    _dataset,
    _sampling,
)
