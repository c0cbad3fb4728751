"""A run in one archive: its answers, captions, files and states, read back and compared before it gets its name."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Literal

from engine.dataset.folders import listing
from engine.run_folder import RunFolder, whole_file
from engine.tools.archives import BLOCK, UNREADABLE, Add, packed, suffix_of, unpacked
from engine.tools.progress import Progress, no_progress
from knowledge.answers import PlainError

Part = Literal["answers", "files", "states", "samples", "captions", "pictures"]
PARTS: dict[Part, str] = {
    "answers": "the answers, and what was planned with them",
    "files": "every LoRA file that was saved",
    "states": "what the training can go on from",
    "samples": "sample pictures, charts, the report and the story of the run",
    "captions": "the caption files of the dataset folders",
    "pictures": "the dataset's pictures and masks themselves",
}
USUAL_PARTS: tuple[Part, ...] = ("answers", "files", "states", "samples", "captions")
"""Pictures are left out unless asked for: they are large, and lie elsewhere already."""
CHECKSUMS = "SHA256SUMS"
"""The last file of the archive, as `sha256sum --check` reads it."""


@dataclass(frozen=True)
class Item:
    """One file for the archive, and its name inside."""

    part: Part
    source: Path
    name: str

    @property
    def bytes(self) -> int:
        return self.source.stat().st_size


@dataclass(frozen=True)
class Gathered:
    """What goes into a backup; `missing` are dataset folders that are no longer where the answers say."""

    items: tuple[Item, ...]
    missing: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        return sum(item.bytes for item in self.items)

    def of(self, part: Part) -> list[Item]:
        return [item for item in self.items if item.part == part]


def gather(run: RunFolder, parts: Sequence[Part] = USUAL_PARTS) -> Gathered:
    """The files of a run that belong to these parts. Raises PlainError while the run is being trained."""
    process = run.process()
    if process is not None:
        raise PlainError(
            f"{run.name} is being trained by process {process}, so its files change while they are read. Wait for the "
            f"end, or save and end it: lora-wizard stop {run.name}"
        )
    items = [item for item in _of_run(run) if item.part in parts]
    missing: list[str] = []
    if {"captions", "pictures"} & set(parts):
        items += [item for item in _of_dataset(run, missing) if item.part in parts]
    return Gathered(tuple(items), tuple(missing))


def _of_run(run: RunFolder) -> Iterator[Item]:
    def item(part: Part, file: Path) -> Item:
        return Item(part, file, PurePosixPath(run.name, file.relative_to(run.path).as_posix()).as_posix())

    for file in sorted(run.path.iterdir()):
        if file.is_file() and not file.name.startswith(".") and file.name != "process":
            yield item("answers" if file.name in ("config.toml", "plan.json") else "samples", file)
    folders: tuple[tuple[Part, list[Path]], ...] = (
        ("files", [run.checkpoints]),
        ("states", list(reversed(run.states()))),
        ("samples", [run.samples]),
    )
    for part, places in folders:
        for place in places:
            files = sorted(place.rglob("*")) if place.is_dir() else []
            yield from (item(part, file) for file in files if file.is_file() and not file.name.startswith("."))


def _of_dataset(run: RunFolder, missing: list[str]) -> Iterator[Item]:
    settings = run.config().dataset
    taken: set[str] = set()
    for folder in settings.folders:
        path = Path(folder.path).expanduser()
        label = _free(path.resolve().name, taken)
        try:
            found = listing(path, settings.caption_extension)
            masks = listing(Path(folder.masks).expanduser()).pictures if folder.masks else ()
        except OSError:
            missing.append(folder.path)
            continue
        inside = f"{run.name}/dataset/{label}"
        yield from (Item("captions", file, f"{inside}/{file.name}") for file in found.captions.values())
        yield from (Item("pictures", file, f"{inside}/{file.name}") for file in found.pictures)
        yield from (Item("pictures", file, f"{inside}-masks/{file.name}") for file in masks)


def _free(name: str, taken: set[str]) -> str:
    """The name, or NAME-2, NAME-3 … where it is taken, in archives for file systems that do not tell a from A."""
    number, free = 1, name
    while free.lower() in taken:
        number += 1
        free = f"{name}-{number}"
    taken.add(free.lower())
    return free


@dataclass(frozen=True)
class BackedUp:
    """A backup that was read back and found equal. `bytes` of the files, `archive_bytes` of the archive."""

    archive: Path
    files: int
    bytes: int
    archive_bytes: int


def back_up(gathered: Gathered, archive: Path, progress: Progress = no_progress) -> BackedUp:
    """Write an archive, read all of it back and compare every file; it gets its name when everything is equal.

    progress counts bytes, of writing and of reading back. Raises PlainError, leaving nothing behind, when a file
    cannot be read, changes meanwhile, or comes back as something else.
    """
    suffix = suffix_of(archive)
    if not gathered.items:
        raise PlainError("There is nothing to back up.")
    total, done = 2 * gathered.bytes, 0

    def passed(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    sums: dict[str, str] = {}
    with whole_file(archive) as partial:
        partial.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file, packed(file, suffix) as add:
            for item in gathered.items:
                sums[item.name] = _added(add, item, passed)
            listed = "".join(f"{digest}  {name}\n" for name, digest in sums.items()).encode()
            root = gathered.items[0].name.partition("/")[0]
            add(f"{root}/{CHECKSUMS}", io.BytesIO(listed), len(listed), time.time())
        with partial.open("rb") as written:
            _verify(written, suffix, sums, archive, passed)
    return BackedUp(archive, len(gathered.items), gathered.bytes, archive.stat().st_size)


def _added(add: Add, item: Item, passed: Callable[[int], None]) -> str:
    """Put a file into the archive; sha256 of what went in."""
    try:
        source = item.source.open("rb")
    except OSError as error:
        raise PlainError(f"{item.source} cannot be read: {error.strerror or error}. No backup was made.") from None
    with source:
        content = _Content(item, source, passed)
        add(item.name, content, content.left, item.source.stat().st_mtime)
    if item.bytes != content.size:
        raise content.changed
    return content.digest.hexdigest()


class _Content:
    """The bytes a file has now, hashed and counted as they are read."""

    def __init__(self, item: Item, file: BinaryIO, passed: Callable[[int], None]) -> None:
        self.size = self.left = item.bytes
        self.digest = hashlib.sha256()
        self.changed = PlainError(f"{item.source} changed while it was being read. No backup was made; try again.")
        self._file, self._passed = file, passed

    def read(self, count: int = -1, /) -> bytes:
        wanted = self.left if count < 0 else min(count, self.left)
        block = self._file.read(wanted)
        if len(block) < wanted:
            raise self.changed
        self.left -= len(block)
        self.digest.update(block)
        self._passed(len(block))
        return block


def _verify(file: BinaryIO, suffix: str, sums: Mapping[str, str], archive: Path, passed: Callable[[int], None]) -> None:
    found: dict[str, str] = {}
    try:
        for name, member in unpacked(file, suffix):
            digest = hashlib.sha256()
            while block := member.read(BLOCK):
                digest.update(block)
                if name in sums:
                    passed(len(block))
            found[name] = digest.hexdigest()
    except UNREADABLE as error:
        raise PlainError(f"{archive} could not be read back ({error}), so it was not kept.") from None
    wrong = [name for name, digest in sums.items() if found.get(name) != digest]
    if wrong:
        raise PlainError(f"{archive} was written, but {wrong[0]} came back as something else. The disk may be failing.")
