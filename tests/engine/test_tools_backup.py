"""Backups hold what the run holds, byte for byte, or do not exist."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest
import zstandard

from engine.run_folder import RunFolder
from engine.tools import archives
from engine.tools.backup import PARTS, USUAL_PARTS, back_up, gather
from knowledge.answers import PlainError
from knowledge.config import TrainingConfig, with_values

EVERYTHING = tuple(PARTS)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run with a file of every part, on two dataset folders of the same name."""
    folders = []
    for parent in ("one", "two"):
        folder = tmp_path / parent / "Fox"
        folder.mkdir(parents=True)
        (folder / "a.png").write_bytes(parent.encode())
        (folder / "a.txt").write_text(f"a fox of {parent}", encoding="utf-8")
        folders.append({"path": str(folder)})
    config = with_values(
        TrainingConfig(),
        {"output.folder": str(tmp_path / "runs"), "output.name": "fox", "dataset.folders": tuple(folders)},
    )
    made = RunFolder.create(config)
    (made.checkpoints / "fox.safetensors").write_bytes(os.urandom(3_000_000))
    (made.samples / "step-000010_00.png").write_bytes(b"\x89PNG")
    (made.path / "events.jsonl").write_text("{}\n", encoding="utf-8")
    for step in (10, 20):
        with made.new_state(step) as folder:
            (folder / "state.pt").write_bytes(b"x" * step)
    (made.checkpoints / ".fox.safetensors.99.partial").write_bytes(b"half")
    return made


def unpack(archive: Path) -> dict[str, bytes]:
    """The files of an archive, through the libraries that anybody else would use."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as zipped:
            return {name: zipped.read(name) for name in zipped.namelist()}
    content = archive.read_bytes()
    if archive.suffix == ".zst":
        content = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(content)).read()
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        return {entry.name: tar.extractfile(entry).read() for entry in tar}


@pytest.mark.parametrize("suffix", archives.SUFFIXES)
def test_what_comes_out_is_what_the_run_holds(run, tmp_path, suffix):
    archive = tmp_path / "out" / f"fox{suffix}"
    made = back_up(gather(run, EVERYTHING), archive)
    inside = unpack(archive)
    expected = {
        "fox/config.toml": (run.path / "config.toml").read_bytes(),
        "fox/events.jsonl": b"{}\n",
        "fox/checkpoints/fox.safetensors": (run.checkpoints / "fox.safetensors").read_bytes(),
        "fox/state/step-000010/state.pt": b"x" * 10,
        "fox/state/step-000020/state.pt": b"x" * 20,
        "fox/samples/step-000010_00.png": b"\x89PNG",
        "fox/dataset/Fox/a.txt": b"a fox of one",
        "fox/dataset/Fox/a.png": b"one",
        "fox/dataset/Fox-2/a.txt": b"a fox of two",
        "fox/dataset/Fox-2/a.png": b"two",
    }
    sums = inside.pop("fox/SHA256SUMS").decode().splitlines()
    assert inside == expected
    assert sorted(sums) == sorted(f"{hashlib.sha256(v).hexdigest()}  {name}" for name, v in expected.items())
    assert (made.files, made.bytes) == (10, sum(map(len, expected.values())))
    assert made.archive_bytes == archive.stat().st_size


def test_parts_that_are_not_wanted_stay_out(run, tmp_path):
    usual = {item.name for item in gather(run).items}
    assert "fox/dataset/Fox/a.txt" in usual
    assert "fox/dataset/Fox/a.png" not in usual
    without = {item.name for item in gather(run, tuple(part for part in USUAL_PARTS if part != "states")).items}
    assert usual - without == {"fox/state/step-000010/state.pt", "fox/state/step-000020/state.pt"}


def test_an_unpacked_backup_is_the_run_again(run, tmp_path):
    archive = tmp_path / "fox.tar.gz"
    back_up(gather(run), archive)
    subprocess.run(["tar", "-xzf", archive], cwd=tmp_path, check=True)
    subprocess.run(["sha256sum", "--quiet", "--check", "fox/SHA256SUMS"], cwd=tmp_path, check=True)
    again = RunFolder.open(tmp_path / "fox")
    assert again.config() == run.config()
    assert [state.name for state in again.states()] == ["step-000020", "step-000010"]


def test_a_dataset_folder_that_is_gone_is_named_and_the_rest_saved(run, tmp_path):
    (tmp_path / "two").rename(tmp_path / "elsewhere")
    gathered = gather(run)
    assert gathered.missing == (str(tmp_path / "two" / "Fox"),)
    assert "fox/dataset/Fox/a.txt" in {item.name for item in gathered.items}


def test_a_run_in_training_is_left_alone(run):
    with run.claimed(), pytest.raises(PlainError, match="lora-wizard stop fox"):
        gather(run)


@pytest.mark.parametrize("suffix", archives.SUFFIXES)
def test_a_file_that_changes_meanwhile_stops_the_backup(run, tmp_path, suffix):
    archive = tmp_path / f"fox{suffix}"
    archive.write_bytes(b"the backup of yesterday")
    file = run.checkpoints / "fox.safetensors"

    def shrink(done: int, total: int) -> None:
        if done > 1_000_000:  # in the middle of that file
            os.truncate(file, 1_500_000)

    with pytest.raises(PlainError, match=r"fox\.safetensors changed"):
        back_up(gather(run, ("answers", "files")), archive, shrink)
    assert archive.read_bytes() == b"the backup of yesterday"
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


@pytest.mark.parametrize("suffix", archives.SUFFIXES)
def test_an_archive_that_reads_back_wrongly_is_not_kept(run, tmp_path, suffix):
    """The disk hands back other bytes than were written: one is turned over between writing and reading back."""
    archive = tmp_path / f"fox{suffix}"
    gathered = gather(run, ("files",))
    damaged = False

    def damage(done: int, total: int) -> None:
        nonlocal damaged
        if done > gathered.bytes and not damaged:  # the first block has been read back
            damaged = True
            (partial,) = tmp_path.glob(f".fox{suffix}.*")
            with partial.open("rb+") as file:
                file.seek(2_500_000)
                byte = file.read(1)[0]
                file.seek(2_500_000)
                file.write(bytes([byte ^ 255]))

    with pytest.raises(PlainError, match=r"read back|something else"):
        back_up(gathered, archive, damage)
    assert not archive.exists()
    assert list(tmp_path.glob(".fox*")) == []


def test_another_kind_of_archive_is_wrong_use(run, tmp_path):
    with pytest.raises(PlainError, match=r"\.tar\.zst") as caught:
        back_up(gather(run), tmp_path / "fox.rar")
    assert caught.value.exit_code == 2
