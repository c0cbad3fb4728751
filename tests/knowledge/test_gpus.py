"""Cards are found by whatever name they are called, and their figures hang together."""

import pytest

from knowledge.answers import PlainError
from knowledge.gpus import GB, find_gpu, gpu, gpus


@pytest.mark.parametrize(
    ("asked", "memory", "found"),
    [
        ("NVIDIA GeForce RTX 3060", 0, "RTX 3060 12GB"),
        ("NVIDIA GeForce RTX 3060", 8 * GB, "RTX 3060 8GB"),
        ("rtx3060", 0, "RTX 3060 12GB"),
        ("3060 8 GB", 0, "RTX 3060 8GB"),
        ("RTX 4070 Ti SUPER", 0, "RTX 4070 Ti Super"),
        ("4070ti", 0, "RTX 4070 Ti"),
        ("4070", 0, "RTX 4070"),
        ("NVIDIA GeForce RTX 4090", 0, "RTX 4090"),
        ("NVIDIA A100-SXM4-80GB", 0, "A100 80GB"),
        ("A100-PCIE-40GB", 0, "A100 40GB"),
        ("NVIDIA H200", 0, "H200 SXM"),
        ("NVIDIA H100 80GB HBM3", 0, "H100 SXM"),
        ("NVIDIA RTX A6000", 0, "RTX A6000"),
        ("NVIDIA RTX 6000 Ada Generation", 0, "RTX 6000 Ada"),
        ("Tesla T4", 0, "T4"),
        ("Tesla V100-SXM2-16GB", 0, "V100 SXM2"),
        ("NVIDIA L4", 0, "L4"),
        ("NVIDIA L40S", 0, "L40S"),
        ("NVIDIA TITAN RTX", 0, "Titan RTX"),
    ],
)
def test_a_card_is_found_by_what_drivers_and_people_call_it(asked, memory, found):
    assert gpu(asked, memory).name == found


@pytest.mark.parametrize("asked", ["NVIDIA GeForce RTX 4090 Laptop GPU", "Voodoo 2", "Radeon RX 7900 XTX", ""])
def test_an_unknown_card_is_nobody(asked):
    assert gpu(asked) is None
    with pytest.raises(PlainError, match="no figures"):
        find_gpu(asked)


def test_every_card_is_found_by_its_own_name():
    assert len(gpus()) >= 40
    for card in gpus():
        assert gpu(card.name, card.memory_bytes) == card


@pytest.mark.parametrize("card", gpus(), ids=lambda card: card.name)
def test_the_figures_of_a_card_are_possible(card):
    assert card.fp32_flops <= card.fp16_flops <= 32 * card.fp32_flops
    assert 2 * GB <= card.memory_bytes <= 256 * GB
    assert 100e9 < card.bandwidth < 10e12
    assert card.source in ("vendor", "derived")
    assert card.hardware().capability == card.capability
