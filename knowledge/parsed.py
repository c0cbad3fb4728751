"""TOML files parsed once for all: what parsing gave is kept beside the file, as Python keeps compiled modules."""

from __future__ import annotations

import contextlib
import marshal
import os
import sys
import tomllib
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any


def parsed(path: Path) -> dict[str, Any]:
    """The tables of a TOML file. Raises OSError and tomllib.TOMLDecodeError.

    Parsing the knowledge base takes longer than everything else that `lora-wizard calc` does. What is kept counts only
    while the file has the size and the time of change that it had then, and where it cannot be kept or read, the file
    is parsed again.
    """
    status = path.stat()
    stamp = [status.st_mtime_ns, status.st_size]
    beside = Path(cache_from_source(str(path)))  # in __pycache__, or wherever Python was told to keep such files
    kept = beside.with_name(f"{path.name}.{sys.implementation.cache_tag}")
    # TypeError: what was kept is no pair; the others: it is not there, cut short, or of another Python
    with contextlib.suppress(OSError, EOFError, ValueError, TypeError):
        found_stamp, document = marshal.loads(kept.read_bytes())
        if found_stamp == stamp:
            return dict(document)
    document = tomllib.loads(path.read_text(encoding="utf-8"))
    with contextlib.suppress(OSError, ValueError):  # a folder that is read-only; a date, which marshal cannot keep
        content = marshal.dumps([stamp, document])
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_name(f"{kept.name}.{os.getpid()}")
        partial.write_bytes(content)
        partial.replace(kept)
    return document
