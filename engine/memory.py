"""What a run holds on the device and in the computer, how tensors get there, and how parts of a model leave both."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache

import psutil
import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device, by a copy that goes on by itself.

    Any other copy waits until a GPU has done all that it was asked for so far; of pinned memory CUDA makes this one
    while it computes.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def leave(*parts: torch.nn.Module, for_good: bool = False) -> None:
    """Bring parts back to the CPU, or out of memory for good, and their room back to everybody."""
    for part in parts:
        part.to("meta" if for_good else "cpu")
    give_back()


def give_back() -> None:
    """Return to the system what was freed: both CUDA's allocator and glibc's keep it for what may come.

    Without this SD 1.5's text encoder and VAE still took 0.7 of their 0.8 GB after they had left.
    """
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    """glibc's function, where it is glibc that allocates."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


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
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # KiB, except on macOS
