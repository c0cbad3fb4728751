"""ZIP, tar.gz and tar.zst archives, written and read as streams."""

from __future__ import annotations

import gzip
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, Protocol, cast

import zstandard

from knowledge.answers import PlainError

BLOCK = 1 << 20
UNREADABLE = (
    OSError, EOFError, ValueError, zlib.error, zstandard.ZstdError, tarfile.TarError, zipfile.BadZipFile,
)  # fmt: skip
"""What reading a damaged archive raises."""


class Readable(Protocol):
    """Whatever has bytes to give."""

    def read(self, count: int = -1, /) -> bytes: ...


Add = Callable[[str, Readable, int, float], None]
"""Puts one file into an archive: its name inside, its content, its bytes, and when it was changed (seconds)."""


def suffix_of(archive: Path) -> str:
    """Which kind of archive this name asks for. Raises PlainError for any other."""
    found = next((suffix for suffix in SUFFIXES if archive.name.lower().endswith(suffix)), None)
    if found is None:
        raise PlainError(f"{archive} must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}.", 2)
    return found


def packed(file: BinaryIO, suffix: str) -> AbstractContextManager[Add]:
    """What puts files into a new archive of this kind, which is complete after the `with`."""
    return _zip(file) if suffix == ".zip" else _tar(file, suffix)


@contextmanager
def _zip(file: BinaryIO) -> Iterator[Add]:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:

        def add(name: str, source: Readable, size: int, changed_at: float) -> None:
            at = time.localtime(changed_at)
            year = min(max(at.tm_year, 1980), 2107)  # what a ZIP can say
            entry = zipfile.ZipInfo(name, (year, at.tm_mon, at.tm_mday, at.tm_hour, at.tm_min, at.tm_sec))
            entry.compress_type, entry.file_size, entry.external_attr = zipfile.ZIP_DEFLATED, size, 0o644 << 16
            with archive.open(entry, "w", force_zip64=size >= 1 << 30) as inside:
                while block := source.read(BLOCK):
                    inside.write(block)

        yield add


@contextmanager
def _tar(file: BinaryIO, suffix: str) -> Iterator[Add]:
    write, _ = _COMPRESSIONS[suffix]
    with (
        write(file) as compressed,
        tarfile.open(fileobj=compressed, mode="w|", format=tarfile.PAX_FORMAT) as archive,
    ):

        def add(name: str, source: Readable, size: int, changed_at: float) -> None:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime, entry.mode = size, int(changed_at), 0o644
            archive.addfile(entry, cast(IO[bytes], source))

        yield add


def unpacked(file: BinaryIO, suffix: str) -> Iterator[tuple[str, Readable]]:
    """Every file of an archive that `packed` made, with its name."""
    if suffix == ".zip":
        with zipfile.ZipFile(file) as zipped:
            for name in zipped.namelist():
                with zipped.open(name) as content:
                    yield name, content
        return
    _, read = _COMPRESSIONS[suffix]
    with read(file) as plain, tarfile.open(fileobj=plain, mode="r|") as archive:
        for entry in archive:
            member = archive.extractfile(entry)
            assert member is not None  # nothing but files was put in
            yield entry.name, member


def _zstd_writer(file: BinaryIO) -> Any:
    return zstandard.ZstdCompressor(level=3, threads=-1, write_checksum=True).stream_writer(file, closefd=False)


def _zstd_reader(file: BinaryIO) -> Any:
    return zstandard.ZstdDecompressor().stream_reader(file, closefd=False)


_COMPRESSIONS: dict[str, tuple[Callable[[BinaryIO], Any], Callable[[BinaryIO], Any]]] = {
    ".tar.gz": (
        lambda file: gzip.GzipFile(fileobj=file, mode="wb", compresslevel=6),
        lambda file: gzip.GzipFile(fileobj=file, mode="rb"),
    ),
    ".tar.zst": (_zstd_writer, _zstd_reader),
}
SUFFIXES = (".zip", *_COMPRESSIONS)
