from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calculator.buckets import place
from calculator.plan import plan
from calculator.steps import batches, views
from calculator.validation import trained_on
from engine.dataset.batches import dataset_items, epoch_batches, still_batches
from engine.dataset.folders import scan, suggest_folders
from engine.dataset.images import Look
from knowledge.config import DatasetFolder, DatasetSettings, TrainingConfig, with_values
from knowledge.facts import DatasetFacts, FolderFacts, Hardware, Picture

DATA = Path(__file__).parents[1] / "data"
REFERENCE = json.loads((DATA / "dataset_batches.json").read_text())
KOHYA = DatasetSettings(folders=suggest_folders(DATA / "pictures"))


def facts(*folders: FolderFacts) -> DatasetFacts:
    return DatasetFacts(folders)


def folder(count: int, repeats: int = 1, regularisation: bool = False, size=(64, 64)) -> FolderFacts:
    name = "reg" if regularisation else "img"
    pictures = tuple(Picture(f"{name}/{i}.png", *size, caption=f"{name} {i}") for i in range(count))
    return FolderFacts(pictures, repeats, regularisation)


@pytest.mark.parametrize("run", REFERENCE, ids=lambda run: " ".join(run["args"]))
def test_an_epoch_is_sd_scripts_in_all_that_is_counted(run):
    batch_size = int(run["args"][1])
    dataset = scan(KOHYA)
    epoch = epoch_batches(dataset, KOHYA, batch_size, seed=42, epoch=1)
    assert len(epoch) == run["batches_per_epoch"]
    assert sorted([[b.width, b.height], len(b.items)] for b in epoch) == run["batch_sizes"]
    shown = Counter(Path(item.picture.path).name for batch in epoch for item in batch.items)
    placed = {Path(item.picture.path).name: item.placement for batch in epoch for item in batch.items}
    captions = {Path(i.picture.path).name: c for b in epoch for i, c in zip(b.items, b.captions, strict=True)}
    for image in run["images"]:
        name = Path(image["key"]).name
        assert shown[name] == image["repeats"]
        assert list(placed[name].bucket) == image["bucket"]
        assert list(placed[name].resized) == image["resized"]
        assert captions[name] == image["caption"]


def test_the_preview_is_the_run():
    dataset = scan(KOHYA)
    for batch_size in (1, 3, 4, 100):
        epoch = epoch_batches(dataset, KOHYA, batch_size, seed=7, epoch=3)
        made = Counter((batch.width, batch.height) for batch in epoch)
        assert made == batches(views(dataset, KOHYA), batch_size)
        assert all(len(batch.items) <= batch_size for batch in epoch)


SHAPES = st.tuples(st.integers(16, 3000), st.integers(16, 3000))
FOLDERS = st.tuples(st.lists(SHAPES, min_size=1, max_size=8), st.integers(1, 4), st.booleans())


@settings(deadline=None, max_examples=60)
@given(
    folders=st.lists(FOLDERS, min_size=1, max_size=4),
    resolution=st.sampled_from([256, 512, 768]),
    step=st.sampled_from([32, 64]),
    buckets=st.booleans(),
    no_upscale=st.booleans(),
    batch_size=st.integers(1, 6),
    accumulation=st.integers(1, 3),
    epochs=st.integers(1, 3),
    held_out=st.sampled_from([0.0, 0.2]),
)
def test_the_plan_of_any_dataset_is_what_the_loader_makes(
    folders, resolution, step, buckets, no_upscale, batch_size, accumulation, epochs, held_out
):
    dataset = facts(
        *(
            FolderFacts(
                tuple(Picture(f"{n}/{i}", *size, f"{i}") for i, size in enumerate(sizes)), repeats, n > 0 and reg
            )
            for n, (sizes, repeats, reg) in enumerate(folders)
        )
    )
    config = with_values(
        TrainingConfig(),
        {
            "dataset.resolution": resolution,
            "dataset.bucket_step": step,
            "dataset.buckets": buckets,
            "dataset.bucket_no_upscale": no_upscale,
            "schedule.batch_size": batch_size,
            "schedule.gradient_accumulation_steps": accumulation,
            "schedule.epochs": epochs,
            "validation.share": held_out,
        },
    )
    told = plan(config, dataset, Hardware("CPU", cores=2))
    trained = trained_on(dataset, config)
    updates = 0
    for epoch in range(1, epochs + 1):
        made = epoch_batches(trained, config.dataset, batch_size, seed=1, epoch=epoch)
        shapes = Counter((batch.width, batch.height) for batch in made)
        assert shapes == {(bucket.width, bucket.height): bucket.batches for bucket in told.buckets}
        assert sum(len(batch.items) for batch in made) == told.views_per_epoch
        assert sum(len(batch.items) < batch_size for batch in made) == told.partial_batches
        updates += sum(1 for _ in range(0, len(made), accumulation))
    assert updates == told.total_steps


def test_epochs_differ_and_each_is_the_same_every_time():
    dataset = facts(folder(20))
    settings = DatasetSettings(flip=True, shuffle_tags=True)
    epochs = [epoch_batches(dataset, settings, 4, 42, epoch) for epoch in (1, 2, 3)]
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[1] == epoch_batches(dataset, settings, 4, 42, 2)
    assert epochs[0] != epoch_batches(dataset, settings, 4, 43, 1)


def test_the_shapes_of_batches_come_in_a_new_order_each_epoch():
    dataset = facts(folder(8), folder(8, size=(64, 128)))
    orders = {
        tuple(
            batch.height
            for batch in epoch_batches(
                dataset, DatasetSettings(resolution=64, bucket_step=16, bucket_minimum_side=16), 1, 1, epoch
            )
        )
        for epoch in range(1, 6)
    }
    assert len(orders) == 5


def test_regularisation_pictures_are_shown_as_often_as_training_pictures():
    epoch = epoch_batches(facts(folder(6, repeats=5), folder(4, regularisation=True)), DatasetSettings(), 1, 42, 1)
    shown = Counter(item.picture.path for batch in epoch for item in batch.items)
    assert sum(n for path, n in shown.items() if path.startswith("reg")) == 30
    assert {n for path, n in shown.items() if path.startswith("reg")} == {7, 8}  # 30 over 4


def test_regularisation_pictures_show_their_own_captions_without_the_trigger_word():
    settings = DatasetSettings(trigger_word="sks")
    epoch = epoch_batches(facts(folder(2), folder(2, regularisation=True)), settings, 1, 42, 1)
    said = {caption for batch in epoch for caption in batch.captions}
    assert said == {"sks, img 0", "sks, img 1", "reg 0", "reg 1"}


def test_captions_are_left_out_in_every_second_epoch():
    settings = DatasetSettings(caption_dropout_every_epochs=2)
    said = [{c for b in epoch_batches(facts(folder(2)), settings, 1, 42, n) for c in b.captions} for n in (1, 2, 3, 4)]
    assert said == [{"img 0", "img 1"}, {""}, {"img 0", "img 1"}, {""}]


def test_of_a_held_out_caption_with_wildcards_one_reading_is_measured_every_time():
    pictures = [Picture(f"{i}.png", 64, 64, "a {red|blue} toy\ntwo {{toys}}") for i in range(20)]
    settings = DatasetSettings(wildcards=True, shuffle_tags=True, caption_dropout_rate=1.0, flip=True)
    held_out = still_batches(pictures, settings, 7)
    captions = [caption for batch in held_out for caption in batch.captions]
    assert set(captions) == {"a red toy", "a blue toy", "two {toys}"}
    assert held_out == still_batches(pictures, settings, 7)
    assert all(batch.looks == (Look(),) for batch in held_out)
    assert [item.index for batch in held_out for item in batch.items] == list(range(7, 27))


def test_regularisation_pictures_beyond_the_balance_are_not_even_cached():
    dataset = facts(folder(2), folder(10, regularisation=True))
    items = dataset_items(dataset, DatasetSettings())
    assert sum(item.regularisation for item in items) == 2
    assert [item.index for item in items] == [0, 1, 2, 3]


def test_flip_mirrors_about_half_and_nothing_when_off():
    dataset = facts(folder(50, repeats=20))
    flips = [look.flip for batch in epoch_batches(dataset, DatasetSettings(flip=True), 4, 1, 1) for look in batch.looks]
    assert 453 < sum(flips) < 547  # 500 ± 3 standard deviations of 15.8
    assert all(look == Look() for b in epoch_batches(dataset, DatasetSettings(), 4, 1, 1) for look in b.looks)


def test_turning_on_flips_leaves_captions_and_order_as_they_were():
    dataset = facts(folder(10))
    plain, flipped = (
        epoch_batches(dataset, DatasetSettings(caption_dropout_rate=0.5, flip=flip), 2, 1, 1) for flip in (False, True)
    )
    assert [(b.items, b.captions) for b in plain] == [(b.items, b.captions) for b in flipped]


def test_sdxl_is_told_the_original_size_and_where_the_picture_lies():
    settings = DatasetSettings(resolution=256, bucket_minimum_side=128)
    dataset = facts(folder(1, size=(257, 511)))
    (batch,) = epoch_batches(dataset, settings, 1, 1, 1)
    # bucket 192×320; 257/511 × 320 = 160.9 wide inside it, (192 − 160.9) // 2 = 15 from the left
    assert batch.sizes == [(511, 257, 0, 15, 320, 192)]
    mirrored = type(batch)(batch.items, batch.captions, (Look(flip=True),), batch.width, batch.height)
    assert mirrored.sizes == [(511, 257, 0, 16, 320, 192)]  # 192 − 175.9


def test_every_placement_is_the_calculators():
    dataset = facts(folder(3, size=(300, 200)), folder(2, size=(100, 400)))
    settings = DatasetSettings(resolution=128, folders=(DatasetFolder(path="img"),))
    for item in dataset_items(dataset, settings):
        assert item.placement == place(item.picture.width, item.picture.height, settings)


def test_random_crops_stay_inside_and_differ():
    dataset = facts(folder(30, repeats=10, size=(100, 64)))
    settings = DatasetSettings(resolution=64, buckets=False, random_crop=True)
    cuts = [look.cut for batch in epoch_batches(dataset, settings, 4, 1, 1) for look in batch.looks]
    assert {top for _, top in cuts} == {0}
    assert min(left for left, _ in cuts) < 4
    assert max(left for left, _ in cuts) > 32  # 100 − 64 = 36 is the last place
    assert max(left for left, _ in cuts) <= 36


def test_colours_change_in_a_third_of_the_views_and_a_little():
    dataset = facts(folder(50, repeats=20))
    batches_ = epoch_batches(dataset, DatasetSettings(colour_augmentation=True), 4, 1, 1)
    looks = [look for batch in batches_ for look in batch.looks]
    assert 285 < sum(look != Look() for look in looks) < 375  # 330 ± 3 standard deviations of 14.9
    assert all(abs(look.hue) <= 16 and 0.95 <= look.gamma <= 1.05 for look in looks)
    assert any(look.hue for look in looks)
    assert any(look.gamma != 1 for look in looks)
