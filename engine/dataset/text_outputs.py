"""What the text encoders make of the captions, encoded once and kept on disk under the text and the encoders."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from engine.dataset.store import Store, digest, weights_digest
from engine.models.sd import Conditioning

VERSION = 1
"""To be raised when the same caption would give other numbers than before."""

Encode = Callable[[Sequence[str]], Conditioning]
"""A family's encode_prompt."""


class TextCache:
    """The conditioning of every caption, for runs in which captions and text encoders stay as they are."""

    def __init__(self, folder: Path, text_encoders: Iterable[nn.Module], *settings: Any) -> None:
        """`settings` are plain values that change what the encoders give, as clip skip."""
        self._store = Store(folder / "text")
        self._encoders = digest(VERSION, weights_digest(*text_encoders), settings)
        self._known: dict[str, Conditioning] = {}

    @torch.no_grad()
    def fill(self, captions: Iterable[str], encode: Encode) -> Iterator[tuple[int, int]]:
        """Encodes the captions that are not there yet, one at a time; yields how many are done, and of how many."""
        different = list(dict.fromkeys(captions))
        for done, caption in enumerate(different, start=1):
            key = digest(self._encoders, caption)
            try:
                tensors = self._store.read(key)
            except KeyError:
                made = encode([caption])
                tensors = {"hidden_states": made.hidden_states.cpu()}
                if made.pooled is not None:
                    tensors["pooled"] = made.pooled.cpu()
                self._store.write(key, tensors)
            self._known[caption] = Conditioning(**tensors)
            yield done, len(different)

    def conditioning(self, captions: Sequence[str]) -> Conditioning:
        """The conditioning of a batch of captions, all of which `fill` has seen."""
        return Conditioning.stack([self._known[caption] for caption in captions])
