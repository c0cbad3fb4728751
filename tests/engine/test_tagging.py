"""The taggers' exact interface, in a small real ONNX model that the test makes: it sees the mean colour."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from taggers import WORDS, make_tagger

from engine.tagging import Tagger, largest_gap, prepared, spoken, tag_pictures
from engine.tagging import tagger as tagger_of_the_hub
from knowledge.answers import PlainError


@pytest.fixture(scope="module")
def tagger(tmp_path_factory) -> Tagger:
    return Tagger(make_tagger(tmp_path_factory.mktemp("tagger")))


def test_pictures_are_prepared_as_the_taggers_were_taught():
    picture = Image.new("RGB", (64, 32), (255, 10, 0))
    pixels = prepared(picture, 32)
    assert (pixels.shape, pixels.dtype) == ((32, 32, 3), np.float32)
    assert pixels[16, 16].tolist() == [0, 10, 255]  # blue first
    assert pixels[2, 16].tolist() == [255, 255, 255]  # white above and below


def test_tags_come_by_category_and_certainty(tagger):
    (row,) = tagger.probabilities([prepared(Image.new("RGB", (32, 32), (128, 230, 0)), 32)])
    assert [tag.name for tag in tagger.tags(row)] == ["somebody_(series)", "green_theme", "red_theme", "^_^"]
    assert [tag.name for tag in tagger.tags(row, general=0.45)] == ["somebody_(series)", "green_theme", "red_theme"]
    assert tagger.tags(row, character=0.95)[0].name == "green_theme"
    assert tagger.tags(row, rating=True)[-1].name == "general"


def test_faces_keep_their_underscores():
    assert [spoken(name) for name in ("long_hair", "^_^", "somebody_(series)")] == [
        "long hair",
        "^_^",
        "somebody (series)",
    ]


@pytest.mark.parametrize("batch", ["batch", 1, 4])
def test_any_batch_that_a_model_takes_gives_the_same(tmp_path, tagger, batch):
    other = Tagger(make_tagger(tmp_path / "t", batch))
    pictures = [prepared(Image.new("RGB", (32, 32), (40 * n, 0, 0)), 32) for n in range(6)]
    assert np.allclose(other.probabilities(pictures), tagger.probabilities(pictures))


def test_folders_are_tagged_in_order_and_broken_pictures_are_named(tmp_path, tagger):
    for number in range(5):
        Image.new("RGB", (20, 30), (50 * number, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "2.png").write_bytes(b"no picture")
    paths = sorted(tmp_path.glob("*.png"))
    found = list(tag_pictures(tagger, paths, batch_size=2))
    assert [path for path, _ in found] == paths
    assert isinstance(found[2][1], PlainError)
    alone = tagger.probabilities([prepared(Image.open(paths[4]), 32)])[0]
    assert np.allclose(found[4][1], alone)


def test_what_is_no_tagger_is_named(tmp_path):
    with pytest.raises(PlainError, match=r"model\.onnx and selected_tags\.csv is missing"):
        Tagger(tmp_path)
    folder = make_tagger(tmp_path / "short", words=WORDS[:-1])
    with pytest.raises(PlainError, match="do not belong together"):
        Tagger(folder).probabilities([np.zeros((32, 32, 3), np.float32)])
    (folder / "model.onnx").write_bytes(b"<html>")
    with pytest.raises(PlainError, match="cannot be loaded as an ONNX model"):
        Tagger(folder)
    (folder / "selected_tags.csv").write_text("a,b\n1,2")
    with pytest.raises(PlainError, match="is not a tagger's list"):
        Tagger(folder)
    with pytest.raises(PlainError, match=r'There is no tagger "wd-vit-v4"\. Did you mean "wd-vit-v'):
        tagger_of_the_hub("wd-vit-v4")


@pytest.mark.parametrize("name", ["wd-vit-v2", "wd14-vit-v2"])
def test_a_tagger_that_is_here_is_not_asked_for_again(monkeypatch, tmp_path, name):
    import huggingface_hub.constants as constants

    repository = tmp_path / "models--SmilingWolf--wd-v1-4-vit-tagger-v2"  # as the hub's own library keeps it
    folder = make_tagger(repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert tagger_of_the_hub(name).here() == folder


def test_the_largest_gap_can_decide_in_place_of_the_thresholds(tagger):
    # general: 0.5 green, 0.45 red, 0.4 ^_^, 0.1 blue: the largest gap is from 0.4 to 0.1, its middle 0.25
    colour = tuple(round(255 * share) for share in (0.45, 0.5, 0.1))
    (row,) = tagger.probabilities([prepared(Image.new("RGB", (32, 32), colour), 32)])
    assert [tag.name for tag in tagger.tags(row, general=0.48)] == ["somebody_(series)", "green_theme"]
    found = tagger.tags(row, general=0.48, own_gap=True)
    assert [tag.name for tag in found] == ["somebody_(series)", "green_theme", "red_theme", "^_^"]
    assert largest_gap(np.array([0.9, 0.8, 0.2, 0.1], np.float32)) == pytest.approx(0.5)
    assert largest_gap(np.array([0.9], np.float32)) == pytest.approx(0.45)
