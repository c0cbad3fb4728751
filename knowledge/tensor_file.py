"""The header of a safetensors file: eight bytes that tell its length, and a JSON document of every tensor."""

from __future__ import annotations

import json
import struct
from typing import Any, BinaryIO

LARGEST_HEADER_BYTES = 100_000_000


def read_document(file: BinaryIO) -> tuple[dict[str, Any], int]:
    """The header of an open file, with its metadata as "__metadata__", and where its numbers begin.

    Raises ValueError when there is none.
    """
    size = file.read(8)
    length = struct.unpack("<Q", size)[0] if len(size) == 8 else 0
    document = json.loads(file.read(length) if 2 <= length <= LARGEST_HEADER_BYTES else b"")
    if not isinstance(document, dict):
        raise ValueError("the header is no table")
    return document, 8 + length
