"""Held-out pictures: which, how many, and what the plan makes of them."""

import pytest

from calculator.plan import plan
from calculator.validation import held_out, trained_on, validation_steps
from knowledge.config import TrainingConfig, ValidationSettings, with_values
from knowledge.facts import DatasetFacts, FolderFacts, Hardware, Picture

TRAINED = tuple(Picture(f"{n}.png", 512, 512, f"picture {n}") for n in range(20))
REGULARISATION = tuple(Picture(f"class{n}.png", 512, 512) for n in range(5))
DATASET = DatasetFacts((FolderFacts(TRAINED, repeats=2), FolderFacts(REGULARISATION, regularisation=True)))


def config(share, **changes):
    return with_values(
        TrainingConfig(),
        {"base_model.family": "sd15", "base_model.path": "model", "validation.share": share, **changes},
    )


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.01, 1), (0.1, 2), (0.24, 5), (0.5, 10)])
def test_a_share_is_rounded_to_pictures_and_at_least_one(share, count):
    apart = held_out(DATASET, config(share))
    assert len(apart) == count
    assert set(apart) <= set(TRAINED)
    left = trained_on(DATASET, config(share))
    assert set(left.training_pictures) == set(TRAINED) - set(apart)
    assert left.folders[1] == DATASET.folders[1]
    assert left.folders[0].repeats == 2


def test_one_picture_is_trained_on_and_of_two_one():
    one, two = (DatasetFacts((FolderFacts(TRAINED[:n]),)) for n in (1, 2))
    assert held_out(one, config(0.5)) == ()
    assert len(held_out(two, config(0.5))) == 1


def test_of_equal_pictures_as_many_are_left_as_were_not_held_out():
    twins = DatasetFacts((FolderFacts((TRAINED[0],) * 10),))
    assert trained_on(twins, config(0.3)).images == 7


def test_the_seed_chooses_and_the_same_seed_the_same():
    chosen = held_out(DATASET, config(0.25))
    assert held_out(DATASET, config(0.25)) == chosen
    assert held_out(DATASET, config(0.25, seed=7)) != chosen


def test_the_plan_trains_on_the_rest_and_caches_and_measures_all():
    without, with_some = (plan(config(share), DATASET, Hardware("CPU")) for share in (0.0, 0.25))
    assert (without.views_per_epoch, with_some.views_per_epoch) == (80, 60)  # 40 and 30, each with as many of the class
    assert with_some.duration.parts["caching"] == pytest.approx(without.duration.parts["caching"])
    assert with_some.duration.parts["validation"] > without.duration.parts["validation"] == 0
    files = [found.disk_bytes - found.saved_files * found.file_bytes for found in (without, with_some)]
    assert files[0] == files[1]  # caches of the same pictures


def test_the_base_model_is_measured_first_and_the_end_in_any_case():
    seldom = ValidationSettings(share=0.1, every_epochs=None)
    assert validation_steps(seldom, 10, 35) == [0, 35]
    assert validation_steps(seldom.model_copy(update={"every_epochs": 2}), 10, 35) == [0, 20, 35]
    assert validation_steps(ValidationSettings(), 10, 35) == []


def test_measuring_goes_by_steps_where_it_is_asked_to():
    by_steps = ValidationSettings(share=0.1, every_epochs=None, every_steps=20)
    assert validation_steps(by_steps, 10, 50) == [0, 20, 40, 50]
    assert validation_steps(by_steps.model_copy(update={"share": 0.0}), 10, 50) == []
