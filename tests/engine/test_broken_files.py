"""Some hundred files that are broken on purpose: nothing crashes, and each is named for what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from broken_files import write
from click.testing import CliRunner

from engine.dataset.folders import scan
from engine.dataset.inspect import inspect_dataset
from knowledge.answers import PlainError
from knowledge.config import DatasetFolder, DatasetSettings
from wizard.dataset import dataset


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("broken")
    return folder, write(folder, each=8)


def test_each_broken_file_is_named_for_what_is_wrong_with_it(broken):
    folder, expected = broken
    assert sum(1 for _ in folder.iterdir()) > 400
    settings = DatasetSettings(
        folders=(DatasetFolder(path=str(folder)),),
        trigger_word="sks",
        resolution=256,
        bucket_minimum_side=128,
        bucket_maximum_side=512,
    )
    found = inspect_dataset(settings)
    named: dict[str, set[str]] = {}
    for finding in found.findings:
        named.setdefault(finding.kind, set()).update(Path(file).name for file in finding.files)
    expected = {kind: {name.encode(errors="replace").decode() for name in names} for kind, names in expected.items()}
    missed = {kind: sorted(names - named.get(kind, set())) for kind, names in expected.items()}
    assert {kind: names for kind, names in missed.items() if names} == {}


def test_the_sheet_the_page_and_the_document_show_them_all(broken, tmp_path):
    folder, _ = broken
    words = ["inspect", str(folder), "--resolution", "256", "--trigger", "sks"]
    written = ["--sheet", str(tmp_path / "s.png"), "--html", str(tmp_path / "p.html")]
    result = CliRunner().invoke(dataset, [*words, *written, "--json"], catch_exceptions=False)
    assert result.exit_code == 3
    assert json.loads(result.output)["pictures"] > 250
    page = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert "orphan 3.txt" in page
    assert "cut jpeg 3.jpg" in page
    assert "<b>&amp;" not in page
    shown = CliRunner().invoke(dataset, words, catch_exceptions=False)
    assert shown.exit_code == 3
    assert "Mend first:" in shown.output


def test_a_training_refuses_what_it_cannot_read_and_names_it(broken):
    folder, _ = broken
    with pytest.raises(PlainError, match="not UTF-8 text"):
        scan(DatasetSettings(folders=(DatasetFolder(path=str(folder)),)))
