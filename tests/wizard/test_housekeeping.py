"""`lora-wizard tools backup` and `clean` as they are typed."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pexpect
import pytest
from click.testing import CliRunner

from engine.run_folder import RunFolder
from knowledge.answers import PlainError
from knowledge.config import TrainingConfig, with_values
from wizard import drafts
from wizard.steps import Draft
from wizard.tools import tools


def run(*arguments: object) -> str:
    """What the command prints; errors are raised as they reach the program's own handler."""
    outcome = CliRunner().invoke(tools, [str(argument) for argument in arguments], standalone_mode=False)
    if outcome.exception is not None:
        raise outcome.exception
    return outcome.stdout


@pytest.fixture
def fox(own_home: Path, photos: Path) -> RunFolder:
    """A stopped run in ./runs on pictures with captions, and a draft."""
    config = with_values(
        TrainingConfig(), {"output.name": "fox", "dataset.folders": ({"path": str(photos), "repeats": 1},)}
    )
    made = RunFolder.create(config)
    (made.checkpoints / "fox.safetensors").write_bytes(b"weights" * 1000)
    for step in (5, 10):
        with made.new_state(step) as state:
            (state / "state.pt").write_bytes(b"x" * 50_000)
    drafts.save(Draft({}, "goal", ()))
    return made


def test_a_backup_is_written_and_says_what_is_in_it(fox):
    text = run("backup", "fox", "-o", "fox.zip", "--without", "states")
    assert "read back and equal" in text
    with zipfile.ZipFile("fox.zip") as archive:
        inside = archive.namelist()
    assert "fox/dataset/photos/0.txt" in inside
    assert not any("state/" in name or name.endswith("0.png") for name in inside)
    with pytest.raises(PlainError, match="--overwrite"):
        run("backup", "fox", "-o", "fox.zip")


def test_a_dry_run_lists_the_parts_and_writes_nothing(fox):
    text = run("backup", "fox", "--with", "pictures", "--dry-run")
    for piece in ("states", "pictures", "would hold"):
        assert piece in text
    assert list(Path().glob("*.zip")) == []
    document = json.loads(run("backup", "fox", "--dry-run", "--json"))
    assert "fox/checkpoints/fox.safetensors" in document["parts"]["files"]


def test_cleaning_lists_and_deletes_what_was_chosen(fox, photos):
    listed = json.loads(run("clean", "--dry-run", "--json"))
    assert {one["kind"] for one in listed["removable"]} == {"states", "drafts"}
    assert listed["freed_bytes"] == 0
    assert len(fox.states()) == 2
    text = run("clean", "--only", "states", "--yes")
    assert "50.0 KB freed" in text
    assert [state.name for state in fox.states()] == ["step-000010"]
    assert drafts.load() is not None
    run("clean", "--yes")
    assert drafts.load() is None
    assert (fox.checkpoints / "fox.safetensors").exists()
    assert len(list(photos.iterdir())) == 10
    assert "nothing to clean up" in run("clean", "--yes")


def test_without_a_terminal_it_names_the_flags(fox):
    with pytest.raises(PlainError, match="--yes") as caught:
        run("clean")
    assert caught.value.exit_code == 2
    assert len(fox.states()) == 2


@pytest.mark.parametrize(("answer", "left"), [("n", 2), ("y", 1)])
def test_at_a_terminal_it_asks_first(fox, answer, left):
    child = pexpect.spawn(sys.executable, ["-m", "wizard.cli", "tools", "clean", "--only", "states"], timeout=60)
    child.expect("step|state")
    child.expect("free 50.0 KB")
    child.sendline(answer)
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    assert len(fox.states()) == left


def test_torch_is_not_needed_to_clean_or_to_back_up(fox):
    code = (
        "import sys; from wizard.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "assert 'torch' not in sys.modules"
    )
    for command in (["clean", "--dry-run"], ["backup", "fox", "-o", "x.tar.zst"]):
        subprocess.run([sys.executable, "-c", code, "tools", *command], check=True, capture_output=True)
