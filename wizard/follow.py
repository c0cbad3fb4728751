"""Following a run by its events.jsonl, whoever trains in it: this terminal, another one, or nobody any more."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from engine.events import Event, Failed, RunFinished, from_line
from engine.run_folder import RunFolder
from knowledge.answers import PlainError, did_you_mean
from wizard.narrator import Narrator, Sentence
from wizard.progress import Progress, View

POLL_SECONDS = 0.1
PLAN = "plan.json"
"""What was promised before the start, kept in the run folder for the report to compare with."""


@dataclass
class Tail:
    """Reads the whole lines that were added to a file since the last look. The file need not exist yet."""

    path: Path
    offset: int = 0

    def read(self) -> list[str]:
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                added = file.read()
        except FileNotFoundError:
            return []
        whole, newline, _ = added.rpartition(b"\n")
        self.offset += len(whole) + len(newline)
        return [line for line in whole.decode("utf-8", errors="replace").splitlines() if line.strip()]


@dataclass
class Follower:
    """Hears every event of a run once, first what happened before (in silence), then what happens now."""

    run: RunFolder
    progress: Progress = field(default_factory=Progress)
    narrator: Narrator = field(default_factory=Narrator)
    said: list[Sentence] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tail = Tail(self.run.path / "events.jsonl")

    def catch_up(self) -> None:
        """Hear what is there already without showing it."""
        for line in self.tail.read():
            self._hear(line)

    def look(self, view: View) -> bool:
        """Show what is new; whether there was anything."""
        lines = self.tail.read()
        for line in lines:
            event, sentences = self._hear(line)
            if event is None:
                continue
            view.tell(event, line)
            for sentence in sentences:
                view.say(sentence)
        return bool(lines)

    def _hear(self, line: str) -> tuple[Event | None, list[Sentence]]:
        try:
            event = from_line(line)
        except ValueError:  # cut in the middle by a power cut; what follows is whole again
            return None, []
        self.progress.hear(event)
        sentences = self.narrator.hear(event)
        self.said += sentences
        return event, sentences

    @property
    def ended(self) -> Failed | RunFinished | None:
        return self.progress.ended

    def follow(self, view: View, alive: Callable[[], bool], pause: float = POLL_SECONDS) -> None:
        """Show events as they come until nobody trains in the run any more, and then what was told last."""
        while alive():
            if not self.look(view):
                time.sleep(pause)
        self.look(view)


def find_run(name: str, folder: str = "runs") -> RunFolder:
    """The run of this name in the folder of runs, or at this path. Raises PlainError naming the runs there are."""
    for path in (Path(name).expanduser(), Path(folder).expanduser() / name):
        if os.path.isfile(path / "config.toml"):  # noqa: PTH113  (false for a name that cannot be)
            return RunFolder.open(path)
    names = [run.name for run in all_runs(folder)]
    if not names:
        raise PlainError(
            f'There is no run "{name}": the folder {folder} holds none. Start one: lora-wizard train FILE', 2
        )
    raise PlainError(f'There is no run "{name}" in {folder}.{did_you_mean(name, names)} List them: lora-wizard runs', 2)


def all_runs(folder: str = "runs") -> list[RunFolder]:
    """The runs in a folder, the one begun last first."""
    parent = Path(folder).expanduser()
    if not parent.is_dir():
        return []
    found = [path for path in parent.iterdir() if (path / "config.toml").is_file()]
    return [RunFolder(path) for path in sorted(found, key=lambda path: path.stat().st_ctime, reverse=True)]
