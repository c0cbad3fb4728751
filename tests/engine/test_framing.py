from __future__ import annotations

import pytest
from PIL import Image

from engine.dataset.framing import framing_of, framings, one_sided
from engine.dataset.inspect import inspect_dataset
from knowledge.config import DatasetFolder, DatasetSettings


@pytest.mark.parametrize(
    ("caption", "framing"),
    [
        ("sks, cowboy_shot, beach", "to the knees"),
        ("A close-up photo of a woman", "close-up"),
        ("sks, full body, standing", "full body"),
        ("portrait, full body", "head and shoulders"),
        ("sks in a close-up-like mood", ""),
        ("sks, a portraiture class", ""),
        ("", ""),
    ],
)
def test_a_caption_says_its_framing_in_the_boards_words_or_in_a_sentence(caption, framing):
    assert framing_of(caption) == framing


def test_framings_are_counted_from_near_to_far_with_the_silent_ones_last():
    said = framings(["full body", "sks", "close-up", "full_body"])
    assert list(said.items()) == [("close-up", 1), ("full body", 2), ("", 1)]


@pytest.mark.parametrize(
    ("said", "framing"),
    [
        ({"close-up": 8, "full body": 2, "": 40}, "close-up"),
        ({"close-up": 7, "full body": 3}, ""),
        ({"close-up": 4}, ""),
        ({"": 30}, ""),
    ],
    ids=["eight of ten", "seven of ten", "too few say it", "none says it"],
)
def test_four_fifths_of_those_that_say_it_are_one_sided(said, framing):
    assert one_sided(said) == framing


def test_pictures_that_are_all_as_near_are_named(tmp_path):
    for number in range(6):
        Image.new("RGB", (64, 64), (40 * number, 0, 0)).save(tmp_path / f"{number}.png")
        said = "close-up" if number else "full body"
        (tmp_path / f"{number}.txt").write_text(f"sks, {said}, place {number}")
    settings = DatasetSettings(
        folders=(DatasetFolder(path=str(tmp_path)),), resolution=64, bucket_minimum_side=32, bucket_maximum_side=128
    )
    found = inspect_dataset(settings)
    (finding,) = (finding for finding in found.findings if finding.kind == "framing-one-sided")
    assert "5 of 6 captions that say how near the picture is taken say close-up" in finding.message
    assert len(finding.files) == 5
    (tmp_path / "1.txt").write_text("sks, from afar, place 1")
    assert not any(finding.kind == "framing-one-sided" for finding in inspect_dataset(settings).findings)
    assert inspect_dataset(settings).as_dict()["framing"] == {"close-up": 4, "full body": 1, "from afar": 1}
