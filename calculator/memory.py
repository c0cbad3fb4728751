"""VRAM of a run, by part and by phase."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from calculator.buckets import Size
from calculator.network_size import BYTES, trainable_parameters
from knowledge.architectures import Architecture
from knowledge.config import OptimizerName, TrainingConfig
from knowledge.facts import Hardware

MIB = 1024**2


@dataclass(frozen=True)
class MemoryEstimate:
    """VRAM in bytes: low, likely and high, the phase that makes the peak, and what it consists of."""

    low_bytes: int
    likely_bytes: int
    high_bytes: int
    phase: str
    parts: dict[str, int]
    basis: str


# Bytes of state that an optimizer keeps per trained weight, its own temporaries not counted.
OPTIMIZER_BYTES: Mapping[OptimizerName, float] = {
    "adamw": 8,
    "adamw8bit": 2.1,
    "lion": 4,
    "adafactor": 0.3,
    "prodigy": 16,
}

CUDA_CONTEXT = 460 * MIB
# Bytes per latent pixel and picture, from traces of SD 1.5 at 512 and SDXL at 1024 in half precision.
ACTIVATIONS = {"pocket": 60_000, "sd15": 312_000, "sdxl": 531_000}
ACTIVATIONS_CHECKPOINTED = {"pocket": 20_000, "sd15": 55_000, "sdxl": 62_000}
HEAVIER = {"lora": 1.0, "locon": 1.25, "dora": 1.5, "loha": 1.6, "lokr": 1.4}
VAE_ENCODE_BYTES_PER_PIXEL = 2572
VAE_DECODE_BYTES_PER_PIXEL = 3072


def estimate_memory(
    config: TrainingConfig, architecture: Architecture, buckets: Iterable[Size], hardware: Hardware
) -> MemoryEstimate:
    """The most VRAM that the run takes at any time."""
    phases = {
        "caching": _caching(config, architecture, buckets),
        "training": _training(config, architecture, buckets),
        "sampling": _sampling(config, architecture),
    }
    phase = max(phases, key=lambda name: sum(phases[name].values()))
    parts = {name: size for name, size in phases[phase].items() if size}
    allocated = sum(parts.values())
    cuda = hardware.name != "CPU"
    weights = parts.get("base model", 0)
    dynamic = allocated - weights
    share = 0.26 if config.memory.gradient_checkpointing else 0.03
    if len(set(buckets)) > 1:
        share = 0.57 if config.memory.gradient_checkpointing else 0.11
    fragmentation = round(0.05 * weights + share * dynamic) if cuda else 0
    context = CUDA_CONTEXT if cuda else 0
    likely = allocated + context + fragmentation
    parts |= {"CUDA context": context, "fragmentation": fragmentation} if cuda else {}
    return MemoryEstimate(
        low_bytes=allocated + context,
        likely_bytes=likely,
        high_bytes=round(likely * 1.15),
        phase=phase,
        parts=parts,
        basis="weights exact; activations scaled from traces of one step",
    )


def _weights(config: TrainingConfig, architecture: Architecture, parts: Iterable[str]) -> int:
    size = BYTES[config.memory.precision]
    return sum(architecture.weights[part] * (4 if part == "vae" else size) for part in parts)


def _training(config: TrainingConfig, architecture: Architecture, buckets: Iterable[Size]) -> dict[str, int]:
    trainable = trainable_parameters(architecture, config.network)
    family, memory = architecture.family, config.memory
    per_latent = (ACTIVATIONS_CHECKPOINTED if memory.gradient_checkpointing else ACTIVATIONS)[family]
    area = max((width * height for width, height in buckets), default=0) / architecture.latent_factor**2
    heavier = HEAVIER[config.network.algorithm] * (2 if memory.precision == "fp32" else 1)
    activations = per_latent * heavier * area * config.schedule.batch_size
    resident = ["unet"]
    resident += [] if memory.cache_text_encoder_outputs else architecture.text_encoders
    resident += [] if memory.cache_latents else ["vae"]
    return {
        "base model": _weights(config, architecture, resident),
        "network": 4 * trainable,
        "gradients": 4 * trainable,
        "optimizer": round(OPTIMIZER_BYTES[config.optimizer.name] * trainable),
        "activations": round(activations),
    }


def _caching(config: TrainingConfig, architecture: Architecture, buckets: Iterable[Size]) -> dict[str, int]:
    if not config.memory.cache_latents:
        return {}
    pixels = max((width * height for width, height in buckets), default=0)
    return {
        "base model": _weights(config, architecture, architecture.configs),
        "network": 4 * trainable_parameters(architecture, config.network),
        "pictures": VAE_ENCODE_BYTES_PER_PIXEL * pixels,
    }


def _sampling(config: TrainingConfig, architecture: Architecture) -> dict[str, int]:
    if not config.sampling.prompts:
        return {}
    width = config.sampling.width or config.dataset.resolution
    height = config.sampling.height or config.dataset.resolution
    trainable = trainable_parameters(architecture, config.network)
    return {
        "base model": _weights(config, architecture, architecture.configs),
        "network": 4 * trainable,
        "optimizer": round(OPTIMIZER_BYTES[config.optimizer.name] * trainable),
        "pictures": VAE_DECODE_BYTES_PER_PIXEL * width * height,
    }
