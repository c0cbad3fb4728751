"""BLIP's real classes with random weights and a vocabulary of a few words."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from engine.captioning import Captioner, caption_pictures, is_captioner
from knowledge.answers import PlainError


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessorPil

    folder = tmp_path_factory.mktemp("blip")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "a", "cat", "dog", "on", "grass"]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    BlipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = BlipConfig(
        text_config=small
        | {"vocab_size": len(words), "encoder_hidden_size": 16, "bos_token_id": 5, "eos_token_id": 3, "pad_token_id": 0}
        | {"sep_token_id": 3},
        vision_config=small | {"image_size": 32, "patch_size": 8},
        projection_dim=8,
        image_text_hidden_size=8,
    )
    BlipForConditionalGeneration(config).save_pretrained(folder)
    return folder


def test_pictures_get_sentences_in_their_order_and_broken_ones_are_named(folder, tmp_path):
    for number in range(3):
        Image.new("RGB", (40, 30), (80 * number, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "1.png").write_bytes(b"no picture")
    captioner = Captioner(str(folder))
    paths = sorted(tmp_path.glob("*.png"))
    found = dict(caption_pictures(captioner, paths, batch_size=2))
    assert list(found) == paths
    assert isinstance(found[paths[1]], PlainError)
    for path in (paths[0], paths[2]):
        assert set(found[path].split()) <= {"a", "cat", "dog", "on", "grass", "[UNK]", "[DEC]"}
        assert found[path] == captioner.captions([Image.open(path)])[0]


def test_what_is_a_captioner_is_known_without_loading_it(folder, tmp_path):
    assert is_captioner("blip-large")
    assert is_captioner(str(folder))
    assert not is_captioner("wd-vit-v3")
    assert not is_captioner(str(tmp_path))


def test_what_cannot_be_loaded_is_told_in_words(tmp_path):
    with pytest.raises(PlainError, match="cannot be loaded"):
        Captioner(str(tmp_path))
