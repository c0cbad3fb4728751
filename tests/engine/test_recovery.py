import errno
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from short_runs import Configure, of_kind, run_to_end, same, weights

from calculator.validation import held_out
from engine import __main__ as process
from engine.checkpoints import load_state, save_state
from engine.dataset.folders import scan
from engine.events import (
    CheckpointSaved,
    Event,
    Failed,
    Phase,
    PictureSkipped,
    RunFinished,
    SettingsChanged,
    StepFinished,
    Validated,
    Warned,
)
from engine.loss_watch import NotANumberError, TrainingBrokeError
from engine.models.load import load
from engine.networks import Network
from engine.optimizers import create_optimizer
from engine.recovery import marks, room_for
from engine.run_folder import RunFolder
from engine.train import train
from engine.trouble import PHASE_WORDS
from knowledge.answers import PlainError
from knowledge.config import NetworkSettings, OptimizerSettings, Precision, ScheduleSettings
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
        schedule={"epochs": 400, "scheduler": "linear", "warmup": 60.0},
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


@pytest.mark.parametrize(("loss", "norm", "what"), [(float("nan"), 1.0, "loss"), (0.1, float("inf"), "gradient")])
def test_a_number_that_is_none_ends_the_run_before_the_update_and_leads_back(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, loss: float, norm: float, what: str
):
    from engine.train import mean_and_norm

    calls: list[int] = []

    def broken(*arguments: Any) -> tuple[float, float]:
        calls.append(1)
        return (loss, norm) if len(calls) == 4 else mean_and_norm(*arguments)

    monkeypatch.setattr("engine.train.mean_and_norm", broken)
    run = RunFolder.create(configure(saving={"state_every_epochs": 1}))
    *_, saved, failed = told(run)
    assert isinstance(failed, Failed)
    assert failed.cause == f"The {what} of step 4 is not a number any more: the network has run away."
    assert (saved.path, failed.step) == ("checkpoints/toy-step000002.safetensors", 3)


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_weights_that_are_no_numbers_are_not_saved_and_samples_of_them_are_told(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, precision: Precision
):
    step = torch.optim.AdamW.step

    def spoils(self: torch.optim.Optimizer, *others: Any) -> Any:
        step(self, *others)
        with torch.no_grad():
            self.param_groups[0]["params"][0].fill_(70_000.0 if precision == "fp16" else torch.nan)

    monkeypatch.setattr(torch.optim.AdamW, "step", spoils)
    config = configure(
        schedule={"maximum_steps": 1},
        saving={"precision": precision},
        sampling={"prompts": ["a toy --s 1"], "at_start": False},
    )
    run = RunFolder.create(config)
    events = told(run)
    assert isinstance(events[-1], Failed)
    assert "tensors holds values that are not numbers" in events[-1].cause
    assert ("fp16: set it to bf16" if precision == "fp16" else "has run away: lower") in events[-1].cause
    assert list(run.checkpoints.iterdir()) == []
    told_of = [event.message for event in of_kind(events, Warned)]
    assert [message.startswith("What was drawn after step 1 is black") for message in told_of] == (
        [True] if precision == "fp32" else []
    )


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


def test_memory_that_ends_after_a_picture_broke_is_still_told(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, small_memory: None
):
    def unreadable(*_: Any) -> None:
        raise PlainError("2.png cannot be read.")

    monkeypatch.setattr("engine.recovery.scan", unreadable)
    failed = told(RunFolder.create(configure(memory={"make_room": True}, schedule={"epochs": 3})))[-1]
    assert isinstance(failed, Failed)
    assert "not enough memory while training" in failed.cause


def test_a_computer_without_room_for_the_base_model_is_not_told_that_its_file_is_broken(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
):
    def read(*_: Any) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:128] DefaultCPUAllocator: can't allocate memory: you tried")

    monkeypatch.setattr("engine.models.load.read_weights", read)
    failed = told(RunFolder.create(configure()))[-1]
    assert isinstance(failed, Failed)
    assert failed.cause == "There was not enough memory while loading the base model."


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


@pytest.fixture(scope="module")
def straight() -> list[dict[str, torch.Tensor]]:
    """Where the weights of the run that nothing happened to are kept."""
    return []


PHASES = {
    "loading": "engine.train.create_network",
    "caching": "engine.dataset.latents._encoded",
    "training": "engine.train.loss_per_image",
    "validating": "engine.watching.loss_of_draw",
    "sampling": "engine.watching.denoised",
    "saving": "engine.keeping.network_tensors",
}
"""By phase, a function of ours that takes memory in it."""


@pytest.mark.parametrize("phase", PHASES)
def test_memory_that_ends_in_any_phase_is_told_and_the_run_goes_on_from_the_same_step(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, phase: Phase, straight: list[dict[str, torch.Tensor]]
):
    config = configure(
        sampling={"prompts": ["a toy --s 1"], "every_steps": 3, "at_start": False},
        validation={"share": 0.2, "every_steps": 3, "every_epochs": None},
        saving={"every_steps": 3},
    )
    if not straight:  # once for all phases
        straight.append(weights(run_to_end(config)[0]))
        shutil.rmtree(Path(config.output.folder) / ".cache")
    module, _, name = PHASES[phase].rpartition(".")
    real, seen = getattr(sys.modules[module], name), {"steps": 0, "failed": False}

    def limited(*arguments: Any, **named: Any) -> Any:
        if not seen["failed"] and seen["steps"] == (0 if phase in ("loading", "caching") else 3):
            seen["failed"] = True
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(*arguments, **named)

    monkeypatch.setattr(PHASES[phase], limited)
    run, events = RunFolder.create(config), []
    for event in process._events(run, False, lambda: False):
        seen["steps"] += isinstance(event, StepFinished)
        events.append(event)
    failed, done = events[-1], seen["steps"]
    assert isinstance(failed, Failed)
    assert (failed.phase, failed.cause) == (phase, f"There was not enough memory while {PHASE_WORDS[phase]}.")
    assert [state.name for state in run.states()] == ([f"step-{done:06d}"] if done else [])
    if failed.changes:
        assert failed.remedy.endswith("go on with it from the last step." if done else "Start again with it.")
    assert [event.step for event in of_kind(told(run, resume=True), StepFinished)] == list(range(done + 1, 5))
    assert same(weights(run), straight[0])


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


def test_a_run_whose_samples_never_fit_goes_on_without_them_where_it_may(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
):
    def too_large(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("engine.watching.denoised", too_large)
    sampling = {"prompts": ["a toy --s 1"], "every_steps": 3, "at_start": False}
    run = RunFolder.create(configure(sampling=sampling, memory={"make_room": True}))
    events = told(run)
    (change,) = of_kind(events, SettingsChanged)
    assert (change.phase, change.step, change.changes) == ("sampling", 3, {"sampling.prompts": ()})
    assert [event.step for event in of_kind(events, StepFinished)] == [1, 2, 3, 4]
    assert run.config().sampling.prompts == ()


def test_what_needs_less_in_a_step_is_not_proposed_where_pictures_are_encoded(configure: Configure):
    config = configure(schedule={"batch_size": 4})
    assert room_for(config, "training")[0]
    assert room_for(config, "caching") == ({}, ())


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


def test_states_that_cannot_be_read_are_left_where_none_can(configure: Configure):
    config = configure(saving={"state_every_epochs": 1}, schedule={"epochs": 4})
    run = stopped(config, 5)
    for state in run.states():
        (state / "state.pt").write_bytes(b"no state")
    failed = told(run, resume=True)[-1]
    assert isinstance(failed, Failed)
    assert "cannot be used" in failed.cause
    assert len(run.states()) == 2


def test_a_state_from_before_the_scaler_can_be_gone_on_with(tmp_path: Path):
    """Where memory ends in fp32 an older card goes on in fp16, whose scaler no state of the run knows yet."""
    network = Network([], NetworkSettings(), 0)
    save_state(tmp_path, 3, network, {"scaler": None})
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    assert load_state(tmp_path, network, {"scaler": scaler}) == 3
    assert scaler.get_scale() == 2
    with pytest.raises(PlainError, match="average"):
        load_state(tmp_path, network, {"average": scaler})


# -- a full disk ------------------------------------------------------------------------------------------------------


def fills_up(monkeypatch: pytest.MonkeyPatch, function: str, problem: Exception, *, at: int = 2) -> None:
    """The disk has no room left when this function writes for the `at`-th time; it leaves half of something behind."""
    room, written = {"free": 10**12}, {"times": 0}
    module, _, name = function.rpartition(".")
    real = getattr(sys.modules[module], name)

    def write(content: Any, path: Path, **named: Any) -> None:
        written["times"] += 1
        if written["times"] < at:
            return real(content, path, **named)
        room["free"] = 0
        Path(path).write_bytes(b"half of it")
        raise problem

    monkeypatch.setattr(function, write)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=room["free"]))


@pytest.mark.parametrize(
    ("function", "problem", "phase", "what"),
    [
        ("engine.checkpoints.save_file", SafetensorError("Error while serializing"), "saving", "toy-step000003"),
        ("torch.save", RuntimeError("[enforce fail at inline_container.cc:672] . unexpected"), "saving", "of step 4"),
        ("torch.save", OSError(errno.ENOSPC, "No space left on device"), "saving", "of step 4"),
        ("engine.dataset.store.save_file", SafetensorError("Error while serializing"), "caching", "The cache in "),
    ],
)
def test_a_full_disk_is_told_in_one_sentence_and_leaves_nothing_half_written(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, function: str, problem: Exception, phase: Phase, what: str
):
    run = RunFolder.create(configure(saving={"every_steps": 1, "state_every_epochs": 1}))
    fills_up(monkeypatch, function, problem, at=3 if function.startswith("engine.checkpoints") else 2)
    failed = told(run)[-1]
    assert isinstance(failed, Failed)
    assert failed.phase == phase
    assert what in failed.cause
    assert failed.cause.endswith("cannot be written: the disk is full.")
    assert failed.remedy == f"Put that right, then {'resume the run' if run.states() else 'start again'}."
    assert [file for file in (*run.path.rglob(".*"), *run.cache.rglob(".*")) if "partial" in file.name] == []
    for file in (*run.checkpoints.iterdir(), *run.cache.rglob("*.safetensors")):
        load_tensors(file)
    for state in run.states():
        torch.load(state / "state.pt")


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
