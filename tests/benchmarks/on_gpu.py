"""All that waits for a GPU, in one go: python tests/benchmarks/on_gpu.py [--folder DIR] [--only tests|steps|memory]

Runs the tests that need a card; measures steps of SD 1.5 and SDXL beside diffusers and peft; and compares the forecast
of memory with what a card really holds. Beside this file it writes steps-CARD.json and memory-CARD.md. The models have
random weights of full size and are built in the folder, once; they take 13 GB there. An hour or two.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(ROOT), str(HERE.parent)]
STEPS: tuple[tuple[str, ...], ...] = tuple(
    (family, "--resolution", side, "--batch-size", size, "--precision", "bf16", *more)
    for family, side in (("sd15", "512"), ("sdxl", "1024"))
    for size in ("1", "4")
    for more in ((), ("--selective",))
)
"""The steps that are measured, as arguments of step.py."""


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the models are built, and found again; else a temporary one")
    parser.add_argument("--only", choices=list(PARTS), help="one part of it")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("torch finds no GPU on this computer, and all of this needs one.")
    card = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        failed = [name for name in ([options.only] if options.only else PARTS) if not PARTS[name](folder, card)]
    sys.exit(f"Not everything went through: {', '.join(failed)}." if failed else 0)


def marked_tests(_: Path, __: str) -> bool:
    """Whether the tests that need a card pass."""
    return called([sys.executable, "-m", "pytest", "-m", "gpu", "tests"]) is not None


def measured_steps(folder: Path, card: str) -> bool:
    """Whether every step could be measured; what was is written, also where some were too large for the card."""
    figures: list[dict[str, Any]] = []
    for step in STEPS:
        text = called([sys.executable, str(HERE / "step.py"), *step, "--folder", str(folder)], kept=True)
        figures += [json.loads(text)] if text else []
        (HERE / f"steps-{card}.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return len(figures) == len(STEPS)


def forecast_memory(folder: Path, _: str) -> bool:
    """Whether the table of forecast and real memory could be made."""
    from full_size import build

    for family in ("sd15", "sdxl"):
        if not (folder / family).exists():
            build(family, folder / family).unlink()  # the folder is enough
    models = [part for family in ("sd15", "sdxl") for part in (f"--{family}", str(folder / family))]
    return called([sys.executable, str(HERE / "memory_forecast.py"), *models]) is not None


PARTS: dict[str, Callable[[Path, str], bool]] = {
    "tests": marked_tests,
    "steps": measured_steps,
    "memory": forecast_memory,
}


def called(command: list[str], *, kept: bool = False) -> str | None:
    """What a command says, where it is `kept`; None where it failed, which does not stop the others."""
    say("+ " + " ".join(command))
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE if kept else None, text=True, check=False)
    if done.returncode == 0 and kept:
        say(done.stdout)
    return (done.stdout or "") if done.returncode == 0 else None


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
