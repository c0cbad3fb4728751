"""Questions that only an import can answer, asked in a process of their own: python -m wizard.probes NAME.

A library that crashes, hangs or prints on import then harms nobody. The answer is one line of JSON.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any

from wizard.launch import engine_environment

SECONDS = 120


def torch() -> dict[str, Any]:
    """What PyTorch is, which devices it reaches and which number formats multiply right there."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "rocm": torch.version.hip,
        "device": device,
        "architectures": torch.cuda.get_arch_list() if device == "cuda" else [],
        "formats": {name: _multiplies(torch, device, name) for name in ("float32", "bfloat16", "float16")},
    }


def _multiplies(torch: Any, device: str, name: str) -> str:
    """Empty when a multiplication in this format comes out right on the device; else what went wrong."""
    try:
        generator = torch.Generator().manual_seed(0)
        a, b = (torch.rand(64, 64, generator=generator) for _ in range(2))
        dtype = getattr(torch, name)
        found = (a.to(device, dtype) @ b.to(device, dtype)).float().cpu()
        off = ((found - a @ b).abs().max() / (a @ b).abs().max()).item()
        return "" if off < 0.05 else f"wrong by {off:.0%}"
    except (RuntimeError, NotImplementedError) as problem:
        return str(problem).splitlines()[0]


def libraries() -> dict[str, Any]:
    """Imports what the engine needs; an error here is one that would end a training before it begins."""
    from accelerate import Accelerator
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from lycoris import create_lycoris
    from transformers import CLIPTextModel

    return {
        "imported": [part.__name__ for part in (Accelerator, AutoencoderKL, UNet2DConditionModel, CLIPTextModel)]
        + [create_lycoris.__name__]
    }


def bitsandbytes() -> dict[str, Any]:
    """One step of the 8-bit AdamW, on the graphics card where there is one."""
    import torch

    bitsandbytes: Any = import_module("bitsandbytes")  # it declares no types
    device = "cuda" if torch.cuda.is_available() else "cpu"
    weight = torch.nn.Parameter(torch.ones(128, 128, device=device))
    optimizer = bitsandbytes.optim.AdamW8bit([weight], lr=0.1)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    moved = bool((weight < 1).all())
    return {"version": bitsandbytes.__version__, "device": device, "moved": moved}


PRODUCT = base64.b64decode(
    "CAg6VQoRCgFhCgFiEgFjIgZNYXRNdWwSAWdaEwoBYRIOCgwIARIICgIIAgoCCAJaEwoBYhIOCgwIARIICgIIAgoCCAJiEwoBYxIOCgwIARIICgII"
    "AgoCCAJCBAoAEA0="
)
"""An ONNX model that multiplies two matrices of 2 × 2."""


def onnxruntime() -> dict[str, Any]:
    """The devices that the taggers could use: those that are offered, and those on which a product came out right.

    The library lists CUDA even where it cannot load it, and a session then falls back to the processor in silence.
    """
    import numpy
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    offered = onnxruntime.get_available_providers()
    wanted = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in offered]
    session = onnxruntime.InferenceSession(PRODUCT, providers=wanted)
    two = numpy.array([[1, 2], [3, 4]], numpy.float32)
    right = bool((session.run(None, {"a": two, "b": two})[0] == two @ two).all())
    return {
        "version": onnxruntime.__version__,
        "providers": offered,
        "used": session.get_providers() if right else [],
    }


PROBES: dict[str, Callable[[], dict[str, Any]]] = {
    "torch": torch,
    "libraries": libraries,
    "bitsandbytes": bitsandbytes,
    "onnxruntime": onnxruntime,
}


def ask(name: str) -> dict[str, Any]:
    """The answer of one probe; {"error": …} where the library is missing, broken, or takes too long."""
    try:
        answer = subprocess.run(
            [sys.executable, "-m", "wizard.probes", name],
            env=engine_environment(),
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"it did not answer within {SECONDS} s"}
    last = next((line for line in reversed(answer.stdout.splitlines()) if line.startswith("{")), "")
    if answer.returncode == 0 and last:
        found: dict[str, Any] = json.loads(last)
        return found
    words = [line.strip() for line in answer.stderr.splitlines() if line.strip()]
    return {"error": words[-1] if words else f"it crashed (exit status {answer.returncode})"}


def ask_all() -> dict[str, dict[str, Any]]:
    """The answers of all probes by name; two at a time, since each is an import of many seconds."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        return dict(zip(PROBES, pool.map(ask, PROBES), strict=True))


if __name__ == "__main__":
    try:
        print(json.dumps(PROBES[sys.argv[1]]()))
    except ImportError as problem:
        sys.exit(str(problem))
