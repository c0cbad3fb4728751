from __future__ import annotations

import stat
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from engine.acquire.pictures import Limits, import_pictures
from engine.dataset.folders import suggest_folders
from knowledge.answers import PlainError


def picture(path: Path, colour="red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), colour).save(path)
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def archive(path: Path, **members: bytes | str) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


@pytest.fixture
def content(tmp_path) -> bytes:
    return picture(tmp_path / "elsewhere" / "x.png").read_bytes()


def test_a_flat_folder_is_copied_and_left_as_it_was(tmp_path):
    source = tmp_path / "source"
    picture(source / "a.png")
    (source / "a.txt").write_text("a")
    (source / "notes.docx").write_text("")
    (source / ".hidden.png").write_text("")
    before = names(source)
    done = import_pictures([source], tmp_path / "new")
    assert names(tmp_path / "new") == ["a.png", "a.txt"]
    assert (done.pictures, done.captions, dict(done.left_out)) == (1, 1, {".docx": 1})
    assert names(source) == before


def test_kohyas_folders_keep_their_names(tmp_path):
    source = tmp_path / "source"
    picture(source / "img" / "10_sks toy" / "a.png")
    picture(source / "reg" / "1_toy" / "b.png")
    import_pictures([source], tmp_path / "new")
    assert names(tmp_path / "new") == ["10_sks toy/a.png", "reg/1_toy/b.png"]
    assert [(f.repeats, f.regularisation) for f in suggest_folders(tmp_path / "new")] == [(10, False), (1, True)]


def test_loose_files_bring_their_captions(tmp_path):
    first, second = picture(tmp_path / "a.png"), picture(tmp_path / "b.jpg")
    (tmp_path / "a.caption").write_text("a")
    import_pictures([first, second], tmp_path / "new")
    assert names(tmp_path / "new") == ["a.caption", "a.png", "b.jpg"]


def test_names_that_are_there_twice_get_a_number_and_keep_their_caption(tmp_path):
    for folder, colour in (("one", "red"), ("two", "blue")):
        picture(tmp_path / folder / "a.png", colour)
        (tmp_path / folder / "a.txt").write_text(colour)
    done = import_pictures([tmp_path / "one", tmp_path / "two"], tmp_path / "new")
    assert names(tmp_path / "new") == ["a-2.png", "a-2.txt", "a.png", "a.txt"]
    assert (tmp_path / "new" / "a-2.txt").read_text() == "blue"
    assert done.renamed == 1


def test_an_archive_is_unpacked(tmp_path, content):
    source = archive(
        tmp_path / "a.zip",
        **{
            "set/a.png": content,
            "set/a.txt": "a",
            "set/5_toy/b.png": content,
            "__MACOSX/._a.png": b"x",
            "readme.md": "",
        },
    )
    done = import_pictures([source], tmp_path / "new")
    assert names(tmp_path / "new") == ["5_toy/b.png", "a.png", "a.txt"]
    assert dict(done.left_out) == {".md": 1}


@pytest.mark.parametrize(
    "name",
    ["../../evil.png", "/etc/evil.png", "..\\..\\evil.png", "C:\\evil.png", "a/../../evil.png", "5_x/../evil.png"],
)
def test_no_path_in_an_archive_leads_out_of_the_new_folder(tmp_path, content, name):
    place = tmp_path / "deep" / "deeper"
    place.mkdir(parents=True)
    import_pictures([archive(place / "a.zip", **{name: content})], place / "new")
    written = list(tmp_path.rglob("*evil*"))
    assert len(written) == 1
    assert (place / "new") in written[0].parents


def test_links_in_an_archive_are_left_out(tmp_path, content):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as file:
        link = zipfile.ZipInfo("link.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(link, "/etc/passwd")
        file.writestr("a.png", content)
    import_pictures([path], tmp_path / "new")
    assert names(tmp_path / "new") == ["a.png"]


def test_an_archive_that_grows_without_end_is_stopped(tmp_path):
    bomb = archive(tmp_path / "bomb.zip", **{"a.png": bytes(5_000_000)})
    assert bomb.stat().st_size < 10_000
    with pytest.raises(PlainError, match="that is no picture"):
        import_pictures([bomb], tmp_path / "new", Limits(file_bytes=1_000_000))
    many = archive(tmp_path / "many.zip", **{f"{n}.png": bytes(1_000_000) for n in range(8)})
    with pytest.raises(PlainError, match="it is not imported"):
        import_pictures([many], tmp_path / "new", Limits(total_bytes=3_000_000))
    with pytest.raises(PlainError, match="holds 8 files"):
        import_pictures([many], tmp_path / "new", Limits(files=7))
    assert not (tmp_path / "new").exists()
    assert not list(tmp_path.glob(".new*"))


def test_a_damaged_archive_leaves_nothing_behind(tmp_path, content):
    whole = archive(tmp_path / "a.zip", **{"a.png": content * 50, "b.png": content}).read_bytes()
    cut = tmp_path / "cut.zip"
    cut.write_bytes(whole[:-30])
    with pytest.raises(PlainError, match="not a whole ZIP archive"):
        import_pictures([cut], tmp_path / "new")
    flipped = bytearray(whole)
    flipped[60] ^= 0xFF
    cut.write_bytes(flipped)
    with pytest.raises(PlainError, match=r"a\.png in the archive is damaged"):
        import_pictures([cut], tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_folder_with_something_in_it_is_not_written_to(tmp_path):
    source = picture(tmp_path / "a.png")
    (tmp_path / "new").mkdir()
    import_pictures([source], tmp_path / "new")
    with pytest.raises(PlainError, match="is there already"):
        import_pictures([source], tmp_path / "new")


def test_a_source_that_is_nothing_is_named(tmp_path):
    (tmp_path / "a.pdf").write_text("")
    (tmp_path / "empty.zip").write_bytes(archive(tmp_path / "e.zip", **{"a.md": ""}).read_bytes())
    for name, complaint in (("a.pdf", "neither a folder"), ("gone", "There is no"), ("empty.zip", "no pictures in")):
        with pytest.raises(PlainError, match=complaint):
            import_pictures([tmp_path / name], tmp_path / "new")


def test_a_caption_stays_with_its_picture_when_two_folders_of_an_archive_share_names(tmp_path, content):
    members = {"one/a.png": content, "one/a.txt": "first", "two/a.png": content, "two/a.txt": "second"}
    import_pictures([archive(tmp_path / "x.zip", **members)], tmp_path / "new")
    assert names(tmp_path / "new") == ["a-2.png", "a-2.txt", "a.png", "a.txt"]
    assert (tmp_path / "new" / "a.txt").read_text() == "first"
    assert (tmp_path / "new" / "a-2.txt").read_text() == "second"


def test_names_that_some_systems_do_not_allow_are_changed_and_stay_beside_their_captions(tmp_path, content):
    names = {"CON": "_CON", "aux.b": "_aux.b", "Lpt1": "_Lpt1", "contact": "contact", "what?": "what_", "end. ": "end"}
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name in (*names, "x" * 240):
            archive.writestr(f"{name}.png", content)
            archive.writestr(f"{name}.txt", name)
    import_pictures([tmp_path / "set.zip"], tmp_path / "new")
    found = {path.stem: path.with_suffix(".txt").read_text() for path in (tmp_path / "new").glob("*.png")}
    long = next(stem for stem in found if stem.startswith("xxx"))
    assert len(long) == 196
    assert found == {**{safe: name for name, safe in names.items()}, long: "x" * 240}


def test_links_are_followed_and_those_that_lead_nowhere_are_told(tmp_path):
    picture(tmp_path / "elsewhere" / "a.png")
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "b.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    (tmp_path / "source" / "c.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "source" / "round").symlink_to(tmp_path / "source")
    done = import_pictures([tmp_path / "source"], tmp_path / "new")
    assert names(tmp_path / "new") == ["b.png"]
    assert not (tmp_path / "new" / "b.png").is_symlink()
    assert dict(done.left_out) == {"link that leads nowhere": 1}


def test_names_that_only_some_systems_tell_apart_get_a_number_with_their_caption(tmp_path, content):
    members = {"a.png": content, "a.txt": "small", "A.png": content, "A.txt": "large"}
    members |= {"\u00fc.png": content, "u\u0308.png": content, "CON.png": content, "con 1.png": content}
    import_pictures([archive(tmp_path / "set.zip", **members)], tmp_path / "new")
    found = names(tmp_path / "new")
    assert found == sorted(
        ["a.png", "a.txt", "A-2.png", "A-2.txt", "\u00fc.png", "u\u0308-2.png", "_CON.png", "con 1.png"]
    )
    assert (tmp_path / "new" / "A-2.txt").read_text() == "large"
