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
        ("Tesla V100-SXM2-16GB", 0, "V100 SXM2 16GB"),
        ("V100", 32 * GB, "V100 SXM2 32GB"),
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


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("RTX 3065", r"The closest are [^;]*RTX 3060[^;]*; all \d+: lora-wizard calc --gpu list"),
        ("RTX 4090 Laptop GPU", r"The closest are RTX 4090, "),
        ("12 GB", r"calc --allow 12GB$"),
        ("7.5gb VRAM", r"calc --allow 7\.5GB$"),
    ],
)
def test_an_unknown_card_is_answered_with_a_few_or_with_the_flag_for_an_amount(asked, said):
    with pytest.raises(PlainError, match=said) as raised:
        find_gpu(asked)
    assert sum(card.name in str(raised.value) for card in gpus()) <= 6


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
    assert 7e9 < card.link_bandwidth < 64e9
    assert card.bf16_flops == (card.fp16_flops if card.capability >= (8, 0) else card.fp32_flops)
    assert (card.fp8_flops or 0) == (2 * card.fp16_flops if card.capability >= (8, 9) else 0)
    assert card.hardware().capability == card.capability


# Dense rates in fp16 and fp8, summed in fp32, bandwidth and memory, from data sheets and white papers of NVIDIA.
@pytest.mark.parametrize(
    ("name", "memory", "bandwidth", "fp16", "fp8"),
    [
        ("P100 PCIe", 16, 732, 18.7, None),
        ("V100 SXM2 16GB", 16, 900, 125, None),
        ("V100 SXM2 32GB", 32, 900, 125, None),
        ("T4", 16, 320, 65, None),
        ("A30", 24, 933, 165, None),
        ("A100 40GB", 40, 1555, 312, None),
        ("A100 80GB", 80, 2039, 312, None),
        ("A10", 24, 600, 125, None),
        ("A40", 48, 696, 149.7, None),
        ("RTX A6000", 48, 768, 154.8, None),
        ("RTX 3090", 24, 936, 71, None),
        ("RTX 4090", 24, 1008, 165.2, 330.3),
        ("L4", 24, 300, 121, 242.5),
        ("L40S", 48, 864, 362, 733),
        ("RTX 6000 Ada", 48, 960, 364.2, 728.5),
        ("H100 PCIe", 80, 2039, 756, 1513),
        ("H100 SXM", 80, 3350, 989.4, 1978.9),
        ("H200 SXM", 141, 4800, 989.4, 1978.9),
        ("RTX 5090", 32, 1792, 209.5, 419),
    ],
)
def test_figures_are_those_of_the_vendors_documents(name, memory, bandwidth, fp16, fp8):
    card = find_gpu(name)
    assert card.memory_bytes == memory * GB
    assert card.bandwidth / 1e9 == pytest.approx(bandwidth, rel=0.01)
    assert card.fp16_flops / 1e12 == pytest.approx(fp16, rel=0.01)
    assert card.fp8_flops == (None if fp8 is None else pytest.approx(fp8 * 1e12, rel=0.02))


def test_every_name_that_clouds_rent_by_is_one_cards():
    names = [card.sky for card in gpus() if card.sky]
    assert len(set(names)) == len(names) >= 12
