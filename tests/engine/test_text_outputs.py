from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from engine.dataset.text_outputs import TextCache
from engine.models.sd import Conditioning


class Encoder:
    """A text encoder whose conditioning is the caption's length; remembers what it was asked."""

    def __init__(self, pooled: bool) -> None:
        self.pooled, self.asked = pooled, []
        self.module = nn.Linear(1, 1)

    def encode_prompt(self, captions: Sequence[str]) -> Conditioning:
        self.asked += captions
        lengths = torch.tensor([float(len(caption)) for caption in captions])
        return Conditioning(lengths.view(-1, 1, 1).expand(-1, 4, 3), lengths.view(-1, 1) if self.pooled else None)


@pytest.mark.parametrize("pooled", [False, True])
def test_conditioning_is_what_the_encoder_gives(tmp_path, pooled):
    encoder = Encoder(pooled)
    cache = TextCache(tmp_path, [encoder.module])
    assert list(cache.fill(["a", "bb", "a", ""], encoder.encode_prompt)) == [(1, 3), (2, 3), (3, 3)]
    batch = cache.conditioning(["bb", "a", "bb"])
    expected = encoder.encode_prompt(["bb", "a", "bb"])
    assert torch.equal(batch.hidden_states, expected.hidden_states)
    assert torch.equal(batch.pooled, expected.pooled) if pooled else batch.pooled is None


def test_the_next_run_encodes_only_what_is_new(tmp_path):
    encoder = Encoder(pooled=True)
    list(TextCache(tmp_path, [encoder.module]).fill(["a", "b"], encoder.encode_prompt))
    again = TextCache(tmp_path, [encoder.module])
    list(again.fill(["b", "c"], encoder.encode_prompt))
    assert encoder.asked == ["a", "b", "c"]
    assert again.conditioning(["b"]).pooled.item() == 1


@pytest.mark.parametrize("change", ["weights", "settings"])
def test_a_stale_cache_is_never_used(tmp_path, change):
    encoder = Encoder(pooled=False)
    list(TextCache(tmp_path, [encoder.module], 1).fill(["a"], encoder.encode_prompt))
    if change == "weights":
        encoder.module.weight.data += 1
    list(TextCache(tmp_path, [encoder.module], 2 if change == "settings" else 1).fill(["a"], encoder.encode_prompt))
    assert encoder.asked == ["a", "a"]
