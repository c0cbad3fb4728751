"""Processes that train one run together, on one computer or several: what `accelerate launch` is told of them."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import click

from engine.run_folder import RunFolder, whole_file
from knowledge.answers import PlainError
from knowledge.config import MIXED_PRECISION, Precision

FILE = "group.json"
"""In the run folder: a run goes on with as many processes as it was begun with."""
ENGINE_MODULE = ("-m", "engine")
PORT = 29500
"""Where machines meet unless another port is named: torch's own choice."""
WAIT_MINUTES = 15
"""How long machines wait for each other: the launcher's own patience, and ours before it."""


@dataclass(frozen=True)
class Group:
    """How many processes train together in all, on how many machines, and where these meet."""

    processes: int = 1
    machines: int = 1
    main_address: str = ""
    main_port: int = 0

    @property
    def processes_here(self) -> int:
        """Processes on each machine, one to a card."""
        return self.processes // self.machines

    def check(self, cards: int) -> None:
        """Raises PlainError where such a group cannot be started on a computer with this many cards."""
        if self.processes % self.machines:
            below = self.processes // self.machines * self.machines
            nearest = f"{below} or {below + self.machines}" if below else str(self.machines)
            raise PlainError(
                f"--processes {self.processes} cannot be shared evenly by --machines {self.machines}. Take {nearest}.",
                2,
            )
        if self.machines > 1 and not self.main_address:
            raise PlainError("--machines needs --main-address: how the others reach this computer, as 192.168.0.10.", 2)
        if 0 < cards < self.processes_here:
            raise PlainError(
                f"{self.processes_here} processes on this computer need a card each, and it has {cards}. "
                f"Take --processes {cards * self.machines}.",
                2,
            )


def group_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of a command that starts several processes."""
    for option in (
        click.option("--main-port", type=click.IntRange(1, 65535), help=f"Where machines meet.  [{PORT}]"),
        click.option("--main-address", default="", help="How other machines reach this one."),
        click.option("--machines", type=click.IntRange(1, 512), default=1, help="Computers that train together."),
        click.option("--processes", type=click.IntRange(1, 4096), default=1, help="Cards in all that share the work."),
    ):
        command = option(command)
    return command


def launch_arguments(group: Group, machine: int, precision: Precision) -> list[str]:
    """What `accelerate launch` is told on one machine, before the program.

    Everything is said, so that nothing is taken from what `accelerate config` may have left on that computer.
    """
    several = group.machines > 1
    return [
        "--multi_gpu",
        f"--num_processes={group.processes}",
        f"--num_machines={group.machines}",
        f"--machine_rank={machine}",
        *([f"--main_process_ip={group.main_address}"] if several else []),
        # Alone, any free port will do.
        f"--main_process_port={(group.main_port or PORT) if several else group.main_port}",
        f"--mixed_precision={MIXED_PRECISION[precision]}",
        "--dynamo_backend=no",
    ]


def launch_command(run: RunFolder, group: Group, machine: int, *, resume: bool) -> list[str]:
    """The whole command of one machine."""
    told = [*launch_arguments(group, machine, run.config().memory.precision), *ENGINE_MODULE, str(run.path.absolute())]
    return [sys.executable, "-m", "accelerate.commands.launch", *told, *(["--resume"] if resume else [])]


def commands_elsewhere(run: RunFolder, group: Group) -> Iterator[str]:
    """What to start on every other machine, as one types it."""
    for machine in range(1, group.machines):
        yield f"lora-wizard join {shlex.quote(str(run.path.absolute()))} --machine {machine}"


def remember_group(run: RunFolder, group: Group) -> None:
    """Keep in the run folder who trains; nothing where it is one process alone."""
    if group != Group():
        with whole_file(run.path / FILE) as file:
            file.write_text(json.dumps(asdict(group)), encoding="utf-8")


def group_of(run: RunFolder) -> Group:
    """Who trains this run. Raises PlainError when what is kept of it cannot be read."""
    try:
        return Group(**json.loads((run.path / FILE).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return Group()
    except (OSError, ValueError, TypeError):
        raise PlainError(f"{run.path / FILE} says how many processes train this run, and cannot be read.") from None
