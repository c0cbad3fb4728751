"""How long a run takes: from what a step computes and the figures of the card, or from what was measured on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

from calculator.buckets import Size
from calculator.held_weights import Making, making
from calculator.measurements import Measurement, nearest
from calculator.network_size import BYTES
from calculator.step_cost import Work, course_of, phase_flops, sizes_of, work
from calculator.validation import DRAWS
from knowledge.architectures import Architecture
from knowledge.config import TrainingConfig
from knowledge.facts import Hardware
from knowledge.gpus import Gpu, gpu
from knowledge.words import count


@dataclass(frozen=True)
class DurationEstimate:
    """Seconds for the whole run, what they go into, and what the figures rest on."""

    low_seconds: float
    likely_seconds: float
    high_seconds: float
    basis: str
    parts: dict[str, float]


@dataclass(frozen=True)
class Machine:
    """What a step runs on: operations and bytes per second that it reaches, bytes per second from the computer's
    memory, seconds to start a kernel."""

    flops: float
    bandwidth: float
    link: float
    launch_seconds: float
    basis: str
    spread: float


# Fitted to seven published steps of SD 1.5 and SDXL on RTX 3090, 3090 Ti and 4090; off by 13 % in the mean.
REACHED_FLOPS, REACHED_BANDWIDTH, LAUNCH_SECONDS, OVERLAP = 0.65, 0.95, 13e-6, 1.5
REACHED_LINK = 0.8
"""Share of what PCI Express carries that copies out of pinned memory reach; a rule, as its protocol takes the rest."""
# Operations per core from sd-scripts' 4.9 to 5.7 CPU-seconds a step of SD 1.5 at 256 pixels in fp32; the start of a
# kernel from the demo on the pocket model, whose step of many small ones took 0.24 to 0.30 s on two busy cores.
CPU_FLOPS_PER_CORE, CPU_BANDWIDTH, CPU_LAUNCH_SECONDS = 4.5e10, 1.2e10, 60e-6
UNKNOWN_CARD = Gpu("a middling card", 0, 360e9, 25e12, 12e12, (8, 6), "")
SPREAD = {"card": 1.4, "unknown": 3.0, "cpu": 2.0, "measured here": 1.15}
PICTURE_SECONDS = 0.05
"""Decoding and resizing one picture on one core."""
SAVE_SECONDS = 0.3


def estimate_duration(
    config: TrainingConfig,
    architecture: Architecture,
    views: Mapping[Size, int],
    batches: Mapping[Size, int],
    epochs: float,
    samples: int,
    saves: int,
    pictures: int,
    hardware: Hardware,
    measurements: Sequence[Measurement] = (),
    held_out: int = 0,
    processes: int = 1,
) -> DurationEstimate:
    """Start, caching, steps, held-out pictures, samples and saves.

    `views` and `batches` are those of an epoch by bucket, `epochs` may end inside one, `samples` counts pictures drawn,
    `pictures` those to encode, `held_out` those that are measured, each time counted; `processes` share the batches.
    """
    machine = machine_of(hardware, config.memory.precision)
    family, half = architecture.family, config.memory.precision != "fp32"
    step_seconds = {
        bucket: seconds(_work(config, architecture, bucket, count, hardware), machine)
        for bucket, count in views.items()
    }
    known = nearest(measurements, hardware, config)
    factor, basis, spread = 1.0, machine.basis + _told_of_weights(config, hardware), machine.spread
    if known is not None:
        factor, spread = known.factor, SPREAD["measured here"] * known.distance
        basis = f"measured on {hardware.name} on {known.measurement.day}: {known.measurement.what}"
    mean_area = (
        sum(w * h * n for (w, h), n in views.items()) / max(1, sum(views.values())) / architecture.latent_factor**2
    )
    width = config.sampling.width or config.dataset.resolution
    height = config.sampling.height or config.dataset.resolution
    area = width * height / architecture.latent_factor**2
    once = _made_whole(config, architecture, hardware)
    making_whole = once.traffic / machine.bandwidth + once.copied / machine.link
    denoising = phase_flops(family, half, "denoise", area) / machine.flops + making_whole
    drawn = config.sampling.steps * denoising + phase_flops(family, half, "decode", area) / machine.flops
    # Denoising a sample runs the UNet twice, measuring a picture once for each draw of noise.
    measured = DRAWS * (phase_flops(family, half, "denoise", mean_area) / 2 / machine.flops + making_whole)
    encoded = phase_flops(family, False, "encode", mean_area) / machine.flops + PICTURE_SECONDS / hardware.cores
    together = sum(batches.values())
    shared = ceil(together / processes) / together if together else 0.0  # the last round of an epoch may be part-filled
    parts = {
        "start": architecture.known.start_seconds,
        "caching": encoded * pictures if config.memory.cache_latents else 0.0,
        "steps": factor * epochs * sum(step_seconds[bucket] * count for bucket, count in batches.items()) * shared,
        "validation": factor * held_out * measured,
        "samples": factor * samples * drawn,
        "saving": SAVE_SECONDS * saves,
    }
    likely = sum(parts.values())
    return DurationEstimate(likely / spread, likely, likely * spread, basis, parts)


def machine_of(hardware: Hardware, precision: str) -> Machine:
    """What this computer reaches in training."""
    if hardware.name == "CPU":
        flops = hardware.cores * CPU_FLOPS_PER_CORE
        basis = f"a rule for {count(hardware.cores, 'CPU core')}; not measured here"
        return Machine(flops, CPU_BANDWIDTH, CPU_BANDWIDTH, CPU_LAUNCH_SECONDS, basis, SPREAD["cpu"])
    card = gpu(hardware.name, hardware.vram_bytes)
    basis = f"what a step computes and the figures of {card.name}; not measured here" if card else ""
    basis = basis or f"there are no figures for {hardware.name}, so a middling card's; not measured here"
    known = card or UNKNOWN_CARD
    flops = (known.fp32_flops if precision == "fp32" else known.fp16_flops) * REACHED_FLOPS
    spread = SPREAD["card" if card else "unknown"]
    return Machine(
        flops,
        known.bandwidth * REACHED_BANDWIDTH,
        known.link_bandwidth * REACHED_LINK,
        LAUNCH_SECONDS,
        basis,
        spread,
    )


def seconds(step: Work, machine: Machine) -> float:
    """Seconds of a step: computing, moving and copying one after the other, starting kernels partly beside them."""
    running = step.flops / machine.flops + step.traffic / machine.bandwidth + step.copied / machine.link
    starting = machine.launch_seconds * step.launches
    return float((running**OVERLAP + starting**OVERLAP) ** (1 / OVERLAP))


def step_seconds(config: TrainingConfig, architecture: Architecture, bucket: Size, hardware: Hardware) -> float:
    """The forecast for one full batch of this shape, before any measurement corrects it."""
    step = _work(config, architecture, bucket, config.schedule.batch_size, hardware)
    return seconds(step, machine_of(hardware, config.memory.precision))


def _work(config: TrainingConfig, architecture: Architecture, bucket: Size, views: int, hardware: Hardware) -> Work:
    """What the average batch of a bucket computes; the last one of an epoch may be part-filled."""
    batch = min(views, config.schedule.batch_size)
    area = bucket[0] * bucket[1] / architecture.latent_factor**2
    step = work(course_of(config), sizes_of(config, max(1, batch), area))
    # The forward pass, its repetition under checkpointing, and the backward pass make every layer whole anew.
    times, once = 3 if config.memory.gradient_checkpointing else 2, _made_whole(config, architecture, hardware)
    return Work(
        step.flops,
        step.traffic + times * once.traffic,
        step.launches + times * once.launches,
        times * once.copied,
    )


def _told_of_weights(config: TrainingConfig, hardware: Hardware) -> str:
    """What the estimate counts for weights that are not at hand as they are computed with; empty where all are."""
    card = gpu(hardware.name, hardware.vram_bytes) or UNKNOWN_CARD
    told = []
    if config.memory.base_weights != "same":
        told.append(f"unpacking {config.memory.base_weights} weights")
    if config.memory.offload_blocks and hardware.name != "CPU":
        told.append(f"fetching weights over PCIe {card.pcie}")
    return f"; {' and '.join(told)} is counted" if told else ""


def _made_whole(config: TrainingConfig, architecture: Architecture, hardware: Hardware) -> Making:
    memory = config.memory
    offloaded = memory.offload_blocks and hardware.name != "CPU"  # what would leave the card is there anyway
    return making(architecture, memory.base_weights, BYTES[memory.precision], offloaded)
