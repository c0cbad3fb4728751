"""What may go, goes; pictures and finished files never do."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
import torch

from engine.dataset.store import DiskStore
from engine.events import RunFinished, RunStarted
from engine.run_folder import RunFolder
from engine.tools.clean import removable, remove
from knowledge.answers import PlainError
from knowledge.config import TrainingConfig, with_values


def make_run(folder: Path, name: str, *, finished: bool, resumed: bool = False) -> RunFolder:
    run = RunFolder.create(with_values(TrainingConfig(), {"output.folder": str(folder), "output.name": name}))
    for step in (10, 20):
        with run.new_state(step) as state:
            (state / "state.pt").write_bytes(b"x" * 100)
    (run.checkpoints / f"{name}.safetensors").write_bytes(b"finished")
    (run.samples / "step-000010_00.png").write_bytes(b"picture")
    started = RunStarted(
        at=0, run=name, device="CPU", precision="fp32", first_step=1, total_steps=20, epochs=1, updates_per_epoch=20,
        batches_by_bucket={}, images=1, trainable_parameters=1, versions={},
    )  # fmt: skip
    reason = "completed" if finished else "stopped"
    ended = RunFinished(at=1, reason=reason, step=20, total_steps=20, seconds=1, network="x")
    with run.event_log() as log:
        for event in (started, ended, started)[: 3 if resumed else 2]:
            log.write(event)
    return run


def names(runs: Path, kind: str) -> set[str]:
    return {
        path.relative_to(runs).as_posix() for one in removable(runs).removable if one.kind == kind for path in one.paths
    }


def test_states_go_where_nothing_goes_on_from_them(tmp_path):
    make_run(tmp_path, "done", finished=True)
    make_run(tmp_path, "stopped", finished=False)
    make_run(tmp_path, "going-on", finished=True, resumed=True)
    assert names(tmp_path, "states") == {
        "done/state/step-000010",
        "done/state/step-000020",
        "stopped/state/step-000010",
        "going-on/state/step-000010",
    }


def test_cleaning_takes_the_cache_and_leaves_everything_that_was_made(tmp_path):
    runs = tmp_path / "runs"
    run = make_run(runs, "fox", finished=True)
    store = DiskStore(runs / ".cache" / "latents")
    store.write("ab" * 32, {"x": torch.zeros(1000)})
    mine = runs / ".cache" / "holiday.png"
    mine.write_bytes(b"a picture somebody put here")
    own = runs / ".cache" / "latents" / "my-lora.safetensors"
    own.write_bytes(b"a file somebody put here")
    cut = run.checkpoints / ".fox.safetensors.77.partial"
    cut.write_bytes(b"half")
    draft = tmp_path / "draft.json"
    draft.write_text("{}", encoding="utf-8")
    before = {path for path in tmp_path.rglob("*") if path.is_file()}

    found = removable(runs, [draft])
    assert {one.kind for one in found.removable} == {"caches", "states", "remains", "drafts"}
    freed = remove(found.removable)

    gone = before - {path for path in tmp_path.rglob("*") if path.is_file()}
    assert gone == {
        store._path("ab" * 32),
        cut,
        draft,
        run.state / "step-000010" / "state.pt",
        run.state / "step-000020" / "state.pt",
    }
    assert freed == found.bytes > 4000
    assert ("ab" * 32) not in store


TREASURES = (
    "holiday.png", "face.JPG", "face.txt", "my.safetensors", "my-lora.safetensors", "report.html", ".secret.webp",
    "step-000010.png", "ab.safetensors", "answers.toml", "state.pt.png", "picture.partial.png", "x.part.jpeg",
)  # fmt: skip


@pytest.mark.parametrize("seed", range(20))
def test_whatever_lies_wherever_cleaning_takes_only_what_a_run_can_do_without(seed, tmp_path):
    """Pictures, captions and finished files at random places, those of caches and states too, and links to them."""
    chance = random.Random(seed)
    runs = tmp_path / "runs"
    for name in ("fox", "owl", "my")[: chance.randrange(1, 4)]:
        run = make_run(runs, name, finished=chance.random() < 0.5, resumed=chance.random() < 0.3)
        for left in (".step-000030.partial", ".step-000005.removed", ".step-000020.replaced"):
            if chance.random() < 0.4:
                (run.state / left).mkdir()
                (run.state / left / "state.pt").write_bytes(b"half")
    store = DiskStore(runs / ".cache" / "latents")
    for digit in chance.sample("abcdef0123", 3):
        store.write(digit * 64, {"x": torch.zeros(10)})
    ours = {path for path in runs.rglob("*") if path.is_file()}
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "state.pt").write_bytes(b"of another program")
    folders = [runs, tmp_path / "elsewhere", *(path for path in runs.rglob("*") if path.is_dir())]
    treasures = set()
    for name in chance.choices(TREASURES, k=15):
        folder = chance.choice(folders)
        if chance.random() < 0.3:
            folder = folder / chance.choice(("my", "ab", "10_fox", "step-000010"))
            folder.mkdir(exist_ok=True)
        treasure = folder / name
        if treasure not in ours:
            treasure.write_bytes(b"cannot be made again")
            treasures.add(treasure)
    link = chance.choice(folders) / "step-000001"
    link.symlink_to(tmp_path / "elsewhere")
    remove(removable(runs).removable)
    assert [path for path in treasures if not path.exists()] == []
    assert (tmp_path / "elsewhere" / "state.pt").exists()
    assert link.is_symlink()
    gone = {path for path in ours if not path.exists()}
    assert {path for path in gone if path.name != "state.pt" and ".cache" not in path.parts} == set()
    for run in (RunFolder(path.parent) for path in runs.glob("*/config.toml")):
        assert (run.checkpoints / f"{run.name}.safetensors").read_bytes() == b"finished"
        assert (run.samples / "step-000010_00.png").exists()


def test_a_run_in_training_and_the_cache_it_uses_are_left_alone(tmp_path):
    fox, _ = make_run(tmp_path, "fox", finished=False), make_run(tmp_path, "owl", finished=True)
    DiskStore(tmp_path / ".cache" / "text").write("cd" * 32, {"x": torch.zeros(1)})
    with fox.claimed():
        found = removable(tmp_path)
    assert found.busy == ("fox",)
    assert {one.title for one in found.removable} == {"owl/state"}


def test_what_a_link_points_to_is_not_touched(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    DiskStore(elsewhere).write("ab" * 32, {"x": torch.zeros(1)})
    runs = tmp_path / "runs"
    make_run(runs, "fox", finished=False)
    (runs / ".cache").symlink_to(elsewhere)
    assert names(runs, "caches") == set()


def test_what_cannot_be_deleted_is_named_and_the_rest_is_gone(tmp_path):
    run = make_run(tmp_path, "fox", finished=True)
    found = removable(tmp_path)
    first, second = found.removable[0].paths
    shutil.rmtree(first)
    first.symlink_to(tmp_path)  # deleting a folder through a link is refused, whoever asks
    with pytest.raises(PlainError, match=rf"Not deleted: {first.name}|{first}"):
        remove(found.removable)
    assert not second.exists()
    assert (run.path / "config.toml").exists()


def test_a_folder_without_runs_has_nothing_to_clean(tmp_path):
    assert removable(tmp_path / "nowhere").removable == ()
