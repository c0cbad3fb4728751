"""What is kept of a parsed file is what the file says, as long as it says it."""

import os
import sys

import pytest

from knowledge.parsed import parsed


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "pycache_prefix", None)
    path = tmp_path / "numbers.toml"
    path.write_text("[a]\nnumber = 1\nlist = [1.5, true, 'x']\n")
    return path


def kept(path):
    return list((path.parent / "__pycache__").glob("numbers.toml.*"))


def test_what_is_kept_is_what_was_parsed(file, monkeypatch):
    first = parsed(file)
    assert len(kept(file)) == 1
    monkeypatch.setattr("tomllib.loads", lambda text: pytest.fail("parsed again"))
    assert parsed(file) == first == {"a": {"number": 1, "list": [1.5, True, "x"]}}


def test_a_changed_file_is_parsed_anew_even_at_the_same_size(file):
    parsed(file)
    before = file.stat()
    file.write_text(file.read_text().replace("number = 1", "number = 2"))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert file.stat().st_size == before.st_size
    assert parsed(file)["a"]["number"] == 2
    assert parsed(file)["a"]["number"] == 2


@pytest.mark.parametrize("rubbish", [b"", b"not ours", b"\xe9\x05", b"i\x01\x00\x00\x00"])
def test_what_cannot_be_read_is_made_anew(file, rubbish):
    parsed(file)
    (path,) = kept(file)
    path.write_bytes(rubbish)
    assert parsed(file)["a"]["number"] == 1
    assert path.read_bytes() != rubbish


def test_where_nothing_can_be_kept_it_parses(file):
    (file.parent / "__pycache__").write_text("a file in the way, as a read-only folder would be")
    assert parsed(file)["a"]["number"] == 1
    assert not (file.parent / "__pycache__").is_dir()


def test_dates_are_parsed_though_they_are_not_kept(file):
    file.write_text("day = 2024-05-01\n")
    assert str(parsed(file)["day"]) == "2024-05-01"
    assert kept(file) == []
