"""What stands before the tensors of a safetensors file, checked before anything is read by it, and its hashes."""

from __future__ import annotations

import hashlib
import json
import math
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from knowledge.answers import PlainError, printable
from knowledge.words import agreeing, count

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LARGEST_HEADER_BYTES = 100_000_000
"""What the safetensors library itself accepts."""
LARGEST_COUNT = 2**60
"""Numbers in one tensor, beyond which sizes in bytes overflow."""


@dataclass(frozen=True)
class Entry:
    """One tensor of a safetensors file; `start` and `end` count bytes from the beginning of the body."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """What stands before the tensors of a safetensors file; `body_start` counts bytes from the start of the file."""

    entries: dict[str, Entry]
    metadata: dict[str, str]
    body_start: int


def read_header(path: Path | str) -> Header:
    """The checked header of a safetensors file. Raises PlainError with one sentence for anything wrong with it."""
    path = Path(path)
    with opened(path) as file:
        size = path.stat().st_size
        if size < 8:
            raise broken(path, f"it has only {size} bytes; even an empty file of this kind has more than 8")
        length = int.from_bytes(file.read(8), "little")
        if file.read(1) == b"" or length > LARGEST_HEADER_BYTES:
            raise broken(path, f"it announces a header of {length:,} bytes, which cannot be true")
        if 8 + length > size:
            raise broken(
                path, f"it is cut off inside its header ({size:,} bytes, the header alone needs {8 + length:,})"
            )
        file.seek(8)
        text = file.read(length)
    try:
        document = json.loads(text, object_pairs_hook=_each_once)
    except _TwiceError as twice:
        raise broken(path, f'its header names "{shown(str(twice))}" twice') from None
    except (ValueError, RecursionError):
        raise broken(path, "its header is not readable text") from None
    if not isinstance(document, dict):
        raise broken(path, "its header is not a list of tensors")
    metadata = document.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise broken(path, "its metadata is not a list of texts")
    entries = {name: _entry(path, name, value) for name, value in document.items()}
    _check_body(path, entries, size - 8 - length)
    return Header(entries, metadata, 8 + length)


class _TwiceError(ValueError):
    """A name that a JSON object holds two times."""


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) != len(pairs):
        raise _TwiceError(next(name for name, times in Counter(name for name, _ in pairs).items() if times > 1))
    return names


def _entry(path: Path, name: str, value: Any) -> Entry:
    try:
        dtype, shape, (start, end) = str(value["dtype"]), tuple(value["shape"]), value["data_offsets"]
        numbers = (*shape, start, end)
        whole = all(isinstance(number, int) and not isinstance(number, bool) and number >= 0 for number in numbers)
    except (TypeError, KeyError, ValueError):
        whole = False
    if not whole or math.prod(side for side in shape if side) > LARGEST_COUNT:
        raise broken(path, f'the tensor "{shown(name)}" is described in a way that makes no sense')
    if dtype not in DTYPES:
        raise PlainError(
            f'{path}: the tensor "{shown(name)}" has the number format "{shown(dtype)}", which cannot be read here.'
        )
    if math.prod(shape) * DTYPES[dtype].itemsize != end - start:
        raise broken(path, f'the tensor "{shown(name)}" has another size than its shape {list(shape)} says')
    return Entry(dtype, shape, start, end)


def _check_body(path: Path, entries: Mapping[str, Entry], body_bytes: int) -> None:
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != position:
            what = "overlaps another one" if entry.start < position else "leaves a gap before it"
            raise broken(path, f'the tensor "{shown(name)}" {what}')
        position = entry.end
    if position > body_bytes:
        missing = position - body_bytes
        are = agreeing(missing, "is", "are")
        raise broken(path, f"it is cut off: {missing:,} of {count(position, 'byte')} {are} missing; download it again")
    if position < body_bytes:
        rest = body_bytes - position
        raise broken(path, f"it has {count(rest, 'byte that belongs', 'bytes that belong')} to no tensor")


def shown(name: str) -> str:
    """A name from a file as it may stand in a sentence."""
    return printable(name, most=120)


def broken(path: Path, why: str) -> PlainError:
    return PlainError(f"{path} is not a sound safetensors file: {why}.")


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A file open for reading. Raises PlainError for what is none, such as a folder, or a pipe that never ends."""
    try:
        kind = path.stat().st_mode
        if stat.S_ISDIR(kind):
            raise PlainError(f"{path} is a folder; name a file.", 2)
        if not stat.S_ISREG(kind):  # opening a pipe would wait for ever
            raise PlainError(f"{path} is not a file but a device or a pipe.", 2)
        with path.open("rb") as file:
            yield file
    except FileNotFoundError:
        raise PlainError(f"There is no file {path}.", 2) from None
    except OSError as error:
        raise PlainError(f"{path} cannot be read: {error.strerror or error}.") from None


def body_hash(path: Path | str) -> str:
    """sha256 of the tensors' bytes, header left out: sshs_model_hash; its first 12 digits are Civitai's AutoV3."""
    start = read_header(path).body_start
    return _sha256(Path(path), start)


def file_hash(path: Path | str) -> str:
    """sha256 of the whole file; its first 10 digits are AutoV2."""
    return _sha256(Path(path), 0)


def _sha256(path: Path, start: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(start)
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
