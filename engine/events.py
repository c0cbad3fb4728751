"""Everything that a run tells, one JSON object a line. Live view, `watch`, report and tests read nothing else."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Phase = Literal["loading", "caching", "training", "validating", "sampling", "saving"]


@dataclass(frozen=True, kw_only=True)
class Event:
    """`at` is the wall clock in seconds since 1970."""

    at: float = field(default_factory=time.time)


@dataclass(frozen=True, kw_only=True)
class RunStarted(Event):
    run: str
    device: str
    precision: str
    first_step: int
    total_steps: int
    epochs: int
    updates_per_epoch: int
    batches_by_bucket: dict[str, int]
    images: int
    trainable_parameters: int
    versions: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class PhaseStarted(Event):
    phase: Phase
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class PhaseProgress(Event):
    phase: Phase
    done: int
    total: int


@dataclass(frozen=True, kw_only=True)
class StepFinished(Event):
    """`step` counts optimizer updates from 1; `learning_rate` is the rate this step used, by parameter group."""

    step: int
    epoch: int
    loss: float
    learning_rate: dict[str, float]
    gradient_norm: float
    seconds: float
    images: int
    vram_bytes: int = 0
    ram_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class SampleSaved(Event):
    """One picture of the network so far; step 0 is the base model before any training."""

    step: int
    epoch: int
    index: int
    prompt: str
    seed: int
    path: str


@dataclass(frozen=True, kw_only=True)
class Validated(Event):
    """The mean loss on pictures that are never trained on, with the same noise each time; step 0 is the base model's.

    It is the plain squared error, whatever loss is trained with.
    """

    step: int
    epoch: int
    loss: float
    images: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class CheckpointSaved(Event):
    """A network file, or a state to resume from. `path` is relative to the run folder.

    `applications` says of a network file what each program does with it: "yes", or "partly" or "no" and why.
    """

    step: int
    epoch: int
    kind: Literal["network", "plain", "state"]
    path: str
    bytes: int
    final: bool = False
    applications: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Warned(Event):
    message: str
    parameters: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PictureSkipped(Event):
    """A picture that could be read when the run began and cannot any more; told once, left out from `step` on."""

    path: str
    reason: str
    step: int


@dataclass(frozen=True, kw_only=True)
class SettingsChanged(Event):
    """Memory ran out in `phase`; these settings were changed, and the run goes on after `step`."""

    phase: Phase
    step: int
    changes: dict[str, Any]
    effects: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Failed(Event):
    """The run ended because of `cause`, in words a beginner understands; `remedy` is what to do about it.

    `changes` are the settings that would let it go on, where the remedy is as plain as that.
    """

    cause: str
    remedy: str
    phase: Phase
    step: int = 0
    traceback: str = ""
    changes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RunFinished(Event):
    reason: Literal["completed", "stopped"]
    step: int
    total_steps: int
    seconds: float
    network: str
    peak_vram_bytes: int = 0
    peak_ram_bytes: int = 0


KINDS: dict[str, type[Event]] = {
    "run_started": RunStarted,
    "phase_started": PhaseStarted,
    "phase_progress": PhaseProgress,
    "step_finished": StepFinished,
    "sample_saved": SampleSaved,
    "validated": Validated,
    "checkpoint_saved": CheckpointSaved,
    "warned": Warned,
    "picture_skipped": PictureSkipped,
    "settings_changed": SettingsChanged,
    "failed": Failed,
    "run_finished": RunFinished,
}
NAMES = {kind: name for name, kind in KINDS.items()}


def to_line(event: Event) -> str:
    """The event as one line of JSON, without the newline. A loss that is not finite is written as null."""
    document: dict[str, Any] = {"event": NAMES[type(event)]}
    for name, value in asdict(event).items():
        finite = not isinstance(value, float) or value - value == 0
        document[name] = value if finite else None
    return json.dumps(document, ensure_ascii=False)


def from_line(line: str) -> Event:
    """The event that `to_line` wrote. Raises ValueError for a line that is not one."""
    try:
        document = json.loads(line)
        kind = KINDS[document.pop("event")]
        if "loss" in document and document["loss"] is None:
            document["loss"] = float("nan")
        for name in ("parameters", "effects"):
            if name in document:
                document[name] = tuple(document[name])
        return kind(**document)
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as problem:
        raise ValueError(f"not an event: {line[:200]}") from problem
