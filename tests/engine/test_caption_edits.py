from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from engine.dataset import caption_edits as edits
from knowledge.answers import PlainError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, caption in {"a": "red hair, sks, Hat", "b": "hat, hat, blue_eyes", "c": None}.items():
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
        if caption is not None:
            (tmp_path / f"{name}.txt").write_text(caption)
    return tmp_path


def captions(folder: Path) -> dict[str, str]:
    return {path.stem: path.read_text().strip() for path in sorted(folder.glob("*.txt"))}


@pytest.mark.parametrize(
    ("edit", "before", "after"),
    [
        (edits.find_and_replace("red", "blue"), "red, dark red", "blue, dark blue"),
        (edits.find_and_replace(r"(\w+) hair", r"hair: \1", regex=True), "red hair, x", "hair: red, x"),
        (edits.remove_tags(["Blue Eyes", "x"]), "a, blue_eyes, X, b", "a, b"),
        (edits.without_doubles, "a, b, A, b_c, b c", "a, b, b_c"),
        (edits.sorted_tags, "b, C, a", "a, b, C"),
        (edits.keep_first(2), "a, b, c", "a, b"),
        (edits.trigger_first("sks"), "a, SKS, b", "sks, a, b"),
        (edits.trigger_first("sks"), "", "sks"),
        (edits.prefix("photo of "), "a", "photo of a"),
        (edits.prefix("photo of "), "photo of a", "photo of a"),
        (edits.suffix(", 4k"), "a", "a, 4k"),
        (edits.spaces_for_underscores, "blue_eyes, ^_^, o_o", "blue eyes, ^_^, o_o"),
    ],
)
def test_an_edit_does_what_it_says(edit, before, after):
    assert edit(before) == after


def test_commas_in_brackets_do_not_divide():
    assert edits.split(r"(red, blue:1.2), a, [x, y], 1\,000, {p|q, r},, ") == [
        "(red, blue:1.2)",
        "a",
        "[x, y]",
        r"1\,000",
        "{p|q, r}",
    ]
    assert edits.split("a ), b") == ["a )", "b"]


def test_a_pattern_that_is_none_is_refused():
    for find, replace in (("(", ""), ("(a)", r"\2")):
        with pytest.raises(PlainError, match="is not a regular expression"):
            edits.find_and_replace(find, replace, regex=True)


def test_changes_are_shown_before_they_are_written(folder):
    before = captions(folder)
    planned = edits.changes(folder, ".txt", [edits.without_doubles, edits.trigger_first("sks")])
    assert {change.file.name: change.after for change in planned} == {
        "a.txt": "sks, red hair, Hat",
        "b.txt": "sks, hat, blue_eyes",
    }
    assert captions(folder) == before
    edits.apply(folder, planned, "tidied")
    assert captions(folder) == {"a": "sks, red hair, Hat", "b": "sks, hat, blue_eyes"}


def test_edits_are_taken_back_one_at_a_time(folder):
    states = [captions(folder)]
    for number, edit in enumerate((edits.trigger_first("sks"), edits.suffix(", end"), edits.sorted_tags)):
        edits.apply(folder, edits.changes(folder, ".txt", [edit], create=True), f"edit {number}")
        states.append(captions(folder))
    assert len({str(state) for state in states}) == 4
    for number in (2, 1, 0):
        words, _, kept = edits.undo(folder)
        assert (words, kept) == (f"edit {number}", [])
        assert captions(folder) == states[number]
    with pytest.raises(PlainError, match="No edit"):
        edits.undo(folder)


def test_captions_that_were_made_are_taken_away_again(folder):
    edits.apply(folder, edits.changes(folder, ".txt", [edits.trigger_first("sks")], create=True), "made")
    assert captions(folder)["c"] == "sks"
    edits.undo(folder)
    assert "c" not in captions(folder)


def test_what_was_changed_by_hand_since_is_left_alone(folder):
    edits.apply(folder, edits.changes(folder, ".txt", [edits.trigger_first("sks")]), "first")
    (folder / "a.txt").write_text("by hand")
    _, restored, kept = edits.undo(folder)
    assert [change.file.name for change in restored] == ["b.txt"]
    assert [path.name for path in kept] == ["a.txt"]
    assert captions(folder)["a"] == "by hand"


def test_a_crash_in_the_middle_loses_nothing(folder):
    before = captions(folder)
    program = (
        "import os, sys; from pathlib import Path; from engine.dataset import caption_edits as edits\n"
        "folder, write = Path(sys.argv[1]), edits._write\n"
        "def crash(file, text):\n"
        "    if file.name == 'b.txt': os._exit(9)\n"
        "    write(file, text)\n"
        "edits._write = crash\n"
        "edits.apply(folder, edits.changes(folder, '.txt', [edits.trigger_first('sks')]), 'cut')\n"
    )
    assert subprocess.run([sys.executable, "-c", program, str(folder)], check=False).returncode == 9
    assert captions(folder)["a"] == "sks, red hair, Hat"
    assert captions(folder)["b"] == before["b"]
    edits.undo(folder)
    assert captions(folder) == before


def test_a_journal_line_that_was_cut_is_passed_over(folder):
    edits.apply(folder, edits.changes(folder, ".txt", [edits.trigger_first("sks")]), "first")
    with (folder / edits.JOURNAL).open("a") as journal:
        journal.write('{"at": 1, "edit": "half')
    edits.apply(folder, edits.changes(folder, ".txt", [edits.suffix("!")]), "second")
    assert [entry["edit"] for entry in edits.history(folder)] == ["first", "second"]


def test_captions_in_another_encoding_stop_the_edit(folder):
    (folder / "b.txt").write_bytes("Zoë".encode("latin-1"))
    with pytest.raises(PlainError, match=r"Nothing was changed: b\.txt"):
        edits.changes(folder, ".txt", [edits.trigger_first("sks")])


def test_each_line_is_edited_by_itself(folder):
    (folder / "a.txt").write_text("one, two\nthree, three\n")
    (change, *_) = edits.changes(folder, ".txt", [edits.without_doubles, edits.trigger_first("x")])
    assert change.after == "x, one, two\nx, three"


def test_text_put_before_or_after_nothing_stands_alone_and_can_be_taken_back(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("")
    for edit in (edits.prefix("a photo of, "), edits.suffix(", grain ")):
        edits.apply(tmp_path, edits.changes(tmp_path, ".txt", [edit]), "put")
    assert (tmp_path / "a.txt").read_text() == "a photo of, grain\n"
    for _ in range(2):
        assert edits.undo(tmp_path)[2] == []
    assert (tmp_path / "a.txt").read_text() == ""


def test_an_edit_that_cannot_go_on_says_how_far_it_came_and_can_be_taken_back(folder):
    (folder / "b.txt").unlink()
    (folder / "b.txt" / "in the way").mkdir(parents=True)
    planned = [edits.Change(folder / "a.txt", "red hair, sks, Hat", "new"), edits.Change(folder / "b.txt", None, "new")]
    with pytest.raises(PlainError, match=r"b\.txt cannot be written.*1 of 2 captions was changed; undo"):
        edits.apply(folder, planned, "all new")
    (folder / "b.txt" / "in the way").rmdir()
    (folder / "b.txt").rmdir()
    edits.undo(folder)
    assert captions(folder) == {"a": "red hair, sks, Hat"}
