"""Frozen weights held smaller or elsewhere: what a step on them needs and how long it takes, against traces."""

from dataclasses import replace

import pytest

from calculator.duration import step_seconds
from calculator.held_weights import making
from calculator.memory import estimate_memory
from calculator.plan import plan
from calculator.step_cost import Course, Sizes, activation_bytes, work
from knowledge.architectures import architecture
from knowledge.config import TrainingConfig, with_values
from knowledge.facts import DatasetFacts, FolderFacts, Hardware, Picture

CARD = Hardware("RTX 3090", 24 * 2**30, capability=(8, 6))
CPU = Hardware("CPU", cores=2)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    "held",
    [
        {"base_weights": "fp8"},
        {"base_weights": "nf4"},
        {"offloaded": True, "base_weights": "fp8"},
        {"full_half": True},
    ],
    ids=lambda held: " ".join(map(str, held.values())),
)
def test_a_step_on_held_weights_takes_what_the_calculator_says(held, checkpointing):
    import engine.tools.trace_memory as tracer

    point, sizes = tracer.Point(8, 0, 4, 16, 24), Sizes(4, 16 * 24, 8, 0)
    plain = Course("pocket", "lora", False, True, checkpointing)
    course = replace(plain, **held)
    (traced,) = tracer.trace(course, [point])
    assert activation_bytes(course, sizes) == pytest.approx(traced.log.max(), rel=0.01)
    if course.full_half:
        return
    # Making weights whole, beyond what a step computes on plain ones. The trace does not see where fp8 is scaled in
    # place, but main memory being read; and of a checkpoint, layers after the last kept tensor are not computed again.
    times = 3 if checkpointing else 2
    once = making(architecture("pocket"), course.base_weights, 2, course.offloaded)
    unseen = 2 * sum(layer.matrix for layer in architecture("pocket").layers["unet"] if layer.group)
    moved = times * (once.traffic - (unseen if course.base_weights == "fp8" else 0) + once.copied)
    on_plain = work(plain, sizes)
    assert 0.8 * moved < traced.traffic - on_plain.traffic < 1.25 * moved
    assert 0.8 * times * once.launches < traced.launches - on_plain.launches < 1.1 * times * once.launches


def test_held_weights_take_time_by_their_bytes_and_the_estimate_says_so():
    def step(**memory) -> float:
        return step_seconds(config_of(**memory), architecture("sdxl"), (1024, 1024), CARD)

    def config_of(**memory):
        changes = {"base_model.family": "sdxl", "base_model.path": "m", "memory.precision": "bf16"}
        changes |= {"memory.gradient_checkpointing": True, "dataset.resolution": 1024}
        return with_values(TrainingConfig(), changes | {f"memory.{key}": value for key, value in memory.items()})

    plain, fp8, nf4 = step(), step(base_weights="fp8"), step(base_weights="nf4")
    offloaded, both = step(offload_blocks=True), step(offload_blocks=True, base_weights="fp8")
    # 2.53 thousand million weights: three times over PCIe 4.0, of which 16 lanes carry 31.5 GB/s and copies reach 0.8.
    assert offloaded - plain == pytest.approx(3 * 2 * 2.53e9 / (0.8 * 31.5e9), rel=0.15)
    # Three times 1 + 3×2 bytes each at 0.95 of 936 GB/s, and starting the kernels, which lies partly beside it.
    assert 1 < (fp8 - plain) / (3 * 7 * 2.53e9 / 0.95 / 936e9) < 2.2
    assert plain < nf4 < fp8 < both < offloaded

    def told(**memory) -> str:
        pictures = DatasetFacts((FolderFacts((Picture("a", 1024, 1024, "a"),), 10),))
        return plan(config_of(**memory), pictures, CARD).duration.basis

    assert "counted" not in told()
    assert told(base_weights="nf4").endswith("; unpacking nf4 weights is counted")
    assert told(base_weights="fp8", offload_blocks=True).endswith(
        "; unpacking fp8 weights and fetching weights over PCIe 4.0 x16 is counted"
    )
    assert step_seconds(config_of(offload_blocks=True), architecture("sdxl"), (512, 512), CPU) == step_seconds(
        config_of(), architecture("sdxl"), (512, 512), CPU
    )


def test_the_forecast_shrinks_by_what_is_held_smaller_or_elsewhere():
    def base_model(name: str = "RTX 3060", **memory) -> int:
        changes = {"base_model.family": "sdxl", "base_model.path": "m", "memory.precision": "bf16"}
        changes |= {
            "memory.cache_text_encoder_outputs": True,
            **{f"memory.{key}": value for key, value in memory.items()},
        }
        config = with_values(TrainingConfig(), changes)
        found = estimate_memory(config, architecture("sdxl"), {(512, 512): 4}, Hardware(name, 12 * 2**30, (8, 6)))
        return found.phases["training"]["base model"]

    plain = base_model()
    assert base_model(base_weights="fp8") == pytest.approx(0.5 * plain, rel=0.02)
    assert base_model(base_weights="nf4") == pytest.approx(0.28 * plain, rel=0.03)
    assert base_model(offload_blocks=True) < 0.02 * plain
    assert base_model("CPU", offload_blocks=True) == plain  # there is nowhere to put it
