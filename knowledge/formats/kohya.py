"""sd-scripts' own files: an options TOML with its dataset TOML, and a bare command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from knowledge.config import fields
from knowledge.formats import diffusers_scripts
from knowledge.formats.commands import training_command
from knowledge.formats.kohya_network import DIALECT
from knowledge.formats.sd_scripts import translate
from knowledge.formats.text import toml_at
from knowledge.formats.translation import Imported, of_another_kind
from knowledge.formats.translation import Note as Said
from knowledge.formats.values import as_bool, as_number, is_empty
from knowledge.formats.vocabulary import alike, facts_of

SUBSET_KEYS = ("image_dir", "num_repeats", "class_tokens", "is_reg", "conditioning_data_dir")
"""Subset options that become a folder; the others hold for the whole dataset here."""


def read_toml(document: Mapping[str, Any], path: Path) -> Imported:
    """An options file of sd-scripts, one of its dataset files alone, or derrian's file, which holds both."""
    if "subsets" in document and any(key.endswith("_args") for key in document):
        return _read_derrian(document, path)
    if set(document) == {"metadata", "data"} and all(isinstance(part, dict) for part in document.values()):
        return _read_preset(document, path)
    if "datasets" in document:
        return read_options({}, "sd-scripts dataset TOML", path.parent, dataset=document)
    return read_options(flattened(document), "sd-scripts TOML", path.parent)


def flattened(document: Mapping[str, Any]) -> dict[str, Any]:
    """The options without their sections: sd-scripts ignores section names, and a later value wins."""
    flat: dict[str, Any] = {}
    for key, value in document.items():
        flat |= flattened(value) if isinstance(value, dict) else {key: value}
    return flat


def _read_preset(document: Mapping[str, Any], path: Path) -> Imported:
    """A preset of lora-scripts (SD-Trainer): what its page shows of it, and the options that it changes there."""
    imported = read_options(flattened(document["data"]), "lora-scripts preset TOML", path.parent)
    about = [
        Said(f"metadata.{key}", value, "no_effect", why="It tells about the preset, not about the training.")
        for key, value in document["metadata"].items()
    ]
    warning = "A preset says only what it changes on that program's page; the rest here follows sd-scripts' defaults."
    return _with(imported, notes=(*imported.notes, *about), warnings=(warning, *imported.warnings))


EASY_TRAINING = {
    "tag_occurrence": "It writes a list of the tags beside the file.",
    "save_toml": "It writes these settings beside the file; here every run keeps its config.toml.",
    "save_toml_location": "It says where these settings are kept; here every run keeps its config.toml.",
    "name": "It names the folder in that program's window.",
}
"""Settings of the window of LoRA Easy Training Scripts that do nothing to the training, and why."""


def _read_derrian(document: Mapping[str, Any], path: Path) -> Imported:
    """LoRA_Easy_Training_Scripts: groups of options, each split into those of the run and those of the dataset.

    Its warmup_ratio is sd-scripts' lr_warmup_steps below 1, `sdxl` chooses the script, and a network argument `algo`
    the module.
    """
    options: dict[str, Any] = {}
    dataset: dict[str, Any] = {}
    for group in document.values():
        if isinstance(group, dict):
            options |= group["args"] if isinstance(group.get("args"), dict) else {}
            dataset |= group["dataset_args"] if isinstance(group.get("dataset_args"), dict) else {}
    subsets = tables(document["subsets"])
    own = [Said(key, options.pop(key), "no_effect", why=why) for key, why in EASY_TRAINING.items() if key in options]
    for number, subset in enumerate(subsets, 1):
        own += [
            Said(f"datasets.1.subsets.{number}.{key}", subset[key], "no_effect", why=why)
            for key, why in EASY_TRAINING.items()
            if key in subset
        ]
    family = None
    if "sdxl" in options:
        family = "sdxl" if as_bool(options["sdxl"]) else "sd15"
        own.append(Said("sdxl", options.pop("sdxl"), "mapped", "base_model.family", family))
    renamed = "warmup_ratio" in options and "lr_warmup_steps" not in options
    if renamed:
        options["lr_warmup_steps"] = options.pop("warmup_ratio")
    arguments = options.get("network_args")
    added = {} if "network_module" in options else {"network_module": "networks.lora"}
    if added and isinstance(arguments, dict) and "algo" in arguments:
        added["network_module"] = "lycoris.kohya"
    options |= added
    plain = [{key: value for key, value in subset.items() if key not in EASY_TRAINING} for subset in subsets]
    whole = {"general": dataset, "datasets": [{"subsets": plain}]}
    kind = "LoRA Easy Training Scripts TOML"
    imported = read_options(options, kind, path.parent, family=family, dataset=whole)
    older = {"lr_warmup_steps": "warmup_ratio"} if renamed else {}
    notes = [dataclasses.replace(note, key=older.get(note.key, note.key)) for note in imported.notes]
    return _with(imported, notes=(*(note for note in notes if note.key not in added), *own))


def read_command_line(text: str, path: Path) -> Imported:
    """A command as it is typed or stands in a script: accelerate launch … train_network.py --option value …

    Where it names an options file with --config_file, the options of the command stand above those of the file.
    """
    command = training_command(text, path)
    if command.script in diffusers_scripts.SCRIPTS:
        imported = diffusers_scripts.read_script(command.options, command.script)
        launched = [_of_the_launcher(key, value, command.options) for key, value in command.launcher.items()]
        notes, warnings = (*imported.notes, *launched), (*command.remarks, *imported.warnings)
        return _with(imported, notes=notes, warnings=warnings)
    options, own = _with_config_file(command.options, path.parent)
    imported = read_options(options, "sd-scripts command line", path.parent, family=command.family)
    notes = tuple(note for note in imported.notes if note.key != "config_file")
    launched = [_of_the_launcher(key, value, options) for key, value in command.launcher.items()]
    imported = _with(imported, notes=(*notes, *own, *launched), warnings=(*command.remarks, *imported.warnings))
    if command.script and command.family is None:
        return of_another_kind(imported, f"what {command.script} is for")
    return imported


def _with_config_file(options: dict[str, Any], beside: Path) -> tuple[dict[str, Any], list[Said]]:
    """The options with those of the file that config_file names, which count less; and a note on it."""
    name = options.get("config_file")
    if is_empty(name):
        return options, []
    path = beside / str(name)
    document = toml_at(path if path.suffix == ".toml" else path.with_name(f"{path.name}.toml"))
    if document is None:
        why = "It names the file with more options, which was not found beside this one."
        return options, [Said("config_file", name, "unsupported", why=why)]
    return flattened(document) | options, [Said("config_file", name, "no_effect", why="Its file was read.")]


def _of_the_launcher(key: str, value: Any, options: Mapping[str, Any]) -> Said:
    why = "It tells accelerate how to start the script."
    if key == "mixed_precision":
        why = "It is accelerate's; the script's own --mixed_precision counts, which is no unless it is given."
    return Said(f"accelerate.{key}", value, "no_effect", why=why)


def read_options(
    options: dict[str, Any],
    kind: str,
    beside: Path,
    *,
    family: str | None = None,
    dataset: Mapping[str, Any] | None = None,
) -> Imported:
    """The config of these options; the dataset file that they name is read too, where it is found."""
    if dataset is None and not is_empty(options.get("dataset_config")):
        dataset = toml_at(beside / str(options["dataset_config"]))
    if dataset is None:
        return translate(options, kind=kind, family=family, beside=beside)
    merged, notes, folders = from_dataset(dataset)
    if not as_bool(options.get("masked_loss")):
        for folder in folders:
            folder.pop("masks", None)  # sd-scripts loads them and looks at them under masked_loss alone
    ignored = ("train_data_dir", "reg_data_dir", "dataset_config", "in_json")
    rest = {key: value for key, value in options.items() if key not in (*ignored, *merged)}
    imported = translate(rest | merged, kind=kind, family=family, beside=beside)
    imported = _with(
        imported, notes=tuple(_in_dataset(note) if note.key in merged else note for note in imported.notes)
    )
    notes += [_overridden(key, options[key]) for key in (*ignored, *merged) if key in options]
    if not isinstance(dataset.get("datasets"), list):
        warning = "sd-scripts itself stops at this dataset file: each dataset must begin with a line [[datasets]]."
        imported = _with(imported, warnings=(*imported.warnings, warning))
    return _with_folders(imported, notes, folders)


def _in_dataset(note: Said) -> Said:
    """The note under the name that the option has in the dataset file."""
    key = {"train_batch_size": "batch_size"}.get(note.key, note.key)
    return dataclasses.replace(note, key=f"dataset.{key}")


def _overridden(key: str, value: Any) -> Said:
    why = "Its file was read." if key == "dataset_config" else "The dataset file overrides it."
    return Said(key, value, "no_effect", why=why)


def from_dataset(document: Mapping[str, Any]) -> tuple[dict[str, Any], list[Said], list[dict[str, Any]]]:
    """A dataset file as options for the whole dataset, notes on what differs within it, and our folders.

    Settings cascade there: a subset's own, else its dataset's, else the general ones.
    """
    general = document.get("general")
    general = general if isinstance(general, dict) else {}
    same, known = alike(DIALECT), facts_of("sd_scripts")
    options: dict[str, Any] = {}
    notes: list[Said] = []
    folders: list[dict[str, Any]] = []
    for number, dataset in enumerate(tables(document.get("datasets")), 1):
        own = {key: value for key, value in dataset.items() if key != "subsets"}
        for part, subset in enumerate(tables(dataset.get("subsets")), 1):
            where = f"datasets.{number}.subsets.{part}"
            effective = {**general, **own, **subset}
            folder, said = _folder_of(effective, subset, where)
            folders += [folder] if folder else []
            notes += said
            for key, value in effective.items():
                option = "train_batch_size" if key == "batch_size" else key
                if key in SUBSET_KEYS or (option in options and options[option] == value):
                    continue
                if option in options:
                    why = (
                        f"It is {value!r} here and {options[option]!r} in a folder before; ours holds for all folders."
                    )
                    notes.append(Said(f"{where}.{key}", value, "unsupported", why=why))
                elif (
                    option in known["options"]
                    or option in known["unset"]
                    or option in same
                    or option in known["missing"]
                ):
                    options[option] = value
                else:
                    notes.append(Said(f"{where}.{key}", value, "unknown"))
    return options, notes, folders


def tables(value: Any) -> list[dict[str, Any]]:
    """The tables of a list of them; also where a pair of brackets was forgotten, or each was given a name."""
    if isinstance(value, list):
        return [entry for entry in value if isinstance(entry, dict)]
    if not isinstance(value, dict):
        return []
    named = [entry for entry in value.values() if isinstance(entry, dict)]
    return named if named and len(named) == len(value) else [value]


def _folder_of(
    effective: Mapping[str, Any], subset: Mapping[str, Any], where: str
) -> tuple[dict[str, Any] | None, list[Said]]:
    if is_empty(effective.get("image_dir")):
        why = "It names no folder with pictures (captions come from a JSON file), which is not read here."
        return None, [Said(f"{where}.image_dir", None, "unsupported", why=why)]
    folder: dict[str, Any] = {
        "path": str(effective["image_dir"]),
        "repeats": max(1, int(as_number(effective.get("num_repeats")) or 1)),
        "regularisation": as_bool(effective.get("is_reg", False)) is True,
    }
    names = {"image_dir": "path", "num_repeats": "repeats", "is_reg": "regularisation"}
    if "dataset.folders.caption" in fields():
        folder["caption"] = str(effective.get("class_tokens") or "")
        names["class_tokens"] = "caption"
    if "dataset.folders.masks" in fields():
        folder["masks"] = str(effective.get("conditioning_data_dir") or "")
        names["conditioning_data_dir"] = "masks"
    notes = [
        Said(f"{where}.{key}", subset[key], "mapped", f"dataset.folders.{column}", folder[column])
        for key, column in names.items()
        if key in subset
    ]
    return folder, notes


def _with_folders(imported: Imported, notes: list[Said], folders: list[dict[str, Any]]) -> Imported:
    from pydantic import ValidationError

    from knowledge.answers import plain_problems
    from knowledge.config import TrainingConfig, with_values

    values = {**imported.values, "dataset.folders": tuple(folders)}
    try:
        config, problems = with_values(TrainingConfig(), values), ()
    except ValidationError as error:
        return _with(
            imported, config=None, values=values, notes=(*imported.notes, *notes), problems=tuple(plain_problems(error))
        )
    return _with(imported, config=config, values=values, notes=(*imported.notes, *notes), problems=problems)


def _with(imported: Imported, **changes: Any) -> Imported:
    return dataclasses.replace(imported, **changes)
