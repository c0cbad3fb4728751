"""The moving average of the weights: its arithmetic, and that it changes what is saved and nothing else."""

import pytest
import torch
from safetensors.torch import load_file
from short_runs import Configure, of_kind, run_to_end, same, stopped_at, weights

from engine.averages import WeightAverage, create_average
from engine.events import CheckpointSaved, Validated
from knowledge.config import EmaSettings


def average_of(weights: list[torch.nn.Parameter], settings: EmaSettings) -> WeightAverage:
    average = create_average(weights, settings)
    assert average is not None
    return average


def test_a_young_average_forgets_faster():
    weights = [torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))]
    average = average_of(weights, EmaSettings(decay=0.25, every_steps=1))
    weights[0].data.fill_(1.0)
    # after update 1 the decay is 1/10: 0 + 0.9 · (1 − 0); after update 2 it is 2/11: 0.9 + 9/11 · 0.1; from 3 on 0.25
    for step, expected in ((1, 0.9), (2, 0.9 + 9 / 11 * 0.1), (3, 1 - 0.25 * 0.1 * 2 / 11)):
        average.take_in(step)
        with average.in_place():
            assert weights[0].item() == pytest.approx(expected, abs=1e-12)
        assert weights[0].item() == 1.0


def test_an_average_of_weights_in_half_precision_keeps_what_they_would_round_away():
    weights = [torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16))]
    average = average_of(weights, EmaSettings(decay=0.999, every_steps=1))
    weights[0].data.fill_(1.0078125)  # the next number of bf16
    for step in range(10_000, 10_100):
        average.take_in(step)
    with average.in_place():
        assert weights[0].item() == pytest.approx(1 + 0.0078125 * (1 - 0.999**100), abs=1e-5)
    assert weights[0].dtype == torch.bfloat16
    assert weights[0].item() == 1.0078125


def test_only_every_so_many_updates_are_taken_in():
    weights = [torch.nn.Parameter(torch.zeros(1))]
    average = average_of(weights, EmaSettings(decay=0.999, every_steps=3))
    weights[0].data.fill_(1.0)
    average.take_in(1)
    average.take_in(2)
    assert average.state_dict()["averages"][0].item() == 0
    average.take_in(3)
    assert average.state_dict()["averages"][0].item() == pytest.approx(1 - 3 / 12)


def test_the_average_is_saved_and_measured_and_training_goes_its_way(configure: Configure):
    saving = {"every_steps": 1, "precision": "fp32", "keep_last": 3}
    held_out = {"share": 0.2, "every_steps": 4}
    run, events = run_to_end(configure(ema={"decay": 0.999, "saved": "both"}, saving=saving, validation=held_out))
    plain, plain_events = run_to_end(configure(saving=saving, validation=held_out))
    assert same(load_file(run.checkpoints / "plain" / "toy.safetensors"), weights(plain))
    assert not same(weights(run), weights(plain))
    # Each average is the one before, moved toward the plain weights by what is left of the young decay.
    for step in (2, 3):
        name, before = (f"toy-step{number:06d}.safetensors" for number in (step, step - 1))
        now, learning = (load_file(folder / name) for folder in (run.checkpoints, run.checkpoints / "plain"))
        for key, earlier in load_file(run.checkpoints / before).items():
            expected = earlier.lerp(learning[key], 1 - step / (step + 9))
            torch.testing.assert_close(now[key], expected, rtol=1e-6, atol=1e-9)
    kinds = [event.kind for event in of_kind(events, CheckpointSaved) if event.kind != "state"]
    assert kinds == ["network", "plain"] * 4
    measured, measured_plain = (of_kind(each, Validated)[-1].loss for each in (events, plain_events))
    assert measured != measured_plain


def test_an_average_goes_on_where_a_stopped_run_left_it(configure: Configure):
    config = configure(ema={"decay": 0.9, "every_steps": 2}, schedule={"epochs": 3}, saving={"state_every_epochs": 3})
    straight, _ = run_to_end(config)
    resumed = stopped_at(config, [3])
    assert same(weights(resumed), weights(straight))
    # And so does whatever else a run remembers.
    ends = [torch.load(run.states()[0] / "state.pt", weights_only=True)["remembering"] for run in (resumed, straight)]
    assert ends[0]["loss watch"] == ends[1]["loss watch"]
    assert all(map(torch.equal, ends[0]["average"]["averages"], ends[1]["average"]["averages"]))
    assert not (straight.checkpoints / "plain").exists(), "the plain weights are saved on wish alone"
