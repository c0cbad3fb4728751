"""The UNet's blocks as sd-scripts numbers them, and what a network's settings say of each: rank, alpha, rate.

SD 1.x and 2.x have 25: twelve down, one in the middle, twelve up. SDXL has 23, of which the first and the last hold no
layer that a network can be put on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING

from knowledge.families import family_facts

if TYPE_CHECKING:
    from knowledge.config import NetworkSettings

DOWN_OR_UP = re.compile(r"^lora_unet_(down|up)_blocks_(\d+)_(resnets|attentions|downsamplers|upsamplers)_(\d+)_")
ORIGINAL = re.compile(r"^lora_unet_(input_blocks|middle_block|output_blocks)_(\d+)_")
FIRST = {"input_blocks": 1, "middle_block": 10, "output_blocks": 13}
"""SDXL's first block of each kind."""
ATTENTION = "_attn"
"""Part of the name of every layer inside attention: attn1, attn2, and self_attn in text encoders."""
LISTS = ("block_ranks", "block_alphas", "conv_block_ranks", "conv_block_alphas", "block_rates")
"""Settings of network that hold a number for every block."""
lists_of = attrgetter(*LISTS)


@dataclass(frozen=True)
class LayerSettings:
    """What one layer is adapted with; `rate` multiplies the learning rate of its part."""

    rank: int
    alpha: float
    rate: float = 1.0


def block_of(name: str) -> int | None:
    """The block that a layer of this saved name stands in; None for a text encoder's."""
    original = ORIGINAL.match(name)
    if original:
        return FIRST[original[1]] + int(original[2])
    place = DOWN_OR_UP.match(name)
    if place:
        inside = int(place[4]) if place[3] in ("resnets", "attentions") else 2
        return (1 if place[1] == "down" else 13) + 3 * int(place[2]) + inside
    return 12 if name.startswith("lora_unet_mid_block_") else None


def numbers(text: str) -> tuple[float, ...]:
    """The numbers of a list with commas. Raises ValueError when something in it is no number."""
    return tuple(float(part) for part in text.split(",")) if text.strip() else ()


def layer_settings(name: str, convolution: bool, network: NetworkSettings) -> LayerSettings | None:
    """What the layer of this saved name is adapted with; None where it or its block is not trained."""
    if network.attention_only and ATTENTION not in name:
        return None
    rank, alpha = (network.conv_rank, network.conv_alpha) if convolution else (network.rank, network.alpha)
    if not any(lists_of(network)):  # most networks, asked a thousand times for one plan
        return LayerSettings(rank, alpha)
    block = block_of(name)
    if block is None:
        return LayerSettings(rank, alpha)
    ranks, alphas, rates = (
        numbers(text)
        for text in (
            network.conv_block_ranks if convolution else network.block_ranks,
            network.conv_block_alphas if convolution else network.block_alphas,
            network.block_rates,
        )
    )
    rank = int(ranks[block]) if ranks else rank
    rate = rates[block] if rates else 1.0
    if rank == 0 or (rates and rate <= network.block_rate_threshold):
        return None
    return LayerSettings(rank, alphas[block] if alphas else alpha, rate)


def problems(network: NetworkSettings, family: str) -> Iterator[str]:
    """One sentence for each list that does not fit the family's blocks."""
    count = family_facts(family).blocks
    for name in LISTS:
        text = getattr(network, name)
        given = numbers(text)
        if given and not count:
            yield f"network.{name} is {text!r}, but the blocks of {family} have no numbers. Leave it empty."
        elif given and len(given) != count:
            yield f"network.{name} has {len(given)} numbers, and {family} has {count} blocks. Give one number for each."
        if name.endswith("ranks") and any(value != int(value) or value > 1024 for value in given):
            yield f"network.{name} is {text!r}; a rank is a whole number up to 1024, or 0 for a block left out."
        if name.endswith("alphas") and any(value == 0 for value in given):
            yield f"network.{name} is {text!r}; an alpha is above 0. A block is left out by a rank or a rate of 0."
