"""The page on which captions are written, by real keystrokes in a pseudo-terminal; and the same without colours."""

from __future__ import annotations

import signal

import pytest
from PIL import Image
from terminal import CTRL_C, ENTER, ESCAPE, Terminal

from engine.dataset import caption_edits as edits
from engine.dataset.caption_pages import CaptionPages
from knowledge.answers import PlainError
from wizard.caption_editor import blocks

PAGE_DOWN, PAGE_UP, CTRL_Z, CTRL_R, ALT_ENTER = "\x1b[6~", "\x1b[5~", "\x1a", "\x12", "\x1b\r"


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "pictures"
    path.mkdir()
    for name, colour in (("a", "red"), ("b", "green"), ("c", "blue")):
        Image.new("RGB", (120, 80), colour).save(path / f"{name}.png")
        (path / f"{name}.txt").write_text(f"sks, {colour}\n")
    return path


def words(folder, name):
    return (folder / f"{name}.txt").read_text()


def editor(folder, **environment):
    return Terminal("dataset", "captions", "pictures", here=folder.parent, **environment)


def test_captions_are_written_one_after_the_other(folder):
    terminal = editor(folder)
    terminal.sees("1 of 3", "a.png", "120 × 80 pixels", "sks, red", "▀▀▀", "2 tags", "3 tokens of 75", "Esc done")
    terminal.press(", ball")
    terminal.sees("sks, red, ball", "3 tags")
    terminal.press(ENTER)
    terminal.sees("2 of 3", "b.png", "sks, green")
    assert words(folder, "a") == "sks, red, ball\n"
    terminal.press(PAGE_DOWN)
    terminal.sees("3 of 3", "sks, blue")
    terminal.press(ALT_ENTER, "second line", ENTER)
    terminal.sees("That was the last picture.")
    assert words(folder, "c") == "sks, blue\nsecond line\n"
    terminal.press(PAGE_UP, PAGE_UP, PAGE_UP)
    terminal.sees("1 of 3", "This is the first picture.", "sks, red, ball")
    terminal.press(", and more", ESCAPE)
    assert terminal.ends(within=30) == 0
    assert "3 captions changed." in terminal.text
    assert words(folder, "a") == "sks, red, ball, and more\n"
    assert words(folder, "b") == "sks, green\n"
    assert [entry["edit"] for entry in edits.history(folder)] == ["a.txt by hand", "c.txt by hand", "a.txt by hand"]


def test_what_was_typed_can_be_undone_and_what_was_kept_taken_back(folder):
    terminal = editor(folder)
    terminal.sees("sks, red")
    terminal.press(" nonsense")
    terminal.sees("sks, red nonsense")
    terminal.press(CTRL_R)
    terminal.sees_no_more("nonsense")
    terminal.press(", ball", ENTER)
    terminal.sees("2 of 3")
    assert words(folder, "a") == "sks, red, ball\n"
    terminal.press(CTRL_Z)
    terminal.sees("1 of 3", "a.txt is as it was before.")
    assert words(folder, "a") == "sks, red\n"
    terminal.press("x")
    terminal.sees("sks, redx")
    terminal.press(CTRL_Z)
    terminal.sees_no_more("sks, redx")
    terminal.press(CTRL_C)
    assert terminal.ends(within=30) == 130
    assert words(folder, "a") == "sks, red\n"


def test_words_outlive_a_crash_in_the_middle_of_typing(folder):
    terminal = editor(folder)
    terminal.sees("1 of 3")
    terminal.press(PAGE_DOWN)
    terminal.sees("2 of 3", "sks, green")
    terminal.press(", half a wo")
    terminal.sees("sks, green, half a wo")
    terminal.program.kill(signal.SIGKILL)
    assert words(folder, "b") == "sks, green\n"
    again = editor(folder)
    again.sees("2 of 3", "sks, green, half a wo", "is here again")
    again.press("rd", ESCAPE)
    assert again.ends(within=30) == 0
    assert words(folder, "b") == "sks, green, half a word\n"
    assert edits.draft_of(folder) is None
    edits.undo(folder)
    assert words(folder, "b") == "sks, green\n"


def test_ctrl_c_keeps_what_was_written(folder):
    terminal = editor(folder)
    terminal.sees("1 of 3")
    terminal.press(", kept")
    terminal.sees("sks, red, kept")
    terminal.press(CTRL_C)
    assert terminal.ends(within=30) == 130
    assert words(folder, "a") == "sks, red, kept\n"


def test_a_caption_that_is_no_text_is_shown_and_left_alone(folder):
    (folder / "a.txt").write_bytes("Zoë".encode("latin-1"))
    terminal = editor(folder)
    terminal.sees("1 of 3", "is not UTF-8 text")
    terminal.press("x", ENTER)
    terminal.sees("2 of 3")
    terminal.press(ESCAPE)
    assert terminal.ends(within=30) == 0
    assert (folder / "a.txt").read_bytes() == "Zoë".encode("latin-1")


def test_a_plain_terminal_is_asked_line_by_line(folder):
    terminal = editor(folder, TERM="dumb")
    terminal.sees("1 of 3", "Caption: sks, red", "New caption")
    terminal.press("sks, crimson\r")
    terminal.sees("2 of 3", "Caption: sks, green")
    terminal.press("<\r")
    terminal.sees("Caption: sks, crimson")
    terminal.press("undo\r")
    terminal.sees("a.txt is as it was before.")
    terminal.press("q\r")
    assert terminal.ends(within=30) == 0
    assert words(folder, "a") == "sks, red\n"


def test_it_opens_at_the_first_picture_without_a_caption(folder):
    (folder / "b.txt").unlink()
    pages = CaptionPages(folder, ".txt")
    assert (pages.picture.name, pages.text, pages.saved) == ("b.png", "", None)
    pages.write("new")
    pages.go(1)
    assert words(folder, "b") == "new\n"
    pages.take_back()
    assert not (folder / "b.txt").exists()


def test_kohyas_folders_are_gone_through_as_one(tmp_path):
    for name in ("10_zorb", "5_zorb"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "x.png")
    pages = CaptionPages(tmp_path, ".txt")
    assert [str(picture.relative_to(tmp_path)) for picture in pages.pictures] == ["10_zorb/x.png", "5_zorb/x.png"]
    pages.write("first")
    pages.go(1)
    pages.write("second")
    pages.keep()
    assert (tmp_path / "5_zorb" / "x.txt").read_text() == "second\n"
    assert (tmp_path / "10_zorb" / "x.txt").read_text() == "first\n"
    (tmp_path / "none").mkdir()
    with pytest.raises(PlainError, match="empty"):
        CaptionPages(tmp_path / "none", ".txt")


def test_a_caption_changed_elsewhere_meanwhile_can_be_had_back(folder):
    pages = CaptionPages(folder, ".txt")
    pages.write("mine")
    (folder / "a.txt").write_text("theirs")
    pages.keep()
    assert words(folder, "a") == "mine\n"
    assert "changed elsewhere" in pages.notice
    pages.take_back()
    assert words(folder, "a") == "theirs\n"


def test_the_blocks_show_the_colours_of_the_picture(folder):
    drawn = blocks(folder / "a.png", columns=12, rows=4)
    assert drawn[0] == ("fg:#ff0000 bg:#ff0000", "▀")
    assert sum(text == "\n" for _, text in drawn) == 4
    (folder / "a.png").write_bytes(b"no picture")
    assert "cannot be shown" in blocks(folder / "a.png")[0][1]
