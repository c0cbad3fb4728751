"""Steps that were timed on a computer, and which of them says most about the next run there."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from knowledge.config import TrainingConfig
from knowledge.facts import Hardware


@dataclass(frozen=True)
class Measurement:
    """One timing: how long a step took and how long the forecast had said, on which card and under which settings."""

    hardware: str
    family: str
    algorithm: str
    precision: str
    checkpointing: bool
    text_encoder: bool
    resolution: int
    batch_size: int
    seconds_per_step: float
    forecast_seconds: float
    day: str

    @property
    def what(self) -> str:
        """What was timed, in words."""
        return f"{self.family} {self.algorithm} at {self.resolution} px, batch {self.batch_size}, {self.precision}"


@dataclass(frozen=True)
class Nearest:
    """The measurement that says most, by what it corrects forecasts, and how much the doubt grows with its distance."""

    measurement: Measurement
    factor: float
    distance: float


def nearest(measurements: Iterable[Measurement], hardware: Hardware, config: TrainingConfig) -> Nearest | None:
    """The measurement of this card that is most like the config; the newest of several. None without any."""
    of_this_card = [one for one in measurements if one.hardware == hardware.name and one.forecast_seconds > 0]
    if not of_this_card:
        return None
    best = min(reversed(of_this_card), key=lambda one: _distance(one, config))
    return Nearest(best, best.seconds_per_step / best.forecast_seconds, 1 + 0.1 * _distance(best, config))


def _distance(one: Measurement, config: TrainingConfig) -> float:
    """How unlike two runs are: each kind of difference counts about as much as doubling the pictures in a step."""
    ratio = (one.batch_size * one.resolution**2) / (config.schedule.batch_size * config.dataset.resolution**2)
    return (
        abs(math.log2(ratio)) / 2
        + 3 * (one.family != config.base_model.family)
        + 2 * (one.precision != config.memory.precision)
        + (one.algorithm != config.network.algorithm)
        + (one.checkpointing != config.memory.gradient_checkpointing)
        + (one.text_encoder != config.network.train_text_encoder)
    )


def measurement_of(
    config: TrainingConfig, hardware: Hardware, seconds_per_step: float, forecast_seconds: float, day: str
) -> Measurement:
    """What a timed run under this config teaches."""
    return Measurement(
        hardware=hardware.name,
        family=config.base_model.family,
        algorithm=config.network.algorithm,
        precision=config.memory.precision,
        checkpointing=config.memory.gradient_checkpointing,
        text_encoder=config.network.train_text_encoder,
        resolution=config.dataset.resolution,
        batch_size=config.schedule.batch_size,
        seconds_per_step=seconds_per_step,
        forecast_seconds=forecast_seconds,
        day=day,
    )


def read_measurements(path: Path) -> tuple[Measurement, ...]:
    """The measurements of a file, oldest first; lines that are damaged or of another version are passed over."""
    try:
        lines: Sequence[str] = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return ()
    found = []
    for line in lines:
        try:
            found.append(Measurement(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return tuple(found)


def add_measurement(path: Path, measurement: Measurement) -> None:
    """Adds one line to the file. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(measurement)) + "\n")
