"""A fused backward pass: the same weights, and never two gradients at a time."""

from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError
from short_runs import Configure, of_kind, run_to_end, same, stopped_at, weights

from engine.events import StepFinished
from engine.fused_backward import FusedBackward
from engine.optimizers import create_optimizer
from engine.processes import create_accelerator
from knowledge.answers import PlainError
from knowledge.config import OptimizerName, OptimizerSettings, ScheduleSettings
from knowledge.optimizers import OPTIMIZERS

POSSIBLE = {
    "optimizer": {"maximum_gradient_norm": 0.0},
    "schedule": {"gradient_accumulation_steps": 1, "scheduler": "cosine", "epochs": 1},
}


@pytest.mark.parametrize("name", [name for name, row in OPTIMIZERS.items() if not row.pace])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=["fp32", "full half"])
def test_the_weights_are_those_of_the_ordinary_way_also_after_loading(name: OptimizerName, precision: torch.dtype):
    settings = OptimizerSettings(name=name, learning_rate=1e-2, text_encoder_learning_rate=5e-3)
    schedule = ScheduleSettings()
    goal = torch.randn(24, 40, generator=torch.Generator().manual_seed(0))

    def trained(fused: bool) -> list[torch.Tensor]:
        first, second = (torch.nn.Parameter(torch.full((24, 40), value).to(precision)) for value in (0.1, 0.2))
        groups = {"text_encoder": [first], "unet": [second]}
        optimizer = FusedBackward(groups, settings, schedule) if fused else create_optimizer(groups, settings, schedule)
        for update in range(6):
            if fused and update == 3:
                state = deepcopy(optimizer.state_dict())
                for weight in (first, second):
                    weight._post_accumulate_grad_hooks.clear()
                optimizer = FusedBackward(groups, settings, schedule)
                optimizer.load_state_dict(state)
            if hasattr(optimizer, "eval"):  # as while a run is looked at
                optimizer.eval()
                optimizer.train()
            (first * second - goal).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        if hasattr(optimizer, "eval"):
            optimizer.eval()
        return [first, second]

    for ours, ordinary in zip(trained(True), trained(False), strict=True):
        assert torch.equal(ours, ordinary)


def test_never_two_gradients_are_alive():
    weights = [torch.nn.Parameter(torch.ones(3, 3)) for _ in range(5)]
    alive: list[int] = []
    for parameter in weights:  # told before the step that follows it
        parameter.register_post_accumulate_grad_hook(lambda _: alive.append(sum(p.grad is not None for p in weights)))
    optimizer = FusedBackward({"unet": weights}, OptimizerSettings(), ScheduleSettings())
    product = torch.eye(3)
    for parameter in weights:
        product = product @ parameter
    product.sum().backward()
    assert alive == [1] * 5
    assert all(parameter.grad is None for parameter in weights)
    assert optimizer.gradient_norm(torch.device("cpu")) > 0


def test_a_run_gives_the_same_file_and_norms_and_resumes_to_it(configure: Configure):
    plain, plain_events = run_to_end(configure(**POSSIBLE))
    config = configure(**POSSIBLE, memory={"fused_backward": True})
    fused, events = run_to_end(config)
    assert same(weights(fused), weights(plain))
    norms, plain_norms = ([e.gradient_norm for e in of_kind(each, StepFinished)] for each in (events, plain_events))
    assert norms == pytest.approx(plain_norms, rel=1e-5)
    assert same(weights(stopped_at(config, [1])), weights(plain))


def test_a_run_that_is_asked_to_updates_weights_within_its_backward_pass(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
):
    steps: list[bool] = []

    class Seen(FusedBackward):
        def step(self) -> None:
            steps.append(all(weight.grad is None for group in self.param_groups for weight in group["params"]))

    monkeypatch.setattr("engine.train.FusedBackward", Seen)
    run_to_end(configure(**POSSIBLE))
    assert steps == []
    run_to_end(configure(**POSSIBLE, memory={"fused_backward": True}))
    assert steps
    assert all(steps), "no gradient is left when the update begins"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"optimizer": {"maximum_gradient_norm": 1.0}}, "maximum_gradient_norm"),
        ({"schedule": {"gradient_accumulation_steps": 2}}, "gradient_accumulation_steps"),
        ({"memory": {"precision": "fp16", "fused_backward": True}}, "the scaler has to look at all gradients"),
        ({"optimizer": {"name": "prodigy", "maximum_gradient_norm": 0.0}}, "reckons its pace from all"),
    ],
)
def test_what_needs_all_gradients_together_is_refused(configure: Configure, changes: dict, said: str):
    with pytest.raises(ValidationError, match=said):
        configure(**{**POSSIBLE, "memory": {"fused_backward": True}, **changes})


def test_several_processes_cannot_update_within_the_backward_pass(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("engine.processes.Accelerator", lambda **_: SimpleNamespace(num_processes=2))
    create_accelerator("fp32")
    with pytest.raises(PlainError, match="several processes have to add up their gradients first"):
        create_accelerator("fp32", fused_backward=True)
