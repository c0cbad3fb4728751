"""BLIP's real classes with random weights and a vocabulary of a few words write a sentence for each picture."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from taggers import make_captioner

from engine.captioning import Captioner, caption_pictures, is_captioner
from knowledge.answers import PlainError


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_captioner(tmp_path_factory.mktemp("blip"))


def test_pictures_get_sentences_in_their_order_and_broken_ones_are_named(folder, tmp_path):
    for number in range(3):
        Image.new("RGB", (40, 30), (80 * number, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "1.png").write_bytes(b"no picture")
    captioner = Captioner(folder)
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
        Captioner(tmp_path)
