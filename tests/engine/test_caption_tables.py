"""Captions in one table beside the pictures: taken over at an import and by an edit, named by an inspection."""

from __future__ import annotations

import io
import json
import sys
import zipfile
from pathlib import Path, PurePosixPath

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from engine.acquire.pictures import import_pictures
from engine.dataset import caption_edits as edits
from engine.dataset.caption_tables import caption_in, is_table, read_table
from engine.dataset.inspect import inspect_dataset
from knowledge.answers import PlainError
from knowledge.config import DatasetFolder, DatasetSettings

ROWS = [{"file_name": "a.png", "text": "from the table, a"}, {"file_name": "b.png", "text": "from the table, b"}]


def parquet(rows) -> bytes:
    content = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), content)
    return content.getvalue()


TABLES = {
    "metadata.jsonl": "\n".join(json.dumps(row) for row in ROWS).encode(),
    "metadata.csv": b'\xef\xbb\xbffile_name,text\r\na.png,"from the table, a"\r\nb.png,"from the table, b"\r\n',
    "metadata.parquet": parquet(ROWS),
    "meta_lat.json": json.dumps(
        {
            "D:\\pictures\\a": {"caption": "from the table", "tags": "a", "train_resolution": [64, 64]},
            "/mnt/b.png": {"tags": "from the table, b"},
        }
    ).encode(),
}


@pytest.fixture
def source(tmp_path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    for number, name in enumerate("abc"):
        Image.new("RGB", (64, 64), (80 * number, 0, 0)).save(folder / f"{name}.png")
    (folder / "b.txt").write_text("from its file")
    return folder


def captions(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text().strip() for path in sorted(folder.rglob("*.txt"))}


@pytest.mark.parametrize("name", TABLES)
def test_an_import_takes_over_what_a_table_says_of_pictures_without_a_caption_file(source, tmp_path, name):
    (source / name).write_bytes(TABLES[name])
    done = import_pictures([source], tmp_path / "new")
    assert captions(tmp_path / "new") == {"a.txt": "from the table, a", "b.txt": "from its file"}
    assert (done.captions, dict(done.from_tables), done.problems, dict(done.left_out)) == (2, {name: 1}, [], {})


@pytest.mark.parametrize("name", TABLES)
def test_a_table_in_an_archive_is_taken_over_too(source, tmp_path, name):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for path in source.iterdir():
            archive.write(path, f"set/{path.name}")
        archive.writestr(f"set/{name}", TABLES[name])
    done = import_pictures([tmp_path / "set.zip"], tmp_path / "new")
    assert captions(tmp_path / "new") == {"a.txt": "from the table, a", "b.txt": "from its file"}
    assert dict(done.from_tables) == {name: 1}


def test_a_table_above_kohyas_folders_and_beside_loose_files_is_read(source, tmp_path):
    above = tmp_path / "above"
    (above / "3_toy").mkdir(parents=True)
    (source / "a.png").rename(above / "3_toy" / "a.png")
    (above / "metadata.jsonl").write_text('{"file_name": "3_toy/a.png", "caption": "seen from above"}')
    import_pictures([above], tmp_path / "new")
    assert captions(tmp_path / "new") == {"3_toy/a.txt": "seen from above"}
    (source / "metadata.jsonl").write_text('{"file_name": "c.png", "caption": "loose"}')
    import_pictures([source / "c.png"], tmp_path / "loose")
    assert captions(tmp_path / "loose") == {"c.txt": "loose"}


@pytest.mark.parametrize(
    ("content", "said"), [(b"{ no", "cannot be read as a table"), (b'{"text": "x"}', "no column file_name")]
)
def test_a_table_of_no_use_is_named_and_the_pictures_come(source, tmp_path, content, said):
    (source / "metadata.jsonl").write_bytes(content)
    done = import_pictures([source], tmp_path / "new")
    assert done.pictures == 3
    (problem,) = done.problems
    assert said in problem
    with pytest.raises(PlainError, match=said):
        edits.from_tables(source, ".txt")
    assert said in " ".join(finding.message for finding in look(source).findings)


def test_without_pyarrow_a_parquet_table_is_named_with_what_reads_it(source, tmp_path, monkeypatch):
    (source / "metadata.parquet").write_bytes(TABLES["metadata.parquet"])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (problem,) = import_pictures([source], tmp_path / "new").problems
    assert "metadata.parquet" in problem
    assert "pip install pyarrow" in problem


def look(folder: Path):
    return inspect_dataset(DatasetSettings(folders=(DatasetFolder(path=str(folder)),), resolution=64))


@pytest.mark.parametrize("name", TABLES)
def test_an_inspection_names_the_table_and_an_edit_makes_files_of_it_that_can_be_taken_back(source, name):
    (source / name).write_bytes(TABLES[name])
    (finding,) = [finding for finding in look(source).findings if finding.kind == "caption-table"]
    assert finding.message.startswith(f"{name} holds captions for 1 picture without one.")
    assert [Path(file).name for file in finding.files] == ["a.png"]
    planned = edits.from_tables(source, ".txt")
    assert planned == [edits.Change(source / "a.txt", None, "from the table, a")]
    edits.apply(source, planned, "taken")
    assert captions(source) == {"a.txt": "from the table, a", "b.txt": "from its file"}
    assert "caption-table" not in {finding.kind for finding in look(source).findings}
    edits.undo(source)
    assert captions(source) == {"b.txt": "from its file"}


def test_a_picture_is_found_by_its_whole_path_and_in_sd_scripts_tables_by_its_name():
    table = read_table(PurePosixPath("train/metadata.csv"), b"file_name,tags\n./a.png,one\ndeep/a.png,two\n")
    paths = ("train/a.png", "train/deep/a.png", "a.png", "train/other/a.png")
    assert [table.of(PurePosixPath(path)) for path in paths] == ["one", "two", "", ""]
    by_name = read_table(PurePosixPath("meta.json"), b'{"x/a": {"caption": "three"}, "b": 3}')
    assert caption_in([table, by_name], PurePosixPath("train/other/a.png")) == ("three", "meta.json")
    assert read_table(PurePosixPath("metadata.csv"), b"file_name,mood\na.png,gay\n").captions == {}
    assert [is_table(name) for name in ("metadata.jsonl", "meta_cap.json", "model.json", "a.csv")] == [
        *(True, True, False, False)
    ]


def test_a_folder_without_a_table_says_which_there_may_be(source):
    with pytest.raises(PlainError, match=r"no table of captions .* metadata\.jsonl"):
        edits.from_tables(source, ".txt")
