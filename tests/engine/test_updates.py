"""What the optimizer steps with in a run: the rates of the calculator's curve, and gradients of whole updates."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from short_runs import Configure, Values, of_kind, run_to_end

from calculator.schedule import full_learning_rate, learning_rate_multiplier
from engine.events import StepFinished
from engine.models.load import load
from knowledge.config import ScheduleSettings, TrainingConfig

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
"""Four batches an epoch."""


@dataclass
class Updates:
    """What was told of every update, and what its step found in the optimizer."""

    told: list[StepFinished] = field(default_factory=list)
    rates: list[dict[str, float]] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)


@pytest.fixture(scope="module")
def loaded() -> dict[str, Any]:
    """The base model, which all these runs share: a network that is detached leaves nothing in it."""
    return {}


@pytest.fixture
def updates(loaded: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Updates:
    """Of the next run of plain gradient descent. Its loss is the sum of all weights, so that every gradient is one."""
    noted = Updates()

    def once(settings: Any, *arguments: Any, **options: Any) -> Any:
        if not loaded:
            loaded["model"] = load(settings, *arguments, **options)
        return loaded["model"]

    def sum_of_weights(bench: Any, batch: Any, *_: Any) -> torch.Tensor:
        total: torch.Tensor = sum(weight.sum() for weight in bench.network.parameters())  # type: ignore[assignment]
        return total * torch.ones(len(batch.items))

    class Noting(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            noted.rates.append({group["name"]: group["lr"] for group in self.param_groups})
            gradients = [weight.grad.flatten() for group in self.param_groups for weight in group["params"]]
            noted.norms.append(torch.cat(gradients).norm().item())
            return super().step(closure)

    monkeypatch.setattr("engine.train.load", once)
    monkeypatch.setattr("engine.train.loss_per_image", sum_of_weights)
    monkeypatch.setattr("torch.optim.SGD", Noting)
    return noted


def run(configure: Configure, updates: Updates, schedule: Values, **optimizer: Any) -> TrainingConfig:
    config = configure(
        optimizer={"name": "sgd", "learning_rate": 1e-3, "text_encoder_learning_rate": 5e-4, **optimizer},
        schedule={"gradient_accumulation_steps": 1, "epochs": 3, **schedule},
        memory={"cache_latents": False},
    )
    updates.told = of_kind(run_to_end(config)[1], StepFinished)
    return config


@pytest.mark.parametrize("shape", SHAPES)
def test_a_run_steps_at_the_rates_of_the_curve_that_was_drawn_for_it(
    configure: Configure, updates: Updates, shape: str
):
    schedule = run(configure, updates, SHAPES[shape]).schedule
    expected = []
    for step in range(STEPS):
        share = learning_rate_multiplier(schedule, step, STEPS)
        full = {"text_encoder": 5e-4, "unet": 1e-3}
        expected.append({part: full_learning_rate(rate, schedule) * share for part, rate in full.items()})
    assert [event.learning_rate for event in updates.told] == expected
    assert updates.rates == expected


def test_every_shape_that_a_run_is_tried_with_is_a_curve_of_its_own():
    """So that an option which is not read makes two of them alike."""
    curves = {
        tuple(learning_rate_multiplier(ScheduleSettings(**shape), step, STEPS) for step in range(STEPS))
        for shape in SHAPES.values()
    }
    assert len(curves) == len(SHAPES)


@pytest.mark.parametrize("limit", [0.0, 0.5])
def test_gradients_are_shortened_to_the_limit_and_not_at_all_without_one(
    configure: Configure, updates: Updates, limit: float
):
    run(configure, updates, {"maximum_steps": 3}, maximum_gradient_norm=limit)
    whole = [event.gradient_norm for event in updates.told]
    assert min(whole) == max(whole) > 1, "the gradients of one update are gone before the next"
    assert updates.norms == pytest.approx([limit or whole[0]] * 3, rel=1e-4)


def test_the_short_update_at_an_epochs_end_is_as_small_as_its_share(configure: Configure, updates: Updates):
    """As in sd-scripts, which divides by the full count there too: one batch of three is a third of an update."""
    schedule = {"gradient_accumulation_steps": 3, "epochs": 2}
    run(configure, updates, schedule, maximum_gradient_norm=0.0)
    full, short = updates.norms[:2]
    assert short == pytest.approx(full / 3, rel=1e-5)
    assert updates.norms == pytest.approx([full, short] * 2, rel=1e-5)
