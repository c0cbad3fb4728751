"""Captions at their own length: no longer than the longest of a batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from short_runs import Configure, run_to_end, same, weights

from engine.models.load import load
from knowledge.config import BaseModelSettings, TrainingConfig, with_values
from knowledge.formats.export import to_sd_scripts
from knowledge.formats.sd_scripts import translate

CAPTIONS = ["a toy", "two red cars on a road"]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_a_batch_is_as_long_as_its_longest_caption(tiny_sd15: Path, tiny_sdxl: Path, family: str, weighted: bool):
    folder = {"sd15": tiny_sd15, "sdxl": tiny_sdxl}[family]
    model = load(BaseModelSettings(path=str(folder), family=family), torch.float32, unet_later=True)
    model.weighted_captions = weighted
    # The tokenizer's own word for it, as sd-scripts asks it: padding to the longest of the batch.
    theirs = model.tokenizers[0](CAPTIONS, padding=True, truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        short, full = (model.encode_prompt(CAPTIONS, padded=padded) for padded in (False, True))
        alone = model.encode_prompt(CAPTIONS[:1], padded=False)
        first = model.text_encoders["text_encoder"](theirs, output_hidden_states=True)
    assert (short.hidden_states.shape[1], full.hidden_states.shape[1]) == (theirs.shape[1], 77) == (8, 77)
    assert alone.hidden_states.shape[1] == 4
    # CLIP looks back only, so that what stands before the filling is the same with it and without.
    torch.testing.assert_close(short.hidden_states, full.hidden_states[:, :8], rtol=0, atol=1e-5)
    layer = first.last_hidden_state if family == "sd15" else first.hidden_states[-2]
    torch.testing.assert_close(short.hidden_states[..., : layer.shape[-1]], layer, rtol=0, atol=1e-5)
    if short.pooled is not None:
        torch.testing.assert_close(short.pooled, full.pooled, rtol=0, atol=1e-5)


def test_a_run_learns_otherwise_from_captions_that_are_not_filled_up(configure: Configure):
    padded, unpadded = (
        weights(run_to_end(configure(base_model={"pad_captions": pad}, schedule={"maximum_steps": 1}))[0])
        for pad in (True, False)
    )
    assert not same(padded, unpadded)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"base_model.maximum_tokens": 150}, "whole pieces of 75"),
        ({"memory.cache_text_encoder_outputs": True}, "each caption by itself"),
    ],
)
def test_what_needs_captions_filled_up_is_told(values: dict[str, object], words: str):
    with pytest.raises(ValidationError, match=words):
        with_values(TrainingConfig(), {"base_model.pad_captions": False} | values)


def test_it_comes_from_sd_scripts_and_is_told_to_be_lost_on_the_way_back():
    config = translate({"no_token_padding": True}, kind="sd-scripts TOML").config
    assert not config.base_model.pad_captions
    assert "base_model.pad_captions" in {lost.name for lost in to_sd_scripts(config).lost}
