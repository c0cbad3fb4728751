import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from short_runs import Configure, of_kind, run_to_end, same, weights

from calculator.validation import held_out
from engine import __main__ as process
from engine.dataset.folders import scan
from engine.events import (
    CheckpointSaved,
    Event,
    Failed,
    PictureSkipped,
    RunFinished,
    SettingsChanged,
    StepFinished,
    Validated,
)
from engine.loss_watch import NotANumberError, TrainingBrokeError
from engine.models.load import load
from engine.optimizers import create_optimizer
from engine.recovery import marks, room_for
from engine.run_folder import RunFolder
from engine.train import train
from knowledge.answers import PlainError
from knowledge.config import OptimizerSettings, ScheduleSettings
from knowledge.optimizers import OPTIMIZERS


def told(run: RunFolder, *, resume: bool = False) -> list[Event]:
    """All that the engine's process tells of this run, in this process."""
    return list(process._events(run, resume, lambda: False))


# -- a loss that breaks down ------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_a_number_ends_the_run_before_anything_is_saved(configure: Configure):
    config = configure(optimizer={"learning_rate": 10.0}, network={"alpha": 4096.0}, schedule={"epochs": 200})
    run = RunFolder.create(config)
    with pytest.raises(NotANumberError):
        list(train(config, run))
    assert list(run.checkpoints.iterdir()) == []


def test_a_run_that_breaks_down_is_back_at_the_last_good_state_and_its_network_is_saved(configure: Configure):
    config = configure(
        optimizer={"learning_rate": 10.0, "name": "sgd", "maximum_gradient_norm": 0.0},
        network={"alpha": 64.0},
        schedule={"epochs": 400, "scheduler": "linear", "warmup": 200.0},
        saving={"state_every_epochs": 5},
    )
    run = RunFolder.create(config)
    events = told(run)
    failed, last = of_kind(events, Failed)[0], of_kind(events, StepFinished)[-1].step
    good = int(run.states()[0].name.removeprefix("step-"))
    written = [event.step for event in of_kind(events, CheckpointSaved) if event.kind == "state"]
    # The two states that are kept: the newest may already hold what the last steps spoilt.
    assert good == next((step for step in written[:-3:-1] if step <= last - 20), written[-2])
    assert f"back at step {good}" in failed.remedy
    assert "network.alpha (64) is 32 times network.rank (2)" in failed.remedy
    assert f"--set optimizer.learning_rate={2:g}" in failed.remedy
    saved = of_kind(events, CheckpointSaved)[-1]
    assert (saved.kind, saved.step) == ("network", good)
    assert all(torch.isfinite(tensor).all() for tensor in load_tensors(run.path / saved.path).values())


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"network": {"rank": 2, "alpha": 64.0}}, "network.alpha (64) is 32 times"),
        ({"optimizer": {"name": "prodigy", "learning_rate": 5.0}}, "Set it to 1"),
        ({"optimizer": {"learning_rate": 0.5}}, "try 0.1"),
        ({"memory": {"precision": "fp16"}}, "65504"),
    ],
)
def test_the_likely_cause_comes_from_the_config(configure: Configure, changes: dict[str, Any], words: str):
    from engine.trouble import failed

    assert words in failed(NotANumberError(float("nan"), 1.0), "training", 7, configure(**changes)).remedy


# -- memory -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device on which two pictures at once are too much for the UNet, from its third step on."""
    steps = {"taken": 0}

    def limited(*arguments: Any, **options: Any) -> Any:
        model = load(*arguments, **options)
        predict = model.predict

        def within_memory(noisy: torch.Tensor, *others: Any) -> torch.Tensor:
            steps["taken"] += 1
            if len(noisy) > 1 and steps["taken"] > 4:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return predict(noisy, *others)

        monkeypatch.setattr(model, "predict", within_memory)
        return model

    monkeypatch.setattr("engine.train.load", limited)


def test_where_memory_runs_out_the_run_changes_least_and_goes_on_from_the_same_step(
    configure: Configure, small_memory: None
):
    config = configure(
        memory={"make_room": True, "gradient_checkpointing": True, "cache_text_encoder_outputs": True},
        network={"train_text_encoder": False},
        schedule={"epochs": 3, "batch_size": 2},
    )
    run = RunFolder.create(config)
    events = told(run)
    change = of_kind(events, SettingsChanged)[0]
    assert change.phase == "training"
    assert change.changes == {"schedule.batch_size": 1, "schedule.gradient_accumulation_steps": 4}
    steps = [event.step for event in of_kind(events, StepFinished)]
    assert steps == list(range(1, len(steps) + 1))  # none twice, none left out
    assert change.step in steps
    assert isinstance(events[-1], RunFinished)
    assert run.config().schedule.batch_size == 1


def test_where_changes_are_not_allowed_the_run_ends_with_its_state_and_names_phase_and_change(
    configure: Configure, small_memory: None
):
    config = configure(memory={"gradient_checkpointing": True}, schedule={"epochs": 3})
    run = RunFolder.create(config)
    failed = told(run)[-1]
    assert isinstance(failed, Failed)
    assert "while training" in failed.cause
    assert failed.changes == {"schedule.batch_size": 1, "schedule.gradient_accumulation_steps": 4}
    assert "schedule.batch_size = 1" in failed.remedy
    assert [state.name for state in run.states()] == [f"step-{failed.step:06d}"]
    assert run.config() == config


def memory_ends_in_step(monkeypatch: pytest.MonkeyPatch, at: int, *, after_some: bool = False) -> None:
    """AdamW finds no memory in this update, counted from 1, once; `after_some` weights were changed already."""
    step, updates = torch.optim.AdamW.step, {"begun": 0}

    def limited(self: torch.optim.Optimizer, *others: Any) -> Any:
        updates["begun"] += 1
        if updates["begun"] == at:
            if after_some:
                with torch.no_grad():
                    self.param_groups[0]["params"][0].add_(1.0)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return step(self, *others)

    monkeypatch.setattr(torch.optim.AdamW, "step", limited)


@pytest.mark.parametrize("at", [1, 3])
def test_memory_that_ends_in_the_optimizer_costs_no_step(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, at: int
):
    config = configure(schedule={"epochs": 3}, saving={"state_every_epochs": 3})
    straight, _ = run_to_end(config)
    memory_ends_in_step(monkeypatch, at)
    run = RunFolder.create(config)
    failed = told(run)[-1]
    assert isinstance(failed, Failed)
    assert (failed.phase, failed.step) == ("training", at - 1)
    assert failed.changes  # the smallest change that needs less
    assert [state.name for state in run.states()] == ([f"step-{at - 1:06d}"] if at > 1 else [])
    assert of_kind(told(run, resume=True), StepFinished)[0].step == at
    assert same(weights(run), weights(straight))
    watched = [torch.load(one.states()[0] / "state.pt")["remembering"]["loss watch"] for one in (run, straight)]
    assert watched[0] == watched[1]  # the loss of the update that was computed twice counts once


def test_a_run_makes_room_for_the_optimizers_memory_and_goes_on(configure: Configure, monkeypatch: pytest.MonkeyPatch):
    memory_ends_in_step(monkeypatch, 1)  # the first step is what allocates it
    run = RunFolder.create(configure(memory={"make_room": True}))
    events = told(run)
    assert of_kind(events, SettingsChanged)[0].step == 0
    assert isinstance(events[-1], RunFinished)


def test_weights_that_were_changed_in_part_are_not_kept(configure: Configure, monkeypatch: pytest.MonkeyPatch):
    config = configure(schedule={"epochs": 3}, saving={"state_every_epochs": 1})
    straight, _ = run_to_end(config)
    memory_ends_in_step(monkeypatch, 4, after_some=True)
    run = RunFolder.create(config)
    assert isinstance(told(run)[-1], Failed)
    assert [state.name for state in run.states()] == ["step-000002"]  # that of the last epoch
    told(run, resume=True)
    assert same(weights(run), weights(straight))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizers_step_leaves_a_mark_with_its_first_tensor(name: str):
    """However it writes to the weights: a step that memory cuts short must never pass for none."""
    first, second = torch.nn.Parameter(torch.ones(80, 80)), torch.nn.Parameter(torch.ones(80, 80))
    both = torch.nn.ParameterList([first, second])
    optimizer = create_optimizer({"unet": [first, second]}, OptimizerSettings(name=name), ScheduleSettings())

    def update(*weights: torch.nn.Parameter) -> None:
        for parameter in (first, second):
            parameter.grad = torch.ones_like(parameter) if parameter in {*weights} else None
        optimizer.step()

    update(first, second)
    before = marks(both, optimizer)
    assert marks(both, optimizer) == before
    update(first)
    assert marks(both, optimizer) != before


def test_samples_that_do_not_fit_are_drawn_smaller(configure: Configure):
    config = configure(dataset={"resolution": 512, "bucket_maximum_side": 512}, sampling={"prompts": ["a toy"]})
    assert room_for(config, "sampling")[0] == {"sampling.width": 384, "sampling.height": 384}
    small = configure(dataset={"resolution": 256, "bucket_maximum_side": 256}, sampling={"prompts": ["a toy"]})
    assert room_for(small, "sampling")[0] == {"sampling.prompts": ()}


# -- pictures ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(4):
        Image.new("RGB", (32, 32), (60 * number, 90, 30)).save(folder / f"{number}.png")
    return folder


def breaking(events: Iterator[Event], picture: Path, after: int) -> list[Event]:
    """The events of a run in which a picture is overwritten after this step."""
    heard = []
    for event in events:
        heard.append(event)
        if isinstance(event, StepFinished) and event.step == after:
            picture.write_bytes(picture.read_bytes()[:40])
    return heard


def test_a_picture_that_breaks_meanwhile_is_named_once_and_left_out(configure: Configure, pictures: Path):
    config = configure(
        dataset={"folders": [{"path": str(pictures)}]},
        memory={"cache_latents": False},
        schedule={"epochs": 6, "batch_size": 2, "gradient_accumulation_steps": 1},
    )
    run = RunFolder.create(config)
    events = breaking(train(config, run), pictures / "2.png", after=4)
    skipped = of_kind(events, PictureSkipped)
    assert [Path(event.path).name for event in skipped] == ["2.png"]
    assert "cannot be read" in skipped[0].reason
    assert isinstance(events[-1], RunFinished)
    assert len(of_kind(events, StepFinished)) == 12


def test_a_held_out_picture_that_breaks_meanwhile_is_measured_no_more(configure: Configure, pictures: Path):
    config = configure(
        dataset={"folders": [{"path": str(pictures)}]},
        memory={"cache_latents": False},
        schedule={"epochs": 3, "batch_size": 2, "gradient_accumulation_steps": 1},
        validation={"share": 0.5},
    )
    broken = Path(held_out(scan(config.dataset), config)[0].path)
    run = RunFolder.create(config)
    events = breaking(train(config, run), broken, after=2)
    assert [(Path(event.path), event.step) for event in of_kind(events, PictureSkipped)] == [(broken, 2)]
    assert [(event.step, event.images) for event in of_kind(events, Validated)] == [(0, 2), (1, 2), (2, 1), (3, 1)]
    assert isinstance(events[-1], RunFinished)


def test_a_step_without_any_readable_picture_is_said_in_words(configure: Configure, pictures: Path):
    config = configure(
        dataset={"folders": [{"path": str(pictures)}]},
        memory={"cache_latents": False},
        schedule={"epochs": 50, "batch_size": 1, "gradient_accumulation_steps": 1},
    )
    run = RunFolder.create(config)
    with pytest.raises(PlainError, match="Not one picture of this step"):
        breaking(train(config, run), pictures / "2.png", after=4)


# -- states -----------------------------------------------------------------------------------------------------------


def stopped(config: Any, step: int) -> RunFolder:
    run, steps = RunFolder.create(config), []
    for event in train(config, run, should_stop=lambda: len(steps) >= step):
        if isinstance(event, StepFinished):
            steps.append(event)
    return run


def test_a_damaged_state_gives_way_to_the_one_before(configure: Configure):
    config = configure(saving={"state_every_epochs": 1}, schedule={"epochs": 4})
    straight, _ = run_to_end(config)
    run = stopped(config, 5)
    newest, older = run.states()
    content = (newest / "state.pt").read_bytes()
    (newest / "state.pt").write_bytes(content[: len(content) // 2])
    events = list(train(config, run, resume=True))
    assert of_kind(events, StepFinished)[0].step == int(older.name.removeprefix("step-")) + 1
    assert same(weights(run), weights(straight))


def test_a_run_that_was_cut_after_its_last_file_is_finished_by_resuming(configure: Configure):
    config = configure()
    run, events = run_to_end(config)
    before = weights(run)
    with run.event_log() as log:
        for event in events[:-1]:  # the power went before the last line
            log.write(event)
    ended = list(train(config, run, resume=True))[-1]
    assert isinstance(ended, RunFinished)
    assert (ended.reason, ended.step) == ("completed", 4)
    assert same(weights(run), before)


def test_trouble_is_told_as_one_line_that_reads_back():
    from engine.events import from_line, to_line

    change = SettingsChanged(phase="training", step=3, changes={"schedule.batch_size": 1}, effects=("slower",))
    assert from_line(to_line(change)) == change
    assert json.loads(to_line(change))["event"] == "settings_changed"
    assert issubclass(NotANumberError, TrainingBrokeError)
