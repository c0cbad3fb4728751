"""Pictures and captions of a dataset repository on the Hugging Face hub.

Taken are pictures with caption files beside them, pictures with a table of captions (metadata.jsonl or .csv, the form
that the datasets library calls imagefolder), ZIP archives, and Parquet tables with a column of pictures where pyarrow
is installed. The files come through transfer.py into a hidden folder beside the new one, which a later call goes on
with; then they go the way of every other import.
"""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from engine.acquire import network, transfer
from engine.acquire.huggingface import Address, Repository, explain, look_up
from engine.acquire.network import Notice, RefusalError, silent
from engine.acquire.pictures import Entry, Imported, Limits, archived, caption_beside, import_entries, strangers_entry
from engine.dataset.caption_tables import caption_column, caption_in, is_table, pyarrow, read_table, words
from engine.dataset.folders import CAPTION_EXTENSIONS, PICTURE_EXTENSIONS
from knowledge.answers import PlainError

AT_A_TIME = 8
"""Files that come at the same time: thousands of small ones would else wait for each other's round trips."""

ROWS_AT_A_TIME = 16
MAGIC = (
    (b"\x89PNG", ".png"),
    (b"\xff\xd8\xff", ".jpg"),
    (b"RIFF", ".webp"),
    (b"BM", ".bmp"),
)


@dataclass(frozen=True)
class DatasetOffer:
    """What a dataset repository holds that can be imported, and in which form."""

    repository: Repository
    paths: tuple[str, ...]
    form: str

    @property
    def size_bytes(self) -> int:
        return sum(self.repository.files[path].size_bytes or 0 for path in self.paths)

    @property
    def pictures(self) -> int:
        return sum(PurePosixPath(path).suffix.lower() in PICTURE_EXTENSIONS for path in self.paths)


def look_into(address: Address, notice: Notice = silent, limits: Limits | None = None) -> DatasetOffer:
    """What would be imported from the repository, or the folder of it. Raises PlainError where there is nothing."""
    limits = limits or Limits()
    repository = look_up(address, notice)
    name, root = address.repository, f"{address.path}/" if address.path else ""
    inside = [path for path in repository.files if path == address.path or path.startswith(root)]
    if not inside:
        raise PlainError(f"{name} has no {address.path}. Its files are on {address.page}/tree/main", 2)
    pictures = _ending(inside, PICTURE_EXTENSIONS)
    archives, parquet = _ending(inside, (".zip",)), _ending(inside, (".parquet",))
    tables = [path for path in inside if is_table(PurePosixPath(path).name)]
    if pictures or archives:
        if any(path.endswith(".parquet") for path in tables):
            _pyarrow(name, "the captions of its pictures in a Parquet table")
        captions = _ending(inside, CAPTION_EXTENSIONS) if pictures else []
        chosen, form = [*pictures, *captions, *tables, *archives], "pictures" if pictures else "archives"
    elif parquet:
        _pyarrow(name, "its pictures inside Parquet tables")
        chosen, form = parquet, "tables of pictures"
    else:
        others = Counter(PurePosixPath(path).suffix or path for path in inside)
        kinds = ", ".join(kind for kind, _ in others.most_common(4))
        raise PlainError(
            f"{name} holds neither pictures nor ZIP archives nor Parquet tables (but {kinds}). Download it with "
            "its own tool, and import the folder of pictures that comes of it."
        )
    offer = DatasetOffer(repository, tuple(dict.fromkeys(chosen)), form)
    if len(offer.paths) > limits.files:
        raise PlainError(f"{name} holds {len(offer.paths):,} files; more than {limits.files:,} are not imported.")
    if offer.size_bytes > limits.total_bytes:
        raise PlainError(
            f"{name} holds {offer.size_bytes / 1e9:.0f} GB; more than {limits.total_bytes / 1e9:.0f} GB are not "
            f"imported. Name one folder of it: {address.page}/tree/main/FOLDER"
        )
    return offer


def _ending(paths: Iterable[str], endings: Iterable[str]) -> list[str]:
    """Those of the paths that end so; hidden files are none."""
    wanted = tuple(endings)
    split = [(path, PurePosixPath(path)) for path in paths]
    return [path for path, posix in split if posix.suffix.lower() in wanted and not posix.name.startswith(".")]


def import_dataset(
    offer: DatasetOffer,
    destination: Path,
    *,
    caption_column: str = "",
    progress: Callable[[int], None] = silent,
    notice: Notice = silent,
    limits: Limits | None = None,
) -> Imported:
    """The pictures and captions of the offer in a new folder, which appears only once all is there.

    caption_column: which column of a table holds the captions, where none has one of the usual names. progress: told
    the bytes that are there. Raises PlainError; what came stays hidden for the next call where the network was at
    fault, and nothing stays otherwise.
    """
    limits = limits or Limits()
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise PlainError(f"{destination} is there already. Name a new folder with --to.", 2)
    commit = offer.repository.commit[:12]
    staging = destination.with_name(f".{destination.name}.{commit}.download")
    address = offer.repository.address
    try:
        transfer.require_space(destination.parent, 2 * offer.size_bytes)  # once as it comes and once as it stays
        _fetch(offer, staging, progress, notice)
        entries = partial(_entries, offer, staging, caption_column)
        imported = import_entries([(address.repository, entries)], destination, limits)
    except RefusalError as refused:
        shutil.rmtree(staging, ignore_errors=True)
        raise explain(address)(refused) from None
    except PlainError as problem:
        if not isinstance(problem, network.NetworkError | transfer.DiskError):
            shutil.rmtree(staging, ignore_errors=True)
        raise
    shutil.rmtree(staging, ignore_errors=True)
    return imported


def _fetch(offer: DatasetOffer, staging: Path, progress: Callable[[int], None], notice: Notice) -> None:
    """Every file of the offer below `staging`, several at a time; those that are there already are not asked for."""
    lock, stopped = threading.Lock(), threading.Event()
    have: Counter[str] = Counter()
    total = 0

    def told(path: str, size: int) -> None:
        nonlocal total
        if stopped.is_set():  # somebody has pressed Ctrl-C, or another file cannot be had
            raise network.NetworkError("The download was interrupted.")
        with lock:
            total += size - have[path]
            have[path] = size
            progress(total)

    def fetch(path: str) -> None:
        target = staging / _local(path)
        if not target.is_file():
            transfer.download(offer.repository.source(path), target, partial(told, path), notice)
        told(path, target.stat().st_size)

    with ThreadPoolExecutor(max_workers=AT_A_TIME) as pool:
        try:
            for done in [pool.submit(fetch, path) for path in offer.paths]:
                done.result()
        finally:
            stopped.set()
            pool.shutdown(wait=True, cancel_futures=True)


def _local(path: str) -> str:
    """A name of our own for a file of theirs, so that no path of theirs is used on this disk."""
    return hashlib.sha256(path.encode()).hexdigest()[:32] + PurePosixPath(path).suffix.lower()[:12]


def _entries(
    offer: DatasetOffer, staging: Path, caption_column: str, imported: Imported, limits: Limits
) -> Iterator[Entry]:
    """What the files bring: pictures and captions, rows of tables, members of archives."""
    unpacked = _Unpacked(offer, staging, caption_column, limits)
    tables = [
        read_table(PurePosixPath(path), (staging / _local(path)).read_bytes(), caption_column)
        for path in offer.paths
        if is_table(PurePosixPath(path).name)
    ]
    captioned = {str(PurePosixPath(path).with_suffix("")) for path in _ending(offer.paths, CAPTION_EXTENSIONS)}
    for path in offer.paths:
        local, posix = staging / _local(path), PurePosixPath(path)
        if is_table(posix.name):
            continue
        if posix.suffix.lower() == ".zip":
            yield from archived(local, imported, limits)
        elif posix.suffix.lower() == ".parquet":
            yield from unpacked.rows(posix, local, imported.left_out)
        elif (entry := strangers_entry(posix, _reader(local), imported.left_out)) is not None:
            yield entry
            caption, table = caption_in(tables, posix)
            if caption and str(posix.with_suffix("")) not in captioned:
                yield caption_beside(entry, caption, table)


def _reader(path: Path) -> Callable[[], BinaryIO]:
    return lambda: path.open("rb")


# --- Parquet ----------------------------------------------------------------------------------------------------------


def _pyarrow(name: str, what: str) -> Any:
    return pyarrow(f"{name} keeps {what}.")


@dataclass
class _Unpacked:
    """The pictures of Parquet tables, written out one after the other and numbered through.

    They go to disk as they are read, since a table may be larger than the memory.
    """

    offer: DatasetOffer
    staging: Path
    caption_column: str
    limits: Limits
    number: int = 0
    total_bytes: int = 0

    def rows(self, path: PurePosixPath, local: Path, left_out: Counter[str]) -> Iterator[Entry]:
        """The pictures of one table with their captions."""
        table, columns = self._open(path, local)
        folder = self.staging / "rows"
        folder.mkdir(exist_ok=True)
        try:
            for batch in table.iter_batches(batch_size=ROWS_AT_A_TIME, columns=columns):
                for row in batch.to_pylist():
                    yield from self._row(row, columns, folder, str(path), left_out)
        except (OSError, ValueError) as error:
            raise PlainError(f"{path} cannot be read to its end as a Parquet table ({error}).") from None

    def _open(self, path: PurePosixPath, local: Path) -> tuple[Any, list[str]]:
        reader = _pyarrow(self.offer.repository.address.repository, "its pictures inside Parquet tables")
        try:
            table = reader.ParquetFile(local)
            schema = table.schema_arrow
        except (OSError, ValueError) as error:
            raise PlainError(f"{path} cannot be read as a Parquet table ({error}).") from None
        pictures = [field.name for field in schema if _holds_pictures(field.type)]
        if not pictures:
            raise PlainError(
                f"{path} has no column of pictures, only {', '.join(schema.names[:8])}. It is no dataset of pictures, "
                "or has only their addresses; download those pictures, and import their folder."
            )
        caption = caption_column(schema.names, self.caption_column, str(path))
        return table, [pictures[0], *([caption] if caption else [])]

    def _row(
        self, row: Mapping[str, Any], columns: Sequence[str], folder: Path, origin: str, left_out: Counter[str]
    ) -> Iterator[Entry]:
        content: bytes = (row[columns[0]] or {}).get("bytes") or b""
        ending = _ending_of(content)
        if ending is None:
            left_out["row without a picture" if not content else "picture of another kind"] += 1
            return
        self.number += 1
        self.total_bytes += len(content)
        if len(content) > self.limits.file_bytes or self.total_bytes > self.limits.total_bytes:
            raise PlainError(f"{origin} unpacks to more than is imported at once. Nothing was imported.")
        file = folder / f"{self.number:06d}{ending}"
        file.write_bytes(content)
        picture = Entry("", file.name, _reader(file), origin)
        yield picture
        if len(columns) > 1 and (caption := words(row[columns[1]])).strip():
            yield caption_beside(picture, caption)


def _ending_of(content: bytes) -> str | None:
    """The file ending that these bytes would have, by how they begin; None for what is no picture of ours."""
    return next((ending for magic, ending in MAGIC if content.startswith(magic)), None)


def _holds_pictures(kind: Any) -> bool:
    import pyarrow

    return pyarrow.types.is_struct(kind) and any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
