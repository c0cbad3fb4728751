"""A run's figures in TensorBoard or Weights & Biases, through accelerate's trackers; made from its events alone."""

from __future__ import annotations

import hashlib
import importlib.util
import netrc
import os
import sys
from pathlib import Path
from typing import Any

from engine.events import Event, RunStarted, StepFinished, Validated
from engine.run_folder import RunFolder
from knowledge.answers import PlainError, quoted
from knowledge.config import TrackerName

FOLDER = "tracker"
"""Where in the run's folder a tracker keeps what it writes."""
PACKAGES: dict[TrackerName, str] = {"none": "", "tensorboard": "tensorboard", "wandb": "wandb"}
OFFLINE = ("offline", "dryrun", "disabled")
LOGIN = "wandb login"


def lacks_package(name: TrackerName) -> bool:
    """Whether what this tracker is written to with is not installed. Imports nothing."""
    return bool(PACKAGES[name]) and importlib.util.find_spec(PACKAGES[name]) is None


def lacks_login(name: TrackerName) -> bool:
    """Whether this tracker wants to know who writes to it, and nobody has said so."""
    return name == "wandb" and os.environ.get("WANDB_MODE") not in OFFLINE and not _has_key()


def require_tracker(name: TrackerName) -> None:
    """Raises PlainError where this tracker cannot be written to. Imports nothing."""
    if lacks_package(name):
        raise PlainError(
            f'logging.tracker is "{name}", and the package {PACKAGES[name]} is not installed. Install it: '
            f"{quoted(sys.executable)} -m pip install {PACKAGES[name]}; or go without: --set logging.tracker=none"
        )
    if lacks_login(name):
        raise PlainError(
            f'logging.tracker is "{name}", and nobody is logged in there. Run "{LOGIN}" once, or set the environment '
            "variable WANDB_API_KEY, or WANDB_MODE=offline to keep all on this computer."
        )


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        file = os.environ.get("NETRC") or Path.home() / ("_netrc" if os.name == "nt" else ".netrc")
        return "api.wandb.ai" in netrc.netrc(file).hosts
    except (OSError, netrc.NetrcParseError):
        return False


class Tracker:
    """Hears a run's events and writes its figures down; begun with the run, after the model was loaded."""

    def __init__(self, name: TrackerName, run: RunFolder) -> None:
        self._name, self._run = name, run
        self._tracker: Any = None

    def hear(self, event: Event) -> None:
        if isinstance(event, RunStarted) and self._name != "none" and self._tracker is None:
            self._tracker = TRACKERS[self._name](self._run)
            self._tracker.start()
        if self._tracker is not None and (values := figures(event)):
            self._tracker.log(values, step=event.step)  # type: ignore[attr-defined]  # only events of a step have any

    def finish(self) -> None:
        """Write what is not yet written."""
        if self._tracker is not None:
            self._tracker.finish()


def figures(event: Event) -> dict[str, float]:
    """What a tracker is told of an event: the loss, the rate of every part, the gradient's norm, the held-out loss."""
    match event:
        case StepFinished():
            rates = {f"learning_rate/{part}": rate for part, rate in event.learning_rate.items()}
            return {"loss": event.loss, "gradient_norm": event.gradient_norm, "seconds_per_step": event.seconds} | rates
        case Validated():
            return {"validation_loss": event.loss}
    return {}


def _tensorboard(run: RunFolder) -> Any:
    from accelerate.tracking import TensorBoardTracker

    return TensorBoardTracker(run.name, run.path / FOLDER)


def _wandb(run: RunFolder) -> Any:
    import wandb
    from accelerate.tracking import WandBTracker

    folder = run.path / FOLDER
    folder.mkdir(exist_ok=True)
    # Nothing of the computer, its user or its programs is told: the figures of the run are all.
    silent = wandb.Settings(
        disable_git=True, save_code=False, console="off", silent=True, x_disable_meta=True, x_disable_stats=True
    )
    started = (run.path / "config.toml").stat().st_ino
    identity = hashlib.sha256(f"{run.path.resolve()} {started}".encode()).hexdigest()[:16]
    return WandBTracker("lora-wizard", name=run.name, dir=str(folder), id=identity, resume="allow", settings=silent)


TRACKERS = {"tensorboard": _tensorboard, "wandb": _wandb}
