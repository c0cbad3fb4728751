"""What a run holds on the device and in the computer, and how parts of a model leave both."""

from __future__ import annotations

import psutil
import torch


def leave(*parts: torch.nn.Module, for_good: bool = False) -> None:
    """Bring parts back to the CPU, or out of memory for good, and their room on the GPU back to everybody."""
    for part in parts:
        part.to("meta" if for_good else "cpu")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()


def vram_bytes(device: torch.device) -> int:
    return torch.cuda.memory_reserved(device) if device.type == "cuda" else 0


def peak_vram_bytes(device: torch.device) -> int:
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else 0


def peak_ram_bytes() -> int:
    """The most memory this process ever held, where the system keeps count; else what it holds now."""
    memory = psutil.Process().memory_info()
    return int(getattr(memory, "peak_wset", 0) or _resident_peak() or memory.rss)


def _resident_peak() -> int:
    try:
        import resource
    except ImportError:  # Windows, which counts in peak_wset
        return 0
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # KiB, except on macOS
