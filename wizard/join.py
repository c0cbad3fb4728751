"""Taking part, from another computer, in a run that several computers train together."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from engine.events import Failed
from engine.run_folder import RunFolder
from knowledge.answers import PlainError
from knowledge.config import POCKET_MODEL, TrainingConfig
from wizard import views
from wizard.autopsy import last_lines
from wizard.follow import Follower, find_run
from wizard.group import PORT, WAIT_MINUTES, Group, group_of
from wizard.launch import Interrupts, end_process, start_engine
from wizard.progress import choose_view

ANSWER_SECONDS = 5.0
"""How long a computer may take to answer before its address is taken for wrong."""
FOOTER = "Ctrl-C has every computer save and stop; twice it ends the processes here at once."


@click.command(epilog="Example: lora-wizard join runs/my-lora --machine 1")
@click.argument("run")
@click.option("--machine", type=click.IntRange(1, 511), required=True, help="Number of this computer; the first is 0.")
@click.option("--folder", default="runs", show_default=True, help="Where the runs are.")
@click.option("--json", "as_json", is_flag=True, help="Print the raw events, one JSON object a line.")
def join(run: str, machine: int, folder: str, as_json: bool) -> int:
    """Train along on this computer, in a run that another one leads.

    That one was started with --machines and shows this command. RUN is the folder that all of them share.
    """
    found = find_run(run, folder)
    group = group_of(found)
    if machine >= group.machines:
        others = {1: "no other machine", 2: "machine 1 alone beside it"}.get(
            group.machines, f"machines 1 to {group.machines - 1} beside it"
        )
        raise PlainError(f"--machine is {machine}, but {found.name} was begun with {others}.", 2)
    missing = list(missing_here(found.config()))
    if missing:
        names = " and ".join(missing)
        raise PlainError(
            f"Not on this computer: {names}. All must have them under the same names; copy them here first."
        )
    await_first(group, _say if not as_json else lambda words: None)
    return _take_part(found, machine, as_json=as_json)


def _say(words: str) -> None:
    views.say(views.escape(words))


def missing_here(config: TrainingConfig) -> Iterator[str]:
    """What the config names by its place on the disk and this computer has not."""
    named = {"the base model": config.base_model.path, "the VAE": config.base_model.vae}
    named["the network to start from"] = config.network.start_from
    for what, path in named.items():
        if path and path != POCKET_MODEL and Path(path).is_absolute() and not Path(path).exists():
            yield f"{what} {path}"
    for folder in config.dataset.folders:
        for path in filter(None, (folder.path, folder.masks)):
            if not Path(path).expanduser().is_dir():
                yield f"the folder {path}"


def await_first(
    group: Group, say: Callable[[str], None], *, minutes: float = WAIT_MINUTES, pause_seconds: float = 1.0
) -> None:
    """Wait until the first computer listens, saying for what and how long; raises PlainError where it cannot be."""
    port = group.main_port or PORT
    until, waiting = time.monotonic() + 60 * minutes, False
    while True:
        try:
            socket.create_connection((group.main_address, port), ANSWER_SECONDS).close()
        except socket.gaierror:
            raise PlainError(
                f"--main-address is {group.main_address}, and this computer knows no computer of that name. "
                "Start the run with the address itself, as 192.168.0.10."
            ) from None
        except ConnectionRefusedError:
            if not waiting:
                say(
                    f"{group.main_address} answers, but no run waits at its port {port} yet. Waiting up to "
                    f"{minutes:g} minutes for lora-wizard train or resume to be started there."
                )
                waiting = True
            if time.monotonic() > until:
                raise PlainError(
                    f"No run has been started at {group.main_address}, port {port}, within {minutes:g} minutes."
                ) from None
            time.sleep(pause_seconds)
        except OSError as error:
            raise PlainError(
                f"{group.main_address} does not answer at port {port} ({error.strerror or error}). Check the address, "
                "that both computers are in one network, and that no firewall closes the port."
            ) from None
        else:
            say(f"Connected to {group.main_address}, port {port}. Training begins when every computer has joined.")
            return


def _take_part(run: RunFolder, machine: int, *, as_json: bool) -> int:
    follower = Follower(run)
    follower.catch_up()
    follower.progress.begin_again()
    view = choose_view(follower.progress, as_json=as_json, footer=FOOTER)
    log = run.path / f"engine-{machine}.log"
    asked = False
    with Interrupts() as interrupts, view:
        process = start_engine(run, machine=machine, log_name=log.name)

        def alive() -> bool:
            nonlocal asked
            if interrupts.count and not asked:
                asked = True
                run.request("stop")
            elif interrupts.count > 1 and process.poll() is None:
                end_process(process)
            return process.poll() is None

        follower.follow(view, alive)
    return _ended(process, follower, log, interrupted=asked, quiet=as_json)


def _ended(process: subprocess.Popen[bytes], follower: Follower, log: Path, *, interrupted: bool, quiet: bool) -> int:
    """What to say and return when the processes here have ended."""
    if process.returncode == 0:
        if not quiet:
            _say("This computer has done its part. What was made is told where the run was started.")
        return 130 if interrupted else 0
    if not isinstance(follower.ended, Failed) and not quiet:
        last = last_lines(log, 1)
        said = f" Their last words: {last}" if last else ""
        views.complain(f"The processes here ended unexpectedly.{said}\nAll that they said: {log}")
    return 130 if interrupted else 1
