"""Pictures and their captions copied into a dataset folder of our own, from folders, files and ZIP archives.

The originals are never touched. An archive is data from a stranger: nothing is written outside the new folder, and
nothing is believed that it says of its sizes.
"""

from __future__ import annotations

import io
import re
import shutil
import stat
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from engine.dataset.caption_tables import (
    LARGEST_BYTES,
    CaptionTable,
    caption_in,
    is_table,
    read_table,
    tables_beside,
)
from engine.dataset.folders import CAPTION_EXTENSIONS, PICTURE_EXTENSIONS, suggest_folders
from knowledge.answers import PlainError

GIB = 1024**3
CHUNK = 1024 * 1024
DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError)
"""What reading a member of a damaged archive raises."""

_NUMBERED = re.compile(r"\d+_.+")
_DEVICE = re.compile(r"con|prn|aux|nul|(?:com|lpt)[0-9¹²³]", re.IGNORECASE)
"""Names that Windows keeps for devices, whatever the ending."""
LONGEST_NAME_BYTES = 200
"""Of a file that we name after a stranger's; 255 is the most that common disks take, and a number may come behind."""
_DEVICE = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\.|$)", re.IGNORECASE)
_UNSAFE = re.compile(r'[<>:"|?*\\\x00-\x1f]')


@dataclass(frozen=True)
class Limits:
    """What an archive may unpack to before it is taken for a trap."""

    total_bytes: int = 50 * GIB
    file_bytes: int = GIB
    files: int = 200_000


@dataclass
class Imported:
    """What came in. left_out: how many files of each ending were neither pictures nor captions.

    from_tables: how many of the captions stood in each table. problems: a sentence for each table that was of no use.
    """

    folder: Path
    pictures: int = 0
    captions: int = 0
    renamed: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    from_tables: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Entry:
    """A file to copy: the folder it goes to below the new one, its name, and how it is read.

    origin: the folder it comes from. A picture and a caption belong together when that and their stem are the same.
    table: the name of the table of captions in which it stood, where it is no file of its own.
    """

    folder: str
    name: str
    open: Callable[[], AbstractContextManager[IO[bytes]]]
    origin: str = ""
    table: str = ""


Entries = Callable[["Imported", Limits], Iterable[Entry]]
"""The files of one source, within these limits; what it leaves out or cannot use it tells there."""


def import_pictures(sources: Sequence[Path], destination: Path, limits: Limits | None = None) -> Imported:
    """Copy the pictures and captions of all sources into a new folder, which appears only once all is there.

    Folders named like `10_sks cat` keep their name, all else comes to lie together. Of two files with one name the
    second is renamed, its caption with it. Raises PlainError, and leaves nothing behind, when a source cannot be read,
    holds no pictures or passes the limits.
    """
    return import_entries([(str(source), partial(_entries, source)) for source in sources], destination, limits)


def import_entries(sources: Sequence[tuple[str, Entries]], destination: Path, limits: Limits | None = None) -> Imported:
    """As `import_pictures`, from sources that say themselves which files they have, each with its name in words."""
    limits = limits or Limits()
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise PlainError(f"{destination} is there already. Name a new folder with --to.", 2)
    partial_folder = destination.with_name(f".{destination.name}.partial")
    shutil.rmtree(partial_folder, ignore_errors=True)
    imported = Imported(destination)
    spent = _Spent(limits)
    try:
        partial_folder.mkdir(parents=True)
        for source, entries in sources:
            before = imported.pictures
            _copy(list(entries(imported, limits)), partial_folder, imported, spent)
            if imported.pictures == before:
                raise PlainError(f"There are no pictures in {source}.")
        if destination.exists():
            destination.rmdir()
        partial_folder.rename(destination)
    except OSError as error:
        raise PlainError(f"The pictures cannot be copied to {destination}: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(partial_folder, ignore_errors=True)
    return imported


def _entries(source: Path, imported: Imported, limits: Limits) -> Iterator[Entry]:
    source = source.expanduser()
    if source.is_dir():
        for folder in suggest_folders(source):
            path = Path(folder.path)
            name = path.name if path != source or _NUMBERED.fullmatch(path.name) else ""
            target = f"reg/{name}" if folder.regularisation else name
            yield from _files(sorted(path.iterdir()), target, imported, source)
    elif source.suffix.lower() == ".zip" or (source.is_file() and zipfile.is_zipfile(source)):
        yield from archived(source, imported, limits)
    elif source.suffix.lower() in PICTURE_EXTENSIONS and source.is_file():
        captions = [source.with_suffix(extension) for extension in CAPTION_EXTENSIONS]
        beside = [path for path in captions if path.is_file()]
        yield from _files([source, *beside], "", imported, source.parent)
    elif source.exists():
        raise PlainError(f"{source} is neither a folder, a ZIP archive nor a picture.", 2)
    else:
        raise PlainError(f"There is no {source}.", 2)


def _files(paths: Sequence[Path], folder: str, imported: Imported, root: Path) -> Iterator[Entry]:
    """Files that lie together, and what the tables there and in `root` say of pictures that have no caption file."""
    here = paths[0].parent
    place = PurePosixPath(here.relative_to(root).as_posix())
    tables, problems = tables_beside(here, str(place))
    if here != root:
        above = tables_beside(root)
        tables, problems = tables + above[0], problems + above[1]
    imported.problems += [problem for problem in problems if problem not in imported.problems]
    captioned = {path.stem for path in paths if path.suffix.lower() in CAPTION_EXTENSIONS}
    for path in paths:
        if path.is_symlink() and not path.exists():
            imported.left_out["link that leads nowhere"] += 1
        if is_table(path.name) or not path.is_file() or not _wanted(path.name, imported.left_out):
            continue
        entry = Entry(folder, path.name, lambda path=path: path.open("rb"))  # type: ignore[misc]
        yield entry
        yield from _from_tables(entry, place / path.name, tables, path.stem in captioned)


def _from_tables(
    picture: Entry, path: PurePosixPath, tables: Sequence[CaptionTable], captioned: bool
) -> Iterator[Entry]:
    """The caption that the tables have for a picture at this path, where it has none beside it."""
    caption, table = caption_in(tables, path)
    if caption and not captioned and path.suffix.lower() in PICTURE_EXTENSIONS:
        yield caption_beside(picture, caption, table)


def caption_beside(picture: Entry, caption: str, table: str = "") -> Entry:
    """A caption file for this picture."""
    content = caption.strip().encode()
    name = f"{PurePosixPath(picture.name).stem}.txt"
    return Entry(picture.folder, name, lambda: io.BytesIO(content), picture.origin, table)


def archived(source: Path, imported: Imported, limits: Limits) -> Iterator[Entry]:
    """The files of a ZIP, and the captions of its tables."""
    try:
        archive = zipfile.ZipFile(source)
    except (OSError, zipfile.BadZipFile) as error:
        raise PlainError(f"{source} is not a whole ZIP archive ({error}). Download it again.") from None
    members = {
        PurePosixPath(member.filename.replace("\\", "/")): member for member in archive.infolist() if _regular(member)
    }
    if len(archive.infolist()) > limits.files:
        raise PlainError(
            f"{source} holds {len(archive.infolist()):,} files; more than {limits.files:,} are not unpacked."
        )
    tables: list[CaptionTable] = []
    for path, member in members.items():
        if is_table(path.name) and not member.flag_bits & 1:
            tables += _archived_table(archive, path, member, imported)
    captioned = {path.with_suffix("") for path in members if path.suffix.lower() in CAPTION_EXTENSIONS}
    for path, member in members.items():
        if is_table(path.name):
            continue
        entry = strangers_entry(path, lambda member=member: archive.open(member), imported.left_out)  # type: ignore[misc]
        if entry is None:
            continue
        if member.flag_bits & 1:
            raise PlainError(f"{source} is locked with a password. Unpack it yourself and import the folder.")
        yield entry
        yield from _from_tables(entry, path, tables, path.with_suffix("") in captioned)


def _regular(member: zipfile.ZipInfo) -> bool:
    """Whether it is a file and neither a folder nor a link, which would be followed when it is read back."""
    special = stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG)
    return not (member.is_dir() or special or "__MACOSX" in PurePosixPath(member.filename).parts)


def _archived_table(
    archive: zipfile.ZipFile, path: PurePosixPath, member: zipfile.ZipInfo, imported: Imported
) -> Iterator[CaptionTable]:
    """The table, unless it is of no use, which is told."""
    try:
        with archive.open(member) as file:
            content = file.read(LARGEST_BYTES + 1)
        if len(content) > LARGEST_BYTES:
            raise PlainError(f"{path} is too large for a table of captions; it is not read.")
        yield read_table(path, content)
    except PlainError as problem:
        imported.problems.append(str(problem))
    except DAMAGED as error:
        raise PlainError(f"{path} in the archive is damaged ({error}). Download the archive again.") from None


def strangers_entry(
    path: PurePosixPath, read: Callable[[], AbstractContextManager[IO[bytes]]], left_out: Counter[str]
) -> Entry | None:
    """The entry of a path that a stranger chose; None for what is neither a picture nor a caption.

    Its folders decide nothing but whether they are kohya's; so no path can lead elsewhere.
    """
    if not _wanted(path.name, left_out):
        return None
    numbered = [part for part in path.parts[:-1] if _NUMBERED.fullmatch(part)]
    folder = _safe(numbered[-1]) if numbered else ""
    if folder and {part.lower() for part in path.parts[:-1]} & {"reg", "regularization", "regularisation"}:
        folder = f"reg/{folder}"
    return Entry(folder, _safe(path.name), read, str(path.parent))


def _wanted(name: str, left_out: Counter[str]) -> bool:
    """Whether it is a picture or a caption; hidden files are not even counted."""
    extension = PurePosixPath(name).suffix.lower()
    if name.startswith(".") or not name:
        return False
    if extension in PICTURE_EXTENSIONS or extension in CAPTION_EXTENSIONS:
        return True
    left_out[extension or "no ending"] += 1
    return False


def _safe(name: str) -> str:
    """The name without what some systems do not allow: their characters, the names of devices, too great a length."""
    safe = PurePosixPath(_UNSAFE.sub("_", name).rstrip(". ") or "_")
    stem = safe.stem.rstrip(". ") or "_"
    if _DEVICE.fullmatch(stem.partition(".")[0].strip()):
        stem = f"_{stem}"
    while len(f"{stem}{safe.suffix}".encode()) > LONGEST_NAME_BYTES:
        stem = stem[:-1]
    return f"{stem}{safe.suffix}"


class _Spent:
    """What has been unpacked so far, counted as it comes out and not as the archive claims."""

    def __init__(self, limits: Limits) -> None:
        self.limits, self.total = limits, 0

    def add(self, name: str, in_file: int, chunk: int) -> None:
        self.total += chunk
        if in_file > self.limits.file_bytes:
            raise PlainError(f"{name} unpacks to more than {self.limits.file_bytes / GIB:.2g} GiB; that is no picture.")
        if self.total > self.limits.total_bytes:
            raise PlainError(f"This unpacks to more than {self.limits.total_bytes / GIB:.2g} GiB; it is not imported.")


def _copy(entries: Sequence[Entry], partial: Path, imported: Imported, spent: _Spent) -> None:
    """Copy the files of one source, a picture and its captions under one new stem where the old one is taken."""
    taken = {
        _same_on_disk(f"{path.parent.relative_to(partial).as_posix()}/{path.stem}")
        for path in partial.rglob("*")
        if path.is_file()
    }
    stems: dict[tuple[str, str, str], str] = {}
    used: set[Path] = set()
    for entry in entries:
        old = PurePosixPath(entry.name)
        key = (entry.folder, entry.origin, old.stem)
        if key not in stems:
            stems[key] = _free(entry.folder, old.stem, taken)
            imported.renamed += stems[key] != old.stem
        target = partial / entry.folder / f"{stems[key]}{old.suffix}"
        if target in used:  # one archive may hold the same name in several folders
            target = partial / entry.folder / f"{_free(entry.folder, old.stem, taken)}{old.suffix}"
            imported.renamed += 1
        used.add(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        _write(entry, target, spent)
        if old.suffix.lower() in PICTURE_EXTENSIONS:
            imported.pictures += 1
        else:
            imported.captions += 1
            if entry.table:
                imported.from_tables[entry.table] += 1


def _free(folder: str, stem: str, taken: set[str]) -> str:
    """The stem, or with a number where it is taken on a system that does not tell capitals or forms of ü apart."""
    number, candidate = 1, stem
    place = folder or "."
    while _same_on_disk(f"{place}/{candidate}") in taken:
        number += 1
        candidate = f"{stem}-{number}"
    taken.add(_same_on_disk(f"{place}/{candidate}"))
    return candidate


def _same_on_disk(path: str) -> str:
    return unicodedata.normalize("NFC", path).casefold()


def _write(entry: Entry, target: Path, spent: _Spent) -> None:
    try:
        with entry.open() as source, target.open("xb") as file:
            written = 0
            while chunk := source.read(CHUNK):
                written += len(chunk)
                spent.add(entry.name, written, len(chunk))
                file.write(chunk)
    except DAMAGED as error:
        raise PlainError(f"{entry.name} in the archive is damaged ({error}). Download the archive again.") from None
