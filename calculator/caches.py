"""What is kept of pictures and captions that were encoded once, in bytes, and where: on disk or in main memory."""

from __future__ import annotations

from knowledge.architectures import Architecture
from knowledge.config import TrainingConfig


def cached_bytes(config: TrainingConfig, architecture: Architecture, pictures: int) -> int:
    """Kept latents and text outputs of this many pictures, each with a caption of its own.

    Of a latent, mean and deviation in fp32, twice where pictures are mirrored too.
    """
    one = 0
    if config.memory.cache_latents:
        area = (config.dataset.resolution / architecture.latent_factor) ** 2
        one += round(2 * 4 * architecture.latent_channels * area) * (2 if config.dataset.flip else 1)
    if config.memory.cache_text_encoder_outputs:
        one += text_output_bytes(config, architecture)
    return one * pictures


def text_output_bytes(config: TrainingConfig, architecture: Architecture) -> int:
    """What the text encoders make of one caption; a last norm, which SDXL's do without, gives fp32 on a card."""
    tokens, width, pooled = architecture.text_outputs(config.base_model.maximum_tokens + 2)
    normed = len(architecture.text_encoders) == 1
    return (4 if normed or config.memory.precision == "fp32" else 2) * (tokens * width + pooled)


def cached_in_memory(config: TrainingConfig, architecture: Architecture, pictures: int) -> int:
    """Of these bytes, those in main memory."""
    return cached_bytes(config, architecture, pictures) if config.memory.cache_location == "memory" else 0


def cached_on_disk(config: TrainingConfig, architecture: Architecture, pictures: int) -> int:
    """Of these bytes, those on disk."""
    return cached_bytes(config, architecture, pictures) if config.memory.cache_location == "disk" else 0
