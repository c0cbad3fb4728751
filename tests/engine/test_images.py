from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.dataset.images import Look, area_mean, load_picture, picture_size, placed, recoloured, to_tensor
from knowledge.answers import PlainError

DATA = Path(__file__).parents[1] / "data"
REFERENCE = json.loads((DATA / "picture_resize.json").read_text())


@dataclass(frozen=True)
class Placed:
    bucket: tuple[int, int]
    resized: tuple[int, int]


@pytest.mark.parametrize("row", REFERENCE, ids=lambda row: f"{row['file']} {row['bucket']}")
def test_pictures_are_resized_and_cut_to_the_byte_like_sd_scripts(row):
    picture = Image.open(DATA / "pictures" / row["file"]).convert("RGB")
    pixels = np.asarray(placed(picture, Placed(tuple(row["bucket"]), tuple(row["resized"]))))
    assert hashlib.sha256(pixels.tobytes()).hexdigest() == row["sha256_uint8_hwc"]


def test_a_shrunk_pixel_is_the_mean_of_the_area_it_covers():
    line = np.array([[[0], [90], [200]]], np.uint8)
    # 3 pixels become 2: each covers one and a half; (0 + 90/2)/1.5 = 30, (90/2 + 200)/1.5 = 163.3
    assert area_mean(line, 2, 1).ravel().tolist() == [30, 163]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("extension", ["jpg", "png", "webp"])
def test_pictures_stand_upright_as_their_exif_says(tmp_path, orientation, extension):
    upright = Image.new("RGB", (40, 20), "white")
    upright.paste("red", (0, 0, 20, 10))  # the upper left quarter
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Image.Transpose that a camera would have applied
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"picture.{extension}"
    stored.save(path, exif=exif, quality=95)
    assert picture_size(path) == (40, 20)
    picture = load_picture(path)
    assert picture.size == (40, 20)
    red, green, _ = picture.getpixel((5, 3))
    assert red > 200
    assert green < 60
    assert min(picture.getpixel((35, 3)) + picture.getpixel((5, 15))) > 200


def test_transparent_parts_become_white(tmp_path):
    for name, picture in {
        "a.png": Image.new("RGBA", (4, 4), (255, 0, 0, 0)),
        "b.png": Image.new("LA", (4, 4), (0, 0)),
    }.items():
        picture.save(tmp_path / name)
        assert load_picture(tmp_path / name).getpixel((1, 1)) == (255, 255, 255)
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([0, 0, 0])
    palette.save(tmp_path / "c.png", transparency=0)
    assert load_picture(tmp_path / "c.png").getpixel((1, 1)) == (255, 255, 255)


def test_sixteen_bit_grey_keeps_its_shades(tmp_path):
    Image.fromarray(np.full((4, 4), 0x8000, np.uint16)).save(tmp_path / "a.png")
    assert load_picture(tmp_path / "a.png").getpixel((0, 0)) == (128, 128, 128)


def test_cmyk_becomes_rgb(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    red, green, blue = load_picture(tmp_path / "a.jpg").getpixel((4, 4))
    assert red > 200 > 60 > max(green, blue)


def test_a_broken_picture_is_named(tmp_path):
    whole = tmp_path / "whole.png"
    Image.effect_noise((64, 64), 50).save(whole)
    broken = tmp_path / "broken.png"
    broken.write_bytes(whole.read_bytes()[:500])
    with pytest.raises(PlainError, match=r"broken\.png cannot be read"):
        load_picture(broken)
    with pytest.raises(PlainError, match=r"absent\.png is gone"):
        load_picture(tmp_path / "absent.png")


def test_tensors_hold_colours_from_minus_one_to_one():
    picture = Image.new("RGB", (8, 4), (255, 0, 128))
    picture.paste((0, 0, 0), (0, 0, 1, 4))
    placement = Placed((8, 4), (8, 4))
    tensor = to_tensor(picture, placement)
    assert tensor.shape == (3, 4, 8)
    assert tensor[:, 0, 7].tolist() == pytest.approx([1.0, -1.0, 128 / 127.5 - 1], abs=1e-6)
    flipped = to_tensor(picture, placement, Look(flip=True))
    assert (flipped[:, :, 7] == -1).all()
    assert flipped.flip(-1).equal(tensor)


def test_tensors_have_the_colours_of_their_look():
    picture, placement = Image.new("RGB", (1, 1), (255, 128, 0)), Placed((1, 1), (1, 1))
    for look in (Look(hue=10.0), Look(gamma=1.05)):
        expected = recoloured(picture, look.hue, look.gamma).getpixel((0, 0))
        assert expected != (255, 128, 0)
        shown = (to_tensor(picture, placement, look).flatten() + 1) * 127.5
        assert shown.tolist() == pytest.approx(expected, abs=1e-4)


def test_a_cut_takes_the_part_that_the_look_names():
    picture = Image.new("RGB", (8, 4))
    picture.paste("red", (6, 0, 8, 4))
    placement = Placed((2, 4), (8, 4))
    assert placed(picture, placement, Look(cut=(6, 0))).getcolors() == [(8, (255, 0, 0))]
    assert placed(picture, placement).getcolors() == [(8, (0, 0, 0))]


def test_hues_turn_and_greys_stay_grey():
    turned = recoloured(Image.new("RGB", (1, 1), (255, 0, 0)), hue=120, gamma=1).getpixel((0, 0))
    assert turned[1] == 255
    assert max(turned[0], turned[2]) < 8
    assert recoloured(Image.new("RGB", (1, 1), (90, 90, 90)), hue=16, gamma=1).getpixel((0, 0)) == (90, 90, 90)


def test_gamma_keeps_black_and_white():
    picture = Image.new("RGB", (1, 1), (0, 128, 255))
    assert recoloured(picture, hue=0, gamma=1.05).getpixel((0, 0)) == (0, 124, 255)  # 255 × (128/255)^1.05 = 123.7
