"""Measures the lessons anew: `python -m wizard.measure_lessons [LESSON…] --seeds 1 2 3 --work DIR`.

Writes what the tests hold the claims to, and what handbook and entries show: knowledge/data/lessons/NAME.json with the
figures of every seed, the library versions and the machine, and NAME.png with the pictures of the first seed. A
training that is finished already in the work folder, for another lesson or at another time, is not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from engine.events import RunFinished
from engine.run_folder import RunFolder
from knowledge.config import TrainingConfig
from knowledge.lessons import PICTURES, Lesson, common_settings, lessons
from wizard.lab import figures_of, picture, prepare, train
from wizard.trials import Trial, examined

LIBRARIES = ("torch", "diffusers", "transformers", "lycoris-lora", "pytorch-optimizer")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m wizard.measure_lessons", description=__doc__)
    parser.add_argument("lessons", nargs="*", default=list(lessons()), help="all, if none is named")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--at-once", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--work", type=Path, required=True, help="where the trainings are kept")
    options = parser.parse_args(arguments)
    for name in options.lessons:
        measure(lessons()[name], options.seeds, options.at_once, options.work)


def measure(lesson: Lesson, seeds: Sequence[int], at_once: int, work: Path) -> None:
    """Train the lesson with every seed, and write its figures and its picture."""
    file = PICTURES / f"{lesson.name}.json"
    for seed in seeds:
        trials = prepare(lesson, seed, work)
        for trial in trials:
            take_over(trial, work)
        train(trials, at_once, shown=True)
        figures = figures_of(trials)
        known = json.loads(file.read_text(encoding="utf-8"))["seeds"] if file.exists() else {}
        known[str(seed)] = {
            variant: {name: rounded(value) for name, value in found.items()} for variant, found in figures.items()
        }
        print(f"{lesson.name}, seed {seed}: {lesson.said(figures)}", flush=True)
        if seed == seeds[0]:
            picture(lesson, trials, figures, PICTURES / f"{lesson.name}.png")
        document = {
            "machine": machine(),
            "settings": settings_of(lesson),
            "seeds": dict(sorted(known.items(), key=lambda item: int(item[0]))),
        }
        file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def take_over(trial: Trial, work: Path) -> None:
    """Use a finished training of the same config in the work folder instead of doing it again."""
    for path in sorted((work / "runs").glob("*/config.toml")):
        run = RunFolder(path.parent)
        if same_training(run.config(), trial.config) and any(isinstance(e, RunFinished) for e in run.events()):
            trial.run, trial.curve = run, examined(run)
            return


def same_training(done: TrainingConfig, wanted: TrainingConfig) -> bool:
    """Whether two configs train alike: names and folders of the result do not count."""

    def training(config: TrainingConfig) -> dict[str, Any]:
        document = config.model_dump(exclude={"output"})
        if not wanted.sampling.at_start:  # that another run drew the base model as well changes nothing
            document["sampling"].pop("at_start")
        return document

    return training(done) == training(wanted)


def settings_of(lesson: Lesson) -> dict[str, Any]:
    """What was set in every variant: figures are worth nothing once the lesson trains something else."""
    return {variant.name: {**common_settings(), **variant.settings} for variant in lesson.variants}


def rounded(value: float) -> float:
    """Four significant digits: more would only be chance."""
    return int(value) if value == int(value) else float(f"{value:.4g}")


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "processor": processor(),
        "threads": 1,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in LIBRARIES},
    }


def processor() -> str:
    """The processor's own name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
