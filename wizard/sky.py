"""An answers file as a SkyPilot task: a rented GPU that holds the run, what is carried there, and the command."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import yaml

import engine
from knowledge.answers import answers_text
from knowledge.config import POCKET_MODEL, TrainingConfig, value_of, with_values
from knowledge.formats.export import Exported
from knowledge.gpus import gpus
from wizard.launch import situation_of

FROM_DRIVERS = 0.94
"""Share of the memory on the label that a driver leaves to programs, about."""
THERE = "~/lora"
"""Where on the rented computer everything lies."""
SYSTEM_GB, USED_TWICE = 60, 1.5
"""Disk for the system and the libraries, and how much room the rest is given."""


class _Blocks(yaml.SafeDumper):  # type: ignore[misc]  # PyYAML is untyped
    """Writes text of several lines as it is read."""


_Blocks.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def sky_task(config: TrainingConfig, *, stem: str) -> Exported:
    """The task and the answers that it runs. Raises PlainError without pictures, and where no GPU is large enough."""
    plan = situation_of(config).plan
    assert plan is not None
    answers, mounts, carried = _carried(config)
    mounts[f"{THERE}/answers.toml"] = f"./{stem}.sky-answers.toml"
    document: dict[str, Any] = {
        "name": config.output.name.lower().replace("_", "-").replace(".", "-"),
        "resources": {
            "accelerators": {f"{name}": 1 for name in _fitting(plan.vram.high_bytes, config)},
            "disk_size": SYSTEM_GB + round(USED_TWICE * (plan.disk_bytes + carried) / 1e9) + 1,
        },
        "file_mounts": mounts,
        "setup": "python3 -m venv ~/lora-wizard\n~/lora-wizard/bin/python -m pip install -q "
        + (".\n" if _checkout() else "lora-wizard\n"),
        "run": f"cd {THERE}\n~/lora-wizard/bin/lora-wizard train answers.toml\n",
    }
    if _checkout():
        document["workdir"] = str(_checkout())
    in_hub = answers.base_model.path != POCKET_MODEL and not answers.base_model.path.startswith(THERE)
    if in_hub:
        document["envs"] = {"HF_TOKEN": ""}
    cluster = document["name"]
    how = (
        f"Start it: sky launch -c {cluster} {shlex.quote(f'{stem}.sky.yaml')}{' --env HF_TOKEN' if in_hub else ''}   "
        f"Fetch what it made: rsync -Pavz {cluster}:lora/runs .   Give the computer back: sky down {cluster}"
    )
    text = "".join(f"# {line.strip()}\n" for line in how.split("   "))
    if in_hub:
        text += "# HF_TOKEN is taken from your environment when it starts; it stands in no file.\n"
    task = text + yaml.dump(document, Dumper=_Blocks, sort_keys=False, allow_unicode=True, width=110)
    return Exported({f"{stem}.sky.yaml": task, f"{stem}.sky-answers.toml": answers_text(answers)}, {}, {}, (), how)


def _fitting(bytes_needed: int, config: TrainingConfig) -> list[str]:
    """The rented GPUs of the two smallest memories that hold it and can compute in its precision."""
    from knowledge.answers import PlainError

    able = {
        card.sky: card.memory_bytes
        for card in gpus()
        if card.sky and card.memory_bytes * FROM_DRIVERS >= bytes_needed
        if card.bf16 or config.memory.precision != "bf16"
    }
    if not able:
        raise PlainError(f"No GPU that can be rented holds this run: it needs {bytes_needed / 1e9:.0f} GB.")
    sizes = sorted(set(able.values()))[:2]
    return [name for name, memory_bytes in able.items() if memory_bytes in sizes]


def _carried(config: TrainingConfig) -> tuple[TrainingConfig, dict[str, str], int]:
    """The config with its paths as they are there, what is carried from where, and its bytes."""
    mounts: dict[str, str] = {}

    def carry(path: str, name: str) -> str:
        here = Path(path).expanduser().absolute()
        there = f"{THERE}/{name}{here.suffix if here.is_file() else ''}"
        mounts[there] = str(here)
        return there

    folders = tuple(
        folder.model_dump()
        | {"path": carry(folder.path, f"pictures-{number}")}
        | {"masks": folder.masks and carry(folder.masks, f"masks-{number}")}
        for number, folder in enumerate(config.dataset.folders, start=1)
    )
    changes: dict[str, Any] = {"dataset.folders": folders, "output.folder": "runs"}
    for name in ("base_model.path", "base_model.vae", "network.start_from"):
        path = value_of(config, name)
        if path and path != POCKET_MODEL and Path(path).expanduser().exists():  # else the name of a model in a hub
            changes[name] = carry(path, name.replace("_", "-").replace(".", "-"))
    carried = sum(_bytes(Path(path)) for path in mounts.values())
    return with_values(config, changes), mounts, carried


def _bytes(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def _checkout() -> Path | None:
    """The folder of this program where it runs from one: it is carried along and installed there."""
    home = Path(engine.__file__).resolve().parents[1]
    return home if (home / "pyproject.toml").is_file() else None
