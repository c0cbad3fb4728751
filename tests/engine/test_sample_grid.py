from __future__ import annotations

import pytest
from PIL import Image
from short_runs import Configure

from engine.events import PhaseStarted, SampleSaved
from engine.run_folder import RunFolder
from engine.sample_grid import GRID, MOST_COLUMNS, SIDE, _evenly, samples_over_time
from engine.train import train

CONFIG = {"prompts": ["a toy --s 1 --l 1", "a house --s 1 --l 1"], "every_epochs": 1, "width": 64, "height": 64}


def columns(run: RunFolder) -> int:
    """How many pictures stand beside one another in the grid."""
    with Image.open(run.path / GRID) as grid:
        return round((grid.width - 2 * 36 + 10) / (SIDE + 10))


def told(run: RunFolder, events) -> list[int]:
    """Train to the end of these events, written down as the engine does; the grid's columns after each sampling."""
    found, sampling = [], False
    with run.event_log() as log:
        for event in events:
            log.write(event)
            if sampling and not isinstance(event, SampleSaved):
                found.append(columns(run))
            sampling = isinstance(event, SampleSaved) or (isinstance(event, PhaseStarted) and event.phase == "sampling")
    return found


def test_the_grid_grows_with_every_sampling_and_goes_on_growing_after_a_resume(configure: Configure):
    config = configure(sampling=CONFIG, schedule={"epochs": 4, "maximum_steps": 8})
    run = RunFolder.create(config)
    seen = told(run, train(config, run, should_stop=lambda: run.path.joinpath("samples/step-000004_01.png").exists()))
    assert len(seen) == 3
    assert seen[1:] == [2, 3]
    assert told(run, train(config, run, resume=True))[-1] == 5  # before, and after each of four epochs
    with Image.open(run.path / GRID) as grid:
        assert grid.height > 2 * SIDE  # a row for each prompt


@pytest.fixture
def drawn(tmp_path):
    (tmp_path / "samples").mkdir()
    events = []
    for step in range(0, 400, 20):
        path = tmp_path / "samples" / f"step-{step:06d}_00.png"
        Image.new("RGB", (64, 64), (step // 2, 7, 90)).save(path)
        events.append(
            SampleSaved(step=step, epoch=step // 40, index=0, prompt="a toy", seed=1, path=f"samples/{path.name}")
        )
    return events, tmp_path


def test_a_grid_holds_the_samples_pixel_by_pixel_and_is_no_wider_than_can_be_seen(drawn):
    events, folder = drawn
    samples_over_time(events, folder, folder / GRID)
    with Image.open(folder / GRID) as grid:
        colours = {colour[0] for _, colour in grid.getcolors(maxcolors=1 << 20) if colour[1:] == (7, 90)}
    assert len(colours) == MOST_COLUMNS < len(events)
    assert {0, 190} <= colours  # the first and the last


def test_of_samples_drawn_again_the_later_stands_in_the_grid(drawn):
    events, folder = drawn
    samples_over_time([*events[:3], *events[:3]], folder, folder / GRID)
    assert columns(RunFolder(folder)) == 3


def test_nothing_drawn_makes_no_grid(tmp_path):
    assert samples_over_time([], tmp_path, tmp_path / GRID) is None
    assert not (tmp_path / GRID).exists()


def test_a_long_row_keeps_its_first_and_last_step():
    assert _evenly(list(range(0, 1001, 50)), 5) == [0, 250, 500, 750, 1000]
    assert _evenly([0, 10], 5) == [0, 10]
