from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from engine.dataset.store import STORES, DiskStore, MemoryStore
from engine.dataset.text_outputs import TextCache
from engine.models.family import Conditioning
from knowledge.answers import PlainError


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
    cache = TextCache(DiskStore(tmp_path), [encoder.module])
    assert list(cache.fill(["a", "bb", "a", ""], encoder.encode_prompt)) == [(1, 3), (2, 3), (3, 3)]
    batch = cache.conditioning(["bb", "a", "bb"])
    expected = encoder.encode_prompt(["bb", "a", "bb"])
    assert torch.equal(batch.hidden_states, expected.hidden_states)
    assert torch.equal(batch.pooled, expected.pooled) if pooled else batch.pooled is None


def test_the_next_run_encodes_only_what_is_new(tmp_path):
    encoder = Encoder(pooled=True)
    list(TextCache(DiskStore(tmp_path), [encoder.module]).fill(["a", "b"], encoder.encode_prompt))
    again = TextCache(DiskStore(tmp_path), [encoder.module])
    list(again.fill(["b", "c"], encoder.encode_prompt))
    assert encoder.asked == ["a", "b", "c"]
    assert again.conditioning(["b"]).pooled.item() == 1


@pytest.mark.parametrize("change", ["weights", "settings", "configuration"])
def test_a_stale_cache_is_never_used(tmp_path, change):
    encoder = Encoder(pooled=False)
    list(TextCache(DiskStore(tmp_path), [encoder.module], 1).fill(["a"], encoder.encode_prompt))
    if change == "weights":
        encoder.module.weight.data += 1
    if change == "configuration":
        encoder.module.config = {"hidden_act": "gelu"}
    list(
        TextCache(DiskStore(tmp_path), [encoder.module], 2 if change == "settings" else 1).fill(
            ["a"], encoder.encode_prompt
        )
    )
    assert encoder.asked == ["a", "a"]


def test_in_memory_is_what_the_encoder_gives_and_only_that_is_kept():
    encoder, store = Encoder(pooled=True), MemoryStore()
    cache = TextCache(store, [encoder.module])
    list(cache.fill(["bb", "a", "bb"], encoder.encode_prompt))
    assert encoder.asked == ["bb", "a"]
    assert torch.equal(cache.conditioning(["a"]).hidden_states, encoder.encode_prompt(["a"]).hidden_states)
    whole = torch.zeros(1000, 3)
    store.write("a part", {"x": whole[:1]})
    assert store.read("a part")["x"].untyped_storage().nbytes() == 12


@pytest.mark.parametrize("store", ["disk", "memory"])
def test_captions_that_are_gone_are_told(tmp_path, store):
    encoder = Encoder(pooled=False)
    cache = TextCache(STORES[store](tmp_path), [encoder.module])
    with pytest.raises(PlainError, match="Resume the run"):
        cache.conditioning(["a"])
