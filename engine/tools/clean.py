"""What a folder of runs holds that can be made again or is no longer needed; pictures and finished files never are."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engine.events import Failed, RunFinished, RunStarted
from engine.run_folder import RunFolder
from knowledge.answers import PlainError

Kind = Literal["caches", "states", "remains", "drafts"]
KINDS: dict[Kind, str] = {
    "caches": "latents and text outputs, which the next run makes again",
    "states": "states that nothing goes on from: all of a finished run, all but the newest of another",
    "remains": "half-written files of runs that were cut off",
    "drafts": "the answers kept for the next start of the guided path",
}


ENTRY = re.compile(r"[0-9a-f]{64}\.safetensors")
STATE = "state.pt"


@dataclass(frozen=True)
class Removable:
    """Files or folders that may go together, why, and their bytes on disk."""

    kind: Kind
    title: str
    why: str
    paths: tuple[Path, ...]
    bytes: int


@dataclass(frozen=True)
class Found:
    """What may go; `busy` are runs that train now, of which nothing is touched, nor the cache they share."""

    removable: tuple[Removable, ...]
    busy: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        return sum(one.bytes for one in self.removable)


def removable(runs: Path, drafts: Iterable[Path] = ()) -> Found:
    """Everything in a folder of runs that may go, and these drafts."""
    found = [RunFolder(path.parent) for path in sorted(runs.glob("*/config.toml"))]
    busy = [run for run in found if run.process() is not None]
    listed: list[Removable] = []
    if not busy:
        listed += _cache(runs / ".cache")
    for run in found:
        if run not in busy:
            listed += _states(run)
            listed += _remains(run)
    kept = tuple(path for path in drafts if path.is_file())
    if kept:
        listed.append(Removable("drafts", "draft", "the answers of an unfinished start", kept, _bytes(kept)))
    return Found(tuple(listed), tuple(run.name for run in busy))


def _cache(folder: Path) -> Iterator[Removable]:
    """The cache's own files: two digits of a digest, then all of it; whatever else lies there is not ours."""
    if folder.is_symlink() or not folder.is_dir():
        return
    files = tuple(
        file
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not file.is_symlink() and (_is_entry(file) or _is_remain(file))
    )
    if files:
        yield Removable("caches", str(folder), "made again by the next run on these pictures", files, _bytes(files))


def _is_entry(file: Path) -> bool:
    return file.parent.name == file.name[:2] and ENTRY.fullmatch(file.name) is not None


def _is_state(folder: Path) -> bool:
    """Does it hold what a state holds and nothing that somebody put there?"""
    return folder.is_dir() and all(path.name == STATE for path in folder.rglob("*"))


def _states(run: RunFolder) -> Iterator[Removable]:
    states = run.states()
    ends = [event for event in run.events() if isinstance(event, RunStarted | RunFinished | Failed)]
    complete = bool(ends) and isinstance(ends[-1], RunFinished) and ends[-1].reason == "completed"
    old = tuple(state for state in states[0 if complete else 1 :] if not state.is_symlink() and _is_state(state))
    if old:
        why = "the run is finished" if complete else "a newer one is there to go on from"
        yield Removable("states", f"{run.name}/state", why, old, _bytes(old))


def _is_remain(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith((".partial", ".part", ".replaced", ".removed"))


def _remains(run: RunFolder) -> Iterator[Removable]:
    places = (run.path, run.checkpoints, run.state, run.samples)
    cut = tuple(
        path
        for place in places
        if place.is_dir()
        for path in sorted(place.glob(".*"))
        if _is_remain(path) and not path.is_symlink() and (path.is_file() or _is_state(path))
    )
    if cut:
        yield Removable("remains", run.name, "left behind by a run that was cut off", cut, _bytes(cut))


def _bytes(paths: Iterable[Path]) -> int:
    total = 0
    for path in paths:
        files = path.rglob("*") if path.is_dir() else [path]
        total += sum(file.stat().st_size for file in files if file.is_file() and not file.is_symlink())
    return total


def remove(chosen: Iterable[Removable]) -> int:
    """Delete them; bytes that were freed. Raises PlainError naming what could not be deleted, after all the rest."""
    freed, stuck = 0, []
    for one in chosen:
        for path in one.paths:
            size = _bytes([path])
            try:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            except OSError as error:
                stuck.append(f"{path} ({error.strerror or error})")
            else:
                freed += size
    for folder in {path.parent for one in chosen if one.kind == "caches" for path in one.paths}:
        if not any(folder.iterdir()):
            folder.rmdir()
    if stuck:
        raise PlainError(f"Not deleted: {', '.join(stuck)}. Everything else is gone.")
    return freed
