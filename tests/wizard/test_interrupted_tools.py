"""Tools killed while they write, and tools on a full disk: what was there before stays, whole.

A limit on the size of files stands for both: where its signal is obeyed the system ends the process at that byte, and
where it is ignored, as Python does by itself, writing fails as on a full disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
from pathlib import Path

import pytest
from broken_networks import base, network

if sys.platform == "win32":
    pytest.skip("there is neither fork nor a limit on the size of files", allow_module_level=True)

import resource
import signal

from wizard.cli import main

COMMANDS = {
    "resize": ("resize", "lora.safetensors", "--rank", "2", "-o", "OUT", "--overwrite"),
    "convert names": ("convert", "lora.safetensors", "--names", "peft", "-o", "OUT", "--overwrite"),
    "convert precision": ("convert", "lora.safetensors", "--precision", "fp32", "-o", "OUT", "--overwrite"),
    "merge": ("merge", "lora.safetensors", "lora.safetensors", "-o", "OUT", "--overwrite"),
    "merge into a file": ("merge", "lora.safetensors", "--into", "base.safetensors", "-o", "OUT", "--overwrite"),
    "extract": ("extract", "base.safetensors", "tuned.safetensors", "--rank", "4", "--conv-rank", "4", "-o", "OUT",
                "--overwrite"),
    "metadata": ("metadata", "lora.safetensors", "--set", "title=mine", "-o", "OUT", "--overwrite"),
    "metadata in place": ("metadata", "OUT", "--set", "title=mine"),
}  # fmt: skip


@pytest.fixture
def files(own_home: Path) -> Path:
    """A LoRA, a base model and a finetune of it, and what an earlier result left at OUT."""
    chance = random.Random(3)
    Path("lora.safetensors").write_bytes(network(chance, "lora").content())
    Path("base.safetensors").write_bytes(base(chance).content())
    Path("tuned.safetensors").write_bytes(base(chance).content())
    Path("out.safetensors").write_bytes(network(chance, "loha").content())
    return Path.cwd()


def contents(folder: Path) -> dict[str, str]:
    """What every file that is not hidden holds."""
    seen = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in seen}


def in_a_copy(words: tuple[str, ...], most_bytes: int | None, obey: bool, told: Path) -> int:
    """Exit status of the command in a copy of this process that may write no file larger than that."""
    copy = os.fork()
    if copy == 0:
        signal.alarm(100)
        with told.open("w", encoding="utf-8") as said:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
        if most_bytes is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL if obey else signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
        sys.stdout = sys.stderr = os.fdopen(1, "w")
        try:
            main(["tools", *words])
        except SystemExit as end:
            sys.stdout.flush()
            os._exit(end.code if isinstance(end.code, int) else 0)
        os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1])


@pytest.mark.parametrize("command", COMMANDS)
def test_a_tool_killed_while_it_writes_or_out_of_space_leaves_the_old_file(command, files, tmp_path_factory):
    told = tmp_path_factory.mktemp("told") / "said.txt"
    words = tuple({"OUT": "out.safetensors"}.get(word, word) for word in COMMANDS[command])
    before = contents(files)
    most_bytes = 400  # less than any of the results
    assert in_a_copy(words, most_bytes, True, told) == -signal.SIGXFSZ
    assert contents(files) == before
    hidden = {path for path in files.iterdir() if path.name.startswith(".out")}
    assert len(hidden) == 1  # what a killed process cannot take away is hidden, and no more than it may be
    assert in_a_copy(words, most_bytes, False, told) == 1
    assert "could not be written: File too large" in " ".join(told.read_text(encoding="utf-8").split())
    assert "Traceback" not in told.read_text(encoding="utf-8")
    assert contents(files) == before
    assert {path for path in files.iterdir() if path.name.startswith(".out")} == hidden
    assert in_a_copy(words, None, False, told) == 0, told.read_text(encoding="utf-8")
    after = contents(files)
    assert {name for name in after if after[name] != before.get(name)} == {"out.safetensors"}


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz", ".tar.zst"])
def test_a_backup_killed_while_it_writes_or_out_of_space_leaves_the_old_one(suffix, files, tmp_path_factory):
    from engine.run_folder import RunFolder
    from knowledge.config import TrainingConfig, with_values

    run = RunFolder.create(with_values(TrainingConfig(), {"output.name": "fox"}))
    (run.checkpoints / "fox.safetensors").write_bytes(random.Random(0).randbytes(300_000))
    archive = Path(f"fox{suffix}")
    archive.write_bytes(b"the backup of yesterday")
    told = tmp_path_factory.mktemp("told") / "said.txt"
    before, words = contents(files), ("backup", "fox", "-o", str(archive), "--overwrite", "--json")
    assert in_a_copy(words, 100_000, True, told) == -signal.SIGXFSZ
    assert contents(files) == before
    assert in_a_copy(words, 100_000, False, told) == 1
    assert "cannot be written: File too large" in json.loads(told.read_text(encoding="utf-8"))["error"]
    assert contents(files) == before
    assert in_a_copy(words, None, False, told) == 0
    assert {name for name, digest in contents(files).items() if before[name] != digest} == {archive.name}
