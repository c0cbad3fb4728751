"""Synthetic runs: the events a run would tell, made from a list of losses, for everything that only reads events."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from PIL import Image
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput

from engine.events import (
    CheckpointSaved,
    Event,
    PhaseStarted,
    RunFinished,
    RunStarted,
    SampleSaved,
    StepFinished,
)

Story = Callable[..., list[Event]]


def noisy(level: Callable[[float], float], steps: int, seed: int = 0) -> list[float]:
    """Losses as a diffusion run makes them at batch 1: exponential around `level(share of the run)`."""
    chance = random.Random(seed)
    return [level(step / steps) * chance.expovariate(1) for step in range(steps)]


@pytest.fixture
def losses() -> Callable[..., list[float]]:
    return noisy


@pytest.fixture
def story() -> Story:
    return tell


def tell(
    losses: Sequence[float],
    *,
    total_steps: int | None = None,
    updates_per_epoch: int = 10,
    samples_every: int | None = None,
    prompts: Sequence[str] = ("a drawing of a fox", "a house"),
    seconds: float = 0.5,
    finished: bool = True,
) -> list[Event]:
    """The events of a run with these losses; two samples at step 0 and every `samples_every` steps when given."""
    total = total_steps or len(losses)
    at = 1_790_000_000.0
    events: list[Event] = [
        PhaseStarted(at=at, phase="loading", detail="base model"),
        PhaseStarted(at=at + 2, phase="caching", detail="pictures"),
        RunStarted(
            at=at + 3,
            run="fox",
            device="CPU",
            precision="fp32",
            first_step=1,
            total_steps=total,
            epochs=-(-total // updates_per_epoch),
            updates_per_epoch=updates_per_epoch,
            batches_by_bucket={"64x64": updates_per_epoch},
            images=12,
            trainable_parameters=120_000,
            versions={"torch": "2.13.0"},
        ),
    ]

    def samples(step: int, at: float) -> list[Event]:
        return [PhaseStarted(at=at, phase="sampling")] + [
            SampleSaved(
                at=at,
                step=step,
                epoch=step // updates_per_epoch,
                index=index,
                prompt=prompt,
                seed=42 + index,
                path=f"samples/step-{step:06d}_{index:02d}.png",
            )
            for index, prompt in enumerate(prompts)
        ]

    if samples_every:
        events += samples(0, at + 3)
    events.append(PhaseStarted(at=at + 4, phase="training"))
    at += 4
    for step, loss in enumerate(losses, start=1):
        at += seconds
        events.append(
            StepFinished(
                at=at,
                step=step,
                epoch=(step - 1) // updates_per_epoch + 1,
                loss=loss,
                learning_rate={"unet": 1e-4},
                gradient_norm=0.1,
                seconds=seconds,
                images=4,
                ram_bytes=2 * 2**30,
            )
        )
        if samples_every and step % samples_every == 0:
            events += samples(step, at)
    if finished:
        path = "checkpoints/fox.safetensors"
        events += [
            CheckpointSaved(
                at=at,
                step=total,
                epoch=total // updates_per_epoch,
                kind="network",
                path=path,
                bytes=600_000,
                final=True,
            ),
            RunFinished(
                at=at, reason="completed", step=total, total_steps=total, seconds=total * seconds, network=path
            ),
        ]
    return events


@pytest.fixture(autouse=True)
def _nobodys_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Timings and drafts of tests never reach the person who runs them, nor theirs the tests."""
    monkeypatch.setenv("LORA_WIZARD_HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for drafts that belongs to this test alone, and a folder of its own to stand in."""
    home, here = tmp_path / "home", tmp_path / "here"
    here.mkdir()
    monkeypatch.setenv("LORA_WIZARD_HOME", str(home))
    monkeypatch.setenv("HOME", str(tmp_path))  # no model of the person who runs the tests is offered
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.chdir(here)
    return home


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six small pictures in two shapes, four of them with captions."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(6):
        size = (96, 64) if number % 2 else (64, 96)
        Image.new("RGB", size, (40 * number, 80, 120)).save(folder / f"{number}.png")
        if number < 4:
            (folder / f"{number}.txt").write_text(f"in place {number}", encoding="utf-8")
    return folder


@pytest.fixture
def keyboard() -> Iterator[PipeInput]:
    """A pipe that prompt_toolkit reads as a keyboard; what it draws goes nowhere."""
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        yield pipe
