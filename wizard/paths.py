"""Paths as people type them."""

from __future__ import annotations

import shlex
from pathlib import Path

from knowledge.answers import quoted

__all__ = ["quoted", "typed_path"]


def typed_path(text: str) -> str:
    """A path as people type or drop it into a terminal: quotes and backslashes before spaces are taken away."""
    text = text.strip()
    if not text or Path(text).expanduser().exists():
        return text
    try:
        parts = shlex.split(text)
    except ValueError:
        return text
    return parts[0] if len(parts) == 1 else text
