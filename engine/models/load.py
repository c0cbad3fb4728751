"""A base model in memory, from a diffusers folder or a single file; nothing is ever fetched from the network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from engine.models import original
from engine.models.convolutions import quicken_convolutions
from engine.models.detect import Detected, detect_as, read_header
from engine.models.family import BaseModel
from engine.models.linear import quicken_linear_layers
from engine.models.reading import class_named, read_folder, read_weights, weight_files
from engine.trouble import out_of_memory
from knowledge.answers import PlainError
from knowledge.config import BaseModelSettings
from knowledge.families import family_facts

FAMILIES: dict[str, str] = {
    "pocket": "engine.models.sd:StableDiffusion",
    "sd15": "engine.models.sd:StableDiffusion",
    "sd2": "engine.models.sd:StableDiffusion",
    "sdxl": "engine.models.sdxl:StableDiffusionXL",
}


def family_class(family: str) -> type[BaseModel]:
    """How models of this family work."""
    found: type[BaseModel] = class_named(FAMILIES[family])
    return found


def load(settings: BaseModelSettings, dtype: torch.dtype, *, unet_later: bool = False) -> BaseModel:
    """The base model on the CPU, frozen, weights in `dtype`; the VAE in float32, where no picture turns black.

    With `unet_later` the UNet of a folder, its largest part, takes no memory before `complete` is called: whoever
    caches pictures and captions first never holds everything at once. Raises PlainError, then as now, when the files
    are not what the settings say, or are broken.
    """
    quiet_libraries()
    detected = detect_as(settings)
    kind = family_class(detected.family)
    predictor = family_facts(detected.family).predictor
    with _named(detected):
        if detected.layout == "folder":
            parts = read_folder(detected.path, kind.kinds, predictor, dtype)
        else:
            parts = kind.read_file(detected.path, detected.family, dtype)
    if settings.vae:
        parts["vae"] = load_vae(Path(settings.vae).expanduser(), detected.family)
    for name in kind.kinds:
        parts[name].requires_grad_(False).eval()
    quicken_convolutions(parts["unet"])
    quicken_linear_layers(parts["unet"])
    model = kind.assemble(parts, settings)
    model.family = detected.family
    if detected.layout == "folder":

        def read_unet() -> None:
            with _named(detected):
                read_weights(model.unet, weight_files(detected.path / predictor), dtype)

        model.later = read_unet
    if not unet_later:
        model.complete()
    return model


@contextmanager
def _named(detected: Detected) -> Iterator[None]:
    """Turns what the libraries raise about files into a sentence that names the model."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError) as problem:
        if out_of_memory(problem):
            raise
        first_line = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
        raise PlainError(f"The base model {detected.path} cannot be loaded: {first_line}") from problem


def load_vae(path: Path, family: str) -> nn.Module:
    """A VAE of its own, from a file in either layout or a diffusers folder; in float32, on the CPU."""
    kind: Any = class_named(family_class(family).kinds["vae"])
    try:
        if path.is_dir():
            folder = path / "vae" if (path / "vae").is_dir() else path
            vae: nn.Module = kind.from_pretrained(folder, local_files_only=True, torch_dtype=torch.float32)
        elif any(name.startswith("decoder.up_blocks.") for name in read_header(path).shapes):
            vae = kind.from_config(kind.load_config(original.configs(family) / "vae")).float()
            vae.load_state_dict(load_file(path))
        else:
            vae = kind.from_single_file(
                str(path),
                config=str(original.configs(family)),
                subfolder="vae",
                local_files_only=True,
                torch_dtype=torch.float32,
            )
    except (OSError, ValueError, KeyError, RuntimeError) as problem:
        raise PlainError(
            f"base_model.vae is {path}, which cannot be loaded as the VAE of this family: {problem}"
        ) from None
    return vae


def quiet_libraries() -> None:
    """Keep what the libraries print while loading from reaching the user; their errors still come as exceptions."""
    import logging
    import warnings

    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    for name in ("LyCORIS", "accelerate", "torch", "kernels"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
