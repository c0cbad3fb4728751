"""A base model in memory, from a diffusers folder or a single file; nothing is ever fetched from the network."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from engine.models.convolutions import quicken_convolutions
from engine.models.detect import Detected, detect, read_header
from engine.models.linear import quicken_linear_layers
from engine.models.reading import read_weights, weight_files, without_weights
from engine.models.sd import StableDiffusion
from engine.models.sdxl import StableDiffusionXL
from knowledge import architectures
from knowledge.answers import PlainError
from knowledge.config import BaseModelSettings

CONFIGS = architectures.DATA
"""What a single file lacks: the configurations of its parts, one folder per family."""

FAMILIES: dict[str, type[StableDiffusion]] = {
    "pocket": StableDiffusion,
    "sd15": StableDiffusion,
    "sd2": StableDiffusion,
    "sdxl": StableDiffusionXL,
}
TEXT_ENCODERS = {
    "pocket": ("text_encoder",),
    "sd15": ("text_encoder",),
    "sd2": ("text_encoder",),
    "sdxl": ("text_encoder", "text_encoder_2"),
}


def load(settings: BaseModelSettings, dtype: torch.dtype, *, unet_later: bool = False) -> StableDiffusion:
    """The base model on the CPU, frozen, weights in `dtype`; the VAE in float32, where no picture turns black.

    With `unet_later` the UNet of a folder, its largest part, takes no memory before `complete` is called: whoever
    caches pictures and captions first never holds everything at once. Raises PlainError, then as now, when the files
    are not what the settings say, or are broken.
    """
    quiet_libraries()
    detected = detect(settings.path)
    _check(settings, detected)
    with _named(detected):
        parts = _read_folder(detected, dtype) if detected.layout == "folder" else _read_file(detected, dtype)
    if settings.vae:
        parts["vae"] = load_vae(Path(settings.vae).expanduser(), detected.family)
    for name in ("unet", "vae", *TEXT_ENCODERS[detected.family]):
        parts[name].requires_grad_(False).eval()
    quicken_convolutions(parts["unet"])
    quicken_linear_layers(parts["unet"])
    layers = parts["text_encoder"].config.num_hidden_layers
    if settings.clip_skip > layers:
        raise PlainError(
            f"base_model.clip_skip is {settings.clip_skip}, but the text encoder of {detected.path} "
            f"has {layers} layers. 1 takes the last one."
        )
    betas = parts["scheduler"]
    model = FAMILIES[detected.family](
        parts["unet"],
        parts["vae"],
        {name: parts[name] for name in TEXT_ENCODERS[detected.family]},
        [parts[name.replace("text_encoder", "tokenizer")] for name in TEXT_ENCODERS[detected.family]],
        prediction_type=settings.prediction_type,
        zero_terminal_snr=settings.zero_terminal_snr,
        clip_skip=settings.clip_skip,
        maximum_tokens=settings.maximum_tokens,
        beta_start=float(betas.get("beta_start", 0.00085)),
        beta_end=float(betas.get("beta_end", 0.012)),
    )
    if detected.layout == "folder":

        def read_unet() -> None:
            with _named(detected):
                read_weights(model.unet, weight_files(detected.path / "unet"), dtype)

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
        if isinstance(problem, torch.OutOfMemoryError):
            raise
        first_line = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
        raise PlainError(f"The base model {detected.path} cannot be loaded: {first_line}") from problem


def _check(settings: BaseModelSettings, detected: Detected) -> None:
    if settings.family != detected.family:
        raise PlainError(
            f"base_model.family is {settings.family}, but {detected.path} is a model of the family {detected.family}. "
            f'Set base_model.family = "{detected.family}".'
        )
    # The other way round is possible: a folder that was converted carelessly says epsilon of a model that predicts v.
    stated = detected.prediction_type if not detected.prediction_supposed else settings.prediction_type
    if stated == "v_prediction" and settings.prediction_type == "epsilon":
        raise PlainError(
            f"base_model.prediction_type is epsilon, but {detected.path} says of itself that it predicts v. "
            'Set base_model.prediction_type = "v_prediction".'
        )
    if detected.zero_terminal_snr and not settings.zero_terminal_snr:
        raise PlainError(
            f"base_model.zero_terminal_snr is false, but {detected.path} says of itself that its noise ends at zero "
            "signal. Set base_model.zero_terminal_snr = true."
        )


def _read_folder(detected: Detected, dtype: torch.dtype) -> dict[str, Any]:
    folder = detected.path
    parts: dict[str, Any] = {}
    for name, reader in _readers(detected.family).items():
        if not (folder / name).is_dir():
            raise PlainError(f"The model folder is not complete: {folder / name} is missing. Download it again.")
        parts[name] = reader(folder / name, torch.float32 if name == "vae" else dtype)
    for name in TEXT_ENCODERS[detected.family]:
        tokenizer = name.replace("text_encoder", "tokenizer")
        parts[tokenizer] = _tokenizer(folder / tokenizer)
    parts["scheduler"] = json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    return parts


def _readers(family: str) -> dict[str, Callable[[Path, torch.dtype], nn.Module]]:
    """How each part of a diffusers folder is read."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    classes: dict[str, Any] = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
    if "text_encoder_2" in TEXT_ENCODERS[family]:
        classes["text_encoder_2"] = CLIPTextModelWithProjection

    def reader(kind: Any) -> Callable[[Path, torch.dtype], nn.Module]:
        def read(path: Path, dtype: torch.dtype) -> nn.Module:
            module: nn.Module = kind.from_pretrained(
                path, local_files_only=True, use_safetensors=True, torch_dtype=dtype, **_variant(path)
            )
            return module.to(dtype)

        return read

    readers = {name: reader(kind) for name, kind in classes.items()}
    readers["unet"] = lambda path, dtype: without_weights(UNet2DConditionModel, path)
    return readers


def _variant(folder: Path) -> dict[str, str]:
    """Half-precision folders call their files *.fp16.safetensors; without the plain ones we read those."""
    plain = any(not path.name.endswith(".fp16.safetensors") for path in folder.glob("*.safetensors"))
    return {} if plain or not any(folder.glob("*.fp16.safetensors")) else {"variant": "fp16"}


def _read_file(detected: Detected, dtype: torch.dtype) -> dict[str, Any]:
    """The parts of a single file in the original layout, converted by diffusers with the configurations we ship."""
    from diffusers import AutoencoderKL, StableDiffusionPipeline, StableDiffusionXLPipeline

    config = CONFIGS / detected.family
    vae = AutoencoderKL.from_single_file(
        str(detected.path), config=str(config), subfolder="vae", local_files_only=True, torch_dtype=torch.float32
    )
    tokenizers = {"tokenizer": shipped_tokenizer("!" if detected.family == "sd2" else "<|endoftext|>")}
    pipeline: Any = StableDiffusionPipeline
    more: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "image_encoder": None}
    if detected.family == "sdxl":
        pipeline = StableDiffusionXLPipeline
        tokenizers["tokenizer_2"] = shipped_tokenizer("!")
        del more["safety_checker"]
    elif encoder := _merged_text_encoder(detected, config, dtype):
        more["text_encoder"] = encoder
    whole = pipeline.from_single_file(
        str(detected.path), config=str(config), local_files_only=True, torch_dtype=dtype, vae=vae, **tokenizers, **more
    )
    parts = dict(whole.components)
    parts["scheduler"] = json.loads((config / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    return parts


def _merged_text_encoder(detected: Detected, config: Path, dtype: torch.dtype) -> nn.Module | None:
    """The text encoder of an SD 1 merge that leaves the level `text_model` out of its names; None where it is there.

    diffusers does not find such an encoder.
    """
    from transformers import CLIPTextConfig, CLIPTextModel

    prefix = "cond_stage_model.transformer."
    if f"{prefix}embeddings.position_embedding.weight" not in read_header(detected.path).shapes:
        return None
    encoder = CLIPTextModel(CLIPTextConfig.from_pretrained(config / "text_encoder"))
    level = "text_model." if hasattr(encoder, "text_model") else ""
    with safe_open(detected.path, framework="pt") as file:
        names = [name for name in file.keys() if name.startswith(prefix) and not name.endswith("position_ids")]  # noqa: SIM118
        encoder.load_state_dict({level + name.removeprefix(prefix): file.get_tensor(name) for name in names})
    converted: nn.Module = encoder.to(dtype)
    return converted


def load_vae(path: Path, family: str) -> nn.Module:
    """A VAE of its own, from a file in either layout or a diffusers folder; in float32, on the CPU."""
    import diffusers

    kind: Any = diffusers.AutoencoderKL
    try:
        if path.is_dir():
            folder = path / "vae" if (path / "vae").is_dir() else path
            vae: nn.Module = kind.from_pretrained(folder, local_files_only=True, torch_dtype=torch.float32)
        elif any(name.startswith("decoder.up_blocks.") for name in read_header(path).shapes):
            vae = kind.from_config(kind.load_config(CONFIGS / family / "vae")).float()
            vae.load_state_dict(load_file(path))
        else:
            vae = kind.from_single_file(
                str(path),
                config=str(CONFIGS / family),
                subfolder="vae",
                local_files_only=True,
                torch_dtype=torch.float32,
            )
    except (OSError, ValueError, KeyError, RuntimeError) as problem:
        raise PlainError(
            f"base_model.vae is {path}, which cannot be loaded as the VAE of this family: {problem}"
        ) from None
    return vae


def _tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    if not folder.is_dir():
        raise PlainError(f"The model folder is not complete: {folder} is missing. Download it again.")
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def shipped_tokenizer(pad_token: str) -> Any:
    """The CLIP tokenizer that comes with the pocket model: every family here reads captions with it."""
    from transformers import CLIPTokenizer

    from engine.pocket import MODEL_FOLDER

    return CLIPTokenizer.from_pretrained(Path(MODEL_FOLDER) / "tokenizer", local_files_only=True, pad_token=pad_token)


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
