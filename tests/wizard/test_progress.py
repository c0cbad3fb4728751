"""Where a run stands, and how that looks."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import pytest

from engine.events import PhaseProgress, PhaseStarted, RunStarted, StepFinished
from wizard import progress as module
from wizard import views
from wizard.narrator import Sentence
from wizard.progress import SPARKS, PlainView, Progress, choose_view, panel, plain_line, sparkline, spoken


def after(events):
    progress = Progress()
    for event in events:
        progress.hear(event)
    return progress


def drawn(renderable, width=80):
    console = views.console(width=width)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get().splitlines()


def test_time_left_comes_from_the_clock_and_includes_pauses(story):
    """100 steps of 0.5 s; sampling after step 50 takes 10 s. From step 1 to 60 pass 59 x 0.5 + 10 = 39.5 s."""
    events = [
        replace(e, at=e.at + 10) if isinstance(e, StepFinished) and e.step > 50 else e
        for e in story([0.1] * 100, finished=False)
    ]
    progress = after(e for e in events if not isinstance(e, StepFinished) or e.step <= 60)
    assert progress.seconds_per_step == pytest.approx(39.5 / 59)
    assert progress.seconds_left == pytest.approx(40 * 39.5 / 59)


def test_nothing_is_said_about_time_before_the_third_step(story):
    assert after(story([0.1] * 2, total_steps=100, finished=False)).seconds_left is None
    assert after(story([0.1] * 3, total_steps=100, finished=False)).seconds_left is not None


def test_the_loss_shown_is_the_mean_of_the_last_fifth(story):
    values = [1.0] * 80 + [0.5] * 20
    assert after(story(values)).smoothed_loss == pytest.approx(0.5)
    assert after(story([math.nan] * 30)).smoothed_loss is None


def test_a_resumed_run_goes_on_from_its_state_and_forgets_the_time_before(story):
    events = story([0.1] * 30, total_steps=50, finished=False)
    start = next(e for e in events if isinstance(e, RunStarted))
    progress = after([*events, replace(start, first_step=21)])
    assert (progress.step, len(progress.losses), progress.seconds_left) == (20, 20, None)


def test_the_phase_is_told_with_how_far_it_is():
    progress = after([PhaseStarted(phase="caching"), PhaseProgress(phase="caching", done=3, total=12)])
    assert progress.doing() == "preparing the pictures, 3 of 12"


def test_a_sparkline_of_noise_stays_in_the_middle(losses):
    for seed in range(20):
        heights = {SPARKS.index(mark) for mark in sparkline(losses(lambda share: 0.1, 600, seed))}
        assert max(heights) - min(heights) <= 5


def test_a_sparkline_of_a_fall_goes_from_top_to_bottom(losses):
    line = sparkline(losses(lambda share: 1 - 0.95 * share, 2000, 1))
    assert line[0] in SPARKS[-2:]
    assert line[-1] == SPARKS[0]


def test_a_sparkline_of_few_steps_is_empty():
    assert sparkline([0.1] * 19) == ""
    assert sparkline([0.1] * 100) != ""


@pytest.mark.parametrize("heard", [0, 1, 4, 8, 60, 200])
def test_the_panel_fits_80_columns_and_10_lines_at_every_moment(story, losses, heard):
    events = story(losses(lambda share: 0.1, 200, 1), samples_every=50)[:heard]
    progress = after(events)
    lines = drawn(panel(progress, progress.last_step_at + 1, "Ctrl-C saves and stops.", 12 * 2**30, 32 * 2**30))
    assert len(lines) <= 10
    assert all(len(line.rstrip()) <= 80 for line in lines)


def test_the_panel_shows_what_a_run_is_asked_for(story, losses):
    events = [
        replace(e, vram_bytes=6 * 2**30) if isinstance(e, StepFinished) else e
        for e in story(losses(lambda share: 0.1, 100, 1), total_steps=200, finished=False)
    ]
    text = "\n".join(drawn(panel(after(events), 0, "", 12 * 2**30, 32 * 2**30)))
    for part in ("fox", "step 100 of 200", "epoch 10 of 20", "50%", "50 s to go", "0.5 s a step", "training"):
        assert part in text
    assert "6.0 GB VRAM of 12.0 GB" in text
    assert "2.0 GB RAM of 32.0 GB" in text


def test_a_sentence_is_shown_with_its_step_and_wrapped_beside_it():
    lines = drawn(spoken(Sentence("word " * 30, 1200, "warning")))
    assert lines[0].startswith("step 1,200 ! word")
    assert lines[1].startswith(" " * 13 + "word")


def test_without_a_terminal_there_are_plain_lines(story, losses, capsys):
    progress = Progress()
    view = choose_view(progress, as_json=False, footer="")
    assert isinstance(view, PlainView)
    with view:
        for event in story(losses(lambda share: 0.1, 100, 1)):
            progress.hear(event)
            view.tell(event, "")
        view.say(Sentence("Something.", 7))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 11  # every tenth of the run, and the sentence
    assert lines[0].startswith("step 10 of 100 (10%) · epoch 1 of 10 · loss ")
    assert lines[-1] == "step 7: Something."


def test_no_color_and_dumb_terminals_get_plain_lines(monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert isinstance(choose_view(Progress(), as_json=False, footer=""), module.LiveView)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(choose_view(Progress(), as_json=False, footer=""), PlainView)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    assert isinstance(choose_view(Progress(), as_json=False, footer=""), PlainView)


def test_the_plain_line_leaves_out_what_is_not_known():
    assert plain_line(Progress(total_steps=10)) == "step 0 of 10 (0%)"


def test_a_step_that_takes_far_too_long_is_noticed(story):
    progress = after(story([0.1] * 20, total_steps=40, finished=False))
    assert "no news" not in "\n".join(drawn(panel(progress, progress.last_step_at + 20)))
    assert "no news for 2 min" in "\n".join(drawn(panel(progress, progress.last_step_at + 120)))


def test_a_long_run_is_drawn_as_fast_as_a_short_one(story):
    """The sparkline reads every loss, so it must not be made anew for every picture of the screen."""
    progress = after(story([0.1, 0.2] * 20_000, finished=False))
    begun = time.perf_counter()
    for moment in range(20):
        panel(progress, progress.last_step_at + moment / 4)
    assert (time.perf_counter() - begun) / 20 < 0.05
