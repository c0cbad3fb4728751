"""kohya_ss' form files: its own words, its "0" and its "", turned into the options that it calls sd-scripts with."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from knowledge.formats.commands import options_of
from knowledge.formats.kohya import read_options
from knowledge.formats.translation import Imported, Note, of_another_kind
from knowledge.formats.values import as_bool, as_number, is_empty
from knowledge.formats.vocabulary import facts_of

KIND = "kohya_ss JSON"
RENAMED = {
    "optimizer": "optimizer_type",
    "max_resolution": "resolution",
    "sdxl_cache_text_encoder_outputs": "cache_text_encoder_outputs",
    "sdxl_no_half_vae": "no_half_vae",
    "lora_network_weights": "network_weights",
}
"""The form's name → the option's, where the meaning is the same."""
ZERO_IS_UNSET = {
    "max_train_steps", "max_train_epochs", "min_snr_gamma", "noise_offset", "multires_noise_iterations",
    "ip_noise_gamma",
    "adaptive_noise_scale", "v_pred_like_loss", "vae_batch_size", "save_every_n_epochs", "save_every_n_steps",
    "seed",
    "save_last_n_epochs", "save_last_n_steps", "save_last_n_epochs_state", "save_last_n_steps_state", "clip_skip",
    "sample_every_n_epochs", "sample_every_n_steps", "min_timestep", "max_timestep", "unet_lr",
    "scale_weight_norms",
    "caption_dropout_every_n_epochs",
}  # fmt: skip
ALGORITHMS = {
    "LyCORIS/LoCon": "locon",
    "LoCon": "locon",
    "LyCORIS/LoHa": "loha",
    "LyCORIS/LoKr": "lokr",
    "LyCORIS/BOFT": "boft",
    "LyCORIS/Diag-OFT": "diag-oft",
    "LyCORIS/DyLoRA": "dylora",
    "LyCORIS/GLoRA": "glora",
    "LyCORIS/iA3": "ia3",
    "LyCORIS/Native Fine-Tuning": "full",
}
NATIVE = {
    "Standard": "networks.lora",
    "Kohya LoCon": "networks.lora",
    "LoRA-FA": "networks.lora_fa",
    "Kohya DyLoRA": "networks.dylora",
    "Kohya LoHa": "networks.loha",
    "Kohya LoKr": "networks.lokr",
}
READ = {
    "Kohya LoCon": ("conv_dim", "conv_alpha"),
    "Kohya DyLoRA": ("conv_dim", "conv_alpha", "unit"),
    "Kohya LoHa": ("conv_dim", "conv_alpha", "use_tucker"),
    "Kohya LoKr": ("conv_dim", "conv_alpha", "use_tucker", "factor"),
}
"""Arguments that the form passes on to a network of sd-scripts itself, beside the two dropouts."""
WITHOUT_BLOCKS = ("Kohya LoHa", "Kohya LoKr")
ARGUMENTS = {
    "LyCORIS_preset": "preset", "conv_dim": "conv_dim", "conv_alpha": "conv_alpha", "factor": "factor",
    "dora_wd": "dora_wd",
    "rank_dropout": "rank_dropout", "module_dropout": "module_dropout", "use_tucker": "use_tucker",
    "use_cp": "use_cp",
    "use_scalar": "use_scalar", "bypass_mode": "bypass_mode", "decompose_both": "decompose_both",
    "unit": "block_size",
    "rank_dropout_scale": "rank_dropout_scale", "train_norm": "train_norm", "train_on_input": "train_on_input",
    "constrain": "constraint", "rescaled": "rescaled",
}  # fmt: skip
"""The form's name → the argument of the network."""
LYCORIS_ONLY = {
    "factor": ("lokr",), "decompose_both": ("lokr",), "use_cp": ("lokr",),
    "unit": ("dylora",), "constrain": ("diag-oft",),
    "rescaled": ("diag-oft",), "train_on_input": ("ia3",), "dora_wd": ("locon", "loha", "lokr"),
    "bypass_mode": ("locon", "loha", "lokr"), "use_scalar": ("locon", "loha", "lokr"),
}  # fmt: skip
"""Arguments that the form passes on for some algorithms alone."""
KOHYA_BLOCKS = (
    "down_lr_weight", "mid_lr_weight", "up_lr_weight", "block_lr_zero_threshold", "block_dims", "block_alphas",
    "conv_block_dims", "conv_block_alphas", "conv_dims", "conv_alphas",
)  # fmt: skip
FAMILY_BOXES = {
    "flux1_checkbox": "Flux.1", "sd3_checkbox": "Stable Diffusion 3", "hunyuan_image_checkbox": "HunyuanImage",
    "anima_checkbox": "Anima", "lumina_checkbox": "Lumina",
}  # fmt: skip


OTHER_FORMS = {
    "train_dir": "fine-tuning",
    "create_caption": "fine-tuning",
    "generate_caption_database": "fine-tuning",
    "init_word": "textual inversion",
}
"""A field that only one form has → what that form is called; a file with none of these, nor LoRA's, is DreamBooth's."""


def read_json(document: Mapping[str, Any], path: Path) -> Imported:
    """The config that this form would train, with a note under the form's own name for every field of it."""
    options, said, behind = options_from_form(document)
    family = "sdxl" if as_bool(document.get("sdxl")) else "sd15"
    imported = read_options(options, KIND, path.parent, family=family)
    notes = [said[key] if key in said else _note_of(key, value, behind, imported) for key, value in document.items()]
    extra = [note for note in imported.notes if note.key.startswith(("additional_parameters.", "datasets."))]
    listed = {behind.get(key, key) for key in document}
    lists = ("optimizer_args.", "lr_scheduler_args.")
    extra += [n for n in imported.notes if n.key not in listed and n.key.startswith(lists)]
    added = _additional(document)
    extra += [dataclasses.replace(n, key=f"additional_parameters.{n.key}") for n in imported.notes if n.key in added]
    imported = dataclasses.replace(imported, notes=(*notes, *extra), warnings=(*imported.warnings, *_bites(document)))
    ticked = [kind for box, kind in FAMILY_BOXES.items() if as_bool(document.get(box))]
    return of_another_kind(imported, f"a {ticked[0]} model") if ticked else imported


def _additional(document: Mapping[str, Any]) -> dict[str, Any]:
    """The options in the form's field for raw parameters."""
    words = str(document.get("additional_parameters") or "").replace('"', "").split()
    return options_of(words)


def _note_of(key: str, value: Any, behind: Mapping[str, str], imported: Imported) -> Note:
    """What became of the option behind a field, under the field's name."""
    option = behind.get(key, key)
    if is_empty(value) and option not in ("xformers", "sdpa"):
        return Note(key, value, "no_effect", why="It is not set.")
    for note in imported.notes:
        if note.key == option:
            return dataclasses.replace(note, key=key, value=value)
    parts = [note for note in imported.notes if note.key.startswith(f"{option}.")]
    if parts:
        return Note(key, value, "changed", parts[0].name, parts[0].new, "Its parts are listed one by one.")
    return Note(key, value, "no_effect", why="It is not set.")


def options_from_form(document: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Note], dict[str, str]]:
    """Options of sd-scripts; notes on fields that lead to none; and the option behind each other field."""
    said: dict[str, Note] = {}
    behind: dict[str, str] = {}
    options: dict[str, Any] = {}
    network, arguments = _network(document, said)
    options |= network
    for key, argument in arguments.items():
        if key in document:
            options[f"network_args.{argument}"] = document[key]
            behind[key] = f"network_args.{argument}"
    if network:
        behind["LoRA_type"] = "network_args.algo" if "network_args.algo" in network else "network_module"
    for key, value in document.items():
        if key in said or key in behind:
            continue
        reason = _dead(key, value, document)
        if reason is not None:
            said[key] = reason
            continue
        option = RENAMED.get(key, key)
        behind[key] = option
        if key in ZERO_IS_UNSET and as_number(value) == 0:
            said[key] = Note(key, value, "no_effect", why="0 means not set.")
        elif not is_empty(value):
            options[option] = value
    _wandb(document, options, said, behind)
    _lengths(document, options, said, behind)
    _rates(document, options, said)
    if "xformers" in options:
        options[{"sdpa": "sdpa"}.get(str(options.pop("xformers")), "xformers")] = True
        behind["xformers"] = next(name for name in ("sdpa", "xformers") if name in options)
    return _with_additional(document, options, said, behind), said, behind


def _with_additional(
    document: Mapping[str, Any], options: dict[str, Any], said: dict[str, Note], behind: Mapping[str, str]
) -> dict[str, Any]:
    """The options with the raw ones, which override what the form says; a list of them replaces the whole list."""
    more = _additional(document)
    for key, value in document.items():
        option = behind.get(key, key)
        if option.partition(".")[0] in more or (key in said and said[key].name and _option_of(key) in more):
            said[key] = Note(key, value, "no_effect", why="additional_parameters overrides it.")
    kept = {option: value for option, value in options.items() if option.partition(".")[0] not in more}
    return kept | more


def _option_of(key: str) -> str:
    """The option that a field becomes which the form reckons with itself."""
    return {"lr_warmup": "lr_warmup_steps", "epoch": "max_train_epochs"}.get(key, key)


def _network(document: Mapping[str, Any], said: dict[str, Note]) -> tuple[dict[str, Any], dict[str, str]]:
    kind = str(document.get("LoRA_type", "Standard"))
    algorithm = ALGORITHMS.get(kind)
    if algorithm:
        wanted = {k: a for k, a in ARGUMENTS.items() if algorithm in LYCORIS_ONLY.get(k, (algorithm,))}
        _idle(document, said, [key for key in ARGUMENTS if key not in wanted], f"{kind} does not read it.")
        _idle(document, said, KOHYA_BLOCKS, f"{kind} does not read it.")
        empty = [key for key in wanted if is_empty(document.get(key))]
        _idle(document, said, empty, "It is not set.")
        return {"network_module": "lycoris.kohya", "network_args.algo": algorithm}, {
            key: argument for key, argument in wanted.items() if key not in empty
        }
    if kind not in NATIVE:
        said["LoRA_type"] = Note(
            "LoRA_type", kind, "unsupported", why=f'It trains "{kind}". A plain LoRA is trained here.'
        )
        _idle(document, said, [*ARGUMENTS, *KOHYA_BLOCKS], f"It belongs to {kind}.")
        return {}, {}
    read = ["rank_dropout", "module_dropout", *READ.get(kind, ())]
    _idle(document, said, [key for key in ARGUMENTS if key not in read], f"{kind} does not read it.")
    _idle(document, said, [key for key in read if not as_number(document.get(key))], "0 means not set.")
    wanted = {key: "unit" if key == "unit" else ARGUMENTS[key] for key in read if key not in said}
    if kind in WITHOUT_BLOCKS:
        _idle(document, said, KOHYA_BLOCKS, f"{kind} does not read it.")
    _idle(document, said, [key for key in KOHYA_BLOCKS if is_empty(document.get(key))], "It is not set.")
    _idle(document, said, ("conv_dims", "conv_alphas"), "sd-scripts knows no such argument.")
    wanted |= {key: key for key in KOHYA_BLOCKS if key not in said}
    return {"network_module": NATIVE[kind]}, wanted


def _idle(document: Mapping[str, Any], said: dict[str, Note], keys: Any, why: str) -> None:
    for key in keys:
        if key in document and key not in said:
            said[key] = Note(key, document[key], "no_effect", why=why)


def _dead(key: str, value: Any, document: Mapping[str, Any]) -> Note | None:
    """A note on fields of the form that never reach the training, or only that of another model."""
    known = facts_of("kohya_gui")
    if key == "sdxl":
        family = "sdxl" if as_bool(value) else "sd15"
        return Note(key, value, "mapped", "base_model.family", family)
    if key in FAMILY_BOXES:
        if as_bool(value):
            return Note(key, value, "unsupported", why="This program does not train it. SD 1.5 is assumed.")
        return Note(key, value, "no_effect", why="It is switched off there.")
    if key in known["harmless"]:
        return Note(key, value, "no_effect", why=known["harmless"][key])
    if key in known["other_forms"]["keys"]:
        return Note(key, value, "no_effect", why="Only the forms for other kinds of training read it.")
    if key in known["missing"]:
        if is_empty(value) or as_bool(value) is False or as_number(value) == 0:
            return Note(key, value, "no_effect", why="It is not set.")
        return Note(key, value, "unsupported", why=known["missing"][key])
    if key in known["other_models"]["keys"]:
        return Note(key, value, "no_effect", why="Only models of another kind (Flux, SD3, Anima …) read it.")
    kind = str(document.get("noise_offset_type", "Original"))
    of_kind = {
        "noise_offset": "Original",
        "noise_offset_random_strength": "Original",
        "adaptive_noise_scale": "Original",
    }
    of_kind |= {"multires_noise_iterations": "Multires", "multires_noise_discount": "Multires"}
    if key == "noise_offset_type":
        return Note(key, value, "no_effect", why="It only says which of the two kinds of noise below is read.")
    if key in of_kind and of_kind[key] != kind:
        return Note(key, value, "no_effect", why=f'noise_offset_type is "{kind}", so it is not read.')
    if key == "additional_parameters":
        if is_empty(value):
            return Note(key, value, "no_effect", why="It is not set.")
        return Note(key, value, "changed", why="Raw options; each is listed by itself.")
    return None


def _wandb(document: Mapping[str, Any], options: dict[str, Any], said: dict[str, Note], behind: dict[str, str]) -> None:
    """The switch of older forms for what log_with says now."""
    if "use_wandb" not in document:
        return
    options.pop("use_wandb", None)
    if as_bool(document["use_wandb"]) and is_empty(document.get("log_with")):
        options["log_with"], behind["use_wandb"] = "wandb", "log_with"
    else:
        why = "log_with is set and counts." if as_bool(document["use_wandb"]) else "It is switched off there."
        said["use_wandb"] = Note("use_wandb", document["use_wandb"], "no_effect", why=why)


def _lengths(
    document: Mapping[str, Any], options: dict[str, Any], said: dict[str, Note], behind: dict[str, str]
) -> None:
    """Epochs, step limit and warm-up, as the form computes them."""
    epochs = as_number(document.get("epoch")) or 1
    if "epoch" in document:
        behind.pop("epoch", None)
        options.pop("epoch", None)
        if as_number(document.get("max_train_epochs")):
            said["epoch"] = Note(
                "epoch", document["epoch"], "no_effect", why="max_train_epochs is set and overrides it."
            )
        elif as_number(document.get("max_train_steps")):
            why = "max_train_steps is set; the epochs never end the run."
            said["epoch"] = Note("epoch", document["epoch"], "no_effect", why=why)
        else:
            options["max_train_epochs"] = int(epochs)
            why = (
                "Real epochs. The form turns them into a step limit that knows no buckets and often ends the run early."
            )
            said["epoch"] = Note("epoch", document["epoch"], "changed", "schedule.epochs", int(epochs), why)
    percent, steps = as_number(document.get("lr_warmup")), as_number(document.get("lr_warmup_steps"))
    options.pop("lr_warmup", None)
    if "lr_warmup" in document:
        behind.pop("lr_warmup", None)
        constant = str(document.get("lr_scheduler")) == "constant"
        if steps:
            said["lr_warmup"] = Note("lr_warmup", percent, "no_effect", why="lr_warmup_steps is set and overrides it.")
        elif not percent:
            said["lr_warmup"] = Note("lr_warmup", percent, "no_effect", why="0 means no warm-up.")
        elif constant:
            why = 'The schedule "constant" has no warm-up; "constant_with_warmup" would.'
            said["lr_warmup"] = Note("lr_warmup", percent, "no_effect", why=why)
        else:
            share = percent / 100
            options["lr_warmup_steps"] = share
            why = "The form gives it in percent of the run."
            said["lr_warmup"] = Note("lr_warmup", percent, "changed", "schedule.warmup", float(share), why)
    cycles = document.get("lr_scheduler_num_cycles")
    if "lr_scheduler_num_cycles" in document and is_empty(cycles):
        options["lr_scheduler_num_cycles"] = int(epochs)


def _rates(document: Mapping[str, Any], options: dict[str, Any], said: dict[str, Note]) -> None:
    """One part is trained alone when it has a rate and the other has none."""
    text, unet = as_number(document.get("text_encoder_lr")), as_number(document.get("unet_lr"))
    if "text_encoder_lr" in document and not text:
        options.pop("text_encoder_lr", None)
        if unet:
            options["network_train_unet_only"] = True
            why = "No rate for the text encoder and one for the UNet: the form trains the UNet alone."
            said["text_encoder_lr"] = Note("text_encoder_lr", text, "changed", "network.train_text_encoder", False, why)
        else:
            said["text_encoder_lr"] = Note("text_encoder_lr", text, "no_effect", why="0 means: as learning_rate.")
    elif text and not unet:
        options["network_train_text_encoder_only"] = True
        if "unet_lr" in document:
            why = "No rate for the UNet and one for the text encoder: the form trains the text encoder alone."
            said["unet_lr"] = Note("unet_lr", document["unet_lr"], "changed", "network.train_unet", False, why)


def _bites(document: Mapping[str, Any]) -> tuple[str, ...]:
    """What bites only in kohya_ss, after which of its forms this file comes from when that is not the one for LoRA."""
    warnings = []
    if not {"LoRA_type", "network_dim"} & document.keys():
        form = next((name for field, name in OTHER_FORMS.items() if field in document), "DreamBooth")
        warnings.append(
            f"This file comes from kohya_ss' {form} form, which trains no LoRA. What the forms share is taken over; "
            "judge the learning rate anew."
        )
    if not as_number(document.get("max_train_epochs")) and not as_number(document.get("max_train_steps")):
        if is_empty(document.get("dataset_config")):
            warnings.append(
                "kohya_ss caps the run at pictures × repeats × epochs ÷ batch; with buckets an epoch needs more "
                "steps than that, so its last epochs are cut off. Here all epochs are run."
            )
        else:
            warnings.append(
                "With a dataset file and no step limit, kohya_ss trains 1600 steps whatever the epochs say."
            )
    if str(document.get("lr_scheduler")) == "constant" and as_number(document.get("lr_warmup")):
        warnings.append('kohya_ss ignores the warm-up under the schedule "constant".')
    return tuple(warnings)


def parse(text: str) -> dict[str, Any]:
    """The fields of a form file."""
    document = json.loads(text)
    return document if isinstance(document, dict) else {}
