"""Captions that stand in one table beside the pictures: the datasets library's metadata files, sd-scripts' JSON.

Training reads a caption file for each picture. What a table says is taken over where pictures are imported, or by
`lora-wizard dataset captions --from-tables`.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from knowledge.answers import PlainError

TABLES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
"""The names under which the datasets library looks for a table beside pictures (its imagefolder form)."""

CAPTION_COLUMNS = ("text", "caption", "prompt", "description", "tags")
"""Columns that hold captions in datasets for training, the usual ones first."""

LARGEST_BYTES = 256 * 1024 * 1024
"""A table that is larger is not read: it would be held in memory whole."""


@dataclass(frozen=True)
class CaptionTable:
    """A table by the path at which it lies, and its captions by the path of their picture as seen from there.

    by_name: the pictures are named by their file names alone, with or without the ending, wherever they lie.
    """

    path: PurePosixPath
    captions: Mapping[str, str]
    by_name: bool = False

    def of(self, picture: PurePosixPath) -> str:
        """The caption of a picture whose path begins where the table's does; empty where it has none."""
        if not picture.is_relative_to(self.path.parent):
            return ""
        inside = picture.relative_to(self.path.parent)
        keys = (inside.name, inside.stem) if self.by_name else (str(inside),)
        return next((self.captions[key] for key in keys if key in self.captions), "")


def is_table(name: str) -> bool:
    """Whether a file of this name may hold captions; sd-scripts' begin with meta, as in meta_cap.json."""
    return name in TABLES or (name.startswith("meta") and name.endswith(".json"))


def read_table(path: PurePosixPath, content: bytes, column: str = "") -> CaptionTable:
    """The captions of a table; none where no column looks like captions and `column` names none.

    Raises PlainError for a table that cannot be read.
    """
    read = {".csv": _csv_rows, ".jsonl": _json_rows, ".parquet": _parquet_rows, ".json": _sd_scripts_rows}
    try:
        rows = read[path.suffix.lower()](content)
        names = [str(row["file_name"]) for row in rows]
    except (UnicodeDecodeError, ValueError, csv.Error) as error:
        raise PlainError(f"{path} cannot be read as a table of captions ({error}).") from None
    except (KeyError, TypeError, AttributeError):
        raise PlainError(f"{path} has no column file_name, so nobody knows to which pictures it belongs.") from None
    chosen = caption_column([key for row in rows for key in row], column, str(path))
    if chosen is None:
        return CaptionTable(path, {})
    captions = {
        str(PurePosixPath(name)): text
        for name, row in zip(names, rows, strict=True)
        if (text := words(row.get(chosen)).strip())
    }
    return CaptionTable(path, captions, by_name=path.suffix.lower() == ".json")


def tables_beside(folder: Path, place: str = "") -> tuple[list[CaptionTable], list[str]]:
    """The tables in a folder of this disk, and a sentence for each that cannot be used.

    place: the folder's own path, from which those of the pictures begin.
    """
    found, problems = [], []
    for file in sorted(folder.iterdir()):
        if not is_table(file.name) or not file.is_file():
            continue
        try:
            if file.stat().st_size > LARGEST_BYTES:
                raise PlainError(f"{file.name} is too large for a table of captions; it is not read.")
            found.append(read_table(PurePosixPath(place, file.name), file.read_bytes()))
        except PlainError as problem:
            problems.append(str(problem))
    return found, problems


def caption_in(tables: Sequence[CaptionTable], picture: PurePosixPath) -> tuple[str, str]:
    """The caption that one of the tables has for the picture, and that table's file name; both empty without."""
    return next(((text, table.path.name) for table in tables if (text := table.of(picture))), ("", ""))


def caption_column(columns: Iterable[str], chosen: str, where: str) -> str | None:
    """The column that holds the captions; None where none looks like it. Raises PlainError where a chosen one lacks."""
    known = list(dict.fromkeys(str(column) for column in columns))
    if chosen:
        if chosen not in known:
            raise PlainError(f"{where} has no column {chosen}; it has {', '.join(known)}.", 2)
        return chosen
    return next((column for column in CAPTION_COLUMNS if column in known), None)


def words(value: object) -> str:
    """A caption as text: a list of tags joined by commas, nothing for nothing."""
    if isinstance(value, list):
        return ", ".join(str(each) for each in value)
    return "" if value is None else str(value)


def pyarrow(what: str) -> Any:
    """The library that reads Parquet. Raises PlainError, which says how to get it, where it is not installed."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise PlainError(
            f"{what} To read those, install pyarrow (pip install pyarrow, about 50 MB) and start again."
        ) from None
    return pyarrow.parquet


def _csv_rows(content: bytes) -> list[Mapping[str, Any]]:
    return list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline="")))


def _json_rows(content: bytes) -> list[Mapping[str, Any]]:
    return [json.loads(line) for line in content.decode("utf-8-sig").split("\n") if line.strip()]


def _parquet_rows(content: bytes) -> list[Mapping[str, Any]]:
    parquet = pyarrow("metadata.parquet holds captions in a Parquet table.")
    return list(parquet.ParquetFile(io.BytesIO(content)).read().to_pylist())


def _sd_scripts_rows(content: bytes) -> list[Mapping[str, Any]]:
    """Of sd-scripts' mapping from pictures, by path or by name without ending, to captions and tags, which it joins."""
    document = json.loads(content.decode("utf-8-sig"))
    if not isinstance(document, dict):
        raise ValueError("not a mapping from pictures to captions")
    rows: list[Mapping[str, Any]] = []
    for path, said in document.items():
        if isinstance(said, dict) and ("caption" in said or "tags" in said):
            parts = [words(said.get(key)) for key in ("caption", "tags")]
            name = PurePosixPath(str(path).replace("\\", "/")).name
            rows.append({"file_name": name, "caption": ", ".join(part for part in parts if part)})
    return rows
