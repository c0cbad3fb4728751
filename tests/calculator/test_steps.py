"""Step counts agree with kohya's sd-scripts, run on real files, to the integer."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calculator.buckets import place_in, place_without_enlarging, predefined_sizes
from calculator.steps import (
    batches,
    naive_total_steps,
    regularisation_views,
    run_length,
    sampling_steps,
    saving_steps,
    state_steps,
    text_encoder_steps,
    views,
)
from knowledge.config import DatasetSettings, SamplingSettings, SavingSettings, ScheduleSettings
from knowledge.facts import DatasetFacts, FolderFacts, Picture

DATA = Path(__file__).parent.parent / "data"
CASES = json.loads((DATA / "steps.json").read_text())["cases"]
RUNS = json.loads((DATA / "dataset_batches.json").read_text())


def dataset_of(subsets):
    return DatasetFacts(
        tuple(
            FolderFacts(
                tuple(Picture("", *kind["size"]) for kind in subset["images"] for _ in range(kind["count"])),
                subset["num_repeats"],
                subset.get("is_reg", False),
            )
            for subset in subsets
        )
    )


def settings_of(recorded):
    return DatasetSettings(
        resolution=recorded["resolution"][0],
        buckets=recorded["enable_bucket"],
        bucket_step=recorded.get("bucket_reso_steps", 64),
        bucket_minimum_side=recorded.get("min_bucket_reso", 256),
        bucket_maximum_side=recorded.get("max_bucket_reso", 2048),
        bucket_no_upscale=recorded.get("bucket_no_upscale", False),
    )


SQUARE_CASES = [c for c in CASES if all(len(set(d["resolution"])) == 1 for d in c["case"]["datasets"])]


@pytest.mark.parametrize("recorded", SQUARE_CASES, ids=lambda c: c["case"]["name"])
def test_a_recorded_run_has_the_recorded_steps(recorded):
    case, expected = recorded["case"], recorded["expected"]
    per_dataset = []
    for part, bucket_counts in zip(case["datasets"], expected["bucket_counts"], strict=True):
        counts = views(dataset_of(part["subsets"]), settings_of(part))
        assert {f"{w}x{h}": n for (w, h), n in counts.items()} == bucket_counts
        per_dataset.append(sum(batches(counts, part["batch_size"]).values()))
    assert per_dataset == expected["batches_per_dataset"]
    limit = {} if "epochs" in case else {"maximum_steps": 1600}
    schedule = ScheduleSettings(
        epochs=case.get("epochs", 100_000), gradient_accumulation_steps=case.get("ga", 1), **limit
    )
    run = run_length(sum(per_dataset), schedule)
    assert run.batches_per_epoch == expected["batches_per_epoch"]
    assert run.updates_per_epoch == expected["updates_per_epoch"]
    assert run.total_steps == expected["max_train_steps"]
    assert run.epochs == expected["num_train_epochs"]


def test_a_resolution_that_is_not_square_gives_the_recorded_buckets():
    (recorded,) = [c for c in CASES if c not in SQUARE_CASES]
    (part,) = recorded["case"]["datasets"]
    sizes = predefined_sizes(tuple(part["resolution"]), 256, 1024, 64)
    counts = {}
    for kind in part["subsets"][0]["images"]:
        bucket = place_in(sizes, *kind["size"]).bucket
        counts[bucket] = counts.get(bucket, 0) + kind["count"]
    assert {f"{w}x{h}": n for (w, h), n in counts.items()} == recorded["expected"]["bucket_counts"][0]
    assert sum(batches(counts, part["batch_size"]).values()) == recorded["expected"]["batches_per_epoch"]


@pytest.mark.parametrize("recorded", RUNS, ids=lambda r: " ".join(r["args"]))
def test_real_pictures_fall_into_the_recorded_batches(recorded):
    from PIL import Image

    folders = {}
    for image in recorded["images"]:
        with Image.open(DATA / "pictures" / image["key"].split("/", 1)[1]) as picture:
            folders.setdefault(image["key"].rsplit("/", 1)[0], (image["repeats"], []))[1].append(
                Picture(image["key"], *picture.size)
            )
    dataset = DatasetFacts(tuple(FolderFacts(tuple(p), repeats) for repeats, p in folders.values()))
    arguments = dict(zip(recorded["args"][::2], recorded["args"][1::2], strict=True))
    counts = views(dataset, DatasetSettings(resolution=512))
    assert [[list(size), n] for size, n in counts.items()] == [
        [bucket["resolution"], bucket["count"]] for bucket in recorded["bucket_info"]["buckets"].values()
    ]
    accumulation = int(arguments.get("--gradient_accumulation_steps", 1))
    run = run_length(
        sum(batches(counts, int(arguments["--train_batch_size"])).values()),
        ScheduleSettings(epochs=100_000, gradient_accumulation_steps=accumulation, maximum_steps=1600),
    )
    assert run.batches_per_epoch == recorded["batches_per_epoch"]
    assert run.updates_per_epoch == recorded["updates_per_epoch"]


def test_buckets_cost_steps_that_the_usual_sum_does_not_see():
    # 10, 6, 5, 3 and 1 pictures in five shapes, batch 4, 10 epochs: ⌈2.5⌉+⌈1.5⌉+⌈1.25⌉+⌈0.75⌉+⌈0.25⌉ = 9 batches
    counts = {(1, 1): 10, (2, 2): 6, (3, 3): 5, (4, 4): 3, (5, 5): 1}
    schedule = ScheduleSettings(epochs=10, batch_size=4)
    assert run_length(sum(batches(counts, 4).values()), schedule).total_steps == 90
    assert naive_total_steps([(25, 1)], schedule) == 63  # 25 × 10 ÷ 4 = 62.5


def test_regularisation_is_repeated_until_it_balances():
    # 13 wanted: the first pass gives 3 + 3, then one each: 8, 10, 12, 13
    assert regularisation_views([("a", 3), ("b", 3)], 13) == {"a": 7, "b": 6}
    # the first pass alone may overshoot, and what is left over is not shown
    assert regularisation_views([("a", 5), ("b", 5), ("c", 5)], 7) == {"a": 5, "b": 5}
    assert regularisation_views([], 7) == {}


def test_processes_share_the_batches():
    # 63 batches on 4 cards are 16 each; two at a time make 8 updates
    run = run_length(63, ScheduleSettings(epochs=3, gradient_accumulation_steps=2), processes=4)
    assert (run.updates_per_epoch, run.total_steps) == (8, 24)


def test_the_last_step_is_always_saved_and_sampled():
    assert saving_steps(SavingSettings(every_epochs=2), 10, 50) == [20, 40, 50]
    assert saving_steps(SavingSettings(every_epochs=None), 10, 50) == [50]
    assert saving_steps(SavingSettings(every_epochs=None, every_steps=20), 10, 50) == [20, 40, 50]
    assert state_steps(SavingSettings(), 10, 50) == []
    assert state_steps(SavingSettings(state_every_epochs=3), 10, 50) == [30, 50]
    sampling = SamplingSettings(prompts=("a cat",), every_epochs=4)
    assert sampling_steps(sampling, 10, 50) == [0, 40, 50]
    assert sampling_steps(sampling.model_copy(update={"at_start": False}), 10, 50) == [40, 50]
    assert sampling_steps(sampling.model_copy(update={"prompts": ()}), 10, 50) == []
    by_steps = sampling.model_copy(update={"every_epochs": None, "every_steps": 20})
    assert sampling_steps(by_steps, 10, 50) == [0, 20, 40, 50]


@given(
    training=st.integers(0, 300),
    pictures=st.lists(st.integers(1, 20), max_size=12),
)
def test_regularisation_never_falls_short_nor_overshoots_by_more_than_one_picture(training, pictures):
    shown = sum(regularisation_views(list(enumerate(pictures)), training).values())
    if pictures and training:
        assert training <= shown < training + max(pictures)
    else:
        assert shown == 0


@given(count=st.integers(1, 500), batch=st.integers(1, 16), accumulation=st.integers(1, 16), limit=st.integers(1, 900))
def test_a_limit_only_shortens(count, batch, accumulation, limit):
    per_epoch = sum(batches({(64, 64): count}, batch).values())
    schedule = ScheduleSettings(epochs=3, gradient_accumulation_steps=accumulation)
    free = run_length(per_epoch, schedule)
    capped = run_length(per_epoch, schedule.model_copy(update={"maximum_steps": limit}))
    assert capped.total_steps == min(limit, free.total_steps)
    assert (
        (capped.epochs - 1) * capped.updates_per_epoch < capped.total_steps <= capped.epochs * capped.updates_per_epoch
    )


def test_a_picture_smaller_than_one_step_is_enlarged_to_it():
    assert place_without_enlarging(1, 1, (512, 512), 64).bucket == (64, 64)


@pytest.mark.parametrize(("total", "share", "steps"), [(10, 0.7, 7), (10, 1.0, 10), (3, 0.5, 2), (1000, 0.0001, 1)])
def test_text_encoders_train_for_their_share_of_the_steps_and_a_begun_step_counts(total, share, steps):
    assert text_encoder_steps(total, share) == steps
