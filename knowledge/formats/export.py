"""Our config as sd-scripts' files: options, dataset and prompts, with what the other side cannot express."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from knowledge.config import MIXED_PRECISION, TrainingConfig, choices, fields, value_of
from knowledge.formats.kohya_network import DIALECT, write_network
from knowledge.formats.meaning import idle
from knowledge.formats.sd_scripts import ENDLESS, RULED, implied
from knowledge.formats.sd_scripts_files import SAMPLERS as KOHYA_SAMPLERS
from knowledge.formats.translation import Translation
from knowledge.formats.vocabulary import facts_of, foreign_choice
from knowledge.optimizer_arguments import all_arguments, to_text
from knowledge.parameters import parameters

DATASET_OPTIONS = {
    "resolution", "enable_bucket", "bucket_no_upscale", "bucket_reso_steps", "min_bucket_reso", "max_bucket_reso",
    "shuffle_caption", "keep_tokens", "keep_tokens_separator", "caption_extension", "caption_dropout_rate",
    "caption_dropout_every_n_epochs", "caption_tag_dropout_rate", "caption_prefix", "caption_suffix",
    "enable_wildcard", "color_aug", "flip_aug", "random_crop", "face_crop_aug_range", "alpha_mask",
    "secondary_separator", "caption_separator", "token_warmup_min", "token_warmup_step",
}  # fmt: skip
"""Options that stand in the dataset file; sd-scripts reads them there alone when there is one."""
SAVED_PRECISIONS = {"fp32": "float", "fp16": "fp16", "bf16": "bf16"}
SAMPLERS = {ours: theirs for theirs, ours in KOHYA_SAMPLERS.items()}
ALWAYS = {"dataset.resolution", "seed", "output.name", "output.folder"}
"""Written whatever they are: sd-scripts has no default for them, or a random one."""
SCRIPTS = {"sd15": "train_network.py", "sd2": "train_network.py", "sdxl": "sdxl_train_network.py"}


@dataclass(frozen=True)
class Lost:
    """A setting that the other side cannot express, and what it does instead."""

    name: str
    value: Any
    why: str


@dataclass(frozen=True)
class Exported:
    """Files by name, the options in them, and what got lost. `how` is the command that uses them."""

    files: dict[str, str]
    options: dict[str, Any]
    dataset: dict[str, Any]
    lost: tuple[Lost, ...]
    how: str


class Writing:
    """The work of one export: options so far, and parameters that have been spoken of."""

    def __init__(self, config: TrainingConfig) -> None:
        self.config = config
        self.options: dict[str, Any] = {}
        self.done: set[str] = set()
        self.lost: list[Lost] = []
        self.idle = idle(config)

    def value(self, name: str) -> Any:
        self.done.add(name)
        return value_of(self.config, name)

    def lose(self, name: str, why: str) -> None:
        """Say that this is lost, unless it says nothing in this config anyway."""
        self.done.add(name)
        if name not in self.idle:
            self.lost.append(Lost(name, value_of(self.config, name), why))

    def lose_the_rest(self, why: str) -> None:
        """Lose every parameter that differs from its default and has not been spoken of."""
        for name, field in fields().items():
            if name in self.done or name.startswith("dataset.folders."):
                continue
            if value_of(self.config, name) != field.default:
                self.lose(name, why)


def to_sd_scripts(config: TrainingConfig, stem: str = "sd-scripts") -> Exported:
    """Options TOML, dataset TOML and prompts for sd-scripts."""
    job = Writing(config)
    _model(job)
    write_network(job)
    _rates(job)
    _schedule(job)
    _weights(job)
    _memory_and_saving(job)
    _tracker(job)
    _validation(job)
    prompts = _sampling(job, stem)
    _alike(job)
    masks = any(getattr(folder, "masks", "") for folder in config.dataset.folders)
    if masks or job.options.get("alpha_mask"):
        job.options["masked_loss"] = True
    dataset = {key: job.options.pop(key) for key in list(job.options) if key in DATASET_OPTIONS}
    head = {"resolution": config.dataset.resolution, "batch_size": job.options.pop("train_batch_size", 1)}
    subsets = [_subset(job, folder, bool(dataset.get("alpha_mask"))) for folder in config.dataset.folders]
    kinds = [
        [subset for subset in subsets if ("conditioning_data_dir" in subset) == masked] for masked in (False, True)
    ]  # folders with masks and without cannot stand in one dataset there
    document = {
        "general": {key: value for key, value in dataset.items() if key not in ("resolution", "alpha_mask")},
        "datasets": [{**head, "subsets": kind} for kind in kinds if kind] or [{**head, "subsets": []}],
    }
    job.options["dataset_config"] = f"{stem}.dataset.toml"
    files = {f"{stem}.toml": _toml(job.options), f"{stem}.dataset.toml": _toml(document)}
    if prompts:
        files[f"{stem}.prompts.txt"] = prompts
    script = SCRIPTS.get(config.base_model.family, "train_network.py")
    return Exported(
        files, job.options, document, tuple(job.lost), f"accelerate launch {script} --config_file {stem}.toml"
    )


def _toml(document: dict[str, Any]) -> str:
    import tomlkit

    return tomlkit.dumps(document)


def _subset(job: Writing, folder: Any, alpha_masks: bool) -> dict[str, Any]:
    """One folder there. A folder with masks is of another kind, which knows neither class tokens nor is_reg."""
    subset = {"image_dir": folder.path, "num_repeats": folder.repeats}
    masks, caption = folder.masks, folder.caption
    if masks and folder.regularisation:
        job.lost.append(Lost("dataset.folders.masks", masks, "A folder there has masks or is for regularisation."))
        masks = ""
    if masks and caption:
        job.lost.append(Lost("dataset.folders.caption", caption, "A folder with masks has no caption for all there."))
        caption = ""
    if folder.regularisation:
        subset["is_reg"] = True
    if caption:
        subset["class_tokens"] = caption
    if masks:
        subset["conditioning_data_dir"] = masks
    elif alpha_masks:
        subset["alpha_mask"] = True
    return subset


def _model(job: Writing) -> None:
    family = job.value("base_model.family")
    job.options["pretrained_model_name_or_path"] = job.value("base_model.path")
    if family == "sdxl":
        job.options["no_half_vae"] = True  # what we do as well; it also tells the reader of the file that this is SDXL
    elif family == "sd2":
        job.options["v2"] = True
    elif family == "pocket":
        job.lose("base_model.family", "It knows no pocket model.")
    elif family not in SCRIPTS:
        job.lose("base_model.family", "It knows no such model.")
    if job.value("base_model.prediction_type") == "v_prediction":
        job.options["v_parameterization"] = True
    skip = job.value("base_model.clip_skip")
    if skip > 1 and family != "sdxl":
        job.options["clip_skip"] = skip
    if job.value("dataset.trigger_word"):
        job.lose("dataset.trigger_word", "It has no trigger word; write it into the captions.")
    job.value("dataset.goal")


def _rates(job: Writing) -> None:
    job.options["learning_rate"] = job.value("optimizer.learning_rate")
    text = job.value("optimizer.text_encoder_learning_rate")
    if text is not None and job.config.network.train_text_encoder:
        job.options["text_encoder_lr"] = [text]
    second = job.value("optimizer.text_encoder_2_learning_rate")
    if second is not None and job.config.network.train_text_encoder:
        job.lose("optimizer.text_encoder_2_learning_rate", "Its LoRA trains both text encoders at the first rate.")
    name = job.value("optimizer.name")
    word = foreign_choice("optimizer.name", DIALECT, name)
    if word is None:
        job.lose("optimizer.name", "It does not have this optimizer; AdamW takes its place.")
        word = "AdamW"
    job.options["optimizer_type"] = word
    arguments = []
    known = facts_of("sd_scripts")
    for own in [one for one in fields() if one.startswith("optimizer.") and one not in job.done]:
        for key in parameters()[own].names.get(DIALECT, ()):
            if key not in known["options"] and key not in known["unset"]:
                value = job.value(own)
                if own == "optimizer.weight_decay" or value != fields()[own].default:
                    arguments.append(f"{key}={value}")
                break
    job.options["optimizer_args"] = [*arguments, *_optimizer_arguments(job, name)]


def _optimizer_arguments(job: Writing, name: str) -> list[str]:
    """What our optimizer is given and its class there would not do unasked."""
    facts, own = facts_of("sd_scripts"), job.value("optimizer.arguments")
    lacking = facts["optimizer_lacks"].get(name, own)
    if any(argument in lacking for argument in own):
        job.lose("optimizer.arguments", "Its optimizer does not take them.")
    theirs = all_arguments(name, {}) | facts["optimizer_defaults"].get(name, {})
    renamed = {ours: key for key, ours in facts["optimizer_arguments"].get(name, {}).items()}
    scheduler = job.config.schedule.scheduler
    relative = {"relative_step": scheduler == "adafactor", "warmup_init": job.value("schedule.warmup_init")}
    if name != "adafactor" or scheduler != "adafactor":
        del relative["warmup_init"]
    words = [f"{argument}={value}" for argument, value in relative.items() if name == "adafactor"]
    return words + [
        f"{renamed.get(argument, argument)}={to_text(value)}"
        for argument, value in all_arguments(name, own, scheduler).items()
        if argument not in lacking and value != theirs.get(argument)
    ]


def _schedule(job: Writing) -> None:
    scheduler, warmup = job.value("schedule.scheduler"), job.value("schedule.warmup")
    word = foreign_choice("schedule.scheduler", DIALECT, scheduler)
    if scheduler == "constant" and warmup:
        word = "constant_with_warmup"
    if scheduler == "adafactor" == job.config.optimizer.name:  # which it names like the optimizer
        word = scheduler
    if word is None:
        job.lose("schedule.scheduler", "It does not have this schedule; the nearest it has is cosine.")
        if scheduler == "adafactor" and job.config.schedule.warmup_init:
            job.lose("schedule.warmup_init", "It belongs to Adafactor's own schedule.")
        word = "cosine"
    minimum = job.value("schedule.minimum_ratio")
    if scheduler == "cosine" and minimum:
        word = "cosine_with_min_lr"
    elif minimum and scheduler != "warmup_stable_decay":
        job.lose("schedule.minimum_ratio", "Only its cosine and its warmup_stable_decay have a minimum.")
        minimum = 0.0
    if minimum and "schedule.minimum_ratio" not in job.idle:
        job.options["lr_scheduler_min_lr_ratio"] = minimum
    if scheduler == "warmup_stable_decay":
        decay = job.value("schedule.decay")
        job.options["lr_decay_steps"] = int(decay) if decay >= 1 else decay
    job.options["lr_scheduler"] = word
    if warmup and scheduler == "adafactor":
        job.lose("schedule.warmup", "Under Adafactor's own schedule it has none but schedule.warmup_init.")
    elif warmup:
        job.options["lr_warmup_steps"] = int(warmup) if warmup >= 1 else warmup
    epochs, limit = job.value("schedule.epochs"), job.value("schedule.maximum_steps")
    if limit is None:
        job.options["max_train_epochs"] = epochs
        return
    job.options["max_train_steps"] = limit
    if epochs < ENDLESS:
        job.lose("schedule.epochs", "It cannot hold both: only the step limit is written, and it ends the run.")


def _memory_and_saving(job: Writing) -> None:
    if job.value("memory.fused_backward"):
        job.lose("memory.fused_backward", "Its LoRA training has the switch and does not read it.")
    job.options["mixed_precision"] = MIXED_PRECISION[job.value("memory.precision")]
    to_disk = job.value("memory.cache_location") == "disk"
    for name, key in (
        ("memory.cache_latents", "cache_latents"),
        ("memory.cache_text_encoder_outputs", "cache_text_encoder_outputs"),
    ):
        if job.value(name) and (key != "cache_text_encoder_outputs" or job.config.base_model.family == "sdxl"):
            job.options |= {key: True} | ({f"{key}_to_disk": True} if to_disk else {})
        elif job.value(name):
            job.lose(name, "Only its script for SDXL can keep them.")
    if not to_disk and not any(key in job.options for key in ("cache_latents", "cache_text_encoder_outputs")):
        job.lose("memory.cache_location", "Nothing is kept there that it could say so of.")
    if job.value("memory.full_half"):
        job.options["full_bf16"] = True
    if job.value("memory.base_weights") == "fp8":
        job.options["fp8_base"] = True
    elif job.config.memory.base_weights != "same":
        job.lose("memory.base_weights", "It holds the base model in fp8 or as it is.")
    job.options["save_precision"] = SAVED_PRECISIONS[job.value("saving.precision")]
    job.options["save_model_as"] = "safetensors"
    epochs, steps = job.value("saving.every_epochs"), job.value("saving.every_steps")
    if epochs is not None:
        job.options["save_every_n_epochs"] = epochs
    if steps is not None:
        job.options["save_every_n_steps"] = steps
    kept = job.value("saving.metadata")
    if kept != "full":
        job.options["no_metadata"] = True
    if kept == "none":
        job.lose("saving.metadata", "What a program needs to know the file it always writes.")
    keep = job.value("saving.keep_last")
    if keep is not None and epochs is not None:
        job.options["save_last_n_epochs"] = keep
    elif keep is not None and steps is not None:
        job.options["save_last_n_steps"] = keep * steps
    elif keep is not None:
        job.lose("saving.keep_last", "It keeps the last files only together with an interval.")
    state = job.value("saving.state_every_epochs")
    if state is not None:
        if state == epochs:
            job.options["save_state"] = True
        else:
            job.lose("saving.state_every_epochs", "It saves a state whenever it saves a file, and at no other time.")


def _validation(job: Writing) -> None:
    if job.config.validation.every_epochs is None:
        job.lose("validation.every_epochs", "It measures held-out pictures after every epoch in any case.")


def _tracker(job: Writing) -> None:
    tracker = job.value("logging.tracker")
    if tracker != "none":
        job.options |= {"log_with": tracker, "logging_dir": f"{job.config.output.folder}/logs"}


def _sampling(job: Writing, stem: str) -> str:
    """The prompt file's text; empty without prompts, when no setting of sampling means anything."""
    names = [name for name in fields() if name.startswith("sampling.")]
    sampling = job.config.sampling
    job.done |= set(names)
    if not sampling.prompts:
        return ""
    marks: list[tuple[str, Any]] = [
        ("n", sampling.negative_prompt),
        ("w", sampling.width),
        ("h", sampling.height),
        ("d", sampling.seed),
    ]
    marks += [("s", sampling.steps), ("l", sampling.guidance_scale)]
    tail = "".join(f" --{mark} {value}" for mark, value in marks if value not in (None, ""))
    job.options["sample_prompts"] = f"{stem}.prompts.txt"
    sampler = SAMPLERS.get(sampling.sampler)
    if sampler is None:
        job.lose("sampling.sampler", "It does not have this sampler; ddim takes its place.")
    job.options["sample_sampler"] = sampler or "ddim"
    if sampling.at_start:
        job.options["sample_at_first"] = True
    if sampling.every_epochs is not None:
        job.options["sample_every_n_epochs"] = sampling.every_epochs
        if sampling.every_steps is not None:
            job.lose("sampling.every_steps", "It reads one interval only, that in epochs.")
    elif sampling.every_steps is not None:
        job.options["sample_every_n_steps"] = sampling.every_steps
    return "".join(f"{' '.join(prompt.split())}{tail}\n" for prompt in sampling.prompts)


def _weights(job: Writing) -> None:
    """It stops at a weighting that is meant for the other kind of model."""
    v_prediction = job.config.base_model.prediction_type == "v_prediction"
    if job.config.loss.scaled_like_noise_prediction and not v_prediction:
        job.lose("loss.scaled_like_noise_prediction", "It takes this for v-prediction models alone.")
    if job.config.loss.v_prediction_like and v_prediction:
        job.lose("loss.v_prediction_like", "It takes this for noise-predicting models alone.")


def _alike(job: Writing) -> None:
    """Every other parameter that differs from what sd-scripts does unasked, under the option that its entry names."""
    known = facts_of("sd_scripts")
    unasked = implied(Translation("", DIALECT, {}), None)
    job.done.add("dataset.folders")
    for name in fields():
        if name in job.done | job.idle or name.startswith("dataset.folders."):
            continue
        value = value_of(job.config, name)
        options = [key for key in parameters()[name].names.get(DIALECT, ()) if key not in RULED]
        option = next((key for key in options if key in known["options"] or key in known["unset"]), None)
        if name not in ALWAYS and value == unasked.get(name, fields()[name].default):
            continue
        if name == "dataset.resolution":
            job.options["resolution"] = value
        elif option is None:
            if value != fields()[name].default:
                job.lose(name, "It has no such setting.")
        elif value is not None and value != "":
            word = foreign_choice(name, DIALECT, value) or value if choices(fields()[name]) else value
            job.options[option] = word
