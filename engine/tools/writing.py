"""Files written as a stream, whole or not at all: network files with their hashes, checkpoints, whatever else."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from engine.tools.headers import DTYPE_NAMES, DTYPES, read_header
from engine.tools.progress import Progress, no_progress
from knowledge.answers import PlainError

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
