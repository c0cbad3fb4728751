"""Base models and VAEs from the network: what is offered, what it is, and the folder that keeps it with a manifest.

A place (huggingface.py, civitai.py) makes an Offer of an address. What the offer is, is decided from the first bytes
of its files, before the rest comes. Nothing lies under its name in the folder that is not whole, checked and of use.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from engine.acquire import network, transfer
from engine.acquire.network import Notice, RefusalError, Source, silent
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
from knowledge.answers import PlainError, write_whole

Kind = Literal["base model", "vae"]

MANIFEST = "manifest.json"
UNFINISHED = ".unfinished"
"""Where downloads grow, inside the models folder."""

FIRST_BYTES = 512 * 1024
"""Enough for the header of most checkpoints; SDXL's has about 300 kB."""

SMALL_BYTES = 2 * 1024 * 1024
"""A configuration file is smaller than this."""


@dataclass(frozen=True)
class Wanted:
    """One file of an offer: where it goes below the model's own name, and where it lies."""

    path: str
    source: Source


def _as_it_is(refused: RefusalError) -> PlainError:
    return PlainError(f"{refused.host} refused: {refused.said or f'status {refused.status}'}.")


@dataclass(frozen=True)
class Offer:
    """What stands at an address. `name` is what it would be called here: a file, or a folder of several files.

    `explain` puts a refusal of its server in a sentence that says what to do.
    """

    name: str
    title: str
    page: str
    revision: str
    files: tuple[Wanted, ...]
    folder: bool = False
    notes: tuple[str, ...] = ()
    explain: Callable[[RefusalError], PlainError] = _as_it_is

    @property
    def size_bytes(self) -> int | None:
        """Bytes of all files together; None while one of them has not told its size."""
        sizes = [file.source.size_bytes for file in self.files]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    @property
    def identity(self) -> str:
        """The same for the same files of the same revision."""
        parts = "\n".join([self.page, self.revision, *sorted(file.path for file in self.files)])
        return hashlib.sha256(parts.encode()).hexdigest()


@dataclass(frozen=True)
class Model:
    """A model in the folder, as the manifest keeps it. `files` has the bytes and the SHA-256 of each by its path."""

    name: str
    kind: Kind
    title: str
    page: str
    revision: str
    downloaded: str
    family: str = ""
    prediction_type: str = ""
    zero_terminal_snr: bool = False
    identity: str = ""
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        return sum(int(file["bytes"]) for file in self.files.values())


@dataclass(frozen=True)
class Recognised:
    """An offer of which is known what it is. detected: what kind of base model; None for a VAE."""

    offer: Offer
    kind: Kind
    detected: Detected | None


class ModelsFolder:
    """A folder of models, and what its manifest knows of them."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser()

    def models(self) -> list[Model]:
        """What was downloaded and is still there, the newest first. Raises PlainError for a damaged manifest."""
        known = {field.name for field in fields(Model)}
        try:
            document = json.loads((self.path / MANIFEST).read_text(encoding="utf-8"))
            rows = [{name: value for name, value in row.items() if name in known} for row in document["models"]]
            models = [Model(**row) for row in rows]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise PlainError(
                f"{self.path / MANIFEST} cannot be read ({error}). Move it away; the models themselves are not harmed."
            ) from None
        there = [model for model in models if (self.path / model.name).exists()]
        return sorted(there, key=lambda model: model.downloaded, reverse=True)

    def find(self, offer: Offer) -> Model | None:
        """The model that this offer became, where all its files are still as large as they were."""
        for model in self.models():
            if model.identity == offer.identity and self._whole(model):
                return model
        return None

    def _whole(self, model: Model) -> bool:
        place = self.path / model.name
        for name, file in model.files.items():
            path = place / name if place.is_dir() else place
            if not path.is_file() or path.stat().st_size != file["bytes"]:
                return False
        return True

    def add(self, model: Model) -> None:
        """Enters a model into the manifest, in place of one of the same name."""
        with self._locked("manifest", 20):
            others = [other for other in self.models() if other.name != model.name]
            rows = [asdict(other) for other in [model, *others]]
            document = {"schema_version": 1, "models": rows}
            write_whole(self.path / MANIFEST, json.dumps(document, ensure_ascii=False, indent=1) + "\n")

    def free_name(self, offer: Offer) -> str:
        """The offer's name, with a number where something else has it already."""
        mine = {model.name for model in self.models() if model.identity == offer.identity}
        name, number = PurePosixPath(offer.name), 1
        ending = "" if offer.folder else name.suffix
        stem = offer.name.removesuffix(ending)
        candidate = offer.name
        while (self.path / candidate).exists() and candidate not in mine:
            number += 1
            candidate = f"{stem}-{number}{ending}"
        return candidate

    def staging(self, offer: Offer) -> Path:
        """Where this offer's files grow until all are there."""
        slug = re.sub(r"[^A-Za-z0-9._-]+", "-", offer.name)[:60]
        return self.path / UNFINISHED / f"{slug}-{offer.identity[:12]}"

    @contextmanager
    def working_on(self, offer: Offer) -> Iterator[Path]:
        """The offer's staging folder, for one process at a time."""
        staging = self.staging(offer)
        try:
            with self._locked(staging.name, 0):
                yield staging
        finally:
            self._tidy(staging.name)

    @contextmanager
    def _locked(self, name: str, wait_seconds: float) -> Iterator[None]:
        from filelock import FileLock, Timeout

        place = self.path / UNFINISHED
        try:
            place.mkdir(parents=True, exist_ok=True)
            with FileLock(place / f"{name}.lock", timeout=wait_seconds):
                yield
        except Timeout:
            raise PlainError("The same download is running already, perhaps in another window. Wait for it.") from None
        except OSError as error:
            raise PlainError(f"{self.path} cannot be used as models folder: {error.strerror or error}.") from None

    def _tidy(self, name: str) -> None:
        """Takes the lock of a finished work away, and the folders that are empty without it."""
        place = self.path / UNFINISHED
        if not (place / name).exists():
            (place / f"{name}.lock").unlink(missing_ok=True)
        for folder in (place, self.path):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def models_folder(chosen: Path | None = None, environment: Mapping[str, str] = os.environ) -> ModelsFolder:
    """The folder that was chosen, or the one in LORA_WIZARD_MODELS, or `models` here."""
    return ModelsFolder(chosen or Path(environment.get("LORA_WIZARD_MODELS") or "models"))


def set_aside(found: Recognised, folder: ModelsFolder) -> None:
    """Clears away what looking at an offer has left, where nobody wants it; a download that had begun is kept."""
    with folder.working_on(found.offer) as staging:
        if not any(path.suffix in (".part", ".safetensors") for path in staging.rglob("*")):
            shutil.rmtree(staging, ignore_errors=True)


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
