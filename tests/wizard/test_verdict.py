"""The verdict on a run by its held-out losses."""

import pytest

from engine.events import CheckpointSaved, StepFinished, Validated
from wizard.narrator import narrate
from wizard.verdict import judged


def run(*losses: float, every: int = 10) -> list:
    """A run whose held-out loss was measured before it and after every tenth step, with a file each time."""
    events: list = []
    for index, loss in enumerate(losses):
        step = index * every
        if index:
            rate = {"unet": 1e-4}
            events += [
                StepFinished(
                    step=n, epoch=index, loss=0.1, learning_rate=rate, gradient_norm=1.0, seconds=1.0, images=1
                )
                for n in range(step - every + 1, step + 1)
            ]
        events.append(Validated(step=step, epoch=index, loss=loss, images=5, seconds=1.0))
        if index:
            events.append(CheckpointSaved(step=step, epoch=index, kind="network", path=f"{step}", bytes=1))
    return events


@pytest.mark.parametrize(
    ("losses", "course", "file"),
    [
        ((0.20, 0.18, 0.15, 0.14, 0.16, 0.17), "overtrained", "30"),
        ((0.20, 0.19, 0.17, 0.15, 0.13, 0.11), "undertrained", "50"),
        ((0.20, 0.17, 0.150, 0.1495, 0.1494, 0.1493), "about right", "50"),
        ((0.20, 0.199, 0.20, 0.21, 0.22, 0.25), "learns nothing", None),
    ],
)
def test_the_course_is_told_and_the_file_of_the_lowest_loss_recommended(losses, course, file):
    found = judged(run(*losses))
    assert found is not None
    assert found.course == course
    assert (found.file.path if found.file else None) == file


def test_before_its_end_a_run_without_measurements_has_no_verdict(story, losses):
    assert judged([event for event in run(0.2, 0.1, 0.1) if not isinstance(event, Validated)]) is None
    assert judged(run(0.2, 0.1)) is None
    assert judged(story(losses(lambda share: 0.1, 200), finished=False)) is None


@pytest.mark.parametrize(
    ("level", "steps", "course", "words"),
    [
        (lambda share: 1 - share, 400, "undertrained", "still falling in the last quarter"),
        # It fell, and has been level since the middle: learnt well or by heart, the loss is the same.
        (lambda share: max(0.1, 1 - 2 * share), 400, "cannot be told", "no number here says"),
        (lambda share: 1 - share, 40, "cannot be told", "no number here says"),  # ten losses are no average
    ],
)
def test_without_held_out_pictures_it_says_what_the_loss_bears_and_no_more(story, losses, level, steps, course, words):
    found = judged(story(losses(level, steps)))
    assert found is not None
    assert found.course == course
    assert words in found.text
    assert "No pictures were held out (validation.share)" in found.text
    assert found.file is not None
    assert found.file.step == steps


def test_a_rise_is_told_once_and_a_fall_by_its_figure():
    said = [sentence.text for sentence in narrate(run(0.20, 0.15, 0.16, 0.17, 0.14))]
    assert sum("by heart" in text for text in said) == 1
    assert any("On held-out pictures the loss is 0.14" in text for text in said)
