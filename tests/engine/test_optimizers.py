import pytest
import torch

from engine.optimizers import OPTIMIZERS, create_optimizer, learning_rate
from knowledge.config import OptimizerName, OptimizerSettings, choices, fields


def test_every_optimizer_of_the_schema_is_a_row():
    assert tuple(OPTIMIZERS) == choices(fields()["optimizer.name"])


def learned(name: OptimizerName, rate: float, steps: int = 60, decay: float = 0.0) -> float:
    """How much of the distance to a fixed matrix is left after some steps."""
    goal = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    weights = torch.nn.Parameter(torch.zeros(8, 8))
    settings = OptimizerSettings(name=name, learning_rate=rate, weight_decay=decay)
    optimizer = create_optimizer({"unet": [weights]}, settings)
    if hasattr(optimizer, "train"):
        optimizer.train()
    for _ in range(steps):
        (weights - goal).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    if hasattr(optimizer, "eval"):
        optimizer.eval()
    return ((weights - goal).norm() / goal.norm()).item()


FINDS_ITS_OWN_RATE = ("prodigy", "dadapt_adam")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_learns_at_the_rate_it_is_given(name: OptimizerName):
    slow, fast = (1e-2, 1.0) if name in FINDS_ITS_OWN_RATE else (1e-4, 2e-2)
    steps = 300 if name in FINDS_ITS_OWN_RATE else 60
    assert learned(name, fast, steps) < 0.9
    assert learned(name, fast, steps) < learned(name, slow, steps)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_decay_reaches_the_optimizer(name: OptimizerName):
    weights = torch.nn.Parameter(torch.ones(4, 4))
    optimizer = create_optimizer({"unet": [weights]}, OptimizerSettings(name=name, weight_decay=0.25))
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.25}


def test_text_encoders_may_have_a_rate_of_their_own():
    settings = OptimizerSettings(learning_rate=1e-4, text_encoder_learning_rate=1e-5)
    assert learning_rate("unet", settings) == 1e-4
    assert learning_rate("text_encoder_2", settings) == 1e-5
    assert learning_rate("text_encoder_2", OptimizerSettings(learning_rate=1e-4)) == 1e-4
    both = settings.model_copy(update={"text_encoder_2_learning_rate": 1e-6})
    assert learning_rate("text_encoder", both) == 1e-5
    assert learning_rate("text_encoder_2", both) == 1e-6
