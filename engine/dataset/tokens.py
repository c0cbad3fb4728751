"""Captions in tokens, as the CLIP text encoders count them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from engine.pocket import MODEL_FOLDER

TOKENS_READ = 75
"""Tokens of a caption that a CLIP text encoder reads at once; what follows is not seen."""


def count_tokens(captions: Sequence[str]) -> list[int]:
    """Tokens of each caption, its start and end marks left out."""
    if not captions:
        return []
    return [len(ids) - 2 for ids in _tokenizer()(list(captions)).input_ids]


@lru_cache(maxsize=1)
def _tokenizer() -> Any:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(MODEL_FOLDER / "tokenizer", local_files_only=True)
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True  # it is our question
    return tokenizer
