"""Forecast against real memory: a few steps of many configs on this machine, and a table with the machine's name.

    python tests/benchmarks/memory_forecast.py --sd15 MODEL --sdxl MODEL    on a card; writes memory-CARD.md
    python tests/benchmarks/memory_forecast.py                             without a card: the pocket model

Run by hand; every config trains in a process of its own, so that one that runs out of memory takes no other with it.
A card's figure is the most that the allocator held; what CUDA takes for itself is not in it, nor in the forecast here.
"""

from __future__ import annotations

import argparse
import itertools
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import median

from calculator.plan import plan
from engine.dataset.folders import scan
from engine.events import RunFinished
from engine.run_folder import RunFolder
from knowledge.config import TrainingConfig, with_values
from knowledge.facts import Hardware
from wizard.hardware import this_computer
from wizard.launch import end_process, start_engine
from wizard.measuring import noise_pictures, shortened

FAMILIES = {"pocket": (64, 96), "sd15": (512, 768), "sdxl": (768, 1024)}
"""The resolutions that each family is measured at."""


@dataclass(frozen=True)
class Row:
    """One config measured; `real_bytes` is 0 where it ran out of memory."""

    label: str
    forecast_bytes: int
    real_bytes: int

    @property
    def apart(self) -> float:
        """How far the forecast lies above what was measured, as a share of it."""
        return self.forecast_bytes / self.real_bytes - 1 if self.real_bytes else 0.0


def configs(models: dict[str, str], precision: str) -> Iterator[tuple[str, TrainingConfig]]:
    """At least 30 of a family: networks × resolutions × checkpointing × batch, then optimizers and text encoders."""
    for family, path in models.items():
        low, high = FAMILIES[family]
        plain = {
            "base_model.family": family,
            "base_model.path": path,
            "memory.precision": precision,
            "memory.cache_text_encoder_outputs": True,
            "dataset.bucket_minimum_side": min(64, low),
            "dataset.bucket_maximum_side": 2048,
            "dataset.bucket_step": 64 if family != "pocket" else 32,
        }
        cases = [
            {"network.algorithm": algorithm, "dataset.resolution": side, "memory.gradient_checkpointing": checkpointing}
            for algorithm, side, checkpointing in itertools.product(
                ("lora", "locon", "dora", "loha", "lokr"), (low, high), (True, False)
            )
        ]
        usual = {"dataset.resolution": low, "memory.gradient_checkpointing": True}
        cases += [usual | {"schedule.batch_size": count} for count in (2, 4, 8)]
        cases += [usual | {"network.rank": rank, "network.alpha": float(rank)} for rank in (4, 64, 128)]
        cases += [usual | {"optimizer.name": name} for name in ("adafactor", "lion", "prodigy")]
        cases += [
            usual | {"network.train_text_encoder": True, "memory.cache_text_encoder_outputs": False},
            usual | {"memory.cache_latents": False},
        ]
        for case in cases:
            words = (f"{name.rpartition('.')[2]}={value}" for name, value in case.items())
            yield f"{family} {' '.join(words)}", with_values(TrainingConfig(), plain | case)


def measured(label: str, config: TrainingConfig, hardware: Hardware) -> Row:
    """A few steps of the config on drawn noise, and what the calculator says of the same."""
    with tempfile.TemporaryDirectory(prefix="lora-wizard-benchmark-") as folder:
        pictures = Path(folder) / "pictures"
        noise_pictures(pictures, config)
        short = shortened(config, pictures, folder)
        forecast = plan(short, scan(short.dataset), hardware).vram
        run = RunFolder.create(short)
        process = start_engine(run)
        try:
            process.wait()
        except BaseException:
            end_process(process)
            raise
        finished = next((event for event in run.events() if isinstance(event, RunFinished)), None)
    if finished is None:
        return Row(label, forecast.likely_bytes, 0)
    if hardware.vram_bytes:
        likely = forecast.likely_bytes - forecast.parts["CUDA context"]
        return Row(label, likely, finished.peak_vram_bytes)
    return Row(label, forecast.likely_bytes, finished.peak_ram_bytes)


def table(rows: Sequence[Row], hardware: Hardware, day: str) -> str:
    """The rows as Markdown, with the worst and the middle distance."""
    known = [abs(row.apart) for row in rows if row.real_bytes]
    kind = "what the allocator held" if hardware.vram_bytes else "main memory of the process"
    lines = [
        f"# Memory: forecast and measured on {hardware.name}, {day}",
        "",
        f"{len(rows)} configs, {kind}. "
        + (f"Worst {max(known):.1%}, median {median(known):.1%}." if known else "None could be measured."),
        "",
        "| config | forecast MiB | measured MiB | apart |",
        "|---|---:|---:|---:|",
    ]
    lines += [
        f"| {row.label} | {row.forecast_bytes / 2**20:,.0f} | "
        + (f"{row.real_bytes / 2**20:,.0f} | {row.apart:+.1%} |" if row.real_bytes else "did not run | |")
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description="Forecast against real memory on this machine.")
    parser.add_argument("--sd15", help="a base model of SD 1.5")
    parser.add_argument("--sdxl", help="a base model of SDXL")
    parser.add_argument("--first", type=int, help="measure only this many configs")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="the folder of the table")
    chosen = parser.parse_args(arguments)
    hardware = this_computer()
    models = {family: path for family in ("sd15", "sdxl") if (path := getattr(chosen, family))} or {"pocket": "pocket"}
    precision = "fp32" if not hardware.vram_bytes else "bf16" if (hardware.capability or (0, 0)) >= (8, 0) else "fp16"
    rows = []
    for label, config in list(configs(models, precision))[: chosen.first]:
        rows.append(measured(label, config, hardware))
        print(f"{label}: {rows[-1].apart:+.1%}", flush=True)  # noqa: T201
    name = re.sub(r"[^A-Za-z0-9]+", "-", hardware.name).strip("-").lower()
    path = chosen.output / f"memory-{name}.md"
    path.write_text(table(rows, hardware, date.today().isoformat()), encoding="utf-8")
    print(path)  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
