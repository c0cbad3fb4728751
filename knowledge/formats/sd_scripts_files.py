"""sd-scripts' options for pictures, samples and saved files."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from knowledge.config import fields
from knowledge.formats.prompts import read_prompts
from knowledge.formats.sorting import take_name
from knowledge.formats.text import is_folder
from knowledge.formats.translation import Translation
from knowledge.formats.values import as_number, is_empty

SAMPLERS = {
    "ddim": "ddim", "pndm": "pndm", "lms": "lms", "euler": "euler", "euler_a": "euler_ancestral", "heun": "heun",
    "dpm_2": "dpm2", "dpm_2_a": "dpm2_ancestral", "dpmsolver": "dpm_solver", "dpmsolver++": "dpmpp_2m",
    "dpmsingle": "dpmpp_2s",
}  # fmt: skip
"""Samplers by kohya's words; a k_ before one of them changes nothing."""
REPEATS = re.compile(r"(\d+)_(.*)")


def read_dataset(job: Translation, beside: Path | None) -> None:
    if "resolution" in job.source and not is_empty(job.get("resolution")):
        take_resolution(job, "resolution", job.get("resolution"))
    step = as_number(job.get("bucket_reso_steps"))
    if step is not None and step % 8:
        fitting = max(8, int(step) // 8 * 8)
        job.changed(
            "bucket_reso_steps", "dataset.bucket_step", fitting, "A model sees pictures in squares of 8 pixels."
        )
    if "caption_extention" in job.source:
        job.no_effect("caption_extention", "A misspelling that it still accepts; caption_extension is read.")
    if is_empty(job.get("dataset_config")):
        folders = []
        for key, regularisation in (("train_data_dir", False), ("reg_data_dir", True)):
            if not is_empty(job.get(key)):
                found, why = kohya_folders(str(job.get(key)), regularisation, beside)
                folders += found
                job.changed(key, "dataset.folders", tuple(folders), why)
    else:
        for key in ("train_data_dir", "reg_data_dir"):
            if not is_empty(job.get(key)):
                job.no_effect(key, "dataset_config is set: folders, and the repeats in their names, are not read.")
        job.unsupported("dataset_config", "It names the file with the folders, which was not found beside this one.")
    if not is_empty(job.get("in_json")):
        job.unsupported(
            "in_json", "It reads captions from a JSON file. Here captions are text files beside the pictures."
        )
    if "dataset_repeats" in job.source:
        job.no_effect("dataset_repeats", "Only datasets from a JSON file read it.")


def take_resolution(job: Translation, key: str, value: Any) -> None:
    """One side there, or width and height; ours is the side of the square of the same area."""
    numbers = [as_number(part) for part in (value if isinstance(value, list) else re.split(r"[,x ]+", str(value)))]
    sides = [int(number) for number in numbers if number]
    if not sides:
        job.unsupported(key, "It is no size in pixels.")
        return
    side = sides[0] if len(set(sides)) == 1 else round(math.sqrt(sides[0] * sides[1]))
    fitting = max(16, side // 8 * 8)
    if len(set(sides)) > 1:
        job.changed(key, "dataset.resolution", fitting, "Not square there; here it is the square of the same area.")
    elif fitting != side:
        job.changed(key, "dataset.resolution", fitting, "It must be a multiple of 8.")
    else:
        job.mapped(key, "dataset.resolution", side)


def kohya_folders(path: str, regularisation: bool, beside: Path | None) -> tuple[list[dict[str, Any]], str]:
    """The folders N_name inside a folder, as ours, and a sentence on where the repeats came from."""
    root = Path(path) if Path(path).is_absolute() or beside is None else beside / path
    found = []
    here = is_folder(root)
    if here:
        for inner in sorted(root.iterdir()):
            match = REPEATS.fullmatch(inner.name)
            if inner.is_dir() and match and int(match.group(1)) > 0:
                found.append(_folder(str(inner), int(match.group(1)), regularisation, match.group(2).strip()))
    if found:
        return found, "Each folder with its repeats, which that trainer reads from the folder's name."
    missing = "" if here else " It is not on this computer, so the repeats in its folders' names are not known."
    return [_folder(path, 1, regularisation, "")], f"One folder, shown once an epoch.{missing}"


def _folder(path: str, repeats: int, regularisation: bool, caption: str) -> dict[str, Any]:
    folder: dict[str, Any] = {"path": path, "repeats": repeats, "regularisation": regularisation}
    if "dataset.folders.caption" in fields():
        folder["caption"] = caption
    return folder


def read_sampling(job: Translation, beside: Path | None) -> None:
    if not is_empty(job.get("sample_sampler")):
        word = str(job.get("sample_sampler")).removeprefix("k_")
        otherwise = f'It draws samples with "{word}". DDIM is used here.'
        job.mapped_if_known("sample_sampler", "sampling.sampler", SAMPLERS.get(word), otherwise)
    epochs, steps = as_number(job.get("sample_every_n_epochs")), as_number(job.get("sample_every_n_steps"))
    if not epochs and "sample_every_n_epochs" in job.source:
        job.no_effect("sample_every_n_epochs", "It is not set.")
    if "sample_every_n_steps" in job.source and (epochs or not steps):
        why = "sample_every_n_epochs is set and overrides it." if epochs else "It is not set."
        job.no_effect("sample_every_n_steps", why)
    if not is_empty(job.get("sample_prompts")):
        read_prompts(job, "sample_prompts", beside)


def read_saving(job: Translation, beside: Path | None) -> None:
    if not is_empty(job.get("output_name")):
        take_name(job, "output_name", str(job.get("output_name")))
    for key in ("save_every_n_epochs", "save_every_n_steps", "save_last_n_epochs", "save_last_n_steps"):
        if key in job.source and as_number(job.get(key)) == 0:
            job.no_effect(key, "0 means not set.")
    every_epochs, every_steps = as_number(job.get("save_every_n_epochs")), as_number(job.get("save_every_n_steps"))
    kind = str(job.get("save_model_as", "safetensors"))
    if "save_model_as" in job.source and not is_empty(job.get("save_model_as")):
        if kind == "safetensors":
            job.no_effect("save_model_as", "Every file is .safetensors here.")
        else:
            job.unsupported(
                "save_model_as", f"It writes .{kind} files, which can carry code. Here they are .safetensors."
            )
    ratio, epochs = as_number(job.get("save_n_epoch_ratio")), as_number(job.get("max_train_epochs"))
    if ratio and epochs:
        every = max(1, int(epochs / ratio))
        job.changed("save_n_epoch_ratio", "saving.every_epochs", every, f"At least {ratio:g} files over the run.")
    elif ratio:
        job.no_effect("save_n_epoch_ratio", "It needs max_train_epochs.")
    if "save_last_n_epochs" in job.source and not job.done("save_last_n_epochs"):
        job.mapped("save_last_n_epochs", "saving.keep_last", as_number(job.get("save_last_n_epochs")))
    last = as_number(job.get("save_last_n_steps"))
    if last and not job.done("save_last_n_steps"):
        if every_steps and "saving.keep_last" not in job.values:
            files = max(1, round(last / every_steps))
            job.changed("save_last_n_steps", "saving.keep_last", files, "Counted in files here, in steps there.")
        else:
            job.no_effect("save_last_n_steps", "It needs save_every_n_steps.")
    states = [key for key in ("save_state", "save_state_on_train_end") if key in job.source]
    for key in states:
        if not job.on(key):
            job.no_effect(key, "It is switched off there.")
        elif "saving.state_every_epochs" not in job.values:
            every = int(every_epochs or (as_number(job.get("max_train_epochs")) or 1))
            job.changed(key, "saving.state_every_epochs", every, "A state to go on from, as often as a file is saved.")
        else:
            job.no_effect(key, "A state is saved at the end in any case.")
    if "no_metadata" in job.source:
        job.mapped("no_metadata", "saving.metadata", "minimal" if job.on("no_metadata") else "full")
    for key in ("save_last_n_epochs_state", "save_last_n_steps_state"):
        if key in job.source and not job.done(key):
            job.no_effect(key, "The newest two states are kept here.")
