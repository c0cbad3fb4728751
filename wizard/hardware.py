"""This computer: what will train, and whether it is ready. Nothing here imports torch; what needs it runs elsewhere."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

from knowledge.facts import Hardware

NVIDIA_SMI_SECONDS = 10


@dataclass(frozen=True)
class GraphicsCard:
    """One NVIDIA card as its driver describes it."""

    name: str
    vram_bytes: int
    vram_free_bytes: int
    capability: tuple[int, int] | None
    driver: str


def this_computer(folder: Path | str = ".") -> Hardware:
    """The computer as the calculator and the rules see it; disk space is that of `folder`."""
    cards = graphics_cards()
    card = max(cards, key=lambda card: card.vram_bytes) if cards else None
    return Hardware(
        name=card.name if card else "CPU",
        vram_bytes=card.vram_bytes if card else 0,
        ram_bytes=ram_bytes(),
        disk_free_bytes=disk_free_bytes(folder),
        capability=card.capability if card else None,
        cores=cores(),
    )


def graphics_cards() -> list[GraphicsCard]:
    """The NVIDIA cards that a program started here may use; empty without a driver.

    CUDA_VISIBLE_DEVICES is honoured where it lists numbers, as CUDA does.
    """
    program = _nvidia_smi()
    if program is None:
        return []
    query = "name,memory.total,memory.free,compute_cap,driver_version"
    try:
        answer = subprocess.run(
            [program, f"--query-gpu={query}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=NVIDIA_SMI_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    if answer.returncode != 0:
        return []
    return _visible(parse_cards(answer.stdout), os.environ.get("CUDA_VISIBLE_DEVICES"))


def parse_cards(text: str) -> list[GraphicsCard]:
    """The cards in the answer of nvidia-smi: name, MiB in all, MiB free, compute capability, driver; a line each."""
    cards = []
    for line in text.splitlines():
        parts = [part.strip() for part in line.rsplit(",", 4)]
        if len(parts) != 5 or not parts[1].isdigit():
            continue
        name, total, free, capability, driver = parts
        major, _, minor = capability.partition(".")
        cards.append(
            GraphicsCard(
                name=name,
                vram_bytes=int(total) * 2**20,
                vram_free_bytes=int(free) * 2**20 if free.isdigit() else 0,
                capability=(int(major), int(minor)) if major.isdigit() and minor.isdigit() else None,
                driver=driver,
            )
        )
    return cards


def _visible(cards: list[GraphicsCard], setting: str | None) -> list[GraphicsCard]:
    if setting is None or not all(part.strip().lstrip("-").isdigit() for part in setting.split(",") if part.strip()):
        return cards
    chosen = []
    for part in setting.split(","):
        if not part.strip() or not 0 <= int(part) < len(cards):
            break  # CUDA stops at the first number that names no card
        chosen.append(cards[int(part)])
    return chosen


def _nvidia_smi() -> str | None:
    found = shutil.which("nvidia-smi")
    if found or sys.platform != "win32":
        return found
    usual = Path(os.environ.get("SYSTEMROOT", r"C:\Windows")) / "System32" / "nvidia-smi.exe"
    return str(usual) if usual.exists() else None


PCI_DEVICES = Path("/sys/bus/pci/devices")
NVIDIA, DISPLAY = "0x10de", "0x03"
"""NVIDIA's number as a maker of PCI devices, and how the class of a device that draws begins."""


def nvidia_card_inside() -> bool:
    """Whether an NVIDIA card is in this computer, driver or not; only Linux tells without one."""
    return any(
        _first_line(device / "vendor") == NVIDIA and _first_line(device / "class").startswith(DISPLAY)
        for device in (PCI_DEVICES.iterdir() if PCI_DEVICES.is_dir() else ())
    )


CGROUP_MEMORY = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
CGROUP_CPU = Path("/sys/fs/cgroup/cpu.max")


def ram_bytes() -> int:
    """Memory that programs here may use together: the computer's, or less where a container sets a limit."""
    total = int(psutil.virtual_memory().total)
    for file in CGROUP_MEMORY:
        text = _first_line(file)
        if text.isdigit():
            return min(total, int(text))
    return total


def cores() -> int:
    """Processor cores that a program here may use at once; a container's share is rounded down to at least one."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _first_line(CGROUP_CPU).partition(" ")
    if quota.isdigit() and period.isdigit() and int(period):
        return max(1, min(usable, int(quota) // int(period)))
    return usable


def disk_free_bytes(folder: Path | str) -> int:
    """Free space where `folder` is, or will be."""
    place = Path(folder).expanduser().absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def system() -> str:
    """The operating system in words: "Linux 6.1", "Windows 11", "macOS 15.1"."""
    if sys.platform == "darwin":
        return f"macOS {platform.mac_ver()[0]}"
    release = platform.release()
    return f"{platform.system()} {'.'.join(release.split('.')[:2])}"


def _first_line(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").partition("\n")[0].strip()
    except OSError:
        return ""
