"""Tensor files: read one tensor at a time, written as a stream; nothing in a file is ever executed.

Reading a safetensors file here needs memory for its header and for one tensor, whatever the size of the file.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from engine.tools.progress import Progress, no_progress
from knowledge.answers import PlainError, printable

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
PICKLES = {".pt", ".ckpt", ".bin", ".pth"}
EMBEDDING = "It belongs into the folder of embeddings, not of LoRAs."
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
            raise _broken(path, f"it has only {size} bytes; even an empty file of this kind has more than 8")
        length = int.from_bytes(file.read(8), "little")
        if file.read(1) == b"" or length > LARGEST_HEADER_BYTES:
            raise _broken(path, f"it announces a header of {length:,} bytes, which cannot be true")
        if 8 + length > size:
            raise _broken(
                path, f"it is cut off inside its header ({size:,} bytes, the header alone needs {8 + length:,})"
            )
        file.seek(8)
        text = file.read(length)
    try:
        document = json.loads(text, object_pairs_hook=_each_once)
    except _TwiceError as twice:
        raise _broken(path, f'its header names "{shown(str(twice))}" twice') from None
    except (ValueError, RecursionError):
        raise _broken(path, "its header is not readable text") from None
    if not isinstance(document, dict):
        raise _broken(path, "its header is not a list of tensors")
    metadata = document.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _broken(path, "its metadata is not a list of texts")
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
        raise _broken(path, f'the tensor "{shown(name)}" is described in a way that makes no sense')
    if dtype not in DTYPES:
        raise PlainError(
            f'{path}: the tensor "{shown(name)}" has the number format "{shown(dtype)}", which cannot be read here.'
        )
    if math.prod(shape) * DTYPES[dtype].itemsize != end - start:
        raise _broken(path, f'the tensor "{shown(name)}" has another size than its shape {list(shape)} says')
    return Entry(dtype, shape, start, end)


def _check_body(path: Path, entries: Mapping[str, Entry], body_bytes: int) -> None:
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != position:
            what = "overlaps another one" if entry.start < position else "leaves a gap before it"
            raise _broken(path, f'the tensor "{shown(name)}" {what}')
        position = entry.end
    if position > body_bytes:
        raise _broken(
            path, f"it is cut off: {position - body_bytes:,} of {position:,} bytes are missing; download it again"
        )
    if position < body_bytes:
        raise _broken(path, f"it has {body_bytes - position:,} bytes that belong to no tensor")


def shown(name: str) -> str:
    """A name from a file as it may stand in a sentence."""
    return printable(name, most=120)


def _broken(path: Path, why: str) -> PlainError:
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


class TensorFile(Mapping[str, Tensor]):
    """The tensors of one safetensors file by name, each read from disk when it is asked for and not kept."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.called = str(path)
        self.header = read_header(self.path)

    @property
    def metadata(self) -> dict[str, str]:
        return self.header.metadata

    def layout(self, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
        """Number format and shape of a tensor, without reading it."""
        entry = self.header.entries[name]
        return DTYPES[entry.dtype], entry.shape

    def __getitem__(self, name: str) -> Tensor:
        entry = self.header.entries[name]
        if entry.start == entry.end:
            return torch.empty(entry.shape, dtype=DTYPES[entry.dtype])
        with opened(self.path) as file:
            file.seek(self.header.body_start + entry.start)
            data = bytearray(entry.end - entry.start)
            if file.readinto(data) != len(data):  # type: ignore[attr-defined]
                raise _broken(self.path, "it was cut off while it was being read")
        return torch.frombuffer(data, dtype=DTYPES[entry.dtype]).reshape(entry.shape)

    def __contains__(self, name: object) -> bool:
        return name in self.header.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.header.entries)

    def __len__(self) -> int:
        return len(self.header.entries)


class LoadedTensors(Mapping[str, Tensor]):
    """Tensors that are already in memory: those of a pickle file, or of a test."""

    def __init__(
        self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, called: str = "the network"
    ) -> None:
        self.called = called
        self.tensors = dict(tensors)
        self.metadata = dict(metadata or {})

    def layout(self, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
        """Number format and shape of a tensor."""
        return self.tensors[name].dtype, tuple(self.tensors[name].shape)

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


Tensors = TensorFile | LoadedTensors


def open_tensors(path: Path | str) -> Tensors:
    """The tensors of a .safetensors file, or of a pickle (.pt, .ckpt, .bin) read in the mode that runs no code."""
    path = Path(path)
    return _read_pickle(path) if path.suffix.lower() in PICKLES else TensorFile(path)


def _read_pickle(path: Path) -> LoadedTensors:
    with opened(path):
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of pickle protocols, which a user can do nothing about
            document = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if "weights_only" in str(error) or "Unsupported" in str(error):
            raise PlainError(
                f"{path} holds more than tensors: loading it would run code from the file, so it was not loaded. "
                "Look for the same model as .safetensors."
            ) from None
        raise PlainError(f"{path} cannot be read as a PyTorch file; it may be damaged or of another kind.") from None
    if isinstance(document, dict) and "string_to_param" in document:
        raise PlainError(f"{path} is not a LoRA but an embedding (textual inversion). {EMBEDDING}")
    for inner in ("state_dict", "model", "module"):
        if isinstance(document, dict) and isinstance(document.get(inner), dict):
            document = document[inner]
    tensors = {str(k): v for k, v in document.items() if isinstance(v, Tensor)} if isinstance(document, dict) else {}
    if not tensors:
        raise PlainError(f"{path} holds no named tensors, so it is neither a LoRA nor a model.")
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_meta or tensor.dtype not in DTYPE_NAMES:
            raise PlainError(f'{path}: the tensor "{shown(name)}" is kept in a way that cannot be read here.')
    return LoadedTensors(tensors, called=str(path))


Layout = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


def write_stream(
    path: Path | str,
    layout: Layout,
    tensors: Iterable[tuple[str, Tensor]],
    metadata: Mapping[str, str] | None = None,
    *,
    hashes: bool = False,
    progress: Progress = no_progress,
) -> None:
    """Write a safetensors file from tensors that come one at a time, in the order of `layout`.

    With `hashes`, sshs_model_hash and sshs_legacy_hash are computed and written into the metadata. The file appears
    under its name when it is whole.
    """
    path = Path(path)
    metadata = dict(metadata or {})
    if hashes:
        metadata |= {"sshs_model_hash": "0" * 64, "sshs_legacy_hash": "0" * 8}
    header = _header_bytes(layout, metadata)
    digest = hashlib.sha256()
    with atomic(path) as file:
        file.write(header)
        for done, ((name, (dtype, shape)), (given, tensor)) in enumerate(zip(layout.items(), tensors, strict=True), 1):
            assert (given, tuple(tensor.shape)) == (name, tuple(shape))
            data = _bytes_of(tensor.to(dtype))
            if hashes:
                digest.update(data)
            file.write(data)
            progress(done, len(layout))
        if hashes:
            window = _legacy_window(file, layout, metadata, len(header))
            metadata |= {"sshs_model_hash": digest.hexdigest(), "sshs_legacy_hash": window}
            file.seek(0)
            file.write(_header_bytes(layout, metadata))


def save_tensors(path: Path | str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a network file that is in memory, with its hashes, whole or not at all."""
    layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in sorted(tensors.items())}
    write_stream(path, layout, ((name, tensors[name]) for name in layout), metadata, hashes=True)


def replace_metadata(source: Path | str, target: Path | str, metadata: Mapping[str, str]) -> None:
    """Copy a safetensors file with other metadata; its tensors stay the same, byte for byte and in place."""
    header = read_header(source)
    ordered = sorted(header.entries.items(), key=lambda item: (item[1].start, item[1].end))
    layout = {name: (DTYPES[entry.dtype], entry.shape) for name, entry in ordered}
    with Path(source).open("rb") as body, atomic(Path(target)) as file:
        file.write(_header_bytes(layout, dict(metadata)))
        body.seek(header.body_start)
        while block := body.read(1 << 22):
            file.write(block)


def _header_bytes(layout: Layout, metadata: Mapping[str, str]) -> bytes:
    document: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, (dtype, shape) in layout.items():
        end = position + math.prod(shape) * dtype.itemsize
        document[name] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the body starts at a multiple of 8, as the format asks
    return len(text).to_bytes(8, "little") + text


def _bytes_of(tensor: Tensor) -> bytes:
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


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


def _legacy_window(file: BinaryIO, layout: Layout, metadata: Mapping[str, str], body_start: int) -> str:
    """First 8 digits of sha256 over bytes [0x100000, 0x110000) of the file as it would be with only ss_* metadata."""
    short = _header_bytes(layout, {name: value for name, value in metadata.items() if name.startswith("ss_")})
    first, last = 0x100000, 0x110000
    window = short[first:last]
    file.flush()
    file.seek(body_start + max(0, first - len(short)))
    window += file.read(max(0, last - max(first, len(short))))
    file.seek(0, os.SEEK_END)
    return hashlib.sha256(window).hexdigest()[:8]


@contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """A file open for writing that takes its name only when everything went well; nothing is left behind otherwise."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    except OSError as error:
        raise PlainError(f"{path} cannot be written: {error.strerror or error}.") from None
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # or the name could be there after a power cut, and its content not
        mask = os.umask(0)
        os.umask(mask)
        Path(temporary).chmod(0o666 & ~mask)  # mkstemp makes files for the owner alone
        Path(temporary).replace(path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise PlainError(f"{path} could not be written: {error.strerror or error}.") from error
        raise
