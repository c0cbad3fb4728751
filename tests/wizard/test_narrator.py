"""The narrator says what the numbers bear, and nothing else."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from engine.events import CheckpointSaved, Failed, PhaseStarted, RunFinished, RunStarted, StepFinished, Warned
from wizard.narrator import Narrator, narrate

TREND_WORDS = ("falls", "falling", "fallen", "risen", "jumped")


def texts(events):
    return [sentence.text for sentence in narrate(events)]


def speaks_of_a_trend(events):
    return [text for text in texts(events) if any(word in text for word in TREND_WORDS)]


def test_noise_alone_is_never_called_a_trend(story, losses):
    false_words = [speaks_of_a_trend(story(losses(lambda share: 0.12, 400, seed))) for seed in range(300)]
    assert sum(map(bool, false_words)) <= 3, [words for words in false_words if words]


def test_noise_alone_is_told_once_that_nothing_can_be_told(story, losses):
    said = [text for text in texts(story(losses(lambda share: 0.12, 400, 1))) if "no trend beyond chance" in text]
    assert len(said) == 1


def test_a_falling_loss_is_told_with_the_numbers_that_show_it(story, losses):
    values = losses(lambda share: 0.3 - 0.2 * min(1, 3 * share), 600, 2)
    first, *_, last = speaks_of_a_trend(story(values))
    early, late = sum(values[:100]) / 100, sum(values[200:300]) / 100  # at half of the run, chance is ruled out
    assert f"{early:.3g} (first 100 steps) to {late:.3g} (last 100)" in first
    assert "learns" in first
    assert last == f"The loss went on falling; the last 200 steps average {sum(values[-200:]) / 200:.3g}."


def test_a_rising_loss_is_a_warning_with_a_remedy(story, losses):
    said = [s for s in narrate(story(losses(lambda share: 0.1 + 0.08 * share, 900, 4))) if "risen" in s.text]
    assert said
    assert said[-1].tone == "warning"
    assert "halve" in said[-1].text


def test_a_loss_that_is_no_number_is_told_once(story, losses):
    values = losses(lambda share: 0.1, 100, 6)
    values[80:] = [math.nan] * 20
    said = [s for s in narrate(story(values)) if "no longer a number" in s.text]
    assert [(s.step, s.tone) for s in said] == [(81, "bad")]


def test_few_steps_bear_no_word_about_the_loss(story, losses):
    assert not any("The loss" in text for text in texts(story(losses(lambda share: 1 - share, 50, 7), seconds=0.1)))


def test_zero_gradients_are_called_what_they_are(story):
    events = [replace(e, gradient_norm=0.0) if isinstance(e, StepFinished) else e for e in story([0.1] * 40)]
    assert [s for s in texts(events) if "nothing is being learnt" in s]
    assert not [s for s in texts(story([0.1] * 40)) if "nothing is being learnt" in s]


def test_the_time_left_comes_from_the_steps_without_the_first(story):
    events = story([0.1] * 100, seconds=2.0)
    index = next(i for i, e in enumerate(events) if isinstance(e, StepFinished))
    events[index] = replace(events[index], seconds=60.0)
    (sentence,) = [text for text in texts(events) if "A step takes" in text]
    assert "A step takes 2.0 s" in sentence
    assert "2 min 58 s" in sentence  # 89 steps of 2 s


def test_a_slow_down_is_told_with_both_speeds(story):
    events = [
        replace(e, seconds=6.0) if isinstance(e, StepFinished) and e.step > 60 else e
        for e in story([0.1] * 100, seconds=0.5)
    ]
    (sentence,) = [text for text in texts(events) if "instead of" in text]
    assert "instead of 0.5 s" in sentence


def test_the_end_of_a_warm_up_is_told_and_a_constant_rate_is_not(story):
    def warmed_up(event):
        if not isinstance(event, StepFinished):
            return event
        return replace(event, learning_rate={"unet": 1e-4 * min(1.0, event.step / 20)})

    events = [warmed_up(e) for e in story([0.1] * 60)]
    (sentence,) = [s for s in narrate(events) if "warm-up" in s.text]
    assert sentence.step == 21
    assert "0.0001" in sentence.text
    assert not any("warm-up" in text for text in texts(story([0.1] * 60)))


def test_samples_are_told_once_a_step_and_compared_with_the_first(story):
    said = [text for text in texts(story([0.1] * 40, samples_every=20)) if text.startswith("Drawing")]
    assert len(said) == 3
    assert "base model's own" in said[0]
    assert "the base model's" in said[1]
    without_base = [e for e in story([0.1] * 40, samples_every=20) if getattr(e, "step", 1) != 0]
    said = [text for text in texts(without_base) if text.startswith("Drawing")]
    assert "first sample pictures" in said[0]
    assert "those of step 20" in said[1]


def test_files_warnings_and_the_end_are_told(story):
    events = story([0.1] * 20)
    events.insert(-1, Warned(message="photo.jpg cannot be read; it is left out."))
    said = texts(events)
    assert "photo.jpg cannot be read; it is left out." in said
    assert "Saved the finished LoRA: checkpoints/fox.safetensors (600 KB)." in said
    assert said[-1] == "Finished: 20 steps in 10 s."


@pytest.mark.parametrize(
    ("first_step", "said"), [(15, "Finished: 20 steps, the last 6 of them in 10 s."), (21, "Finished: 20 steps.")]
)
def test_the_end_of_a_run_that_went_on_tells_the_time_of_its_own_steps(story, first_step, said):
    events = [replace(e, first_step=first_step) if isinstance(e, RunStarted) else e for e in story([0.1] * 20)]
    assert texts(events)[-1] == said


def test_a_failure_is_told_with_its_remedy():
    failed = Failed(
        cause="The loss is not a number.", remedy="Halve optimizer.learning_rate.", phase="training", step=7
    )
    assert [(s.text, s.tone) for s in narrate([failed])] == [
        ("The loss is not a number.", "bad"),
        ("Halve optimizer.learning_rate.", "plain"),
    ]


def test_a_stopped_run_says_what_is_kept(story):
    events = story([0.1] * 20, total_steps=50, finished=False)
    events.append(RunFinished(reason="stopped", step=20, total_steps=50, seconds=10, network=""))
    assert texts(events)[-1] == "Stopped after step 20 of 50. Everything so far is saved."


def test_a_resumed_run_forgets_the_losses_that_are_done_again(story):
    narrator = Narrator()
    events = story([0.1] * 30, total_steps=50, finished=False)
    for event in events:
        narrator.hear(event)
    start = next(e for e in events if isinstance(e, RunStarted))
    (sentence,) = narrator.hear(replace(start, first_step=21))
    assert sentence.text == "Going on after step 20; 30 steps to go."
    assert len(narrator.losses) == 20


def test_a_phase_is_announced_once_and_a_state_in_silence(story):
    events = [PhaseStarted(phase="training"), PhaseStarted(phase="sampling"), PhaseStarted(phase="training")]
    events += [CheckpointSaved(step=5, epoch=1, kind="state", path="state/5", bytes=10)]
    assert texts(events) == ["Training begins."]


def test_the_finished_file_says_who_reads_it():
    applications = {"ComfyUI": "yes", "A1111": "yes", "diffusers": "no: cannot load LoHa (192 layers)"}
    saved = CheckpointSaved(
        step=8, epoch=1, kind="network", path="x.safetensors", bytes=1, final=True, applications=applications
    )
    assert [sentence.text for sentence in narrate([saved])][-1] == (
        "Read exactly as trained by ComfyUI and A1111. Not so elsewhere: diffusers cannot load LoHa (192 layers)."
    )
