"""Training as the user meets it: the engine runs as a process of its own, and here its story is followed to the end.

The two only share the run folder. The engine tells through events.jsonl and is asked to stop through a file, so a crash
of the one never takes the other with it, and a terminal that is closed leaves the training alone.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Self

import click

from engine.events import Failed, RunFinished
from engine.run_folder import RunFolder, whole_file
from knowledge.answers import PlainError, parse_assignment, plain_problems, read_answers
from knowledge.config import POCKET_MODEL, TrainingConfig, value_of, with_values
from knowledge.words import count
from wizard import views
from wizard.autopsy import ENGINE_LOG, Machine, death, last_lines
from wizard.follow import PLAN, Follower, find_run
from wizard.group import (
    WAIT_MINUTES,
    Group,
    commands_elsewhere,
    group_of,
    group_options,
    launch_command,
    remember_group,
)
from wizard.narrator import Sentence
from wizard.needs import require_all
from wizard.outcome import address
from wizard.progress import View, choose_view

if TYPE_CHECKING:
    from wizard.situation import Situation

ENGINE = ("-m", "engine")
"""What Python is asked to run as the engine, before the run folder."""

ALONE = Group()
FOOTER = "Ctrl-C saves and stops; the training can go on later."
PATIENCE_SECONDS = 5.0
"""How long an engine that has nothing to save may take to leave before it is ended."""


MAKE_ROOM = click.option(
    "--make-room", is_flag=True, help="If memory runs out, change the settings as little as helps and go on."
)


@click.command(epilog="Example: lora-wizard train my-lora.toml --set schedule.epochs=20")
@click.argument("answers", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--set", "assignments", multiple=True, metavar="NAME=VALUE", help="Use this value instead of the file's.")
@click.option("--json", "as_json", is_flag=True, help="Print the raw events, one JSON object a line.")
@MAKE_ROOM
@group_options
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def train(
    answers: Path,
    assignments: tuple[str, ...],
    as_json: bool,
    make_room: bool,
    processes: int,
    machines: int,
    main_address: str,
    main_port: int | None,
    debug: bool,
) -> int:
    """Train from a saved answers file.

    Ctrl-C once saves and stops, so that the training can go on later; twice ends it at once.

    With --processes 2 two graphics cards share the work, through `accelerate launch`; with --machines the command for
    every other computer is shown (lora-wizard join), all of which must see the run's folder, the pictures and the base
    model under the same names.
    """
    group = Group(processes, machines, main_address, main_port or 0)
    return train_file(answers, (*assignments, *room(make_room)), as_json=as_json, debug=debug, group=group)


def room(allowed: bool) -> tuple[str, ...]:
    """The assignment that --make-room stands for."""
    return ("memory.make_room=true",) if allowed else ()


def train_file(
    answers: Path,
    assignments: tuple[str, ...] = (),
    *,
    as_json: bool = False,
    debug: bool = False,
    group: Group = ALONE,
) -> int:
    """Show the plan of an answers file and train with it; returns the exit code."""
    from wizard.hardware import graphics_cards
    from wizard.review import summary, told

    config = assigned(read_answers(answers), assignments)
    if group != ALONE:
        group.check(len(graphics_cards()))
    situation = situation_of(config, group.processes)
    if not as_json:
        plan = views.page(summary(situation), *told(situation.findings, limit=None))
        views.console().print(views.indented(plan), "")
    return train_situation(situation, as_json=as_json, debug=debug, group=group)


@click.command(epilog="Example: lora-wizard resume my-lora")
@click.argument("run")
@click.option("--folder", default="runs", show_default=True, help="Where the runs are.")
@click.option("--set", "assignments", multiple=True, metavar="NAME=VALUE", help="Go on with this value instead.")
@click.option("--json", "as_json", is_flag=True, help="Print the raw events, one JSON object a line.")
@MAKE_ROOM
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def resume(run: str, folder: str, assignments: tuple[str, ...], as_json: bool, make_room: bool, debug: bool) -> int:
    """Go on with a run that was stopped or cut, from the last state that was saved.

    RUN is its name, as `lora-wizard runs` shows it, or its folder. Values given with --set hold for the rest of the
    run; those that would make another network or optimizer are refused.
    """
    found = find_run(run, folder)
    ready_to_resume(found)
    changed = assigned(found.config(), (*assignments, *room(make_room)))
    require_all(changed)
    if changed != found.config():
        refuse_another_network(found.config(), changed)
        found.change_config(changed)
    return attend(found, resume=True, as_json=as_json, debug=debug)


def refuse_another_network(before: TrainingConfig, after: TrainingConfig) -> None:
    """Raises PlainError where a state of the one config cannot be gone on with under the other."""
    firm = (
        "base_model",
        "network",
        "optimizer.name",
        "ema.decay",
        "memory.fused_backward",
        "memory.full_half",
        "output",
        "seed",
    )
    moved = [name for name in firm if value_of(before, name) != value_of(after, name)]
    if moved:
        raise PlainError(
            f"{' and '.join(moved)} cannot change inside a run: its state belongs to them. Start a new run instead.", 2
        )


def assigned(config: TrainingConfig, assignments: tuple[str, ...]) -> TrainingConfig:
    """The config with every NAME=VALUE in place. Raises PlainError naming all that is wrong with the result."""
    from pydantic import ValidationError

    try:
        return with_values(config, dict(parse_assignment(text) for text in assignments)) if assignments else config
    except ValidationError as error:
        raise PlainError("\n".join(plain_problems(error)), 2) from None


def situation_of(config: TrainingConfig, processes: int = 1) -> Situation:
    """The pictures, the plan and the findings of a config, which several processes may share.

    Raises PlainError where there are no pictures.
    """
    from wizard.situation import Workbench

    if not config.dataset.folders:
        raise PlainError("dataset.folders names no folder, so there are no pictures to train on. Name at least one.", 2)
    situation = Workbench(base=config, recommend=False, processes=processes).situation({})
    if situation.problem:
        raise PlainError(situation.problem)
    return situation


def train_config(config: TrainingConfig, *, as_json: bool = False, debug: bool = False) -> int:
    """Train with a config whose review was seen; returns the exit code."""
    return train_situation(situation_of(config), as_json=as_json, debug=debug)


def train_situation(situation: Situation, *, as_json: bool = False, debug: bool = False, group: Group = ALONE) -> int:
    """Train, unless a finding forbids it (3); returns the exit code."""
    blocking = [finding for finding in situation.findings if finding.severity == "blocks"]
    if blocking:
        if as_json:
            document = {"error": blocking[0].message, "exit_code": 3, "findings": [asdict(f) for f in blocking]}
            print(json.dumps(document, ensure_ascii=False))
        else:
            settled = [f"--set {name}={views.value(value)}" for f in blocking for name, value in f.fix.items()]
            remedy = ["This would settle it:", " ".join(settled)] if settled else []
            views.complain("\n".join(["This cannot start as it is.", *remedy]))
        return 3
    require_all(situation.config)
    try:
        run = RunFolder.create(anchored(situation.config))
        remember_group(run, group)
        if situation.plan is not None:
            document = situation.plan.as_dict(situation.findings)
            with whole_file(run.path / PLAN) as file:
                file.write_text(json.dumps(document, ensure_ascii=False, indent=1), encoding="utf-8")
    except OSError as error:
        folder = situation.config.output.folder
        raise PlainError(f"The run cannot be begun in {folder}: {error.strerror or error}.") from None
    return attend(run, as_json=as_json, debug=debug)


def anchored(config: TrainingConfig) -> TrainingConfig:
    """The config with absolute paths to what is on this disk: a run can be gone on with from anywhere."""
    folders = tuple(
        folder.model_dump() | {"path": _absolute(folder.path), "masks": folder.masks and _absolute(folder.masks)}
        for folder in config.dataset.folders
    )
    changes: dict[str, Any] = {"dataset.folders": folders}
    for name in ("base_model.path", "base_model.vae", "network.start_from"):
        path = value_of(config, name)
        if path and path != POCKET_MODEL and Path(path).expanduser().exists():  # it may be the name of a model in a hub
            changes[name] = _absolute(path)
    return with_values(config, changes)


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def ready_to_resume(run: RunFolder) -> None:
    """Raises PlainError where there is nothing to go on with, or somebody is at it already."""
    process = run.process()
    if process is not None:
        raise PlainError(
            f"{run.name} is being trained already, by process {process}. See it: lora-wizard watch {run.name}"
        )
    follower = Follower(run)
    follower.catch_up()
    if isinstance(follower.ended, RunFinished) and follower.ended.reason == "completed":
        raise PlainError(
            f"{run.name} is finished: {count(follower.ended.total_steps, 'step is', 'steps are')} done. To train "
            "longer, raise schedule.epochs in an answers file and start a new run."
        )
    if not run.states():
        raise PlainError(
            f"{run.name} was cut before anything was saved, so there is nothing to go on from. "
            f"Start it again: lora-wizard train {run.path / 'config.toml'}"
        )


# The engine's process


def start_engine(
    run: RunFolder, *, resume: bool = False, threads: int | None = None, machine: int = 0, log_name: str = ENGINE_LOG
) -> subprocess.Popen[bytes]:
    """The engine, training in this folder, in a process that the keyboard's Ctrl-C does not reach.

    Whatever it prints goes to `log_name` in the run folder. `threads` limits the processor cores that it uses. Where
    several processes train this run, it is the launcher of those on this `machine`.
    """
    group = group_of(run)
    command = (
        [sys.executable, *ENGINE, str(run.path), *(["--resume"] if resume else [])]
        if group == ALONE
        else launch_command(run, group, machine, resume=resume)
    )
    options: dict[str, Any] = (
        {"creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)}
        if sys.platform == "win32"
        else {"start_new_session": True}
    )
    with (run.path / log_name).open("ab") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            env=engine_environment(threads),
            **options,
        )


def engine_environment(threads: int | None = None) -> dict[str, str]:
    """The environment in which Python finds our engine, and not a folder of that name where the user stands.

    Threads of a library that wait for each other sleep instead of spinning: on two cores shared with another program
    a small convolution ran 8 times a second with spinning and 350 times with sleeping (PyTorch 2.13, libgomp).
    """
    import engine

    home = Path(engine.__file__).resolve().parents[1]
    added = {"PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
    if "OMP_WAIT_POLICY" not in os.environ:
        added["OMP_WAIT_POLICY"] = "PASSIVE"
    if threads is not None:
        added["OMP_NUM_THREADS"] = str(threads)
    if home != Path(sysconfig.get_path("purelib")).resolve():  # a checkout
        added["PYTHONPATH"] = os.pathsep.join(filter(None, [str(home), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, **added}


def end_process(process: subprocess.Popen[bytes]) -> None:
    """End the engine at once, with all processes it started."""
    import psutil

    try:
        children = psutil.Process(process.pid).children(recursive=True)
    except psutil.Error:
        children = []
    for child in children:
        try:
            child.kill()
        except psutil.Error:
            continue
    process.kill()
    process.wait()


class Interrupts:
    """Counts Ctrl-C (and the system's requests to end) while it lasts, instead of dying of them."""

    def __init__(self) -> None:
        self.count = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.count += 1


# Following it to the end


def attend(run: RunFolder, *, resume: bool = False, as_json: bool = False, debug: bool = False) -> int:
    """Start the engine in this folder, show its run and tell at the end what there is; returns the exit code."""
    from wizard import measuring
    from wizard.hardware import this_computer
    from wizard.outcome import make_keepsakes, show_outcome

    hardware = this_computer(run.path)
    follower = Follower(run)
    follower.catch_up()
    follower.progress.begin_again()
    view = choose_view(
        follower.progress,
        as_json=as_json,
        footer=FOOTER,
        vram_bytes=hardware.vram_bytes,
        ram_bytes=hardware.ram_bytes,
    )
    before = Machine.now()
    _show_other_machines(run, as_json=as_json)
    with Interrupts() as interrupts:
        process = start_engine(run, resume=resume)
        with view, _training_goes_on(run, process):
            interrupted = follow_process(process, follower, view, interrupts)
            if follower.ended is None and not interrupted:
                _tell_death(run, follower, view, process.returncode, before)
        kept = make_keepsakes(run, list(run.events()))
    ended = follower.ended
    if isinstance(ended, RunFinished):
        measuring.remember(run.config(), list(run.events()), hardware)
    if not as_json:
        show_outcome(run, follower.progress, kept)
    if debug and isinstance(ended, Failed):
        print(ended.traceback or last_lines(run.path / ENGINE_LOG, 100), file=sys.stderr)
    if interrupted:
        return 130
    if isinstance(ended, Failed) and ended.changes and _allowed(run.config(), ended.changes, as_json=as_json):
        run.change_config(with_values(run.config(), ended.changes))
        return attend(run, resume=True, debug=debug)
    return 0 if isinstance(ended, RunFinished) else 1


def _show_other_machines(run: RunFolder, *, as_json: bool) -> None:
    """What to start elsewhere before the run can begin; beside the events where those are printed."""
    commands = list(commands_elsewhere(run, group_of(run)))
    if not commands:
        return
    words = (
        f"This run begins as soon as every machine has joined it, within {WAIT_MINUTES} minutes. "
        f"{run.path.absolute()} must be the same folder there, and pictures and base model under the same names."
    )
    lines = [f"On machine {number}:  {command}" for number, command in enumerate(commands, start=1)]
    print("\n".join([words, *lines, ""]), file=sys.stderr if as_json else sys.stdout, flush=True)


def _allowed(config: TrainingConfig, changes: dict[str, Any], *, as_json: bool) -> bool:
    """Whether the run may go on with other settings: it was allowed before, or somebody allows it now.

    An engine of one process that was allowed it has done it itself by now.
    """
    return config.memory.make_room or (not as_json and _may_change(changes))


def _may_change(changes: dict[str, Any]) -> bool:
    """Asks whether the run may go on with these settings; without a terminal nobody is there to allow it."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    import questionary

    made = ", ".join(f"{name} = {views.value(value)}" for name, value in changes.items())
    return bool(questionary.confirm(f"Change {made} and go on from the last step?", default=True).unsafe_ask())


@contextmanager
def _training_goes_on(run: RunFolder, process: subprocess.Popen[bytes]) -> Iterator[None]:
    """A fault of ours in showing a run does not end it, and the user should know that."""
    try:
        yield
    except BrokenPipeError:
        raise
    except Exception as error:
        if process.poll() is not None:
            raise
        raise PlainError(
            f"The run can no longer be shown ({type(error).__name__}: {error}), but the training goes on.\n"
            f"Try to see it again: lora-wizard watch {address(run)}\nTo end it: lora-wizard stop {address(run)}"
        ) from error


def follow_process(process: subprocess.Popen[bytes], follower: Follower, view: View, interrupts: Interrupts) -> bool:
    """Show the run until its process ends; whether the user ended it.

    The first Ctrl-C asks the engine to save and end, the second ends it at once. Before the first step there is nothing
    to save, so the first one already ends it.
    """
    asked = killed = False

    def alive() -> bool:
        nonlocal asked, killed
        if interrupts.count and not asked:
            asked = True
            if follower.progress.trained:
                follower.run.request("stop")
                follower.progress.stopping = True
                view.say(
                    Sentence(
                        "Saving and stopping. Press Ctrl-C again to end at once; what is not saved is then lost.",
                        follower.progress.step,
                    )
                )
            else:
                killed = True
                _end_politely(process)
        elif interrupts.count > 1 and not killed and process.poll() is None:
            killed = True
            end_process(process)
        return process.poll() is None

    follower.follow(view, alive)
    completed = isinstance(follower.ended, RunFinished) and follower.ended.reason == "completed"
    return asked and not completed


def _end_politely(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        end_process(process)


def _tell_death(run: RunFolder, follower: Follower, view: View, returncode: int, before: Machine) -> None:
    """The engine ended without a word: find out why, and write it down as the run's own last event."""
    failed = death(run, returncode, before, Machine.now(), follower.progress)
    try:
        with run.event_log() as log:
            log.write(failed)
        follower.look(view)
    except OSError:  # no room even for this line: say it all the same
        follower.progress.hear(failed)
        for sentence in follower.narrator.hear(failed):
            view.say(sentence)
