"""Captions changed all at once inside the wizard: every kind of edit, its preview, its writing and its undoing."""

from __future__ import annotations

import pytest
from terminal import DOWN, ENTER, ESCAPE, Terminal

from engine.dataset import caption_edits as edits
from knowledge.answers import PlainError
from wizard.caption_changes import KINDS, last_edit, take_back
from wizard.dataset import dataset

CASES = {
    "find": (("cat", "dog"), "dog, a_bc, a_bc, red"),
    "regex": ((r"\ba_(bc)", r"\1"), "cat, bc, bc, red"),
    "remove": (("A BC",), "cat, red"),
    "spaces": ((), "cat, a bc, a bc, red"),
    "unique": ((), "cat, a_bc, red"),
    "sort": ((), "a_bc, a_bc, cat, red"),
    "keep_first": ((2,), "cat, a_bc"),
    "trigger": (("red",), "red, cat, a_bc, a_bc"),
    "prefix": (("a photo of ",), "a photo of cat, a_bc, a_bc, red"),
    "suffix": ((", grain",), "cat, a_bc, a_bc, red, grain"),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_edit_is_made_as_its_name_says(name):
    answers, after = CASES[name]
    words, edit = KINDS[name].made(*answers)
    assert edit("cat, a_bc, a_bc, red") == after
    assert all(str(answer) in words for answer in answers)
    assert len(answers) == len(KINDS[name].asked)


def test_every_option_of_the_command_that_changes_captions_is_a_kind_of_edit():
    options = {option.name for option in dataset.commands["captions"].params} - {"debug"}  # which cli.py adds to all
    assert set(KINDS) == options & set(CASES)
    assert options - set(CASES) == {
        *("folder", "replace", "create", "from_tables", "undo", "caption_extension", "dry_run", "yes", "as_json")
    }


def test_blank_spaces_count_within_quotes():
    (asked,) = KINDS["prefix"].asked
    assert asked.check('"a photo of "') == "a photo of "
    assert asked.check("a photo of") == "a photo of"
    find, replacement = KINDS["find"].asked
    assert find.check("' cat'") == " cat"
    assert replacement.check("") == ""
    for kind, text in (("find", ""), ("regex", "(cat"), ("keep_first", "0"), ("keep_first", "two")):
        with pytest.raises(PlainError):
            KINDS[kind].asked[0].check(text)


def test_an_edit_in_several_folders_is_taken_back_in_all_of_them(tmp_path):
    folders = [tmp_path / name for name in ("one", "two", "three")]
    for folder in folders:
        folder.mkdir()
        (folder / "a.txt").write_text("before")
    for folder, at in zip(folders, (1.0, 2.0, 2.0), strict=True):
        edits.apply(folder, [edits.Change(folder / "a.txt", "before", "after")], f"at {at}", at)
    (folders[2] / "a.txt").write_text("by hand")
    last = last_edit(folders)
    assert last is not None
    assert last.folders == tuple(folders[1:])
    assert take_back(last) == "Taken back in 1 caption: at 2.0. Left alone, because changed since: a.txt."
    assert [(folder / "a.txt").read_text().strip() for folder in folders] == ["after", "before", "by hand"]
    assert last_edit(folders).words == "at 1.0"  # type: ignore[union-attr]
    assert last_edit([tmp_path]) is None


def test_captions_are_changed_and_taken_back_without_leaving_the_wizard(tmp_path, photos):
    here = tmp_path / "here"
    here.mkdir()
    (photos / "0.txt").write_text("cat, blurry, in place 0")
    (photos / "metadata.jsonl").write_text('{"file_name": "4.png", "text": "in a table"}')
    terminal = Terminal("new", "--pictures", str(photos), "--goal", "object", here=here)
    terminal.sees("Which word shall call it up?")
    terminal.press(ESCAPE)
    terminal.sees("Are these the right pictures?", "2 of 6 pictures have none; metadata.jsonl may hold them")
    terminal.point_at("Look closely, tag, write captions")
    terminal.press(ENTER)
    terminal.point_at("Change all captions at once")
    terminal.press(ENTER)

    terminal.sees("What shall change in all captions?")
    assert "Take the last change back" not in terminal.text
    terminal.point_at("Take missing ones from a table")
    terminal.press(ENTER)
    terminal.sees("Change 1 caption?", "4.txt  +in a table")
    terminal.press(ENTER)
    terminal.sees("1 caption changed")
    assert (photos / "4.txt").read_text() == "in a table\n"
    terminal.point_at("Remove tags")
    terminal.press(ENTER)
    terminal.sees("Which tags shall go?")
    terminal.press("Blurry, in place 2", ENTER)
    terminal.sees("Change 2 captions?", "0.txt", "blurry", "2.txt")
    terminal.press(ENTER)
    terminal.sees("2 captions changed: removed: Blurry, in place 2.")
    assert (photos / "0.txt").read_text() == "cat, in place 0\n"
    assert (photos / "1.txt").read_text() == "in place 1"

    terminal.point_at("Put text before")
    terminal.press(ENTER)
    terminal.sees("Which text shall stand before?")
    terminal.press('"a toy, "', ENTER)
    terminal.sees("And the pictures without a caption?", "1 of 6 pictures has none.")
    terminal.press(DOWN, ENTER)
    terminal.sees("Change 6 captions?", "and 1 more")
    terminal.press(DOWN, ENTER)
    terminal.sees("What shall change in all captions?")
    assert (photos / "0.txt").read_text() == "cat, in place 0\n"
    assert not (photos / "5.txt").exists()
    terminal.press(ENTER)
    terminal.sees("Which text shall stand before?")
    terminal.press('"a toy, "', ENTER)
    terminal.sees("And the pictures without a caption?")
    terminal.press(DOWN, ENTER)
    terminal.sees("Change 6 captions?")
    terminal.press(ENTER)
    terminal.sees("6 captions changed")
    assert [(photos / f"{number}.txt").read_text() for number in (1, 5)] == ["a toy, in place 1\n", "a toy\n"]

    for words, number in (
        ('"a toy, " put before', "6 captions"),
        ("removed: Blurry", "2"),
        ("taken from", "1 caption"),
    ):
        terminal.point_at("Take the last change back")
        terminal.sees(words)
        terminal.press(ENTER)
        terminal.sees(f"Taken back in {number}")
    assert (photos / "0.txt").read_text() == "cat, blurry, in place 0\n"
    assert not (photos / "4.txt").exists()
    assert not (photos / "5.txt").exists()
    terminal.press(ESCAPE)
    terminal.sees("What shall be done with them?")
