"""The report holds the run, on one page that needs nothing else."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from PIL import Image

from engine.events import Failed, PictureSkipped, RunFinished, SampleSaved
from engine.run_folder import RunFolder
from knowledge.config import TrainingConfig, with_values
from wizard.charts import draw_charts
from wizard.report import _seconds_spent, _verdict, report

PLAN = {
    "total_steps": 60,
    "updates_per_epoch": 10,
    "buckets": [{"width": 64, "height": 64, "images": 40, "batches": 10}],
    "trainable_parameters": 120_000,
    "duration": {"low_seconds": 20, "likely_seconds": 30, "high_seconds": 60},
    "vram": {"likely_bytes": 2**31},
    "file_bytes": 600_000,
    "saved_files": 1,
}
VOID = {"meta", "img", "br"}


class Balance(HTMLParser):
    """Fails where a tag is closed that is not open; `open` must be empty at the end."""

    def __init__(self):
        super().__init__()
        self.open = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data + " "


@pytest.fixture
def run(tmp_path):
    config = with_values(
        TrainingConfig(),
        {"output.name": "fox", "output.folder": str(tmp_path / "runs"), "dataset.trigger_word": "<zwq> & co"},
    )
    run = RunFolder.create(config)
    (run.path / "plan.json").write_text(json.dumps(PLAN))
    return run


def page(run, events):
    for event in events:
        if isinstance(event, SampleSaved):
            Image.new("RGB", (64, 64), (event.step, 0, 90)).save(run.path / event.path)
    html = report(run, events, draw_charts(run, events))
    balance = Balance()
    balance.feed(html)
    assert balance.open == []
    return html, " ".join(balance.text.split())


def test_a_finished_run_tells_what_was_asked_what_happened_and_how_to_use_it(run, story, losses):
    html, text = page(run, story(losses(lambda share: 0.1, 60, 1), samples_every=20))
    assert "Finished: 60 steps in 34 s." in text  # with what came before the first of them
    assert "<zwq> & co" in text  # shown as text, not read as a tag
    assert "time 30 s (20 s to 1 min) 34 s" in text
    assert "at rate 0.0001, 1 picture a step, 10 epochs, on the built-in pocket model." in text
    assert "no trend beyond chance" in text
    assert html.count("data:image/png;base64,") == 4
    assert not re.search(r'(src|href)="(?!data:)', html)


def test_what_was_remarked_before_the_start_is_told_the_gravest_first(run, story):
    _, text = page(run, story([0.1] * 5))
    assert "before the start" not in text
    findings = [{"severity": "note", "message": "A <note>."}, {"severity": "high", "message": "A danger."}]
    (run.path / "plan.json").write_text(json.dumps(PLAN | {"findings": findings}))
    _, text = page(run, story([0.1] * 5))
    assert "What was remarked before the start high A danger. note A <note>." in text


def test_a_run_without_held_out_pictures_is_told_which_file_to_begin_with(run, story, losses):
    html, text = page(run, story(losses(lambda share: 0.1, 60, 1), samples_every=20))
    assert "Too short or too long: cannot be told. No pictures were held out (validation.share)" in text
    assert "Begin with checkpoints/fox.safetensors ." in text
    with Image.open(run.path / "samples-over-time.png") as sheet:
        assert f"min-width: {round(0.75 * sheet.width)}px" in html  # a sheet of many columns shrinks no further


def test_a_failed_run_says_why_and_what_to_do(run, story):
    events = [*story([0.1] * 5, finished=False), Failed(cause="It broke.", remedy="Mend it.", phase="training")]
    _, text = page(run, events)
    assert "It broke. Mend it." in text
    assert "No file was saved." in text
    assert "5 steps are too few to say anything" in text
    _, text = page(run, [*story([0.1], finished=False), events[-1]])
    assert "1 step is too few to say anything" in text


def test_a_run_without_steps_or_plan_has_a_page_too(run):
    (run.path / "plan.json").unlink()
    _, text = page(run, [])
    assert "Not finished yet: 0 steps so far." in text


def test_only_applications_that_read_the_algorithm_are_named(tmp_path, story):
    def named(algorithm):
        config = with_values(
            TrainingConfig(),
            {
                "output.folder": str(tmp_path / algorithm),
                "network.algorithm": algorithm,
                "base_model.family": "sd15",
                "base_model.path": "model",
            },
        )
        _, text = page(RunFolder.create(config), story([0.1] * 5))
        assert "ComfyUI" in text
        return "diffusers" in text

    assert named("lora")
    assert not named("lokr")


def test_the_time_between_a_stop_and_a_resume_is_not_counted(story):
    first = story([0.1] * 10, total_steps=20, finished=False)
    first.append(RunFinished(at=first[-1].at, reason="stopped", step=10, total_steps=20, seconds=5, network=""))
    later = [replace(event, at=event.at + 86_400) for event in story([0.1] * 10, total_steps=20, finished=False)]
    done = replace(first[-1], at=later[-1].at, reason="completed", step=20)
    assert _verdict(done, [*first, *later]) == ("Finished: 20 steps in 18 s.", "good")
    assert _seconds_spent([*first, *later]) == pytest.approx(2 * (4 + 10 * 0.5))


def test_pictures_that_broke_are_named_and_counted(run, story):
    events = story([0.1] * 60)
    broken = [
        PictureSkipped(path=f"/home/somebody/{name}.png", reason="cannot be read (cut short).", step=7)
        for name in ("a", "b", "a")  # told again after a resume
    ]
    (_, whole), (_, left) = page(run, events), page(run, [*events[:20], *broken, *events[20:]])
    assert "left out" not in whole
    assert "Pictures that were left out" in left
    assert "2 pictures were trained on" in left
    assert "a.png" in left
    assert "2 could not be read" in left
    assert "somebody" not in left.split("The story")[0]
