"""The pictures of a run come from its events alone."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from PIL import Image

from engine.events import RunStarted, StepFinished
from engine.run_folder import RunFolder
from wizard.charts import before_after, draw_charts, loss_chart, moving_average, steps_of


@pytest.fixture
def run(tmp_path, story, losses):
    events = story(losses(lambda share: 0.1, 60, 1), samples_every=20)
    (tmp_path / "samples").mkdir()
    for event in events:
        if hasattr(event, "prompt"):
            Image.new("RGB", (64, 64), (event.step * 4, event.index * 200, 90)).save(tmp_path / event.path)
    return RunFolder(tmp_path), events


def test_moving_average_matches_the_working_by_hand():
    """Windows of 2 over 1, 3, 5: means 2 and 4; each varies by sqrt(2), so the mean errs by 1."""
    assert moving_average([1, 2, 3], [1.0, 3.0, 5.0], 2) == ([1.5, 2.5], [2.0, 4.0], [pytest.approx(1.0)] * 2)


def test_every_chart_is_drawn_and_can_be_opened(run):
    folder, events = run
    charts = draw_charts(folder, events)
    for path in (charts.loss, charts.learning_rate, charts.before_after, charts.over_time):
        with Image.open(path) as picture:
            assert min(picture.size) > 300
    assert not list(folder.path.glob(".*"))


def test_before_and_after_hold_the_samples_pixel_by_pixel(run):
    folder, events = run
    path = before_after(events, folder.path, folder.path / "pairs.png")
    with Image.open(path) as sheet:
        colours = {colour for _, colour in sheet.getcolors(maxcolors=1 << 20)}
    assert {(0, 0, 90), (0, 200, 90), (240, 0, 90), (240, 200, 90)} <= colours
    assert (80, 0, 90) not in colours  # step 20 is neither before nor after


def test_nothing_is_drawn_where_there_is_nothing_to_show(tmp_path, story):
    charts = draw_charts(RunFolder(tmp_path), story([0.1]))
    assert (charts.loss, charts.learning_rate, charts.before_after, charts.over_time) == (None, None, None, None)


def test_losses_that_are_no_numbers_are_left_out(tmp_path, story):
    assert loss_chart(story([0.1, 0.2, math.nan, 0.1]), tmp_path / "loss.png") is not None
    assert loss_chart(story([math.nan] * 5), tmp_path / "none.png") is None


def test_a_missing_sample_leaves_a_grey_square(run):
    folder, events = run
    next(folder.samples.glob("step-000000_00.png")).unlink()
    assert before_after(events, folder.path, folder.path / "pairs.png") is not None


def test_steps_done_again_count_once(story):
    events = story([0.1] * 30, finished=False)
    start = next(e for e in events if isinstance(e, RunStarted))
    again = [replace(e, loss=0.9) for e in events if isinstance(e, StepFinished) and e.step > 20]
    steps = steps_of([*events, replace(start, first_step=21), *again])
    assert [step.step for step in steps] == list(range(1, 31))
    assert [step.loss for step in steps] == [0.1] * 20 + [0.9] * 10
