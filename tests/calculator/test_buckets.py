"""Placements agree with kohya's sd-scripts to the integer: 16 settings × 200 picture sizes."""

import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from calculator.buckets import bucket_sizes, place, place_in, place_without_enlarging, predefined_sizes
from knowledge.config import DatasetSettings

RECORDED = json.loads((Path(__file__).parent.parent / "data" / "buckets.json").read_text())


def placed(settings, width, height):
    """A placement under recorded settings, which unlike ours may have a resolution that is not square."""
    resolution = tuple(settings["resolution"])
    if not settings.get("enable_bucket", True):
        return place_in((resolution,), width, height)
    if settings["bucket_no_upscale"]:
        return place_without_enlarging(width, height, resolution, settings["bucket_reso_steps"])
    limits = (settings["min_bucket_reso"], settings["max_bucket_reso"], settings["bucket_reso_steps"])
    return place_in(predefined_sizes(resolution, *limits), width, height)


@pytest.mark.parametrize(
    "settings", RECORDED["settings"], ids=lambda s: f"{s['resolution']}-{s.get('bucket_no_upscale')}"
)
def test_every_recorded_picture_gets_the_recorded_placement(settings):
    compared = 0
    for (width, height), row in zip(RECORDED["sizes"], settings["rows"], strict=True):
        if row[0] == "error" or 0 in row[0]:
            continue
        bucket, resized, _, crop = row
        ours = placed(settings, width, height)
        assert (list(ours.bucket), list(ours.resized)) == (bucket, resized), (width, height)
        assert list(ours.crop) == pytest.approx(crop, abs=1e-9), (width, height)
        compared += 1
    assert compared >= 190


@pytest.mark.parametrize(
    "settings", [s for s in RECORDED["settings"] if s.get("predefined")], ids=lambda s: str(s["resolution"])
)
def test_the_list_of_shapes_is_the_recorded_one(settings):
    limits = (settings["min_bucket_reso"], settings["max_bucket_reso"], settings["bucket_reso_steps"])
    assert [list(size) for size in predefined_sizes(tuple(settings["resolution"]), *limits)] == settings["predefined"]


def test_our_settings_reach_the_same_functions():
    settings = DatasetSettings(resolution=512)
    assert bucket_sizes(settings) == predefined_sizes((512, 512), 256, 1024, 64)
    assert place(768, 512, settings).bucket == (640, 384)
    # 300 × 200 is smaller than the resolution: kept, and cut down to multiples of 64
    assert place(300, 200, settings.model_copy(update={"bucket_no_upscale": True})).bucket == (256, 192)
    finer = settings.model_copy(update={"bucket_no_upscale": True, "bucket_step": 40})
    assert place(300, 200, finer).bucket == (280, 200)
    assert place(1920, 1080, settings.model_copy(update={"buckets": False})).resized == (910, 512)
    limited = settings.model_copy(update={"bucket_minimum_side": 448, "bucket_maximum_side": 576, "bucket_step": 32})
    # Sides from 448 to 576 in steps of 32, at most 512 × 512 = 262144 pixels: 262144 / 576 = 455, / 544 = 481.
    assert bucket_sizes(limited) == ((448, 576), (480, 544), (512, 512), (544, 480), (576, 448))


def test_limits_between_two_multiples_are_widened():
    # 300 → 256 and 1000 → 1024 with a step of 64
    assert predefined_sizes((512, 512), 300, 1000, 64) == predefined_sizes((512, 512), 256, 1024, 64)


@example(width=1, height=16257, resolution=64, step=64, enlarge=False, buckets=True)
@given(
    width=st.integers(1, 20_000),
    height=st.integers(1, 20_000),
    resolution=st.sampled_from([64, 256, 512, 768, 1024]),
    step=st.sampled_from([8, 32, 64]),
    enlarge=st.booleans(),
    buckets=st.booleans(),
)
def test_every_picture_covers_its_bucket(width, height, resolution, step, enlarge, buckets):
    settings = DatasetSettings(
        resolution=resolution,
        buckets=buckets,
        bucket_step=step,
        bucket_minimum_side=resolution // 4,
        bucket_maximum_side=resolution * 2,
        bucket_no_upscale=not enlarge,
    )
    placement = place(width, height, settings)
    assert min(placement.bucket) >= 8
    assert all(side >= part for side, part in zip(placement.resized, placement.bucket, strict=True))
    if buckets:
        assert all(side % step == 0 for side in placement.bucket)
    if not (buckets and not enlarge):
        assert placement.bucket in bucket_sizes(settings)
