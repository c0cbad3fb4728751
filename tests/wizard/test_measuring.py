"""Timings of finished runs sharpen the forecasts of later ones on the same computer."""

import pytest

from calculator.measurements import add_measurement, measurement_of, nearest, read_measurements
from calculator.plan import plan
from engine.events import StepFinished
from knowledge.answers import PlainError
from knowledge.config import TrainingConfig, with_values
from knowledge.facts import DatasetFacts, FolderFacts, Hardware, Picture
from wizard import measuring

CPU = Hardware("CPU", cores=2)
CONFIG = with_values(TrainingConfig(), {"dataset.resolution": 64, "schedule.batch_size": 2})
DATASET = DatasetFacts((FolderFacts((Picture("a.png", 64, 64, "a"),) * 4),))


def steps(seconds, images=2):
    return [
        StepFinished(step=n, epoch=1, loss=0.1, learning_rate={}, gradient_norm=1.0, seconds=taken, images=images)
        for n, taken in enumerate(seconds, start=1)
    ]


def test_the_first_steps_say_nothing_about_the_rest():
    found = measuring.timing(CONFIG, steps([9.0, 9.0, 9.0, 0.5, 0.4, 0.6]), CPU, _pocket())
    assert found.seconds_per_step == 0.5
    assert found.forecast_seconds > 0


def test_a_run_too_short_teaches_nothing():
    assert measuring.timing(CONFIG, steps([1.0] * 5), CPU, _pocket()) is None
    assert measuring.timing(CONFIG, steps([1.0] * 9, images=1), CPU, _pocket()) is None


def test_a_finished_run_sharpens_the_next_forecast(tmp_path, monkeypatch):
    monkeypatch.setenv("LORA_WIZARD_HOME", str(tmp_path))
    before = plan(CONFIG, DATASET, CPU)
    assert "not measured" in before.duration.basis
    measuring.remember(CONFIG, steps([2.0] * 9), CPU)
    after = plan(CONFIG, DATASET, CPU, measurements=measuring.known())
    # 4 pictures in batches of 2 make 2 steps an epoch, 10 epochs 20 steps of 2 seconds
    assert after.duration.parts["steps"] == pytest.approx(40)
    assert "measured on CPU" in after.duration.basis
    spread = after.duration.high_seconds / after.duration.likely_seconds
    assert spread < before.duration.high_seconds / before.duration.likely_seconds


def test_the_measurement_most_like_the_run_is_believed(tmp_path):
    file = tmp_path / "measurements.jsonl"
    other = with_values(CONFIG, {"memory.gradient_checkpointing": True, "schedule.batch_size": 8})
    add_measurement(file, measurement_of(other, CPU, 9.0, 1.0, "2026-01-01"))
    add_measurement(file, measurement_of(CONFIG, CPU, 3.0, 1.0, "2026-01-02"))
    with file.open("a") as lines:
        lines.write("half a li")
    found = nearest(read_measurements(file), CPU, CONFIG)
    assert (found.factor, found.distance) == (3.0, 1.0)
    assert nearest(read_measurements(file), Hardware("RTX 3060"), CONFIG) is None


def _pocket():
    from knowledge.architectures import architecture

    return architecture("pocket")


def test_steps_timed_on_purpose_are_real_and_remembered(tmp_path, monkeypatch, tiny_sd15):
    monkeypatch.setenv("LORA_WIZARD_HOME", str(tmp_path))
    config = with_values(
        CONFIG, {"base_model.path": str(tiny_sd15), "base_model.family": "sd15", "dataset.bucket_step": 64}
    )
    found = measuring.measure(config, CPU)
    assert found.seconds_per_step > 0
    assert measuring.known() == (found,)


def test_what_cannot_be_trained_cannot_be_timed(tmp_path, monkeypatch):
    monkeypatch.setenv("LORA_WIZARD_HOME", str(tmp_path))
    config = with_values(CONFIG, {"base_model.path": str(tmp_path / "nowhere"), "base_model.family": "sd15"})
    with pytest.raises(PlainError, match="Nothing could be measured"):
        measuring.measure(config, CPU)
    assert measuring.known() == ()
