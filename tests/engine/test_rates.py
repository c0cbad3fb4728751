"""The rates of a run: those of the calculator's curve, update by update, told and stepped with."""

from typing import Any

import pytest
import torch
from short_runs import Configure, Values, of_kind, run_to_end

from calculator.schedule import full_learning_rate, learning_rate_multiplier
from engine.events import StepFinished
from engine.models.load import load

SHAPES: dict[str, Values] = {
    "constant": {"scheduler": "constant"},
    "a warm-up of steps": {"scheduler": "constant", "warmup": 3.0},
    "a warm-up that is a share": {"scheduler": "linear", "warmup": 0.5},
    "cosine with a lowest rate": {"scheduler": "cosine", "minimum_ratio": 0.25},
    "three restarts": {"scheduler": "cosine_with_restarts", "cycles": 3},
    "a steep power": {"scheduler": "polynomial", "power": 3.0},
    "REX": {"scheduler": "rex"},
    "a decay of steps": {"scheduler": "warmup_stable_decay", "warmup": 2.0, "decay": 4.0},
    "a decay that is a share": {"scheduler": "warmup_stable_decay", "decay": 0.75},
    "Adafactor's own": {"scheduler": "adafactor"},
    "Adafactor's own, gently begun": {"scheduler": "adafactor", "warmup_init": True},
}
STEPS = 12


def rates(configure: Configure, monkeypatch: pytest.MonkeyPatch, shape: Values) -> tuple[list[Any], list[Any], Any]:
    """The rates that were told and those that the optimizer took steps with, of a run whose loss costs nothing."""
    stepped = []

    class Noting(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            stepped.append({group["name"]: group["lr"] for group in self.param_groups})
            return super().step(closure)

    def cheap(bench: Any, batch: Any, *_: Any) -> torch.Tensor:
        return sum(weight.sum() for weight in bench.network.parameters()) * torch.ones(len(batch.items)) * 1e-6

    monkeypatch.setattr("torch.optim.SGD", Noting)
    monkeypatch.setattr("engine.train.loss_per_image", cheap)
    config = configure(
        optimizer={"name": "sgd", "learning_rate": 1e-3, "text_encoder_learning_rate": 5e-4},
        schedule={"gradient_accumulation_steps": 1, "epochs": 3, **shape},
        memory={"cache_latents": False},
    )
    _, events = run_to_end(config)
    return [event.learning_rate for event in of_kind(events, StepFinished)], stepped, config.schedule


@pytest.fixture(scope="module")
def loaded() -> dict[str, Any]:
    """The base model, which all these runs share: a network that is detached leaves nothing in it."""
    return {}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_run_steps_at_the_rates_of_the_curve_that_was_drawn_for_it(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, loaded: dict[str, Any], shape: str
):
    def once(settings: Any, *arguments: Any, **options: Any) -> Any:
        if not loaded:
            loaded["model"] = load(settings, *arguments, **options)
        return loaded["model"]

    monkeypatch.setattr("engine.train.load", once)
    told, stepped, schedule = rates(configure, monkeypatch, SHAPES[shape])
    expected = []
    for step in range(STEPS):
        share = learning_rate_multiplier(schedule, step, STEPS)
        full = {"text_encoder": 5e-4, "unet": 1e-3}
        expected.append({part: full_learning_rate(rate, schedule) * share for part, rate in full.items()})
    assert told == expected
    assert stepped == expected


def test_every_shape_that_a_run_is_tried_with_is_a_curve_of_its_own(configure: Configure):
    """So that an option which is not read makes two of them alike."""
    curves = {
        name: tuple(learning_rate_multiplier(configure(schedule=shape).schedule, step, STEPS) for step in range(STEPS))
        for name, shape in SHAPES.items()
    }
    assert len(set(curves.values())) == len(curves)
