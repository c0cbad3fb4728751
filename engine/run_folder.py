"""runs/NAME/: config.toml, events.jsonl, samples/, checkpoints/, state/. Whenever a run is cut, all there is whole."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import psutil

from engine.events import Event, from_line, to_line
from knowledge.answers import PlainError, read_answers, write_answers
from knowledge.config import TrainingConfig

STATES_KEPT = 2
"""Two, so that one is whole even when the other was damaged."""
CLOCK_SECONDS = 2.0
"""How far two readings of one process's start may lie apart."""

NO_ROOM_BYTES = 2**16
"""Free space below which whatever could not be written had no room."""

Request = Literal["stop", "save"]

_STATE = re.compile(r"step-(\d+)")


def step_of(state: Path) -> int:
    """The number of updates that a state has behind it."""
    return int(state.name.rpartition("-")[2])


def unwritten(what: object, problem: Exception, folder: Path) -> PlainError:
    """The sentence for what could not be written into this folder; of libraries few say so when the disk was full.

    To be asked for while what was written so far still stands there.
    """
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    full = "No space left" in str(problem) or shutil.disk_usage(there).free < NO_ROOM_BYTES
    reason = "the disk is full" if full else getattr(problem, "strerror", None) or problem
    return PlainError(f"{what} cannot be written: {reason}.")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary name to write to; it takes the place of `path` once all is on the disk, and not before."""
    # Computers that share a folder may give two processes the same number.
    partial = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    try:
        yield partial
        _to_disk(partial)
        partial.replace(path)
        _folder_to_disk(path.parent)
    except OSError as error:
        raise unwritten(path, error, path.parent) from error
    finally:
        partial.unlink(missing_ok=True)


class RunFolder:
    """The folder of one run. Paths in events are relative to it."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @classmethod
    def create(cls, config: TrainingConfig) -> RunFolder:
        """A new folder with the config in it: output.folder/output.name, or NAME-2, NAME-3 … where that is taken."""
        parent, number = Path(config.output.folder).expanduser(), 1
        while True:
            run = cls(parent / (config.output.name if number == 1 else f"{config.output.name}-{number}"))
            try:
                parent.mkdir(parents=True, exist_ok=True)
                run.path.mkdir()
            except FileExistsError:
                if not run.path.exists():  # the parent is a file
                    raise PlainError(
                        f"output.folder is {parent}, which is a file; name a folder for runs.", 2
                    ) from None
                number += 1
            except OSError as error:
                raise PlainError(
                    f"No run can be kept in {parent} ({error.strerror or error}). Set output.folder to a folder "
                    "that can be written to."
                ) from None
            else:
                break
        for folder in (run.samples, run.checkpoints, run.state):
            folder.mkdir()
        write_answers(config, run.path / "config.toml")
        return run

    @classmethod
    def open(cls, path: Path | str) -> RunFolder:
        """The folder of an existing run. Raises PlainError for a folder that is not one."""
        run = cls(Path(path).expanduser())
        if not (run.path / "config.toml").is_file():
            raise PlainError(
                f"{run.path} is not the folder of a run; one holds a config.toml. List runs: lora-wizard runs", 2
            )
        return run

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def state(self) -> Path:
        return self.path / "state"

    @property
    def cache(self) -> Path:
        """Latents and text outputs, beside the runs, so that the next run on the same pictures starts at once."""
        return self.path.resolve().parent / ".cache"

    def config(self) -> TrainingConfig:
        return read_answers(self.path / "config.toml")

    def change_config(self, config: TrainingConfig) -> None:
        """Go on with other settings than the run began with; from now on these are its config."""
        write_answers(config, self.path / "config.toml")

    # Events

    @contextmanager
    def event_log(self) -> Iterator[EventLog]:
        """events.jsonl, open to be continued."""
        log = EventLog(self.path / "events.jsonl")
        try:
            yield log
        finally:
            log.close()

    def events(self) -> Iterator[Event]:
        """The events so far; a line that was cut in the middle is passed over."""
        try:
            content = (self.path / "events.jsonl").read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return
        for line in content.split("\n"):  # splitlines() would also split at characters inside a string
            try:
                yield from_line(line)
            except ValueError:
                continue

    # Requests from another terminal

    def request(self, request: Request = "stop") -> None:
        """Ask the process that trains in this folder to save and end, or to save and go on."""
        with whole_file(self.path / f"{request}.request") as file:
            file.write_text("")

    def requested(self, request: Request = "stop") -> bool:
        return (self.path / f"{request}.request").exists()

    def answer(self, request: Request = "stop") -> None:
        """Take a request away, because it has been done or because a new process starts."""
        (self.path / f"{request}.request").unlink(missing_ok=True)

    # The process that trains here

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """While it lasts no other process may train in this folder. Raises PlainError when one does."""
        process = self.process()
        if process not in (None, os.getpid()):
            raise PlainError(
                f"{self.name} is being trained already, by process {process}. Watch it: lora-wizard watch {self.name}"
            )
        file = self.path / "process"
        with whole_file(file) as partial:
            partial.write_text(f"{os.getpid()} {psutil.Process().create_time()!r}")
        try:
            yield
        finally:
            file.unlink(missing_ok=True)

    def process(self) -> int | None:
        """The process that trains in this folder now; None where there is none, or where it was killed."""
        try:
            process, started = (self.path / "process").read_text().split()
            # Start times are counted from the computer's start, whose own time moves when the clock is set.
            same = abs(psutil.Process(int(process)).create_time() - float(started)) < CLOCK_SECONDS
            return int(process) if same else None
        except (OSError, ValueError, psutil.Error):
            return None

    # States to resume from

    @contextmanager
    def new_state(self, step: int) -> Iterator[Path]:
        """An empty folder to write the state after `step` to; it counts only once all of it is on the disk."""
        final, partial = self.state / f"step-{step:06d}", self.state / f".step-{step:06d}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            yield partial
            for file in partial.rglob("*"):
                if file.is_file():
                    _to_disk(file)
            if final.exists():
                replaced = final.with_name(f".{final.name}.replaced")
                shutil.rmtree(replaced, ignore_errors=True)
                final.replace(replaced)
            partial.replace(final)
            _folder_to_disk(self.state)  # before older states go
        except OSError as error:
            raise unwritten(f"The state of step {step}", error, self.path) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        for leftover in self.state.glob(".*"):
            shutil.rmtree(leftover, ignore_errors=True)
        for old in self.states()[STATES_KEPT:]:
            self.remove_state(old)

    def remove_state(self, state: Path) -> None:
        """Take a state away; it stops counting at once, before its files go."""
        leaving = state.with_name(f".{state.name}.removed")
        shutil.rmtree(leaving, ignore_errors=True)
        state.replace(leaving)
        shutil.rmtree(leaving, ignore_errors=True)

    def states(self) -> list[Path]:
        """The whole states, the newest first."""
        if not self.state.is_dir():
            return []
        found = [path for path in self.state.iterdir() if _STATE.fullmatch(path.name)]
        return sorted(found, key=step_of, reverse=True)


class EventLog:
    """events.jsonl as it is written: each event is one line and stands in the file as soon as it is told."""

    def __init__(self, path: Path) -> None:
        _mend_last_line(path)
        self._file = path.open("a", encoding="utf-8", newline="\n")

    def write(self, event: Event) -> None:
        self._file.write(to_line(event) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _mend_last_line(path: Path) -> None:
    """Finish the last line of the file, or take it away when it was cut in the middle."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        content = file.read()
        whole, _, last = content.rpartition(b"\n")
        if not last:
            return
        try:
            from_line(last.decode("utf-8"))
            file.write(b"\n")
        except ValueError:
            file.truncate(len(whole) + 1 if whole else 0)


def _folder_to_disk(folder: Path) -> None:
    """A new name counts as written only once its folder is; Windows has no such call and needs none."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _to_disk(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
