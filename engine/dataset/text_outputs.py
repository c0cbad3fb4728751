"""What the text encoders make of the captions, encoded once and kept under the text and the encoders."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from engine.dataset.store import Store, digest, gone, module_digest
from engine.models.family import Conditioning

VERSION = 1
"""To be raised when the same caption would give other numbers than before."""

Encode = Callable[[Sequence[str]], Conditioning]
"""A family's encode_prompt."""


class TextCache:
    """The conditioning of every caption, for runs in which captions and text encoders stay as they are."""

    def __init__(self, store: Store, text_encoders: Iterable[nn.Module], *settings: Any) -> None:
        """`settings` are plain values that change what the encoders are given or give, as clip skip."""
        self._store = store
        self._encoders = digest(VERSION, module_digest(*text_encoders), settings)

    @torch.no_grad()
    def fill(self, captions: Iterable[str], encode: Encode) -> Iterator[tuple[int, int]]:
        """Encodes the captions that are not there yet, one at a time; yields how many are done, and of how many."""
        different = list(dict.fromkeys(captions))
        for done, caption in enumerate(different, start=1):
            if self._key(caption) not in self._store:
                made = encode([caption])
                tensors = {"hidden_states": made.hidden_states}
                if made.pooled is not None:
                    tensors["pooled"] = made.pooled
                self._store.write(self._key(caption), tensors)
            yield done, len(different)

    def conditioning(self, captions: Sequence[str]) -> Conditioning:
        """The conditioning of a batch of captions, all of which `fill` has seen."""
        try:
            return Conditioning.stack([Conditioning(**self._store.read(self._key(caption))) for caption in captions])
        except KeyError:
            raise gone("captions") from None

    def _key(self, caption: str) -> str:
        return digest(self._encoders, caption)
