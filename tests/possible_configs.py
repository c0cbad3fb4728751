"""Configs of all kinds that the engine can honour, for tests of what holds for every one of them."""

from __future__ import annotations

from typing import Any, get_args

from hypothesis import strategies as st

from calculator.step_cost import Course, has_traced_convolutions
from knowledge.config import CONV_ALGORITHMS, CONVOLUTIONS_TOO, Algorithm, BaseWeights
from knowledge.families import family_names
from knowledge.optimizers import OPTIMIZERS

# The blocks of rotations do not grow with the rank at every width.
GROWING = [name for name in get_args(Algorithm) if name not in ("oft", "boft")]


def reconciled(values: dict[str, Any]) -> dict[str, Any]:
    """The values without what the schema forbids beside each other."""
    found = {"base_model.path": "model", "network.dylora_block_size": 1, **values}
    if found["memory.full_half"]:
        found["memory.precision"] = "bf16"
    # Figures that are put together from other networks' convolutions need not grow with everything.
    course = Course(found["base_model.family"], found["network.algorithm"], False, True, True, convolutions=True)
    if found["network.algorithm"] not in CONVOLUTIONS_TOO or not has_traced_convolutions(course):
        found["network.convolutions"] = False
    if found["network.convolutions"] or found["network.algorithm"] in CONV_ALGORITHMS:
        found["network.attention_only"] = False
    if found["memory.fused_backward"]:
        usable = not OPTIMIZERS[found["optimizer.name"]].pace and found["memory.precision"] != "fp16"
        found |= {"memory.fused_backward": usable, "schedule.gradient_accumulation_steps": 1}
        found["optimizer.maximum_gradient_norm"] = 0.0
    return found


def possible_configs(families: list[str] | None = None) -> st.SearchStrategy[dict[str, Any]]:
    """Values by dotted name."""
    return st.fixed_dictionaries(
        {
            "base_model.family": st.sampled_from(families or list(family_names())),
            "base_model.maximum_tokens": st.sampled_from([75, 150, 225]),
            "network.algorithm": st.sampled_from(GROWING),
            "network.convolutions": st.booleans(),
            "network.attention_only": st.booleans(),
            "network.lokr_full_matrix": st.booleans(),
            "network.rank": st.sampled_from([1, 4, 16, 32, 128]),
            "network.conv_rank": st.sampled_from([1, 8, 32]),
            "network.train_text_encoder": st.booleans(),
            "schedule.batch_size": st.integers(1, 8),
            "schedule.gradient_accumulation_steps": st.sampled_from([1, 4]),
            "memory.precision": st.sampled_from(["bf16", "fp16", "fp32"]),
            "memory.full_half": st.booleans(),
            "memory.base_weights": st.sampled_from(get_args(BaseWeights)),
            "memory.offload_blocks": st.booleans(),
            "memory.gradient_checkpointing": st.booleans(),
            "memory.selective_checkpointing": st.booleans(),
            "memory.fused_backward": st.booleans(),
            "memory.cache_latents": st.booleans(),
            "optimizer.name": st.sampled_from(sorted(OPTIMIZERS)),
            "ema.decay": st.sampled_from([None, 0.999]),
        }
    ).map(reconciled)
