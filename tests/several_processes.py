"""Two processes that train together, started quickly: from a server that has imported the engine once."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from engine.run_folder import RunFolder

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [
        "engine.train",
        "engine.recovery",
        "lycoris",
        "diffusers.models.autoencoders.autoencoder_kl",
        "diffusers.models.unets.unet_2d_condition",
        "transformers.models.clip.modeling_clip",
        "transformers.models.clip.tokenization_clip",
        "torch._dynamo",
    ]
)
"""What the libraries import only when a model is loaded takes five seconds of each process."""
Prepare = Callable[[int, Path], None]


def nothing(rank: int, folder: Path) -> None:
    """Nothing goes wrong in any of them."""


def train_in_two(run: RunFolder, prepare: Prepare = nothing, *, resume: bool = False) -> list[int | None]:
    """The exit codes of two engines that train this run; before that each calls `prepare` with its rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [_SERVER.Process(target=_engine, args=(rank, port, run.path, prepare, resume)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(100)
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in processes]


def _engine(rank: int, port: int, folder: Path, prepare: Prepare, resume: bool) -> None:
    from engine.__main__ import main

    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in told.items()}, MASTER_ADDR="127.0.0.1", OMP_NUM_THREADS="1")
    log = os.open(folder / f"output-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    prepare(rank, folder)
    sys.exit(main([str(folder), *(["--resume"] if resume else [])]))
