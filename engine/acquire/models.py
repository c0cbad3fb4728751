"""Base models and VAEs from the network: what an offer is, and bringing it into the models folder.

A place (huggingface.py, civitai.py) makes an Offer of an address. What the offer is, is decided from the first bytes
of its files, before the rest comes. Nothing lies under its name in the folder that is not whole, checked and of use.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from engine.acquire import network, transfer
from engine.acquire.models_folder import Kind, Model, ModelsFolder, Offer, Wanted
from engine.acquire.network import Notice, RefusalError, silent
from engine.models.detect import (
    Detected,
    detect,
    detect_header,
    header_length,
    is_vae,
    parse_header,
    read_header,
    refuse_other_latents,
    refuse_pickle,
)
from knowledge.answers import PlainError

FIRST_BYTES = 512 * 1024
"""Enough for the header of most checkpoints; SDXL's has about 300 kB."""

SMALL_BYTES = 2 * 1024 * 1024
"""A configuration file is smaller than this."""


@dataclass(frozen=True)
class Recognised:
    """An offer of which is known what it is. detected: what kind of base model; None for a VAE."""

    offer: Offer
    kind: Kind
    detected: Detected | None


# --- what it is -------------------------------------------------------------------------------------------------------


def recognise(offer: Offer, folder: ModelsFolder, notice: Notice = silent) -> Recognised:
    """What the offer is, from its first bytes or its configuration files. Raises PlainError for what is of no use."""
    try:
        return (_recognise_folder if offer.folder else _recognise_file)(offer, folder, notice)
    except RefusalError as refused:
        raise offer.explain(refused) from None


def _recognise_file(offer: Offer, folder: ModelsFolder, notice: Notice) -> Recognised:
    (wanted,) = offer.files
    _refuse_wrong_type(offer.name)
    begun = network.beginning(wanted.source, FIRST_BYTES, notice=notice)
    size = begun.size_bytes
    if size is None:
        raise PlainError(f"{wanted.source.host} does not say how large {offer.name} is. It is not downloaded.")
    length = header_length(begun.content, size, offer.title)
    text = begun.content[8 : 8 + length]
    if len(text) < length:
        text = network.beginning(wanted.source, 8 + length, notice=notice).content[8:]
    header = parse_header(text, size, offer.title)
    known = replace(offer, files=(replace(wanted, source=replace(wanted.source, size_bytes=size)),))
    if is_vae(header):
        return Recognised(known, "vae", None)
    return Recognised(known, "base model", detect_header(header, Path(offer.name), offer.title))


def _recognise_folder(offer: Offer, folder: ModelsFolder, notice: Notice) -> Recognised:
    with folder.working_on(offer) as staging:
        small = [
            file for file in offer.files if file.path.endswith(".json") and (file.source.size_bytes or 0) < SMALL_BYTES
        ]
        needed = [file for file in small if "tokenizer" not in file.path]
        try:
            _fetch(needed, staging, lambda path, done: None, notice)
            if (staging / "model_index.json").is_file():
                return Recognised(offer, "base model", detect(staging, offer.title))
            _check_vae(staging, offer)
            return Recognised(offer, "vae", None)
        except (PlainError, RefusalError) as problem:
            if not isinstance(problem, network.NetworkError):
                shutil.rmtree(staging, ignore_errors=True)
            raise


def _check_vae(staging: Path, offer: Offer) -> None:
    """Raises PlainError unless config.json is that of a VAE with latents of ours."""
    try:
        config = json.loads((staging / "config.json").read_text(encoding="utf-8"))
        kind, channels = str(config.get("_class_name", "")), int(config.get("latent_channels", 4))
    except (OSError, ValueError, AttributeError, TypeError):
        raise PlainError(
            f"{offer.title} holds no model that can be used here: it has no readable config.json."
        ) from None
    if kind != "AutoencoderKL":
        raise PlainError(f"{offer.title} holds a {kind or 'model of another kind'}, neither a base model nor a VAE.")
    refuse_other_latents(channels)


def _refuse_wrong_type(name: str) -> None:
    refuse_pickle(PurePosixPath(name))
    ending = PurePosixPath(name).suffix
    if ending.lower() != ".safetensors":
        raise PlainError(
            f"{name} is no model file that can be used: it ends in {ending or 'nothing'}, and only .safetensors is "
            "taken. Name the .safetensors file of this model."
        )


def set_aside(found: Recognised, folder: ModelsFolder) -> None:
    """Clears away what looking at an offer has left, where nobody wants it; a download that had begun is kept."""
    with folder.working_on(found.offer) as staging:
        if not any(path.suffix in (".part", ".safetensors") for path in staging.rglob("*")):
            shutil.rmtree(staging, ignore_errors=True)


# --- bringing it in ---------------------------------------------------------------------------------------------------


def bring_in(
    found: Recognised,
    folder: ModelsFolder,
    progress: Callable[[str, int], None] = lambda path, done: None,
    notice: Notice = silent,
) -> Model:
    """The model, downloaded into the folder and entered in its manifest.

    progress: told the file at work and the bytes of all files that are there. Raises PlainError; what has come is kept
    for the next call where the network was at fault, and thrown away where the files are.
    """
    offer = found.offer
    try:
        with folder.working_on(offer) as staging:
            have = sum(_there(file, staging) for file in offer.files)
            if offer.size_bytes is not None:
                transfer.require_space(folder.path, offer.size_bytes - have)
            try:
                got = _fetch(offer.files, staging, progress, notice)
                _check_whole(offer, staging)
            except PlainError as problem:
                if not isinstance(problem, network.NetworkError | transfer.DiskError):
                    shutil.rmtree(staging, ignore_errors=True)
                raise
            except RefusalError:
                if not have:
                    shutil.rmtree(staging, ignore_errors=True)
                raise
            return _take_in(found, folder, staging, got)
    except RefusalError as refused:
        raise offer.explain(refused) from None


def begun_bytes(offer: Offer, folder: ModelsFolder) -> int:
    """Bytes of the offer that an earlier download has left, and that need not come again."""
    return sum(_there(file, folder.staging(offer)) for file in offer.files)


def _there(file: Wanted, staging: Path) -> int:
    """Bytes of a file that an earlier call has left."""
    target = staging / file.path
    for path in (target, target.with_name(target.name + ".part")):
        if path.is_file():
            return path.stat().st_size
    return 0


def _fetch(
    files: Sequence[Wanted], staging: Path, progress: Callable[[str, int], None], notice: Notice
) -> dict[str, dict[str, Any]]:
    """All files below `staging`, those that are there already but read once more; their bytes and hashes by path."""
    got: dict[str, dict[str, Any]] = {}
    before = 0
    for file in files:
        target = staging / file.path
        if target.is_file():
            digest = hashlib.sha256()
            with target.open("rb") as content:
                while chunk := content.read(1024 * 1024):
                    digest.update(chunk)
            got[file.path] = {"bytes": target.stat().st_size, "sha256": digest.hexdigest()}
        else:
            arrived = transfer.download(file.source, target, partial(_add, progress, file.path, before), notice)
            got[file.path] = {"bytes": arrived.size_bytes, "sha256": arrived.sha256}
        before += int(got[file.path]["bytes"])
        progress(file.path, before)
    return got


def _add(progress: Callable[[str, int], None], path: str, before: int, done: int) -> None:
    progress(path, before + done)


def _check_whole(offer: Offer, staging: Path) -> None:
    """Raises PlainError where a file is not what its beginning or its folder promised."""
    for file in offer.files:
        if file.path.endswith(".safetensors"):
            read_header(staging / file.path)


def _take_in(found: Recognised, folder: ModelsFolder, staging: Path, got: Mapping[str, Mapping[str, Any]]) -> Model:
    offer = found.offer
    name = folder.free_name(offer)
    target = folder.path / name
    if target.exists():  # what this offer became before, and is no longer whole
        shutil.rmtree(target) if target.is_dir() else target.unlink()
    if offer.folder:
        staging.rename(target)
    else:
        (staging / offer.files[0].path).rename(target)
        shutil.rmtree(staging, ignore_errors=True)
    detected = found.detected
    if detected is not None and detected.prediction_supposed:
        detected = detect(target, offer.title)  # now its weights can be asked as well
    model = Model(
        name=name,
        kind=found.kind,
        title=offer.title,
        page=offer.page,
        revision=offer.revision,
        downloaded=datetime.now(UTC).isoformat(timespec="seconds"),
        family=detected.family if detected else "",
        prediction_type=detected.prediction_type if detected else "",
        zero_terminal_snr=detected.zero_terminal_snr if detected else False,
        identity=offer.identity,
        files=got,
    )
    folder.add(model)
    return model
