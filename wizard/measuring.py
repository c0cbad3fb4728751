"""Timings of this computer: taken on purpose with `calc --measure`, or left behind by every finished run."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from statistics import median

from calculator.duration import step_seconds
from calculator.measurements import Measurement, add_measurement, measurement_of, read_measurements
from engine.events import Event, Failed, StepFinished
from engine.run_folder import RunFolder
from knowledge.answers import PlainError
from knowledge.architectures import Architecture, architecture
from knowledge.config import TrainingConfig, with_values
from knowledge.facts import Hardware
from wizard.autopsy import ENGINE_LOG, last_lines
from wizard.drafts import user_folder
from wizard.launch import end_process, start_engine

STEPS = 8
FIRST_STEPS = 3
"""The first steps compile, choose kernels and fill caches; they say nothing about the rest."""


def measurements_file() -> Path:
    return user_folder() / "measurements.jsonl"


def known() -> tuple[Measurement, ...]:
    """Everything that was measured on this computer, oldest first."""
    return read_measurements(measurements_file())


def measure(config: TrainingConfig, hardware: Hardware) -> Measurement:
    """Times a few steps of this config on drawn noise, remembers and returns the timing.

    Raises PlainError with the engine's own words when it cannot train.
    """
    with tempfile.TemporaryDirectory(prefix="lora-wizard-measure-") as folder:
        pictures = Path(folder) / "pictures"
        noise_pictures(pictures, config)
        run = RunFolder.create(shortened(config, pictures, folder))
        process = start_engine(run)
        try:
            process.wait()
        except BaseException:
            end_process(process)
            raise
        events = list(run.events())
        last_words = last_lines(run.path / ENGINE_LOG, 1)
    for event in events:
        if isinstance(event, Failed):
            raise PlainError(f"Nothing could be measured: {event.cause} {event.remedy}")
    found = timing(config, events, hardware, architecture(config.base_model.family))
    if found is None:
        raise PlainError(f"Nothing could be measured: {last_words or 'the engine ended without a word'}")
    add_measurement(measurements_file(), found)
    return found


def remember(config: TrainingConfig, events: Sequence[Event], hardware: Hardware) -> None:
    """Keeps the timing of a finished run; a run too short to say anything, or a full disk, keeps nothing."""
    found = timing(config, events, hardware, architecture(config.base_model.family))
    if found is not None:
        try:
            add_measurement(measurements_file(), found)
        except OSError:
            return


def timing(
    config: TrainingConfig, events: Sequence[Event], hardware: Hardware, known_as: Architecture
) -> Measurement | None:
    """What the steps among these events took; None when there are too few."""
    steps = [event for event in events if isinstance(event, StepFinished)][FIRST_STEPS:]
    full = config.schedule.batch_size * config.schedule.gradient_accumulation_steps
    taken = [step.seconds for step in steps if step.images == full]
    if len(taken) < 3:
        return None
    side = config.dataset.resolution
    forecast = step_seconds(config, known_as, (side, side), hardware) * config.schedule.gradient_accumulation_steps
    return measurement_of(config, hardware, median(taken), forecast, date.today().isoformat())


def shortened(config: TrainingConfig, pictures: Path, folder: str) -> TrainingConfig:
    """The config for a few steps without caches to fill, samples or states."""
    return with_values(
        config,
        {
            "dataset.folders": [{"path": str(pictures), "caption": "noise"}],
            "schedule.epochs": STEPS,
            "schedule.maximum_steps": STEPS,
            "sampling.prompts": [],
            "saving.every_epochs": None,
            "saving.every_steps": None,
            "saving.state_every_epochs": None,
            "output.folder": folder,
            "output.name": "measure",
        },
    )


def noise_pictures(folder: Path, config: TrainingConfig) -> None:
    """As many pictures as a step takes, of the resolution's size."""
    from PIL import Image

    folder.mkdir()
    side, chance = config.dataset.resolution, random.Random(0)
    for number in range(config.schedule.batch_size * config.schedule.gradient_accumulation_steps):
        Image.frombytes("RGB", (side, side), chance.randbytes(3 * side * side)).save(folder / f"{number}.png")
