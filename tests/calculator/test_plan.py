"""The plan as a whole: what it adds up, and what it hands to rules and to --json."""

import json
import math

import pytest

from calculator.plan import plan
from knowledge.config import TrainingConfig, with_values
from knowledge.facts import DatasetFacts, FolderFacts, Hardware, Picture

PICTURES = tuple([Picture("wide.png", 768, 512)] * 10 + [Picture("square.png", 600, 600)] * 14)
DATASET = DatasetFacts((FolderFacts(PICTURES, repeats=10),))
CARD = Hardware("RTX 3060", 12 * 1024**3, capability=(8, 6))
CONFIG = with_values(
    TrainingConfig(),
    {"base_model.family": "sd15", "base_model.path": "model", "schedule.batch_size": 4, "memory.precision": "bf16"},
)


def planned(**changes):
    return plan(with_values(CONFIG, {name.replace("__", "."): value for name, value in changes.items()}), DATASET, CARD)


def test_24_pictures_in_two_shapes_make_60_batches():
    found = planned()
    # 100 views of 640×384 make 25 batches of four, 140 of 512×512 make 35
    assert [(b.width, b.height, b.images, b.batches) for b in found.buckets] == [
        (512, 512, 140, 35),
        (640, 384, 100, 25),
    ]
    assert (found.batches_per_epoch, found.total_steps, found.epochs) == (60, 600, 10)
    assert found.views_per_image == 100
    assert found.naive_total_steps == 600
    assert found.partial_batches == 0


def test_a_limit_shortens_views_and_epochs_with_the_steps():
    found = planned(schedule__maximum_steps=150)
    assert (found.total_steps, found.epochs, found.views_per_image) == (150, 3, 25)
    assert found.saved_files == 3  # after epochs 1 and 2, and at the end


def test_only_the_last_files_are_kept_beside_the_final_one():
    assert planned(saving__keep_last=2).saved_files == 3
    assert planned(saving__keep_last=20).saved_files == 10


def test_the_document_has_what_the_design_promises():
    document = planned().as_dict([], learning_rate=True)
    promised = (
        "batches_per_epoch updates_per_epoch total_steps epochs views_per_image buckets trainable_parameters "
        "file_bytes disk_bytes vram duration findings learning_rate"
    )
    assert set(promised.split()) <= set(document)
    assert set(document["vram"]) >= {"low_bytes", "likely_bytes", "high_bytes", "phase", "parts"}
    assert set(document["duration"]) >= {"low_seconds", "likely_seconds", "high_seconds", "basis"}
    assert set(document["buckets"][0]) == {"width", "height", "images", "batches"}
    assert len(document["learning_rate"]) == document["total_steps"]
    assert json.loads(json.dumps(document)) == document


def test_rules_read_numbers_and_words_only():
    known = planned().facts()
    assert known["plan.total_steps"] == 600
    assert known["plan.buckets"] == 2
    assert known["plan.vram_phase"] in ("caching", "training", "sampling", "saving")
    assert known["plan.vram_low_bytes"] <= known["plan.vram_likely_bytes"] <= known["plan.vram_high_bytes"]
    assert known["plan.duration_likely_seconds"] > 0
    assert all(isinstance(value, int | float | str) for value in known.values())


def test_parts_add_up_to_the_likely_figure():
    found = planned()
    assert sum(found.vram.parts.values()) == found.vram.likely_bytes


def test_no_pictures_make_an_empty_plan():
    found = plan(CONFIG, DatasetFacts(), CARD)
    assert (found.total_steps, found.epochs, found.batches_per_epoch, found.views_per_image) == (0, 0, 0, 0)
    assert found.learning_rates() == []
    assert math.isfinite(found.duration.likely_seconds)


@pytest.mark.parametrize("computer", [Hardware("CPU", ram_bytes=8 * 1024**3, cores=2), Hardware("Voodoo 2", 12 << 20)])
def test_a_computer_without_figures_has_a_plan_that_says_so(computer):
    found = plan(CONFIG, DATASET, computer)
    assert 0 < found.duration.low_seconds < found.duration.likely_seconds < found.duration.high_seconds
    assert "not measured" in found.duration.basis or "no figures" in found.duration.basis
