"""How long a run takes, from arithmetic per step and the figures of the card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from calculator.buckets import Size
from knowledge.architectures import Architecture
from knowledge.config import Family, TrainingConfig
from knowledge.facts import Hardware
from knowledge.gpus import Gpu, gpu


@dataclass(frozen=True)
class DurationEstimate:
    """Seconds for the whole run, and what the figure rests on."""

    low_seconds: float
    likely_seconds: float
    high_seconds: float
    basis: str


# Floating-point operations per latent pixel and picture, forward alone, from traces at 512 (SD 1.5) and 1024 (SDXL).
FORWARD: Mapping[Family, float] = {"pocket": 1.3e7, "sd15": 1.98e8, "sdxl": 4.18e8}
BACKWARD = 1.2  # × forward: gradients of activations and of the small matrices, not of the base weights
START_SECONDS: Mapping[Family, float] = {"pocket": 8, "sd15": 20, "sdxl": 40}
CPU_FLOPS_PER_CORE = 3e10
MIDDLING = 30e12  # a card that we have no figures of is taken for this
EFFICIENCY = 0.4
SPREAD = 1.6


def estimate_duration(
    config: TrainingConfig,
    architecture: Architecture,
    batches: Mapping[Size, int],
    epochs: float,
    samples: int,
    hardware: Hardware,
) -> DurationEstimate:
    """Start, caching, steps and samples. `epochs` may end inside one; `samples` counts pictures drawn."""
    speed, basis = _speed(config, hardware)
    forward = FORWARD[architecture.family] / architecture.latent_factor**2
    passes = 1 + BACKWARD + (1 if config.memory.gradient_checkpointing else 0)
    pixels = sum(width * height * count for (width, height), count in batches.items()) * config.schedule.batch_size
    training = pixels * epochs * forward * passes / speed
    width = config.sampling.width or config.dataset.resolution
    height = config.sampling.height or config.dataset.resolution
    drawing = samples * 2 * config.sampling.steps * width * height * forward / speed
    likely = START_SECONDS[architecture.family] + training + drawing
    return DurationEstimate(likely / SPREAD, likely, likely * SPREAD, basis)


def _speed(config: TrainingConfig, hardware: Hardware) -> tuple[float, str]:
    """Operations per second that a step really gets, and where that comes from."""
    if hardware.name == "CPU":
        return hardware.cores * CPU_FLOPS_PER_CORE, f"a rule for {hardware.cores} CPU cores; not measured here"
    card: Gpu | None = gpu(hardware.name, hardware.vram_bytes)
    if card is None:
        return MIDDLING * EFFICIENCY, f"no figures for {hardware.name}; taken for a middling card"
    flops = card.fp32_flops if config.memory.precision == "fp32" else card.fp16_flops
    return flops * EFFICIENCY, f"arithmetic of a step and the figures of {card.name}; not measured here"
