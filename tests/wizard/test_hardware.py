"""What the computer is, read without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from wizard import hardware
from wizard.hardware import GraphicsCard, _visible, graphics_cards, parse_cards, this_computer

TWO_CARDS = """NVIDIA GeForce RTX 3060, 12288, 11021, 8.6, 560.94
NVIDIA H200, 143771, 143156, 9.0, 580.65.06
"""


def test_the_answer_of_nvidia_smi_is_read():
    small, large = parse_cards(TWO_CARDS)
    assert small == GraphicsCard("NVIDIA GeForce RTX 3060", 12288 * 2**20, 11021 * 2**20, (8, 6), "560.94")
    assert large.capability == (9, 0)


def test_an_old_driver_without_capability_and_noise_are_survived():
    (card,) = parse_cards("NVIDIA-SMI has failed\nTesla K80, 11441, [N/A], [N/A], 470.82\n")
    assert (card.capability, card.vram_free_bytes) == (None, 0)


@pytest.mark.parametrize(
    ("setting", "names"), [(None, 2), ("0", 1), ("1,0", 2), ("", 0), ("-1", 0), ("0,7,1", 1), ("GPU-8f3a", 2)]
)
def test_cards_hidden_from_cuda_are_hidden_here(setting, names):
    assert len(_visible(parse_cards(TWO_CARDS), setting)) == names


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """A program in the place of nvidia-smi that prints a text and ends with a status."""
    if sys.platform == "win32":
        pytest.skip("a shell script stands in for nvidia-smi")

    def install(text: str, status: int = 0):
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\ncat <<'END'\n{text}END\nexit {status}\n")
        program.chmod(0o755)
        monkeypatch.setattr(hardware.shutil, "which", lambda name: str(program))
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    return install


def test_the_card_with_the_most_memory_trains(nvidia_smi):
    nvidia_smi(TWO_CARDS)
    computer = this_computer()
    assert (computer.name, computer.capability) == ("NVIDIA H200", (9, 0))
    assert computer.vram_bytes == 143771 * 2**20


def test_a_driver_that_fails_means_no_card(nvidia_smi):
    nvidia_smi("couldn't communicate with the NVIDIA driver\n", 9)
    assert graphics_cards() == []
    assert this_computer().name == "CPU"


def test_a_container_has_what_its_limits_say(tmp_path, monkeypatch):
    memory, cpu = tmp_path / "memory.max", tmp_path / "cpu.max"
    memory.write_text(f"{3 * 2**30}\n")
    cpu.write_text("150000 100000\n")
    monkeypatch.setattr(hardware, "CGROUP_MEMORY", (memory,))
    monkeypatch.setattr(hardware, "CGROUP_CPU", cpu)
    assert hardware.ram_bytes() == min(3 * 2**30, hardware.psutil.virtual_memory().total)
    assert hardware.cores() == 1
    memory.write_text("max\n")
    cpu.write_text("max 100000\n")
    assert hardware.ram_bytes() == hardware.psutil.virtual_memory().total
    assert hardware.cores() >= 1


def test_the_disk_of_a_folder_that_does_not_exist_yet_is_that_of_its_parent(tmp_path):
    assert hardware.disk_free_bytes(tmp_path / "not" / "yet") > 0


def test_looking_at_the_computer_never_imports_torch():
    program = "import sys; from wizard.hardware import this_computer; this_computer(); sys.exit('torch' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", program], cwd=root, check=False).returncode == 0
