"""Models that put pictures into words: which files of their repositories they need, and these fetched once.

They come as the base models do, through transfer.py: checked, and from where an earlier call stopped.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from engine.acquire import transfer
from engine.acquire.huggingface import Address, Repository, explain, look_up
from engine.acquire.models_folder import models_folder
from engine.acquire.network import Notice, RefusalError, silent
from knowledge.answers import PlainError


@dataclass(frozen=True)
class PictureModel:
    """A tagger or captioner of the hub: its short name, its repository, and the files that it is made of.

    needs: for each file its possible names, the best one first. also: files that are taken where they are there.
    """

    name: str
    repository: str
    needs: tuple[tuple[str, ...], ...]
    also: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Where it lies in the models folder once it is here."""
        return models_folder().path / "for-pictures" / self.name

    def here(self) -> Path | None:
        """The folder that holds it: ours, or the one in which the hub's own library keeps it; None without."""
        if self.folder.is_dir():
            return self.folder
        from huggingface_hub import try_to_load_from_cache

        found: Path | None = None
        for names in self.needs:
            cached = [try_to_load_from_cache(self.repository, name) for name in names]
            path = next((Path(path) for path in cached if isinstance(path, str)), None)
            if path is None:
                return None
            found = path.parent
        return found

    def chosen(self, files: Collection[str]) -> tuple[str, ...]:
        """Its files among those of the repository. Raises PlainError where one is missing."""
        found = []
        for names in self.needs:
            name = next((name for name in names if name in files), None)
            if name is None:
                raise PlainError(f"{self.repository} has no {' or '.join(names)} any more; choose another model.")
            found.append(name)
        return tuple(dict.fromkeys([*found, *(name for name in self.also if name in files)]))


@dataclass(frozen=True)
class ToCome:
    """What has to come before a model can be used."""

    model: PictureModel
    repository: Repository
    paths: tuple[str, ...]

    @property
    def size_bytes(self) -> int:
        return sum(self.repository.files[path].size_bytes or 0 for path in self.paths)


def look(model: PictureModel, notice: Notice = silent) -> ToCome:
    """What would be fetched of it from the hub. Raises PlainError in words for every way in which that fails."""
    repository = look_up(Address(model.repository), notice)
    return ToCome(model, repository, model.chosen(repository.files))


def bring(
    coming: ToCome, progress: Callable[[str, int], None] = lambda path, done: None, notice: Notice = silent
) -> Path:
    """The model's folder, which appears only once all is there and checked.

    progress: told the name of the file and how many bytes of the whole are there. What came before an interruption is
    kept for the next call. Raises PlainError.
    """
    model, repository = coming.model, coming.repository
    staging = model.folder.with_name(f".{model.name}.{repository.commit[:12]}.download")
    for older in model.folder.parent.glob(f".{model.name}.*.download"):
        if older != staging:
            shutil.rmtree(older, ignore_errors=True)
    done = 0
    try:
        for path in coming.paths:
            target = staging / path
            if not target.is_file():
                transfer.download(repository.source(path), target, partial(_add, progress, path, done), notice)
            done += target.stat().st_size
            progress(path, done)
        staging.rename(model.folder)
    except RefusalError as refused:
        raise explain(repository.address)(refused) from None
    except OSError as error:
        raise transfer.DiskError(f"{model.folder} cannot be made: {error.strerror or error}.") from None
    return model.folder


def _add(progress: Callable[[str, int], None], path: str, before: int, done: int) -> None:
    progress(path, before + done)
