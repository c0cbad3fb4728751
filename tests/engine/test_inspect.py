from __future__ import annotations

import io
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from engine.dataset.examine import duplicates, examine, fingerprint, sharpness
from engine.dataset.inspect import Inspection, inspect_dataset
from engine.dataset.tokens import count_tokens
from knowledge.config import DatasetFolder, DatasetSettings


def drawing(seed: int, size=(256, 256)) -> Image.Image:
    """Something with edges, another one for each seed."""
    draw_from = random.Random(seed)
    picture = Image.new("RGB", size, tuple(draw_from.choices(range(256), k=3)))
    draw = ImageDraw.Draw(picture)
    for _ in range(14):
        x, y = draw_from.randrange(size[0]), draw_from.randrange(size[1])
        side = draw_from.randrange(20, 90)
        draw.ellipse((x - side, y - side, x + side, y + side // 2), tuple(draw_from.choices(range(256), k=3)))
    return picture


def save(folder: Path, name: str, picture: Image.Image, caption: str | None = "a thing, on a ground", **how) -> Path:
    path = folder / name
    picture.save(path, **how)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def inspect(folder: Path, **values) -> Inspection:
    values = {"resolution": 256, "bucket_minimum_side": 128, "bucket_maximum_side": 512} | values
    return inspect_dataset(DatasetSettings(folders=(DatasetFolder(path=str(folder)),), **values))


def kinds(inspection: Inspection) -> dict[str, list[str]]:
    return {finding.kind: sorted(Path(name).name for name in finding.files) for finding in inspection.findings}


def test_good_pictures_get_no_findings(tmp_path):
    for number in range(4):
        save(tmp_path, f"{number}.png", drawing(number), f"sks, a red ball, place {number}")
    found = inspect(tmp_path, trigger_word="sks")
    assert found.findings == ()
    assert (found.usable, found.captions, found.trigger_captions) == (4, 4, 4)
    assert [(row.width, row.height, row.views, row.batches) for row in found.buckets] == [(256, 256, 4, 4)]


def test_each_thing_that_can_be_wrong_with_a_picture_is_named(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = io.BytesIO()
    drawing(1).save(whole, "JPEG")
    (tmp_path / "damaged.jpg").write_bytes(whole.getvalue()[:-900])
    (tmp_path / "unreadable.png").write_bytes(b"<html>404</html>")
    (tmp_path / "empty.png").write_bytes(b"")
    save(tmp_path, "blurred.png", drawing(2).filter(ImageFilter.GaussianBlur(4)))
    save(tmp_path, "small.png", drawing(3, (100, 100)))
    save(tmp_path, "turned.jpg", drawing(4), exif=exif)
    save(tmp_path, "cmyk.jpg", drawing(5).convert("CMYK"))
    save(tmp_path, "named.png", drawing(6), format="JPEG")
    save(tmp_path, "moves.webp", drawing(7), save_all=True, append_images=[drawing(8)])
    clear = drawing(9).convert("RGBA")
    clear.putpixel((0, 0), (0, 0, 0, 0))
    save(tmp_path, "clear.png", clear)
    save(tmp_path, "opaque.png", drawing(10).convert("RGBA"))
    save(tmp_path, "panorama.png", drawing(11, (1400, 256)))
    (tmp_path / "phone.heic").write_bytes(b"heic")
    found = kinds(inspect(tmp_path))
    assert found["damaged"] == ["damaged.jpg"]
    assert found["unreadable"] == ["empty.png", "unreadable.png"]
    assert found["blurred"] == ["blurred.png"]
    assert found["too-small"] == ["small.png"]
    assert found["turned"] == ["turned.jpg"]
    assert found["cmyk"] == ["cmyk.jpg"]
    assert found["mislabelled"] == ["named.png"]
    assert found["animated"] == ["moves.webp"]
    assert found["transparent"] == ["clear.png"]
    assert found["cut"] == ["panorama.png"]
    assert found["other-formats"] == ["phone.heic"]


def test_findings_come_in_the_order_of_what_to_mend_first(tmp_path):
    save(tmp_path, "turned.jpg", drawing(4).convert("CMYK"))
    save(tmp_path, "small.png", drawing(3, (100, 100)))
    (tmp_path / "broken.png").write_bytes(b"")
    severities = [finding.severity for finding in inspect(tmp_path).findings]
    assert severities == sorted(severities, key=["blocks", "high", "warning", "note"].index)
    assert {"blocks", "warning", "note"} == set(severities)


def test_the_same_picture_is_found_under_other_names_sizes_and_formats(tmp_path):
    content = save(tmp_path, "a.png", drawing(1)).read_bytes()
    (tmp_path / "b.png").write_bytes(content)
    save(tmp_path, "c.jpg", drawing(1).resize((400, 400)), quality=70)
    save(tmp_path, "d.png", drawing(2))
    save(tmp_path, "mirrored.png", drawing(1).transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    found = kinds(inspect(tmp_path))
    assert found["duplicate"] == ["a.png", "b.png"]
    assert found["near-duplicate"] == ["a.png", "c.jpg"]


def test_different_pictures_are_not_taken_for_duplicates(tmp_path):
    for number in range(60):
        save(tmp_path, f"{number}.png", drawing(number))
    for number in range(5):  # plain grounds, on which the fingerprints say little
        plain = Image.new("RGB", (256, 256), "white")
        plain.paste("black", (40 * number, 100, 40 * number + 30, 130))
        save(tmp_path, f"plain {number}.png", plain)
    same, alike = duplicates([examine(path) for path in tmp_path.glob("*.png")])
    assert (same, alike) == ([], [])


def test_each_thing_that_can_be_wrong_with_captions_is_named(tmp_path):
    for number in range(3):
        save(tmp_path, f"{number}.png", drawing(number), f"sks, red_hair, red hair, place {number}")
    save(tmp_path, "none.png", drawing(4), None)
    save(tmp_path, "blank.png", drawing(5), " \n")
    save(tmp_path, "thin.png", drawing(6), "sks, toy")
    save(tmp_path, "long.png", drawing(7), "sks, " + ", ".join(f"tag {n}" for n in range(30)))
    save(tmp_path, "double.png", drawing(8), "sks, one, one, two")
    save(tmp_path, "without.png", drawing(9), "nobody at the sea")
    save(tmp_path, "garbled.png", drawing(10))
    (tmp_path / "garbled.txt").write_text("Zoë", encoding="latin-1")
    (tmp_path / "lost.txt").write_text("where is my picture")
    save(tmp_path, "0.jpg", drawing(11), None)
    found = kinds(inspect(tmp_path, trigger_word="sks"))
    assert found["captions-missing"] == ["blank.png", "none.png"]
    assert found["captions-thin"] == ["thin.png"]
    assert found["captions-long"] == ["long.png"]
    assert found["tags-doubled"] == ["double.png"]
    assert found["trigger-missing"] == ["without.png"]
    assert found["caption-encoding"] == ["garbled.png"]
    assert found["caption-without-picture"] == ["lost.txt"]
    assert found["same-name"] == ["0.jpg", "0.png"]
    assert '"red_hair" and "red hair"' in " ".join(
        finding.message for finding in inspect(tmp_path).findings if finding.kind == "tags-spelled-differently"
    )


def test_tags_are_counted_once_in_a_caption(tmp_path):
    save(tmp_path, "a.png", drawing(1), "red, red, round")
    save(tmp_path, "b.png", drawing(2), "red, square")
    assert inspect(tmp_path).tag_frequency == {"red": 2, "round": 1, "square": 1}


@pytest.mark.parametrize("seed", range(6))
def test_a_blur_of_two_pixels_is_told_from_a_sharp_picture(seed):
    picture = drawing(seed, (512, 512)).convert("L")
    assert sharpness(picture) > 0.3
    assert sharpness(picture.filter(ImageFilter.GaussianBlur(3))) < 0.08


def test_a_sharp_subject_before_a_soft_ground_is_sharp():
    picture = Image.linear_gradient("L").resize((512, 512))
    picture.paste(drawing(3, (96, 96)).convert("L"), (200, 200))
    assert sharpness(picture) > 0.2
    assert sharpness(Image.new("L", (512, 512), 90)) is None


def test_fingerprints_hardly_change_with_size_and_compression():
    picture = drawing(5).convert("L")
    content = io.BytesIO()
    picture.resize((180, 180)).save(content, "JPEG", quality=50)
    assert (fingerprint(picture) ^ fingerprint(Image.open(content))).bit_count() <= 12
    assert (fingerprint(picture) ^ fingerprint(drawing(6).convert("L"))).bit_count() > 30


def test_a_hundred_randomly_broken_files_break_nothing_and_each_is_named(tmp_path):
    draw_from = random.Random(0)
    contents = []
    for form in ("PNG", "JPEG", "WEBP", "BMP"):
        content = io.BytesIO()
        drawing(1).save(content, form)
        contents.append((form.lower(), content.getvalue()))
    for number in range(100):
        form, content = draw_from.choice(contents)
        if number % 2:
            broken = content[: draw_from.randrange(len(content) // 2)]
        else:  # a header that lies
            broken = content[:4] + draw_from.randbytes(40) + content[44:]
        (tmp_path / f"{number}.{'jpg' if form == 'jpeg' else form}").write_bytes(broken)
    found = inspect(tmp_path)
    assert len(found.pictures) == 100
    named = {Path(name).name for f in found.findings if f.kind in ("damaged", "unreadable") for name in f.files}
    assert {path.name for path in tmp_path.iterdir() if int(path.stem) % 2} <= named
    assert found.usable == 100 - len(named)


def test_tokens_are_those_that_clip_counts():
    # start and end left out: a · photo · of · sk · s (one word may be several tokens) and the comma counts too
    assert count_tokens(["", "a photo of a cat", "a, b"]) == [0, 5, 3]
    assert count_tokens([]) == []


def test_the_json_document_is_plain(tmp_path):
    import json

    save(tmp_path, "a.png", drawing(1))
    document = json.loads(json.dumps(inspect(tmp_path).as_dict()))
    assert document["pictures"] == 1
    assert document["formats"] == {"PNG": 1}
    assert np.isfinite(document["most_tokens"])
