"""Room for what is encoded once, where it is kept."""

import pytest

from calculator.plan import plan
from knowledge.config import TrainingConfig, with_values
from knowledge.facts import DatasetFacts, FolderFacts, Hardware, Picture

DATASET = DatasetFacts((FolderFacts((Picture("a.png", 1024, 1024),) * 10),))
CARD, CPU = Hardware("RTX 3060", 12 * 1024**3, capability=(8, 6)), Hardware("CPU")
SDXL = {
    "base_model.family": "sdxl",
    "base_model.path": "x.safetensors",
    "dataset.resolution": 1024,
    "memory.cache_text_encoder_outputs": True,
}
KEPT = 10 * (2 * 4 * 4 * 128 * 128 + 4 * (77 * 2048 + 1280))
"""Ten latents of 4 × 128 × 128, mean and deviation, and 77 × 2048 numbers and 1280 of ten captions, all in fp32."""


def planned(location, hardware=CARD, **changes):
    return plan(with_values(TrainingConfig(), SDXL | {"memory.cache_location": location} | changes), DATASET, hardware)


def test_what_is_kept_in_main_memory_is_not_on_disk():
    disk, memory = planned("disk"), planned("memory")
    assert disk.disk_bytes - memory.disk_bytes == KEPT
    assert (disk.cached_in_memory_bytes, memory.cached_in_memory_bytes) == (0, KEPT)
    assert disk.vram == memory.vram  # neither is on the card


def test_without_a_card_it_is_a_part_of_the_memory():
    disk, memory = planned("disk", CPU), planned("memory", CPU)
    assert memory.vram.likely_bytes - disk.vram.likely_bytes == KEPT
    assert memory.vram.parts["kept pictures"] == KEPT


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"memory.precision": "bf16"}, 10 * (524288 + 2 * (77 * 2048 + 1280))),
        ({"base_model.maximum_tokens": 225}, 10 * (524288 + 4 * (227 * 2048 + 1280))),
        ({"dataset.flip": True, "memory.cache_text_encoder_outputs": False}, 20 * 524288),
        ({"memory.cache_latents": False, "memory.cache_text_encoder_outputs": False}, 0),
    ],
)
def test_it_follows_what_is_kept(changes, kept):
    assert planned("memory", **changes).cached_in_memory_bytes == kept
