"""`lora-wizard dataset import` from a hub on this machine."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from hubs import Repository
from PIL import Image

from knowledge.answers import PlainError
from wizard.cli import main
from wizard.dataset_import import hub_address

pytestmark = pytest.mark.usefixtures("own_home")


@pytest.fixture
def pictures(hub):
    content = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(content, "PNG")
    table = json.dumps({"file_name": "a.png", "text": "from text", "mood": "from mood"}).encode()
    files = {"a.png": content.getvalue(), "metadata.jsonl": table}
    hub.repositories["maker/pics"] = Repository(files, kind="datasets", revisions=("main", "v2"))
    return hub


def run(capsys, *words):
    with pytest.raises(SystemExit) as end:
        main(["dataset", "import", *map(str, words)])
    printed = capsys.readouterr()
    return int(end.value.code or 0), printed.out, printed.err


def test_a_dataset_by_its_page_or_its_name(pictures, capsys):
    code, out, _ = run(capsys, f"{pictures.address}/datasets/maker/pics", "--yes", "--json")
    assert code == 0
    assert json.loads(out) == {
        "folder": "datasets/pics",
        "pictures": 1,
        "captions": 1,
        "renamed": 0,
        "left_out": {},
        "from_tables": {"metadata.jsonl": 1},
        "problems": [],
    }
    assert Path("datasets/pics/a.txt").read_text() == "from text"
    code, out, _ = run(capsys, "maker/pics", "--to", "other", "--caption-column", "mood", "--revision", "v2", "--yes")
    assert (code, Path("other/a.txt").read_text()) == (0, "from mood")
    assert "1 picture and 1 caption" in out
    assert pictures.asked("/revision/v2")


def test_nothing_is_downloaded_without_a_yes(pictures, capsys):
    code, _, err = run(capsys, "maker/pics")
    assert (code, "--yes" in err) == (2, True)
    assert not Path("datasets").exists()


def test_a_misspelt_folder_is_told_apart_from_a_dataset(pictures, capsys):
    code, _, err = run(capsys, "my/pictures", "--yes")
    assert code == 1
    assert "my/pictures is no folder on this computer either" in " ".join(err.split())


def test_a_folder_that_is_here_is_meant_before_a_dataset(pictures):
    Path("maker/pics").mkdir(parents=True)
    assert hub_address(["maker/pics"]) is None
    assert hub_address(["holiday.zip", "some/more.zip"]) is None
    assert hub_address(["other/pics"]).kind == "datasets"


def test_a_dataset_is_imported_by_itself(pictures, capsys):
    Path("here").mkdir()
    with pytest.raises(PlainError, match="import it by itself"):
        hub_address(["here", "maker/pics"])
    code, _, err = run(capsys, "here", "--caption-column", "text")
    assert (code, "for datasets on Hugging Face" in err) == (2, True)
