"""What kind of base model a path holds, read from file headers and JSON alone: answers at once, without torch."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from statistics import pstdev
from typing import Any, Literal

from knowledge.answers import PlainError
from knowledge.architectures import architecture
from knowledge.config import POCKET_MODEL, BaseModelSettings, Family, PredictionType
from knowledge.families import families, trained_here
from knowledge.words import count

PICKLES = frozenset({".ckpt", ".pt", ".pth", ".bin", ".pkl"})
HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
LARGEST_HEADER_BYTES = 100_000_000

# Fingerprints of original layouts that are real models, but none that we train. Names of tensors, without prefix.
STRANGERS: tuple[tuple[str, str], ...] = (
    ("double_blocks.0.img_attn.norm.key_norm.scale", "a Flux model"),
    ("joint_blocks.0.context_block.adaLN_modulation.1.bias", "a Stable Diffusion 3 model"),
    ("edm_mean", "a Playground 2.5 model"),
)
ADAPTER_SUFFIXES = (".lora_down.weight", ".lora_A.weight", ".hada_w1_a", ".lokr_w1", ".lokr_w1_a", ".oft_blocks")
LATENTS = 4
"""Input channels of a UNet in the original layout that reads latents and nothing besides."""
UNET_PREFIX = "model.diffusion_model."
PLAIN_INSTEAD = "Train on the plain model of the same family instead."
OPEN_CLIP_PREFIX = "cond_stage_model.model."
"""How the text encoder's tensors begin in SD 2.x alone; the only one among the families here that is OpenCLIP's."""
CONTEXT = "input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"
SDXL_CONTEXT = "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
TELLING_BIAS = "output_blocks.11.1.transformer_blocks.0.norm1.bias"
TELLING_DEVIATION = 0.09
"""Above this, the values of that tensor of an SD 2.x model spread as in those that predict v: ComfyUI's test."""


@dataclass(frozen=True)
class Detected:
    """A base model: its family, what it predicts, whether its noise ends at zero signal, and how it is stored.

    `prediction_supposed`: both kinds of this family are common and the file does not say which it is, so what it
    predicts was told by its weights, or not at all.
    """

    path: Path
    family: Family
    prediction_type: PredictionType
    layout: Literal["folder", "single file"]
    zero_terminal_snr: bool = False
    prediction_supposed: bool = False


@dataclass(frozen=True)
class Header:
    """The head of a safetensors file: the shape of every tensor by name, and the file's own metadata.

    `places`: by name, the kind of number and the first and last byte, counted from the end of the header.
    """

    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str]
    places: Mapping[str, tuple[str, int, int]] = field(default_factory=dict)


def detect(path: str | Path, called: str = "") -> Detected:
    """What the base model at this path is. Raises PlainError when it is not one that we train, saying what to do.

    `called` names it in that sentence where the path would tell nobody anything.
    """
    if str(path) == POCKET_MODEL:
        from engine.pocket import MODEL_FOLDER

        return Detected(Path(MODEL_FOLDER), "pocket", "epsilon", "folder")
    path = _on_this_computer(str(path))
    if path.is_dir():
        return _detect_folder(path, called or str(path))
    refuse_pickle(path)
    header = read_header(path)
    found = detect_header(header, path, called or str(path))
    if found.prediction_supposed and _spreads_like_v(header, path):
        return replace(found, prediction_type="v_prediction")
    return found


def detect_as(settings: BaseModelSettings) -> Detected:
    """The base model of these settings. Raises PlainError when it is none, or another than they say."""
    detected = detect(settings.path)
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
    return detected


def _on_this_computer(given: str) -> Path:
    """The file or folder that is meant; owner/name is a repository of the Hugging Face hub, looked for in its cache."""
    path = Path(given).expanduser()
    if path.exists():
        return path
    if not HUB_NAME.fullmatch(given) or path.suffix in {".safetensors", *PICKLES}:
        raise PlainError(
            f"base_model.path is {path}, and nothing is there. Give a diffusers folder or a .safetensors file, "
            f'or "{POCKET_MODEL}" for the model that comes with this program.'
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(given, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        raise PlainError(
            f"base_model.path is {given}, and there is neither such a folder nor this model of the Hugging Face hub on "
            f"this computer. Training downloads nothing: run lora-wizard download {given} first and give what it names."
        ) from None


def read_header(path: Path) -> Header:
    """The header of a safetensors file. Raises PlainError when the file is not one, or is cut short."""
    with path.open("rb") as file:
        size = path.stat().st_size
        length = header_length(file.read(8), size, str(path))
        return parse_header(file.read(length), size, str(path))


def header_length(beginning: bytes, size: int, called: str) -> int:
    """Bytes of the header of a safetensors file of this size, from its first 8. Raises PlainError when it is none."""
    length = struct.unpack("<Q", beginning[:8])[0] if len(beginning) >= 8 else 0
    if not 2 <= length <= min(size - 8, LARGEST_HEADER_BYTES):
        raise PlainError(
            f"{called} is not a safetensors file: it does not begin with a safetensors header. "
            "Perhaps the download broke off, or it is a web page saved under this name; download it again."
        )
    return int(length)


def parse_header(text: bytes, size: int, called: str) -> Header:
    """The header from its JSON. Raises PlainError when that cannot be read, or promises more than `size` bytes hold."""
    try:
        document = json.loads(text)
        metadata = document.pop("__metadata__", {}) or {}
        shapes = {name: tuple(entry["shape"]) for name, entry in document.items()}
        places = {name: (str(entry["dtype"]), *entry["data_offsets"]) for name, entry in document.items()}
        end = max((last for _, _, last in places.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise PlainError(f"{called} is not a safetensors file: its header cannot be read. Download it again.") from None
    if size < 8 + len(text) + end:
        missing = 8 + len(text) + end - size
        raise PlainError(
            f"{called} is cut short: {count(missing, 'byte is', 'bytes are')} missing at its end. Download it again."
        )
    return Header(shapes, metadata, places)


def refuse_pickle(path: Path | PurePath) -> None:
    """Raises PlainError for a file whose name says that it is a pickle."""
    if path.suffix.lower() in PICKLES:
        raise PlainError(
            f"{path} is a pickle checkpoint, which can run any program when it is opened, so it is never loaded. "
            "Download the .safetensors version of this model. If there is none and you trust the file, open it in "
            "ComfyUI and save it with the node Save Checkpoint, or in A1111 with its Checkpoint Merger, as safetensors."
        )


def is_vae(header: Header) -> bool:
    """Whether the file is a VAE by itself, in either layout. Raises PlainError for one whose latents are not ours."""
    bare = {name.removeprefix("first_stage_model."): shape for name, shape in header.shapes.items()}
    entrance = bare.get("decoder.conv_in.weight")
    if entrance is None or len(entrance) < 2 or any(name.startswith(UNET_PREFIX) for name in bare):
        return False
    refuse_other_latents(entrance[1])
    return True


def refuse_other_latents(channels: int) -> None:
    """Raises PlainError unless a VAE makes latents of as many channels as some family's."""
    ours = sorted({architecture(family.name).latent_channels for family in families()})
    if channels not in ours:
        raise PlainError(
            f"This VAE makes latents of {channels} channels, as Stable Diffusion 3 and Flux do. The models that are "
            f"trained here need one with {' or '.join(map(str, ours))}."
        )


def detect_header(header: Header, path: Path, called: str) -> Detected:
    """What the base model is whose single file has this header; as `detect`."""
    names = header.shapes
    if any(name.endswith(ADAPTER_SUFFIXES) for name in names):
        raise PlainError(f"{called} is a LoRA, not a base model. Choose the base model that it was trained on.")
    bare = {name.removeprefix(UNET_PREFIX): shape for name, shape in names.items()}
    for known in families():
        if any(mark in bare for mark in known.marks):
            return Detected(path, known.name, "epsilon", "single file")
    for fingerprint, what in STRANGERS:
        if fingerprint in bare:
            raise PlainError(f"{called} is {what}. This program trains {trained_here()}.")
    _refuse_other_inputs(called, bare.get("input_blocks.0.0.weight", (0, LATENTS))[1], LATENTS)
    family = _family_of_file(called, names, bare)
    said = _prediction_of_file(header)
    supposed = family == "sd2" and said is None
    return Detected(path, family, said or "epsilon", "single file", "ztsnr" in names, supposed)


def _family_of_file(called: str, names: Mapping[str, tuple[int, ...]], bare: Mapping[str, tuple[int, ...]]) -> Family:
    if not any(name.startswith(UNET_PREFIX) for name in names):
        if "conv_in.weight" in names or "down_blocks.0.resnets.0.conv1.weight" in names:
            raise PlainError(
                f"{called} is one part of a diffusers folder (a UNet alone). Choose the folder with model_index.json."
            )
        raise PlainError(
            f"{called} is a safetensors file, but no Stable Diffusion checkpoint: it holds no UNet "
            f"({UNET_PREFIX}…). Perhaps it is a VAE or a text encoder."
        )
    plain_context = bare.get(CONTEXT, bare.get("input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", (0, 0)))[-1]
    open_clip = any(name.startswith(OPEN_CLIP_PREFIX) for name in names)
    if "label_emb.0.0.weight" in bare:
        if open_clip:
            raise PlainError(f"{called} is an unCLIP model, which draws variations of a picture. {PLAIN_INSTEAD}")
        context = bare.get(SDXL_CONTEXT, (0, 0))[-1]
        if context != 2048 and not any(name.startswith("conditioner.embedders.1.") for name in names):
            raise PlainError(f"{called} is the SDXL refiner. LoRAs are trained on the SDXL base model.")
        return "sdxl"
    return _family_by_text(called, plain_context, open_clip)


def _prediction_of_file(header: Header) -> PredictionType | None:
    """What the file says of itself; None where it says nothing."""
    said = header.metadata.get("modelspec.prediction_type", "")
    if "v_pred" in header.shapes or "edm_vpred.sigma_max" in header.shapes or said in ("v", "v_prediction"):
        return "v_prediction"
    return "epsilon" if said == "epsilon" else None


def _spreads_like_v(header: Header, path: Path) -> bool:
    """Whether one small tensor of an SD 2.x file looks as in the models that predict v; without it, no."""
    dtype, first, last = header.places.get(UNET_PREFIX + TELLING_BIAS, ("", 0, 0))
    kind = {"F64": "d", "F32": "f", "F16": "e", "BF16": "H"}.get(dtype)
    if kind is None:
        return False
    with path.open("rb") as file:
        start = 8 + struct.unpack("<Q", file.read(8))[0]
        file.seek(start + first)
        content = file.read(last - first)
    values = struct.unpack(f"<{len(content) // struct.calcsize(kind)}{kind}", content)
    if dtype == "BF16":  # the upper half of a float32
        values = struct.unpack(f"<{len(values)}f", struct.pack(f"<{len(values)}I", *(value << 16 for value in values)))
    return bool(pstdev(values) > TELLING_DEVIATION)


def _detect_folder(path: Path, called: str) -> Detected:
    index = path / "model_index.json"
    if not index.is_file():
        inner = sorted(folder for folder in path.glob("*/") if (folder / "model_index.json").is_file())
        if inner:
            raise PlainError(f"{path} holds a model one folder deeper. Give {inner[0]}")
        if path.parent.joinpath("model_index.json").is_file():
            raise PlainError(f"{path} is one part of a model. Give the folder above it: {path.parent}")
        files = sorted(path.glob("*.safetensors"))
        hint = f" Did you mean the file {files[0]}?" if files else ""
        raise PlainError(f"{path} is not a diffusers model folder: it has no model_index.json.{hint}")
    pipeline = str(_read_json(index).get("_class_name", ""))
    candidates = [family for family in families() if re.fullmatch(family.pipelines, pipeline)]
    if not candidates:
        raise PlainError(f"{called} holds a {pipeline}. This program trains {trained_here()}.")
    usual = architecture(candidates[0].name).configs["unet"]["in_channels"]
    predictor = _read_json(path / candidates[0].predictor / "config.json")
    _refuse_other_inputs(called, int(predictor.get("in_channels", usual)), usual)
    scheduler = _read_json(path / "scheduler" / "scheduler_config.json")
    prediction: PredictionType = "v_prediction" if scheduler.get("prediction_type") == "v_prediction" else "epsilon"
    family = candidates[0].name
    if len(candidates) > 1:  # SD 1.x and 2.x, whose pipelines have one name
        context = int(predictor.get("cross_attention_dim") or 0)
        family = _family_by_text(called, context, bool(predictor.get("use_linear_projection")))
    return Detected(path, family, prediction, "folder", bool(scheduler.get("rescale_betas_zero_snr")))


def _family_by_text(called: str, context: int, signs_of_sd2: bool) -> Family:
    """The family by the width of the text that the UNet reads, 1024 in 2.x and 768 in 1.x, and other signs of 2.x."""
    if context == 0:
        raise PlainError(f"{called} has a UNet that reads no text. It cannot be trained with captions.")
    return "sd2" if context == 1024 or signs_of_sd2 else "sd15"


def _refuse_other_inputs(called: str, channels: int, usual: int) -> None:
    kind = {9: "an inpainting model", 5: "a depth-to-image model", 8: "an instruction-editing (pix2pix) model"}.get(
        channels
    )
    if channels != usual:
        raise PlainError(f"{called} is {kind or f'a model with {channels} input channels'}. {PLAIN_INSTEAD}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PlainError(f"The model folder is not complete: {path} is missing. Download it again.") from None
    except (OSError, UnicodeDecodeError, ValueError):
        raise PlainError(f"{path} cannot be read as JSON. Download the model folder again.") from None
    if not isinstance(document, dict):
        raise PlainError(f"{path} is not what it should be. Download the model folder again.")
    return document
