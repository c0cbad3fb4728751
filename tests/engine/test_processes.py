"""Two processes that train one run: what one of them is asked, lacks or breaks, both act on alike."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from several_processes import Prepare, train_in_two
from short_runs import PICTURES, Configure, same, weights

from engine.events import (
    CheckpointSaved,
    Failed,
    PictureSkipped,
    RunFinished,
    RunStarted,
    SettingsChanged,
    StepFinished,
)
from engine.run_folder import RunFolder
from knowledge.answers import PlainError

ONE_BATCH = {"epochs": 3, "gradient_accumulation_steps": 1}
"""Two updates an epoch, six in all."""


def told(run: RunFolder, kind: type) -> list[Any]:
    return [event for event in run.events() if isinstance(event, kind)]


def output(run: RunFolder) -> str:
    files = [*run.path.glob("output-*.txt"), *run.path.glob("engine.log")]
    return "\n".join(file.read_text(errors="replace") for file in files)


def at_call(number: int, act: Any) -> None:
    """Have `act` done when the loss is asked for this often."""
    from engine import train

    compute, calls = train.loss_per_image, []

    def counting(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == number:
            act()
        return compute(*arguments)

    train.loss_per_image = counting


def asked_to_save(rank: int, folder: Path) -> None:
    if rank == 1:  # while the other one computes: whatever each sees of the request, they act alike
        at_call(3, lambda: RunFolder(folder).request("save"))


def asked_to_stop(rank: int, folder: Path) -> None:
    if rank == 1:
        at_call(2, lambda: RunFolder(folder).request("stop"))


def second_told_to_end(rank: int, folder: Path) -> None:
    if rank == 1:  # as Ctrl-C on the other computer does
        at_call(2, lambda: os.kill(os.getpid(), 2))


def _no_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def first_out_of_memory(rank: int, folder: Path) -> None:
    if rank == 0:
        at_call(5, _no_memory)


def second_out_of_memory(rank: int, folder: Path) -> None:
    if rank == 1:
        at_call(5, _no_memory)


def _disk_gone() -> None:
    raise OSError(5, "the second one's disk is gone")


def second_breaks(rank: int, folder: Path) -> None:
    if rank == 1:
        pictures = Path(RunFolder(folder).config().dataset.folders[0].path)
        at_call(2, lambda: next(pictures.glob("*.png")).write_bytes(b""))
        at_call(5, _disk_gone)


def second_breaks_in_the_exchange(rank: int, folder: Path) -> None:
    if rank == 1:
        from engine import train

        add_up, calls = train.add_up_gradients, []

        def breaks(*arguments: Any) -> None:
            calls.append(1)
            if len(calls) == 4:
                _disk_gone()
            add_up(*arguments)

        train.add_up_gradients = breaks


def second_killed(rank: int, folder: Path) -> None:
    if rank == 1:
        at_call(3, lambda: os.kill(os.getpid(), 9))


def first_cannot_save(rank: int, folder: Path) -> None:
    if rank == 0:
        from engine import train

        def cannot(*arguments: Any) -> Any:
            raise PlainError("The disk is full.")

        train.save = cannot


def runs_away_in_both(rank: int, folder: Path) -> None:
    from engine import train

    compute, calls = train.loss_per_image, []

    def runs_away(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        return compute(*arguments) * (float("nan") if len(calls) > 4 else 1.0)

    train.loss_per_image = runs_away


def lacks_a_picture(rank: int, folder: Path) -> None:
    if rank == 1:
        from dataclasses import replace

        from engine import train
        from engine.dataset.folders import scan

        def scan_less(settings: Any) -> Any:
            found = scan(settings)
            (only,) = found.folders
            return replace(found, folders=(replace(only, pictures=only.pictures[1:]),))

        train.scan = scan_less


def another_base_model(rank: int, folder: Path) -> None:
    if rank == 1:
        from engine import train

        load = train.load

        def loads_another(*arguments: Any, **options: Any) -> Any:
            model = load(*arguments, **options)
            model.complete()
            with torch.no_grad():
                next(model.unet.parameters()).add_(1)
            return model

        train.load = loads_another


def test_a_request_to_save_is_done_once_whoever_sees_it_first(configure: Configure):
    run = RunFolder.create(configure(schedule=ONE_BATCH))
    assert train_in_two(run, asked_to_save) == [0, 0], output(run)
    saved = [(event.kind, event.step) for event in told(run, CheckpointSaved) if not event.final]
    assert saved == [("network", 3), ("state", 3)]
    assert not run.requested("save")
    assert told(run, RunFinished)[-1].reason == "completed"


def test_a_run_that_both_stop_and_go_on_with_is_that_which_never_stopped(configure: Configure):
    config = configure(schedule=ONE_BATCH, optimizer={"name": "prodigy", "learning_rate": 1.0})
    straight, run = RunFolder.create(config), RunFolder.create(config)
    assert train_in_two(straight) == [0, 0], output(straight)
    assert train_in_two(run, asked_to_stop) == [0, 0], output(run)
    assert [event.reason for event in told(run, RunFinished)] == ["stopped"]
    assert train_in_two(run, resume=True) == [0, 0], output(run)
    assert told(run, RunStarted)[-1].first_step == 3
    assert same(weights(run), weights(straight))


def test_ctrl_c_on_another_computer_has_both_stop_with_a_state(configure: Configure):
    run = RunFolder.create(configure(schedule=ONE_BATCH))
    assert train_in_two(run, second_told_to_end) == [0, 0], output(run)
    assert [(event.reason, event.step) for event in told(run, RunFinished)] == [("stopped", 2)]
    assert [state.name for state in run.states()] == ["step-000002"]


@pytest.mark.parametrize("where", [first_out_of_memory, second_out_of_memory])
def test_where_memory_runs_out_in_one_both_go_on_from_the_same_step(configure: Configure, where: Prepare):
    config = configure(
        schedule=ONE_BATCH,
        memory={"make_room": True, "cache_text_encoder_outputs": True},
        network={"train_text_encoder": False},
    )
    run = RunFolder.create(config)
    assert train_in_two(run, where) == [0, 0], output(run)
    (change,) = told(run, SettingsChanged)
    assert (change.step, change.changes["schedule.batch_size"]) == (4, 1)
    assert [event.step for event in told(run, StepFinished)] == list(range(1, 7))  # none twice, none left out


@pytest.mark.parametrize(
    ("what", "cause", "goes_on"),
    [
        (second_breaks, "the second one's disk is gone", True),
        (second_breaks_in_the_exchange, "the second one's disk is gone", False),
        (second_killed, "Another of the processes that train together ended without a word", False),
        (first_cannot_save, "The disk is full.", False),
    ],
)
def test_one_process_that_fails_ends_both_with_its_cause_and_the_run_can_go_on(
    configure: Configure, tmp_path: Path, what: Prepare, cause: str, goes_on: bool
):
    pictures = tmp_path / "pictures"
    shutil.copytree(PICTURES, pictures)
    config = configure(
        dataset={"folders": [{"path": str(pictures)}]},
        memory={"cache_latents": False},
        saving={"state_every_epochs": 1},
        schedule=ONE_BATCH,
    )
    run = RunFolder.create(config)
    assert 0 not in train_in_two(run, what), output(run)
    (failed,) = told(run, Failed)
    assert cause in failed.cause, output(run)
    assert len(told(run, PictureSkipped)) == goes_on  # whichever of the two met it
    if goes_on:
        assert "process 2 of 2" in failed.cause
        assert train_in_two(run, resume=True) == [0, 0], output(run)
        assert [event.first_step > 1 for event in told(run, RunStarted)] == [False, True]


def test_a_loss_that_breaks_down_takes_the_run_back_once(configure: Configure):
    run = RunFolder.create(configure(schedule=ONE_BATCH, saving={"state_every_epochs": 1}))
    assert 0 not in train_in_two(run, runs_away_in_both), output(run)
    (failed,) = told(run, Failed)
    assert "not a number" in failed.cause
    assert f"back at step {told(run, CheckpointSaved)[-1].step}" in failed.remedy
    assert told(run, CheckpointSaved)[-1].kind == "network"
    assert len(run.states()) == 1


@pytest.mark.parametrize(
    ("where", "words"),
    [
        (lacks_a_picture, "must have the same pictures and captions. Process 2 of 2 (on "),
        (another_base_model, "must begin with the same base model, and process 2 of 2 (on "),
    ],
)
def test_processes_that_have_not_the_same_before_them_do_not_begin(configure: Configure, where: Prepare, words: str):
    run = RunFolder.create(configure(schedule=ONE_BATCH))
    assert 0 not in train_in_two(run, where), output(run)
    (failed,) = told(run, Failed)
    assert words in failed.cause
    assert not told(run, StepFinished)
