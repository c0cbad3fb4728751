"""python tests/kills.py [--kills N] [--seed N]: kill a short run at random instants, resume it, compare the weights.

Each time the run begins in a new folder without caches, is killed (SIGKILL) at a random instant between its first
breath and its last, everything it left is read, and it is resumed to its end. The run caches pictures and captions,
draws samples, measures held-out pictures, saves networks and states. Exit code 1 when a file cannot be read, a run
cannot go on, or its weights differ by a single bit from those of the run that nobody killed.
"""

from __future__ import annotations

# ruff: noqa: E402  (the folder of the tests must be found first)
import argparse
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # as in the tests: tiny models are slower on several threads
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

import torch
from PIL import Image
from safetensors.torch import load_file
from short_runs import same, short_config, weights

import engine.train  # noqa: F401  (imported once, here: every process below is a copy of this one)
from engine.__main__ import main as engine_main
from engine.events import PhaseStarted, RunFinished
from engine.run_folder import RunFolder
from knowledge.config import TrainingConfig

EPOCHS = 6
COPY = multiprocessing.get_context("fork")
"""This process never computes with torch itself, so that its copies may."""


def train(run: RunFolder, resume: bool) -> None:
    """The engine, as it runs in a process of its own."""
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    os._exit(engine_main([str(run.path), *(["--resume"] if resume else [])]))


def begun(run: RunFolder, *, resume: bool) -> Any:
    process = COPY.Process(target=train, args=(run, resume))
    process.start()
    return process


def wait_for_events(run: RunFolder, process: Any, count: int) -> None:
    """Wait until the run has told so much: instants by the clock alone would mostly fall into loading."""
    log = run.path / "events.jsonl"
    while process.exitcode is None and (log.read_bytes().count(b"\n") if log.exists() else 0) < count:
        process.join(0.002)


def in_a_copy(work: Callable[..., None], *arguments: Any) -> bool:
    """Whether this work went well in a process of its own."""
    process = COPY.Process(target=work, args=arguments)
    process.start()
    process.join()
    return process.exitcode == 0


def read_all(run: RunFolder) -> None:
    """Open everything that counts as saved. Raises what reading raises."""
    run.config()
    list(run.events())
    for file in [*run.checkpoints.glob("*.safetensors"), *run.cache.rglob("*.safetensors")]:
        load_file(file)
    for file in run.path.rglob("*.png"):
        with Image.open(file) as picture:
            picture.load()
    for state in run.states():
        torch.load(state / "state.pt", weights_only=True)


def last_words(run: RunFolder) -> str:
    """The phase that the run was in, as far as it told."""
    phases = [f"{event.phase} {event.detail}".strip() for event in run.events() if isinstance(event, PhaseStarted)]
    return phases[-1] if phases else "beginning"


def finished(run: RunFolder) -> bool:
    """Whether the run has told its end: what is left of its process then has nothing to lose."""
    return any(isinstance(event, RunFinished) for event in run.events())


def compare(run: RunFolder, straight: RunFolder) -> None:
    assert same(weights(run), weights(straight)), "the weights differ"


def make_model(folder: Path) -> None:
    from conftest import build_tiny_sd15

    build_tiny_sd15(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="lora-wizard-kills-") as folder:
        model, runs = Path(folder) / "sd15", Path(folder) / "runs"
        assert in_a_copy(make_model, model)

        def config_in(folder: str) -> TrainingConfig:
            return short_config(
                model,
                "sd15",
                runs / folder,
                schedule={"epochs": EPOCHS},
                memory={"cache_text_encoder_outputs": True},
                saving={"every_epochs": 2, "state_every_epochs": 1, "keep_last": 2},
                sampling={"prompts": ["a toy", "a house"], "every_epochs": 2, "steps": 2},
                validation={"share": 0.2, "every_epochs": 3},
                network={"train_text_encoder": False},
            )

        straight = RunFolder.create(config_in("straight"))
        since = time.monotonic()
        begun(straight, resume=False).join()
        seconds = time.monotonic() - since
        told = len(list(straight.events()))
        killed, where, phases = 0, [], []
        while killed < options.kills:
            run = RunFolder.create(config_in(str(killed)))
            process = begun(run, resume=False)
            wait_for_events(run, process, chance.randrange(told))
            process.join(chance.uniform(0, 2 * seconds / told))
            if process.exitcode is None:
                os.kill(process.pid, signal.SIGKILL)
            process.join()
            if process.exitcode != -signal.SIGKILL or finished(run):
                continue  # it had ended by then
            killed += 1
            where.append(int(run.states()[0].name.rpartition("-")[2]) if run.states() else 0)
            phases.append(last_words(run))
            if not in_a_copy(read_all, run):
                sys.stdout.write(f"kill {killed}: something that was saved cannot be read" + "\n")
                return 1
            process = begun(run, resume=True)
            process.join()
            if process.exitcode != 0 or not in_a_copy(compare, run, straight):
                sys.stdout.write(
                    f"kill {killed} while {phases[-1]}, resumed after step {where[-1]}: exit status "
                    f"{process.exitcode}, or other weights; it said: {list(run.events())[-1]}\n"
                )
                return 1
            sys.stdout.write(f"kill {killed} while {phases[-1]}, resumed after step {where[-1]}: the same weights\n")
            sys.stdout.flush()
            shutil.rmtree(run.path.parent)
        at = ", ".join(f"{step}: {where.count(step)}" for step in sorted(set(where)))
        during = ", ".join(f"{phase}: {phases.count(phase)}" for phase in sorted(set(phases)))
        sys.stdout.write(
            f"{killed} kills, each resumed to the same weights; kills by the newest state's step: {at}; "
            f"by phase: {during}\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
