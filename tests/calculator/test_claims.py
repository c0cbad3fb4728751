"""Claims about memory that readers meet elsewhere stand beside figures of ours: those of the calculator."""

import pytest

from calculator.memory import estimate_memory
from knowledge.architectures import architecture
from knowledge.config import TrainingConfig, with_values
from knowledge.facts import Hardware
from knowledge.names import find

CARD = Hardware("RTX 3060", 12 * 2**30, capability=(8, 6))

# Which run each number of the entry is of: family, side in pixels, batch, network, checkpointing.
FIGURES = {
    "sdxl_one_at_1024": ("sdxl", 1024, 1, "lora", True),
    "sdxl_one_at_1024_plain": ("sdxl", 1024, 1, "lora", False),
    "sdxl_two_at_768": ("sdxl", 768, 2, "lora", True),
    "sdxl_four_at_512": ("sdxl", 512, 4, "lora", True),
    "sd15_one_at_1024": ("sd15", 1024, 1, "lora", True),
    "sd15_two_at_768": ("sd15", 768, 2, "lora", True),
    "sd15_four_at_512": ("sd15", 512, 4, "lora", True),
    "sd15_four_at_512_plain": ("sd15", 512, 4, "lora", False),
    "sd15_loha_four_at_512": ("sd15", 512, 4, "loha", True),
    "sd15_loha_four_at_512_plain": ("sd15", 512, 4, "loha", False),
    "sd15_two_at_512": ("sd15", 512, 2, "lora", True),
    "sd15_two_at_512_plain": ("sd15", 512, 2, "lora", False),
}


def likely(family, side, batch, algorithm, checkpointing):
    values = {
        "base_model.family": family,
        "base_model.path": "model",
        "dataset.resolution": side,
        "dataset.bucket_maximum_side": 2048,
        "memory.precision": "bf16",
        "memory.gradient_checkpointing": checkpointing,
        "memory.cache_text_encoder_outputs": True,
        "schedule.batch_size": batch,
        "network.algorithm": algorithm,
        "network.rank": 16,
        "network.alpha": 16.0,
    }
    config = with_values(TrainingConfig(), values)
    return estimate_memory(config, architecture(family), {(side, side): 100}, CARD).likely_bytes


@pytest.mark.parametrize("name", FIGURES)
def test_the_figures_beside_the_claims_are_the_calculators(name):
    assert find("schedule.batch_size").numbers[name] == pytest.approx(likely(*FIGURES[name]), rel=0.02)


def test_every_figure_stands_beside_a_claim():
    entry = find("schedule.batch_size")
    told = " ".join(myth.truth for myth in entry.myths)
    for name in FIGURES:
        assert f"{entry.numbers[name] / 2**30:.3g} GB" in told
    claims = " ".join(myth.claim for myth in entry.myths)
    for claimed in ("6-8 GB", "4-6 GB", "8 GB", "6 GB"):
        assert claimed in claims


def test_sdxl_goes_beyond_6_gb_even_where_it_needs_least():
    assert likely("sdxl", 512, 1, "lora", True) > 6 * 2**30
