from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from engine.dataset.folders import scan, suggest_caption_extension, suggest_folders
from knowledge.answers import PlainError
from knowledge.config import DatasetFolder, DatasetSettings

PICTURES = Path(__file__).parents[1] / "data" / "pictures"


def settings(*folders: Path | DatasetFolder, **values) -> DatasetSettings:
    rows = [f if isinstance(f, DatasetFolder) else DatasetFolder(path=str(f)) for f in folders]
    return DatasetSettings(folders=tuple(rows), **values)


def picture(path: Path, size=(8, 6), **save) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "red").save(path, **save)
    return path


def test_pictures_are_counted_with_sizes_and_captions():
    facts = scan(
        settings(
            DatasetFolder(path=str(PICTURES / "10_sks toy"), repeats=10),
            DatasetFolder(path=str(PICTURES / "2_style"), repeats=2, caption="style"),
            DatasetFolder(path=str(PICTURES / "reg_1_toy"), regularisation=True),
        )
    )
    assert (facts.images, facts.regularisation_images, facts.views_per_epoch) == (9, 2, 66)  # 6 × 10 + 3 × 2
    first, *_ = facts.folders[0].pictures
    assert (Path(first.path).name, first.width, first.height, first.caption) == (
        "a.png",
        300,
        300,
        "sks toy, red, round",
    )
    assert facts.folders[1].pictures[2].caption == "style"  # i.png has no file of its own
    assert facts.captions_missing == 0


def test_a_caption_file_says_more_than_the_phrase_of_its_folder(tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        picture(tmp_path / name)
    (tmp_path / "a.txt").write_text("sks, red")
    (tmp_path / "b.txt").write_text("")
    found = scan(settings(DatasetFolder(path=str(tmp_path), caption="sks"))).folders[0].pictures
    assert [each.caption for each in found] == ["sks, red", "", "sks"]


def test_sizes_are_those_of_the_upright_picture(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(tmp_path / "a.jpg", (40, 30), exif=exif)
    (found,) = scan(settings(tmp_path)).folders[0].pictures
    assert (found.width, found.height) == (30, 40)


def test_endings_may_be_in_capitals_and_hidden_files_are_left_out(tmp_path):
    picture(tmp_path / "A.PNG")
    (tmp_path / "A.TXT").write_text("a")
    (tmp_path / "._A.PNG").write_bytes(b"what macOS leaves on other disks")
    (found,) = scan(settings(tmp_path)).folders[0].pictures
    assert found.caption == "a"
    assert scan(settings(tmp_path)).broken == ()


def test_broken_pictures_are_named_and_the_others_counted(tmp_path):
    picture(tmp_path / "good.png")
    (tmp_path / "bad.jpg").write_bytes(b"<html>404</html>")
    (tmp_path / "empty.png").write_bytes(b"")
    facts = scan(settings(tmp_path))
    assert facts.images == 1
    assert [Path(path).name for path in facts.broken] == ["bad.jpg", "empty.png"]


def test_nothing_but_broken_pictures_is_an_error(tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"<html>404</html>")
    with pytest.raises(PlainError, match=r"None of the pictures can be read: .*bad\.jpg"):
        scan(settings(tmp_path))


def test_no_folder_at_all_is_an_error():
    with pytest.raises(PlainError, match=r"dataset\.folders is empty"):
        scan(DatasetSettings())


def test_all_problems_are_told_together(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(PlainError) as error:
        scan(settings(tmp_path / "absent", empty))
    assert "There is no folder" in str(error.value)
    assert "is empty" in str(error.value)


def test_pictures_one_folder_deeper_are_pointed_at(tmp_path):
    picture(tmp_path / "cats" / "a.png")
    for ask in (lambda: scan(settings(tmp_path)), lambda: suggest_folders(tmp_path)):
        with pytest.raises(PlainError, match=r"one folder deeper: use .*cats"):
            ask()


def test_a_file_in_place_of_a_folder_is_told_from_a_zip(tmp_path):
    with pytest.raises(PlainError, match="Name the folder that holds the pictures"):
        suggest_folders(picture(tmp_path / "a.png"))
    (tmp_path / "my pictures.zip").write_bytes(b"PK")
    with pytest.raises(PlainError, match=r'lora-wizard dataset import ".*my pictures\.zip"'):
        suggest_folders(tmp_path / "my pictures.zip")


def test_pictures_of_a_kind_that_is_not_read_are_told(tmp_path):
    (tmp_path / "a.heic").write_bytes(b"heic")
    with pytest.raises(PlainError, match=r"kind that is not read \(\.heic\)"):
        scan(settings(tmp_path))


def test_captions_in_another_encoding_are_named(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("Zoë", encoding="latin-1")
    with pytest.raises(PlainError, match=r"a\.txt is not UTF-8 text"):
        scan(settings(tmp_path))


def test_captions_under_another_extension_are_found_out(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "a.caption").write_text("a")
    with pytest.raises(PlainError, match=r'Set dataset\.caption_extension to "\.caption"'):
        scan(settings(tmp_path))
    assert scan(settings(tmp_path, caption_extension=".caption")).captions_missing == 0
    assert suggest_caption_extension([DatasetFolder(path=str(tmp_path))]) == ".caption"


def test_all_pictures_for_regularisation_is_an_error(tmp_path):
    picture(tmp_path / "a.png")
    with pytest.raises(PlainError, match=r"All of dataset\.folders are for regularisation"):
        scan(settings(DatasetFolder(path=str(tmp_path), regularisation=True)))


def test_a_flat_folder_is_suggested_as_it_is(tmp_path):
    picture(tmp_path / "a.png")
    assert suggest_folders(tmp_path) == (DatasetFolder(path=str(tmp_path)),)


def test_kohyas_folders_are_suggested_with_their_repeats(tmp_path):
    picture(tmp_path / "img" / "10_sks toy" / "a.png")
    picture(tmp_path / "img" / "2_style" / "a.png")
    (tmp_path / "img" / "5_empty").mkdir()
    picture(tmp_path / "reg" / "1_toy" / "a.png")
    rows = [(Path(f.path).name, f.repeats, f.regularisation, f.caption) for f in suggest_folders(tmp_path)]
    assert rows == [("10_sks toy", 10, False, "sks toy"), ("2_style", 2, False, "style"), ("1_toy", 1, True, "toy")]
    assert [f.repeats for f in suggest_folders(tmp_path / "img")] == [10, 2]


def test_a_thousand_pictures_are_scanned_well_under_a_second_without_torch(tmp_path):
    for number in range(1000):
        (tmp_path / f"{number}.txt").write_text("a, b")
    content = picture(tmp_path / "0.jpg", (640, 480)).read_bytes()
    for number in range(1, 1000):
        (tmp_path / f"{number}.jpg").write_bytes(content)
    started = time.process_time()  # a busy machine makes the wall clock lie
    assert scan(settings(tmp_path)).images == 1000
    assert time.process_time() - started < 1.0
    program = "import sys, engine.dataset.folders; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
