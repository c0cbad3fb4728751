"""Runs from outside: a list of them, following one from another terminal, asking one to stop."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from engine.events import Failed, RunFinished, from_line
from engine.run_folder import RunFolder
from knowledge.answers import PlainError
from wizard import views, words
from wizard.follow import POLL_SECONDS, Follower, all_runs, find_run
from wizard.progress import Progress, choose_view

if TYPE_CHECKING:
    from rich.console import RenderableType

FOLDER = click.option("--folder", default="runs", show_default=True, help="Where the runs are.")
GLANCE_BYTES = 1 << 17
RECENT_SENTENCES = 4


@dataclass(frozen=True)
class State:
    """One run as the list shows it."""

    run: RunFolder
    state: str
    step: int
    total_steps: int
    at: float
    network: Path | None

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.run.name,
            "folder": str(self.run.path),
            "state": self.state,
            "step": self.step,
            "total_steps": self.total_steps,
            "last_event_at": self.at or None,
            "network": str(self.network) if self.network else None,
        }


STATES = {"training": "accent", "finished": "good", "stopped": "strong", "failed": "error", "cut": "warning"}
"""What a run can be, with the style of the word; "cut" ended without a word, as in a power cut."""


@click.command(epilog="Example: lora-wizard runs --json")
@FOLDER
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
def runs(folder: str, as_json: bool) -> int:
    """List the runs of this folder, the newest first."""
    from wizard.outcome import address

    states = [state_of(run) for run in all_runs(folder)]
    if as_json:
        print(json.dumps({"runs": [state.as_dict() for state in states]}, ensure_ascii=False))
        return 0
    if not states:
        views.say(f"There are no runs in {folder}. The guided path begins one: [strong]lora-wizard[/]")
        return 0
    lines = [tuple(_line(state)) for state in states]
    columns = ("run", "state", "steps", "last sign of life", "newest file")
    views.console().print(views.table(columns, lines, right=("steps",)))
    unfinished = [state for state in states if state.state in ("stopped", "cut", "failed") and state.run.states()]
    if unfinished:
        views.say(f"\n[quiet]To go on with a run:[/] lora-wizard resume {views.escape(address(unfinished[0].run))}")
    return 0


def _line(state: State) -> Iterator[RenderableType]:
    from rich.text import Text

    yield Text(state.run.name, "strong")
    yield Text(state.state, STATES[state.state])
    yield f"{state.step:,} of {state.total_steps:,}" if state.total_steps else ""
    yield f"{words.duration(max(1.0, time.time() - state.at))} ago" if state.at else ""
    yield Text(state.network.name if state.network else "", "quiet")


def state_of(run: RunFolder) -> State:
    """What this run is doing or how it ended."""
    from wizard.outcome import newest_network

    progress, at = glance(run)
    ended = progress.ended
    if run.process() is not None:
        state = "training"
    elif isinstance(ended, RunFinished):
        state = "finished" if ended.reason == "completed" else "stopped"
    else:
        state = "failed" if isinstance(ended, Failed) else "cut"
    return State(run, state, progress.step, progress.total_steps, at, newest_network(run))


def glance(run: RunFolder) -> tuple[Progress, float]:
    """Where a run stands and when it was last heard of, from the beginning and the end of its events alone."""
    progress, at = Progress(), 0.0
    try:
        with (run.path / "events.jsonl").open("rb") as file:
            text = file.read(GLANCE_BYTES)
            end = file.seek(0, 2)
            if end > 2 * GLANCE_BYTES:
                text += b"\n"  # the line that is cut here is passed over
            file.seek(max(len(text) if end <= 2 * GLANCE_BYTES else 0, end - GLANCE_BYTES))
            text += file.read()
    except FileNotFoundError:
        return progress, at
    for line in text.decode("utf-8", errors="replace").splitlines():
        try:
            event = from_line(line)
        except ValueError:
            continue
        progress.hear(event)
        at = event.at
    return progress, at


@click.command(epilog="Example: lora-wizard watch my-lora")
@click.argument("run")
@FOLDER
@click.option("--json", "as_json", is_flag=True, help="Print the raw events, from the first, one JSON object a line.")
def watch(run: str, folder: str, as_json: bool) -> int:
    """Follow a run from another terminal.

    Ctrl-C leaves; the training goes on. RUN is a name, as `lora-wizard runs` shows it, or a folder.
    """
    from wizard.hardware import this_computer

    found = find_run(run, folder)
    follower = Follower(found)
    hardware = this_computer(found.path)
    view = choose_view(
        follower.progress,
        as_json=as_json,
        footer=f"Ctrl-C leaves; the training goes on. To end it: lora-wizard stop {found.name}",
        vram_bytes=hardware.vram_bytes,
        ram_bytes=hardware.ram_bytes,
    )
    if not as_json:
        follower.catch_up()
    try:
        with view:
            for sentence in follower.said[-RECENT_SENTENCES:]:
                view.say(sentence)
            follower.follow(view, lambda: found.process() is not None)
    except KeyboardInterrupt:
        if not as_json:
            views.say(f"[quiet]The training goes on. To see it again:[/] lora-wizard watch {found.name}")
        return 0
    return _conclude(follower, as_json)


def _conclude(follower: Follower, as_json: bool) -> int:
    """Tell how a run that nobody trains in has ended; returns the exit code."""
    from wizard.autopsy import Machine, death
    from wizard.outcome import make_keepsakes, show_outcome
    from wizard.progress import spoken

    run, progress = follower.run, follower.progress
    if progress.ended is None:
        if not progress.run:
            raise PlainError(f"{run.name} has not begun: nobody is training in it.")
        failed = death(run, None, Machine(None), Machine(None), progress)
        progress.hear(failed)
        if not as_json:
            for sentence in follower.narrator.hear(failed):
                views.console().print(spoken(sentence))
    if not as_json:
        show_outcome(run, progress, make_keepsakes(run, list(run.events())))
    return 0 if isinstance(progress.ended, RunFinished) else 1


@click.command(epilog="Example: lora-wizard stop my-lora")
@click.argument("run")
@FOLDER
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
def stop(run: str, folder: str, as_json: bool) -> int:
    """Ask a run to save and end; waits until it has.

    It can go on later with `lora-wizard resume`.
    """
    from contextlib import nullcontext

    from wizard.outcome import way_on

    found = find_run(run, folder)
    if found.process() is None:
        raise PlainError(
            f"{found.name} is not being trained now, so there is nothing to stop. lora-wizard runs tells more."
        )
    found.request("stop")
    waiting = views.console().status(f"Waiting for {found.name} to save and end") if not as_json else nullcontext()
    with waiting:
        while found.process() is not None:
            time.sleep(POLL_SECONDS)
    progress, _ = glance(found)
    state = state_of(found)
    if as_json:
        print(json.dumps(state.as_dict(), ensure_ascii=False))
    elif state.state == "finished":
        views.say(f"{found.name} had reached its last step by then; it is finished.")
    else:
        where = (
            f"after step {progress.step:,} of {progress.total_steps:,}" if progress.step else "before the first step"
        )
        words_on, command = way_on(found, progress.step)
        views.say(f"[strong]{found.name}[/] has ended {where}. {words_on}\n\n  [strong]{views.escape(command)}[/]")
    return 0


@click.command(epilog="Example: lora-wizard save my-lora")
@click.argument("run")
@FOLDER
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
def save(run: str, folder: str, as_json: bool) -> int:
    """Ask a run to save its LoRA as it is now, and a state to resume from; the training goes on.

    Waits until both are written, which is after the step that is being trained.
    """
    from contextlib import nullcontext

    found = find_run(run, folder)
    if found.process() is None:
        raise PlainError(f"{found.name} is not being trained now, so it has nothing new to save.")
    found.request("save")
    waiting = views.console().status(f"Waiting for {found.name} to save") if not as_json else nullcontext()
    with waiting:
        while found.requested("save") and found.process() is not None:
            time.sleep(POLL_SECONDS)
    if found.requested("save"):
        found.answer("save")
        raise PlainError(f"{found.name} ended before it could save. What became of it: lora-wizard watch {found.name}")
    state = state_of(found)
    if as_json:
        print(json.dumps(state.as_dict(), ensure_ascii=False))
    elif state.network is not None:
        views.say(
            f"Saved after step {state.step:,}: [strong]{views.escape(str(state.network))}[/]. The training goes on."
        )
    return 0
