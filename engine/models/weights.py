"""Weighted words in captions, as A1111 writes them: (red:1.3) counts more, [red] less."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

MORE, LESS = 1.1, 1 / 1.1
"""What one pair of round and of square brackets multiplies the weight by."""

_PIECES = re.compile(
    r"\\(?P<literal>[()\[\]\\])|(?P<open>[(\[])|:\s*(?P<weight>[+-]?\d*\.?\d+)\s*\)|(?P<close>[)\]])|[^\\()\[\]:]+|.",
    re.S,
)


def weighted_parts(caption: str) -> list[tuple[str, float]]:
    """The caption without its brackets, in pieces with their weights.

    Brackets may stand in one another; one that is written \\( is a letter; one that is never closed counts to the end.
    """
    parts: list[tuple[str, float]] = []
    round_starts: list[int] = []
    square_starts: list[int] = []

    def multiply(start: int, factor: float) -> None:
        parts[start:] = [(text, weight * factor) for text, weight in parts[start:]]

    for piece in _PIECES.finditer(caption):
        starts = {"(": round_starts, "[": square_starts, ")": round_starts, "]": square_starts}
        if piece["open"]:
            starts[piece["open"]].append(len(parts))
        elif piece["weight"] and round_starts:
            multiply(round_starts.pop(), float(piece["weight"]))
        elif piece["close"] and starts[piece["close"]]:
            multiply(starts[piece["close"]].pop(), MORE if piece["close"] == ")" else LESS)
        else:
            parts.append((piece["literal"] or piece[0], 1.0))
    for start in round_starts:
        multiply(start, MORE)
    for start in square_starts:
        multiply(start, LESS)
    return _joined(parts)


def _joined(parts: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """Neighbours of the same weight in one piece, so that words are not torn apart before they become tokens."""
    joined: list[tuple[str, float]] = []
    for text, weight in parts:
        if joined and joined[-1][1] == weight:
            joined[-1] = (joined[-1][0] + text, weight)
        else:
            joined.append((text, weight))
    return joined


def weighted_tokens(tokenizer: Any, caption: str, most: int) -> tuple[list[int], list[float]]:
    """The caption's tokens, at most this many, without begin and end, and the weight of each."""
    ids: list[int] = []
    weights: list[float] = []
    for text, weight in weighted_parts(caption):
        tokens = tokenizer(text, add_special_tokens=False, truncation=False).input_ids
        ids += tokens
        weights += [weight] * len(tokens)
    return ids[:most], weights[:most]


def weighted_ids(tokenizer: Any, captions: Sequence[str], most: int) -> tuple[Tensor, Tensor]:
    """Token numbers with begin, end and padding, and the weight of each: both [batch, most + 2]."""
    ids = torch.full((len(captions), most + 2), tokenizer.pad_token_id)
    weights = torch.ones(len(captions), most + 2)
    for row, caption in enumerate(captions):
        tokens, each = weighted_tokens(tokenizer, caption, most)
        ids[row, : len(tokens) + 2] = torch.tensor([tokenizer.bos_token_id, *tokens, tokenizer.eos_token_id])
        weights[row, 1 : len(tokens) + 1] = torch.tensor(each)
    return ids, weights
