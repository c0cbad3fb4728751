"""The folder that keeps downloaded base models and VAEs, with a manifest of what they are and where they came from."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from engine.acquire.network import RefusalError, Source
from knowledge.answers import PlainError, write_whole

Kind = Literal["base model", "vae"]

MANIFEST = "manifest.json"
UNFINISHED = ".unfinished"
"""Where downloads grow, inside the models folder."""


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
