"""The metadata of a finished LoRA: the recipe of sd-scripts (ss_*), or our own config, to make another one like it."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from knowledge.answers import PlainError
from knowledge.config import TrainingConfig, fields, value_of, with_values
from knowledge.families import family_of_version
from knowledge.formats.sd_scripts import translate
from knowledge.formats.translation import Imported, Note
from knowledge.formats.values import as_number
from knowledge.formats.vocabulary import facts_of
from knowledge.tensor_file import read_document

OWN = "lora_wizard.config"
KIND = "LoRA metadata"
RENAMED = {
    "ss_batch_size_per_device": "train_batch_size",
    "ss_debiased_estimation": "debiased_estimation_loss",
    "ss_vae_name": "vae",
    "ss_output_name": "output_name",
    "ss_num_epochs": "max_train_epochs",
}


def read_header(path: Path) -> tuple[dict[str, str], list[str]]:
    """Metadata and names of the tensors of a safetensors file, from its first bytes alone. May raise PlainError."""
    try:
        with path.open("rb") as file:
            document, _ = read_document(file)
        metadata = document.get("__metadata__") or {}
        return {str(key): str(value) for key, value in metadata.items()}, list(document)
    except (ValueError, AttributeError, RecursionError):
        raise PlainError(f"{path} is not a sound safetensors file: its header cannot be read.") from None


def read_lora(path: Path) -> Imported:
    """The config that a LoRA file says it was trained with. Raises PlainError when it says nothing of that."""
    metadata, names = read_header(path)
    if OWN in metadata:
        return _own(metadata)
    if not any(key.startswith("ss_") for key in metadata):
        raise PlainError(f"{path} does not say how it was trained: it carries no ss_* metadata.")
    text = any(name.startswith(("lora_te", "text_encoder")) for name in names)
    unet = any(name.startswith(("lora_unet", "unet.")) for name in names)
    only = {(True, False): "network_train_unet_only", (False, True): "network_train_text_encoder_only"}.get(
        (unet, text)
    )
    return read_metadata(metadata, {only: True} if only else {})


def _own(metadata: Mapping[str, str]) -> Imported:
    """Our own config, which every file of ours carries whole."""
    try:
        given = TrainingConfig.model_validate_json(metadata[OWN], strict=False)
    except ValidationError:
        return read_metadata({key: value for key, value in metadata.items() if key != OWN}, {})
    neutral = TrainingConfig()
    values = {name: value_of(given, name) for name in fields() if "folders." not in name}
    changed = {name: value for name, value in values.items() if value != value_of(neutral, name)}
    notes = tuple(Note(f"{OWN}.{name}", value, "mapped", name, value) for name, value in changed.items())
    return Imported(KIND, given, values, notes)


def read_metadata(metadata: Mapping[str, str], parts: Mapping[str, bool]) -> Imported:
    """The config of these ss_* entries, with a note for each of them. `parts`: the option for the parts in the file."""
    facts = facts_of("lora_metadata")
    options: dict[str, Any] = dict(parts)
    behind: dict[str, str] = {}
    said: dict[str, Note] = {}
    known = facts_of("sd_scripts")
    for key, text in metadata.items():
        value = literal(text)
        option = RENAMED.get(key, key.removeprefix("ss_"))
        if key in facts["about"]:
            said[key] = Note(key, value, "no_effect", why=facts["about"][key])
        elif value is None:
            said[key] = Note(key, value, "no_effect", why="It was not set.")
        elif key.startswith("ss_") and (
            option in known["options"] or option in known["unset"] or option in known["missing"]
        ):
            options[option] = value
            behind[key] = option
    _network(metadata, options, behind)
    _optimizer(metadata, options, behind)
    _length(metadata, options, said)
    if metadata.get("ss_sd_model_name") not in (None, "None"):
        options["pretrained_model_name_or_path"] = metadata["ss_sd_model_name"]
        behind["ss_sd_model_name"] = "pretrained_model_name_or_path"
    if literal(metadata.get("ss_text_encoder_lr", "None")) == [] or metadata.get("ss_text_encoder_lr") == "[]":
        options.pop("text_encoder_lr", None)
    version = metadata.get("ss_base_model_version", "")
    family = family_of_version(version)
    imported = translate(options, kind=KIND, family=family)
    notes = []
    extra = _extra(metadata, imported, family)
    for key, text in metadata.items():
        if key in said:
            notes.append(said[key])
        elif key in extra:
            notes.append(extra[key])
        else:
            notes.append(_note(key, literal(text), behind, imported))
    listed = {behind[key] for key in behind}
    notes += [note for note in imported.notes if note.key not in listed and "." in note.key]
    return _with_values(imported, notes, {note.name: note.new for note in extra.values() if note.name})


def literal(text: str) -> Any:
    """A value as sd-scripts wrote it with str(): None, True, numbers, tuples, lists; else the text."""
    if text in ("None", ""):
        return None
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return list(value) if isinstance(value, tuple) else value


def _note(key: str, value: Any, behind: Mapping[str, str], imported: Imported) -> Note:
    option = behind.get(key)
    for note in imported.notes:
        if option is not None and note.key == option:
            return dataclasses.replace(note, key=key, value=value)
    if option is not None:
        return Note(key, value, "changed", why="Its parts are listed one by one.")
    if key.startswith(("modelspec.", "sshs_")):
        return Note(key, value, "no_effect", why="It tells about the file, not about the training.")
    return Note(key, value, "unknown")


def _network(metadata: Mapping[str, str], options: dict[str, Any], behind: dict[str, str]) -> None:
    try:
        arguments = json.loads(metadata.get("ss_network_args", "{}"))
    except ValueError:
        arguments = {}
    if "ss_network_args" in metadata:
        options.pop("network_args", None)
        behind["ss_network_args"] = "network_args"
        if isinstance(arguments, dict):
            options |= {f"network_args.{name}": value for name, value in arguments.items()}
    for key in ("network_dim", "network_alpha"):
        if as_number(options.get(key)) is None:
            options.pop(key, None)  # "Dynamic": another tool changed the ranks


def _optimizer(metadata: Mapping[str, str], options: dict[str, Any], behind: dict[str, str]) -> None:
    """torch.optim.adamw.AdamW(weight_decay=0.1) → optimizer_type AdamW, optimizer_args weight_decay=0.1."""
    written = metadata.get("ss_optimizer")
    if written in (None, "None"):
        return
    name, _, arguments = str(written).partition("(")
    options["optimizer_type"] = name.rpartition(".")[2]
    behind["ss_optimizer"] = "optimizer_type"
    for argument, value in re.findall(r"(\w+)=(\([^)]*\)|[^,()]+)", arguments):
        options[f"optimizer_args.{argument}"] = value


def _length(metadata: Mapping[str, str], options: dict[str, Any], said: dict[str, Note]) -> None:
    """Epochs, and a step limit where the run ended inside one."""
    epochs, steps = as_number(metadata.get("ss_num_epochs")), as_number(metadata.get("ss_max_train_steps"))
    batches = as_number(metadata.get("ss_num_batches_per_epoch"))
    accumulation = as_number(metadata.get("ss_gradient_accumulation_steps")) or 1
    if epochs and steps and batches:
        full = epochs * -(-batches // accumulation)
        options.pop("max_train_steps", None)
        if steps < full:
            why = "The run ended inside an epoch. With other pictures, set schedule.epochs alone."
            said["ss_max_train_steps"] = Note(
                "ss_max_train_steps", steps, "mapped", "schedule.maximum_steps", int(steps), why
            )
        else:
            why = "It follows from the epochs and the pictures."
            said["ss_max_train_steps"] = Note("ss_max_train_steps", int(steps), "no_effect", why=why)


def _extra(metadata: Mapping[str, str], imported: Imported, family: str | None) -> dict[str, Note]:
    """Entries that mean something of ours without being an option."""
    extra: dict[str, Note] = {}
    if "ss_base_model_version" in metadata:
        version = metadata["ss_base_model_version"]
        if family:
            extra["ss_base_model_version"] = Note(
                "ss_base_model_version", version, "mapped", "base_model.family", family
            )
        else:
            why = "This program does not train such models."
            extra["ss_base_model_version"] = Note("ss_base_model_version", version, "unsupported", why=why)
    if metadata.get("modelspec.prediction_type") in ("v", "v_prediction"):
        note = Note("modelspec.prediction_type", "v", "mapped", "base_model.prediction_type", "v_prediction")
        extra["modelspec.prediction_type"] = note
    if metadata.get("modelspec.trigger_phrase"):
        phrase = metadata["modelspec.trigger_phrase"]
        extra["modelspec.trigger_phrase"] = Note(
            "modelspec.trigger_phrase", phrase, "mapped", "dataset.trigger_word", phrase
        )
    folders = _folders(metadata)
    if folders:
        why = "Names and repeats of its folders; put your own folders in their place."
        extra["ss_dataset_dirs"] = Note(
            "ss_dataset_dirs",
            literal(metadata.get("ss_dataset_dirs", "")),
            "changed",
            "dataset.folders",
            tuple(folders),
            why,
        )
    return extra


def _folders(metadata: Mapping[str, str]) -> list[dict[str, Any]]:
    found = []
    for key, regularisation in (("ss_dataset_dirs", False), ("ss_reg_dataset_dirs", True)):
        try:
            folders = json.loads(metadata.get(key, "{}"))
        except ValueError:
            continue
        for name, facts in folders.items() if isinstance(folders, dict) else ():
            repeats = int(as_number(facts.get("n_repeats")) or 1) if isinstance(facts, dict) else 1
            found.append({"path": name or "pictures", "repeats": max(1, repeats), "regularisation": regularisation})
    return found


def _with_values(imported: Imported, notes: list[Note], values: dict[str, Any]) -> Imported:
    limit = next((note.new for note in notes if note.name == "schedule.maximum_steps"), None)
    merged = {**imported.values, **values} | ({"schedule.maximum_steps": limit} if limit else {})
    try:
        config: TrainingConfig | None = with_values(TrainingConfig(), merged)
        problems = imported.problems if imported.config is None else ()
    except ValidationError as error:
        from knowledge.answers import plain_problems

        config, problems = None, tuple(plain_problems(error))
    return dataclasses.replace(imported, config=config, values=merged, notes=tuple(notes), problems=tuple(problems))
