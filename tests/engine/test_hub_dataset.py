"""Datasets from a hub on this machine: in every form that is taken, private, cut, and of no use."""

from __future__ import annotations

import hashlib
import io
import json
import sys
import time
import zipfile

import pyarrow
import pyarrow.parquet
import pytest
from hubs import Repository
from PIL import Image
from servers import Fault

from engine.acquire.hub_dataset import import_dataset, look_into
from engine.acquire.huggingface import Address
from engine.acquire.pictures import Limits
from knowledge.answers import PlainError


def picture(colour="red", form="PNG", side=8):
    content = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(content, form)
    return content.getvalue()


RED, BLUE = picture("red"), picture("blue")


def dataset(hub, files, name="maker/pics", **more):
    hub.repositories[name] = Repository(files, kind="datasets", **more)
    return Address(name, kind="datasets")


def imported(address, folder, **more):
    return import_dataset(look_into(address), folder, **more)


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def new(tmp_path):
    return tmp_path / "datasets" / "pics"


def test_pictures_come_with_the_captions_beside_them(hub, new):
    files = {"README.md": b"#", "10_zorb/a.png": RED, "10_zorb/a.txt": b"a zorb", "more/b.png": BLUE, "x.json": b"{}"}
    done = imported(dataset(hub, files), new)
    assert content(new) == {"10_zorb/a.png": RED, "10_zorb/a.txt": b"a zorb", "b.png": BLUE}
    assert (done.pictures, done.captions) == (2, 1)
    assert [path.name for path in new.parent.iterdir()] == ["pics"]


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_a_table_of_captions_becomes_files_beside_the_pictures(hub, new, form):
    rows = [("a.png", "a red one, plain"), ("deep/b.png", "the blue one"), ("gone.png", "nothing")]
    if form == "csv":
        table = "file_name,text\n" + "\n".join(f'{name},"{text}"' for name, text in rows)
    else:
        table = "\n".join(json.dumps({"file_name": name, "text": text}) for name, text in rows)
    files = {f"train/metadata.{form}": table.encode(), "train/a.png": RED, "train/deep/b.png": BLUE}
    done = imported(dataset(hub, files), new)
    assert content(new) == {"a.png": RED, "a.txt": b"a red one, plain", "b.png": BLUE, "b.txt": b"the blue one"}
    assert done.captions == 2


def test_the_column_of_captions_can_be_named_and_a_caption_file_outweighs_it(hub, new):
    table = json.dumps({"file_name": "a.png", "text": "from text", "mood": "from mood"}) + "\n"
    table += json.dumps({"file_name": "b.png", "text": "from text", "mood": "from mood"})
    files = {"metadata.jsonl": table.encode(), "a.png": RED, "b.png": BLUE, "b.txt": b"from its file"}
    imported(dataset(hub, files), new, caption_column="mood")
    assert content(new)["a.txt"] == b"from mood"
    assert content(new)["b.txt"] == b"from its file"
    with pytest.raises(PlainError, match="has no column words; it has file_name, text, mood"):
        imported(dataset(hub, files, "maker/other"), new.with_name("other"), caption_column="words")
    assert [path.name for path in new.parent.iterdir()] == ["pics"]


def test_a_table_that_cannot_be_read_is_named(hub, new):
    with pytest.raises(PlainError, match=r"metadata.jsonl cannot be read"):
        imported(dataset(hub, {"metadata.jsonl": b"{ no", "a.png": RED}), new)
    with pytest.raises(PlainError, match="no column file_name"):
        imported(dataset(hub, {"metadata.csv": b"name,text\na.png,x", "a.png": RED}, "maker/b"), new)
    assert not new.exists()


def test_an_archive_in_the_repository_is_unpacked(hub, new):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr("../../escape.png", RED)
        file.writestr("5_zorb/a.png", BLUE)
        file.writestr("5_zorb/a.txt", "a zorb")
    imported(dataset(hub, {"data.zip": packed.getvalue()}), new)
    assert content(new) == {"escape.png": RED, "5_zorb/a.png": BLUE, "5_zorb/a.txt": b"a zorb"}


def table_of(rows, column="image"):
    """A Parquet file as the datasets library writes pictures: a struct of bytes and path."""
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    columns = {
        column: pyarrow.array([{"bytes": body, "path": None} for body, _ in rows], kind),
        "text": pyarrow.array([text for _, text in rows], pyarrow.string()),
    }
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), out)
    return out.getvalue()


def test_tables_of_pictures_are_written_out_row_by_row(hub, new):
    jpeg = picture("green", "JPEG")
    files = {
        "data/train-00000-of-00002.parquet": table_of([(RED, "red"), (jpeg, "green")]),
        "data/train-00001-of-00002.parquet": table_of([(BLUE, None), (b"GIF89a...", "moving"), (None, "lost")]),
    }
    done = imported(dataset(hub, files), new)
    assert content(new) == {
        "000001.png": RED,
        "000001.txt": b"red",
        "000002.jpg": jpeg,
        "000002.txt": b"green",
        "000003.png": BLUE,
    }
    assert dict(done.left_out) == {"row without a picture": 1, "picture of another kind": 1}


def test_a_table_without_pictures_says_what_it_has(hub, new):
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"url": ["http://x"], "caption": ["y"]}), out)
    with pytest.raises(PlainError, match="no column of pictures, only url, caption"):
        imported(dataset(hub, {"a.parquet": out.getvalue()}), new)
    with pytest.raises(PlainError, match="cannot be read as a Parquet table"):
        imported(dataset(hub, {"a.parquet": b"PAR1 broken"}, "maker/b"), new)
    assert not new.parent.exists() or list(new.parent.iterdir()) == []


def test_without_pyarrow_it_says_how_to_get_it_before_anything_comes(hub, new, monkeypatch):
    address = dataset(hub, {"a.parquet": table_of([(RED, "x")])})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(PlainError, match="pip install pyarrow"):
        look_into(address)
    assert hub.asked("/resolve/") == []


def test_a_private_dataset_needs_the_token_and_keeps_it_to_the_hub(hub, new, monkeypatch):
    address = dataset(hub, {"a.png": RED}, access="private")
    with pytest.raises(PlainError, match="set HF_TOKEN"):
        look_into(address)
    monkeypatch.setenv("HF_TOKEN", "hf_member")
    assert imported(address, new).pictures == 1
    assert hub.asked("/cdn/")
    assert not any("Authorization" in request.headers for request in hub.asked("/cdn/"))


def test_a_gated_dataset_is_explained_with_its_page(hub, new):
    address = dataset(hub, {"a.png": RED}, access="gated")
    with pytest.raises(PlainError) as told:
        imported(address, new)
    assert f"{hub.address}/datasets/maker/pics" in str(told.value)
    assert list(new.parent.iterdir()) == []


def test_one_folder_and_one_revision_can_be_meant(hub, new):
    files = {"train/a.png": RED, "test/b.png": BLUE}
    dataset(hub, files, revisions=("main", "v2"))
    imported(Address("maker/pics", "v2", "train", "datasets"), new)
    assert content(new) == {"a.png": RED}
    assert hub.asked("/revision/v2")
    with pytest.raises(PlainError, match="has no valid"):
        look_into(Address("maker/pics", "", "valid", "datasets"))


def test_a_cut_import_keeps_what_came_and_goes_on(hub, new):
    large = picture("red", "BMP", side=200)
    address = dataset(hub, {f"{n}.png": picture(form="PNG", side=n + 1) for n in range(20)} | {"large.bmp": large})
    hub.faults = [Fault("large.bmp", status=500, times=99)]
    with pytest.raises(PlainError, match="status 500"):
        imported(address, new)
    assert not new.exists()
    came = len(hub.asked("/cdn/"))
    hub.faults.clear()
    told = []
    assert imported(address, new, progress=told.append).pictures == 21
    assert len(hub.asked("/cdn/")) <= max(came, 20) + 21 - came + 1
    assert max(told) == sum(len(body) for body in hub.repositories["maker/pics"].files.values())
    assert [path.name for path in new.parent.iterdir()] == ["pics"]


def test_one_file_that_cannot_be_had_stops_the_others_at_once(hub, new):
    """As Ctrl-C does: a table of gigabytes is not waited for."""
    address = dataset(hub, {"a.bmp": picture("red", "BMP", side=2000), "b.png": RED})
    slow = Fault("/cdn/" + hub_digest(hub, "a.bmp"), seconds=0.1, slice_bytes=64 * 1024, times=9)
    hub.faults = [slow, Fault("b.png", status=404)]
    began = time.monotonic()
    with pytest.raises(PlainError):
        imported(address, new)
    assert time.monotonic() - began < 6  # the whole of it would take 18 s


def hub_digest(hub, path):
    return hashlib.sha256(hub.repositories["maker/pics"].files[path]).hexdigest()


def test_a_wrong_picture_is_refused_and_nothing_stays(hub, new):
    address = dataset(hub, {"a.png": RED})
    hub.faults = [Fault("/cdn/", status=200, body=RED[:-1] + b"\0")]
    with pytest.raises(PlainError, match="its hash is another"):
        imported(address, new)
    assert list(new.parent.iterdir()) == []


def test_more_than_is_imported_at_once_is_refused_before_it_comes(hub):
    address = dataset(hub, {"a.png": RED, "b.png": BLUE})
    with pytest.raises(PlainError, match="2 files"):
        look_into(address, limits=Limits(files=1))
    with pytest.raises(PlainError, match="Name one folder"):
        look_into(address, limits=Limits(total_bytes=10))


def test_a_repository_of_no_use_says_what_it_has(hub):
    with pytest.raises(PlainError, match=r"neither pictures nor ZIP archives nor Parquet tables \(but .tar"):
        look_into(dataset(hub, {"a.tar": b"x"}))


def test_what_is_there_already_is_not_written_over(hub, new):
    new.mkdir(parents=True)
    (new / "mine.png").write_bytes(BLUE)
    with pytest.raises(PlainError, match="is there already"):
        imported(dataset(hub, {"a.png": RED}), new)
    assert content(new) == {"mine.png": BLUE}
