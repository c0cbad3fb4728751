"""One file from the network, whole and checked or not at all.

A download that was cut goes on where it stopped, in this process or a later one. huggingface_hub's own downloads do
not: since its version 1 a part belongs to one process, and seven gigabytes begin anew after every broken evening.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import requests

from engine.acquire import network
from engine.acquire.network import Notice, Patience, RefusalError, Source, opened, patiently, silent, whole_size
from knowledge.answers import PlainError

CHUNK = 64 * 1024
"""Bytes at a time; what a cut connection may cost."""

SPARE_BYTES = 500 * 10**6
"""What stays free on the disk beside a download."""


class DiskError(PlainError):
    """The disk, and neither the network nor the file, was at fault."""


@dataclass(frozen=True)
class Fetched:
    """A file that has arrived and was checked."""

    path: Path
    size_bytes: int
    sha256: str


Progress = Callable[[int], None]
"""Told how many bytes of the file are there."""


def download(
    source: Source,
    target: Path,
    progress: Progress = silent,
    notice: Notice = silent,
    patience: Patience | None = None,
) -> Fetched:
    """The file at `target`, which appears only when all of it is there and its hash is right.

    Until then it grows as NAME.part beside it, and a later call goes on from there when it is still the same file.
    Raises PlainError where it cannot be had (what has come is kept, unless it is wrong), and RefusalError.
    """
    patience = patience or network.PATIENCE
    target.parent.mkdir(parents=True, exist_ok=True)
    part = _Part(target, source)
    part.take_up(progress)
    if source.size_bytes is not None:
        require_space(target.parent, source.size_bytes - part.size)

    def read() -> None:
        headers = {"Range": f"bytes={part.size}-"} if part.size else {}
        if part.size and not source.sha256 and part.etag:
            headers["If-Range"] = part.etag  # with a hash the hash decides, whichever server sends the rest
        with opened(source, headers, patience) as response:
            part.receive(response, progress)
        if part.size < (source.size_bytes or 0):  # ended early, and without a word
            raise requests.exceptions.ChunkedEncodingError("ended early")

    try:
        if source.size_bytes is None or part.size < source.size_bytes:
            patiently(source.host, read, patience, notice, gained=lambda: part.size)
        return part.finish()
    except RefusalError as refused:
        if refused.status == 416:  # there is no such part: the file is another than was promised, or has become one
            part.discard()
            raise PlainError(
                f"{target.name} on {source.host} is not the file that was announced: it has other bytes. "
                "Start the download again."
            ) from None
        raise
    except OSError as error:
        if isinstance(error, requests.RequestException):
            raise
        raise DiskError(
            f"{target.name} cannot be written to {target.parent}: {error.strerror or error}. "
            "What has come so far is kept; the same command goes on from there."
        ) from None


class _Part:
    """A file on its way: NAME.part, and NAME.part.json, which says of what it is a part."""

    def __init__(self, target: Path, source: Source) -> None:
        self.target, self.source = target, source
        self.path = target.with_name(target.name + ".part")
        self.note = target.with_name(target.name + ".part.json")
        self.size, self.etag = 0, ""
        self.digest = hashlib.sha256()

    def take_up(self, progress: Progress) -> None:
        """Goes on with what an earlier call left, where that is a part of the same file; else begins anew."""
        try:
            said = json.loads(self.note.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            said = {}
        self.etag = str(said.get("etag", ""))
        same = all(said.get(name, "") == value for name, value in self._hashes().items())
        known = bool(any(self._hashes().values()) or self.etag)
        if not (same and known and self.path.is_file()):
            self.discard()
            return
        with self.path.open("rb") as file:
            while chunk := file.read(CHUNK):
                self.digest.update(chunk)
                self.size += len(chunk)
                progress(self.size)
        if self.source.size_bytes is not None and self.size > self.source.size_bytes:
            self.discard()

    def receive(self, response: requests.Response, progress: Progress) -> None:
        """Writes what comes behind what is there; from the start where the server sends the whole file again."""
        begins = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        if response.status_code != 206:
            self.discard()
        elif begins is None or int(begins[1]) != self.size:
            self.discard()
            raise requests.exceptions.ChunkedEncodingError("another part than the one asked for")
        self.etag = response.headers.get("ETag", "")
        if self.etag.startswith("W/"):
            self.etag = ""  # a weak tag does not promise the same bytes
        self._write_note()
        if not self.size and self.source.size_bytes is None and (size := whole_size(response)) is not None:
            require_space(self.target.parent, size)
        with self.path.open("ab") as file:
            for chunk in response.iter_content(CHUNK):
                file.write(chunk)
                self.digest.update(chunk)
                self.size += len(chunk)
                progress(self.size)
                if self.source.size_bytes is not None and self.size > self.source.size_bytes:
                    break
                if self.source.most_bytes is not None and self.size > self.source.most_bytes:
                    self.discard()
                    raise PlainError(
                        f"{self.target.name} on {self.source.host} is larger than {self.source.most_bytes / 1e6:,.0f} "
                        "MB; that is not taken. It was thrown away."
                    )
            file.flush()
            os.fsync(file.fileno())

    def _write_note(self) -> None:
        self.note.write_text(json.dumps({"etag": self.etag} | self._hashes()), encoding="utf-8")

    def _hashes(self) -> dict[str, str]:
        return {"sha256": self.source.sha256, "git_blob": self.source.git_blob, "md5": self.source.md5}

    def finish(self) -> Fetched:
        """Checks size and hash and gives the file its name. Raises PlainError when one is wrong, and leaves nothing."""
        source, found = self.source, self.digest.hexdigest()
        if source.size_bytes is not None and self.size != source.size_bytes:
            self.discard()
            raise PlainError(
                f"{self.target.name} should have {source.size_bytes:,} bytes, and {source.host} sent {self.size:,}. "
                "It was thrown away; try again later."
            )
        right = source.sha256.lower() == found if source.sha256 else True
        if source.git_blob and not source.sha256:
            right = _git_blob(self.path) == source.git_blob
        if source.md5:
            right = right and _digest(self.path, hashlib.md5(usedforsecurity=False)) == source.md5.lower()
        if not right:
            self.discard()
            raise PlainError(
                f"{self.target.name} is not the file that {source.host} promised: its hash is another. It was thrown "
                "away. Try again; if that does not help, the file was damaged or exchanged there."
            )
        self.path.replace(self.target)
        self.note.unlink(missing_ok=True)
        return Fetched(self.target, self.size, found)

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)
        self.size, self.digest = 0, hashlib.sha256()


def require_space(folder: Path, size_bytes: int) -> None:
    """Raises DiskError where a file of this size would fill the disk."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if size_bytes + SPARE_BYTES > free:
        raise DiskError(
            f"There is not room enough in {folder}: {size_bytes / 1e9:.1f} GB are still to come, and "
            f"{free / 1e9:.1f} GB are free. Make room, or name another folder with --to."
        )


def _git_blob(path: Path) -> str:
    """Git's name for the content of a file: what the hub says of small files in place of a SHA-256."""
    return _digest(path, hashlib.sha1(b"blob %d\0" % path.stat().st_size))


def _digest(path: Path, begun: hashlib._Hash) -> str:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            begun.update(chunk)
    return begun.hexdigest()
