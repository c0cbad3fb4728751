"""The pocket lab: lessons are found by any name of their setting, trained for real, measured and drawn."""

from __future__ import annotations

import dataclasses
import json

import pytest
from click.testing import CliRunner
from PIL import Image

from engine.events import RunFinished, SampleSaved
from engine.run_folder import RunFolder
from engine.sheet import Sheet
from knowledge.answers import PlainError
from knowledge.lessons import lessons, record
from wizard.cli import lora_wizard
from wizard.lab import find_lesson, prepare
from wizard.lesson_sheet import SIDE
from wizard.trials import Trial, finish


def run(*arguments):
    return CliRunner().invoke(lora_wizard, ["lab", *arguments], catch_exceptions=False, standalone_mode=False)


def test_without_a_lesson_it_lists_them():
    listed = json.loads(run("--json").output)["lessons"]
    assert [lesson["name"] for lesson in listed] == list(lessons())
    assert all(name in run().output for name in lessons())


@pytest.mark.parametrize(
    ("name", "lesson"),
    [
        ("learning_rate", "learning_rate"),
        ("network.rank", "rank"),
        ("network_dim", "rank"),
        ("LoKr", "network_type"),
        ("reg_img_folder", "regularisation"),
    ],
)
def test_a_lesson_is_found_by_any_name_of_its_setting(name, lesson):
    assert find_lesson(name).name == lesson


@pytest.mark.parametrize("name", ["learnin_rate_", "output.author", "qqqq"])
def test_what_has_no_lesson_is_one_sentence(name):
    with pytest.raises(PlainError, match=r"^There is no lesson .*lora-wizard lab$"):
        find_lesson(name)


@pytest.mark.parametrize("lesson", lessons().values(), ids=lambda lesson: lesson.name)
def test_every_training_of_a_lesson_has_a_run_of_its_own_and_one_draws_the_base_model(lesson, tmp_path):
    trials = prepare(lesson, 1, tmp_path)
    assert len({trial.config.output.name for trial in trials}) == len(trials)
    assert sum(trial.config.sampling.at_start for trial in trials) == 1
    regularised = [any(folder.regularisation for folder in trial.config.dataset.folders) for trial in trials]
    assert regularised == [variant.regularisation for variant in lesson.variants]


@pytest.fixture(scope="module")
def short_lesson(tmp_path_factory):
    """Two trainings of the first lesson with a few steps, from the command to the picture, nothing pretended."""
    whole = lessons()["learning_rate"]
    quick = {"schedule.maximum_steps": 24, "saving.every_steps": 12, "schedule.warmup": 0.0, "sampling.steps": 2}
    shown = {"sampling.prompts": ("a zorblat", "a red house on grass")}
    lesson = dataclasses.replace(
        whole,
        variants=tuple(
            dataclasses.replace(variant, settings={**variant.settings, **quick, **shown})
            for variant in whole.variants
            if variant.name != "high"
        ),
        claim="low.creature_loss > 1.1 * right.creature_loss",
        conclusion="{low.creature_loss:.3f} is more than {right.creature_loss:.3f}.",
    )
    place = tmp_path_factory.mktemp("lab")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wizard.lab.lessons", lambda: {lesson.name: lesson})
        answer = run(lesson.name, "--folder", str(place), "--json")
    return lesson, place, json.loads(answer.output)


def test_a_short_lesson_bears_out_its_claim_when_it_is_trained_for_real(short_lesson):
    lesson, _, told = short_lesson
    assert told["holds"], told
    figures = told["figures"]
    assert figures["right"]["creature_loss"] < 0.9 * figures["base"]["creature_loss"]
    assert figures["base"] == pytest.approx(record("learning_rate").seeds[1]["base"], abs=2e-3)
    assert told["conclusion"] == lesson.said(figures)


def test_figures_are_those_of_the_runs(short_lesson):
    _, place, told = short_lesson
    for variant in ("low", "right"):
        figures, path = told["figures"][variant], place / "runs" / f"learning-rate-{variant}"
        events = list(RunFolder.open(path).events())
        assert isinstance(events[-1], RunFinished)
        assert figures["steps"] == 24
        assert figures["views"] == 24 * 4
        assert figures["file_bytes"] == (path / events[-1].network).stat().st_size
        steps = {event.step for event in events if isinstance(event, SampleSaved)}
        assert steps == ({0, 24} if variant == "low" else {24})


def test_the_picture_lays_the_base_model_and_every_training_side_by_side(short_lesson):
    _, _, told = short_lesson
    with Image.open(told["picture"]) as picture:
        assert picture.width > 3 * 128
        assert picture.height > 2 * 128 + 260
        assert len(picture.convert("RGB").getcolors(1 << 16)) > 50


def test_a_training_that_fails_ends_the_lesson_with_its_reason(tmp_path):
    (trial, *_) = prepare(lessons()["rank"], 1, tmp_path)
    broken = trial.config.model_copy(
        update={"base_model": trial.config.base_model.model_copy(update={"path": str(tmp_path / "nothing")})}
    )
    trials = [Trial("small", "small (1)", broken)]
    with pytest.raises(PlainError, match=r"^The training “small \(1\)” did not finish\. .*nothing"):
        finish(trials, 1, lambda: None)


def test_the_lab_is_listed_before_anything_heavy_is_imported():
    import subprocess
    import sys

    code = (
        "import sys; from click.testing import CliRunner; from wizard.cli import lora_wizard\n"
        "assert CliRunner().invoke(lora_wizard, ['lab']).output\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'matplotlib', 'PIL')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("lesson", lessons().values(), ids=lambda lesson: lesson.name)
def test_no_label_of_a_sheet_is_cut_off(lesson, tmp_path):
    font = Sheet("", "", SIDE).fonts["label"]
    for label in ("the base model", *(trial.label for trial in prepare(lesson, 1, tmp_path))):
        assert font.getlength(label) <= SIDE, label
