import importlib
import inspect
import io
from functools import cache
from typing import Any

import pytest
import torch
from transformers.optimization import Adafactor

from calculator.schedule import full_learning_rate, learning_rate_multiplier
from engine.optimizers import check_optimizer, create_optimizer, learning_rate, restore_precision
from knowledge.answers import PlainError
from knowledge.config import OptimizerName, OptimizerSettings, ScheduleSettings
from knowledge.optimizer_arguments import NUMBER, decided_elsewhere, from_line, known_arguments, to_line
from knowledge.optimizers import OPTIMIZERS, of_kind
from knowledge.parameters import parameters


def learned(name: OptimizerName, rate: float, steps: int, precision: torch.dtype) -> float:
    """How much of the distance to a fixed matrix is left after some steps."""
    goal = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    weights = torch.nn.Parameter(torch.zeros(8, 8, dtype=precision))
    settings = OptimizerSettings(name=name, learning_rate=rate, weight_decay=0.0)
    optimizer = create_optimizer({"unet": [weights]}, settings, ScheduleSettings())
    if hasattr(optimizer, "train"):
        optimizer.train()
    for _ in range(steps):
        (weights - goal).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    if hasattr(optimizer, "eval"):
        optimizer.eval()
    return ((weights - goal).norm() / goal.norm()).item()


FINDS_ITS_OWN_RATE = of_kind("self_paced")


PRECISIONS = pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=["fp32", "full half"])
"""Of the trained weights, and so of their gradients and of most of what an optimizer keeps."""


@PRECISIONS
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_learns_at_the_rate_it_is_given(name: OptimizerName, precision: torch.dtype):
    slow, fast = (1e-2, 1.0) if name in FINDS_ITS_OWN_RATE else (1e-4, 2e-2)
    steps = 300 if name in FINDS_ITS_OWN_RATE else 60
    assert learned(name, fast, steps, precision) < 0.9
    assert learned(name, fast, steps, precision) < learned(name, slow, steps, precision)


@cache
def weights_after(name: OptimizerName, updates: int, decay: float, arguments: str) -> torch.Tensor:
    """Two parts' weights after so many updates at a rate that climbs; the gradients' sizes jump, as those of batches.

    `arguments`: as one line.
    """
    generator = torch.Generator().manual_seed(0)
    weights = {part: torch.nn.Parameter(torch.randn(8, 48, generator=generator)) for part in ("text_encoder", "unet")}
    goal = torch.randn(8, 48, generator=generator)
    rate = 1.0 if name in FINDS_ITS_OWN_RATE else 1e-2
    settings = OptimizerSettings(name=name, learning_rate=rate, weight_decay=decay, arguments=from_line(arguments))
    optimizer = create_optimizer({part: [one] for part, one in weights.items()}, settings, ScheduleSettings())
    getattr(optimizer, "train", lambda: None)()
    for update in range(updates):
        for group in optimizer.param_groups:
            group["lr"] = rate * (update + 1) / updates
        first, second = weights.values()
        (0.1 * (first - goal).square() * (1 if update % 2 else 3) + (first + second - goal).square()).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    getattr(optimizer, "eval", lambda: None)()
    return torch.cat([one.detach() for one in weights.values()])


QUICK = {
    # Paces that change within some updates, so that what they are reckoned from shows.
    "prodigy": {"d0": 1e-2},
    "prodigy_plus_schedule_free": {"d0": 1e-2, "d_limiter": False},
    "dadapt_adam": {"d0": 1e-2},
    # Its momentum can be dampened only where it is not Nesterov's.
    "sgd": {"nesterov": False},
}
"""What an optimizer's arguments show their effect with, each but the one that is tried."""


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_decay_pulls_the_weights_toward_zero(name: OptimizerName):
    arguments = to_line(QUICK.get(name, {}))
    free, held, held_more = (weights_after(name, 20, decay, arguments).norm() for decay in (0.0, 0.05, 0.2))
    assert held_more < held < free


OTHERS = {
    "betas": (0.5, 0.6),
    "clip_threshold": 0.1,
    "d0": 0.1,
    "d_coef": 3.0,
    "decay_rate": -0.3,
    "decoupling_c": 2,
    "growth_rate": 1.02,
    "min_8bit_size": 16,
    "prodigy_steps": 5,
    "schedulefree_c": 5.0,
    "weight_lr_power": 0.0,
}
"""A value of each argument that is not the one it has; of all further ones it is 0.1, or on where it is off."""


def another(argument: str, usual: Any) -> Any:
    if argument == "betas" and len(usual) == 3:
        return (0.5, 0.6, 0.7)
    if argument == "eps" and isinstance(usual, list):
        return (0.1, 0.1)
    return (not usual) if isinstance(usual, bool) else OTHERS.get(argument, 0.1)


@pytest.mark.parametrize(("name", "argument"), [(name, one) for name in OPTIMIZERS for one in known_arguments(name)])
def test_every_argument_that_is_offered_changes_what_is_learned(name: OptimizerName, argument: str):
    beside = {one: value for one, value in QUICK.get(name, {}).items() if one != argument}
    other = another(argument, known_arguments(name)[argument])
    without = weights_after(name, 60, 0.1, to_line(beside))
    with_it = weights_after(name, 60, 0.1, to_line({**beside, argument: other}))
    assert torch.isfinite(with_it).all()
    assert not torch.equal(with_it, without)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_steps_as_its_row_says(name: OptimizerName):
    """By the sign of what it remembers, by gradients as they are, or by each weight's own measure of them."""

    def last_step(size: float) -> torch.Tensor:
        weights = torch.nn.Parameter(torch.zeros(8, 8))
        settings = OptimizerSettings(name=name, learning_rate=1e-2, weight_decay=0.0)
        optimizer = create_optimizer({"unet": [weights]}, settings, ScheduleSettings())
        generator, before = torch.Generator().manual_seed(0), weights.detach().clone()
        for _ in range(5):
            before = weights.detach().clone()
            weights.grad = size * torch.randn(8, 8, generator=generator)
            optimizer.step()
        return (weights.detach() - before).double()

    one, ten = last_step(1.0), last_step(10.0)
    if (one.abs() - one.abs().mean()).abs().max() < 1e-3 * one.abs().mean():
        steps = "sign"
    else:
        steps = "plain" if torch.allclose(ten, 10 * one, rtol=1e-2) else "scaled"
    assert steps == OPTIMIZERS[name].steps


@pytest.mark.parametrize("name", of_kind("averaging"))
def test_an_optimizer_with_other_weights_to_save_begins_with_those_to_learn_with(name: OptimizerName):
    optimizer = create_optimizer(
        {"unet": [torch.nn.Parameter(torch.ones(2, 2))]}, OptimizerSettings(name=name), ScheduleSettings()
    )
    assert [group["train_mode"] for group in optimizer.param_groups] == [True]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_group_moves_by_its_own_rate(name: OptimizerName):
    """Above all the UNet when the text encoders, which come first, learn slowly or have stopped."""

    def moved(text_encoders: float, unet: float) -> list[float]:
        weights = {part: torch.nn.Parameter(torch.ones(8, 8)) for part in ("text_encoder", "unet")}
        rate = 1.0 if name in FINDS_ITS_OWN_RATE else 1e-2
        groups = {part: [one] for part, one in weights.items()}
        optimizer = create_optimizer(groups, OptimizerSettings(name=name, learning_rate=rate), ScheduleSettings())
        for group, share in zip(optimizer.param_groups, (text_encoders, unet), strict=True):
            group["lr"] = rate * share
        getattr(optimizer, "train", lambda: None)()
        for _ in range(10):
            sum(((one - 3) ** 2).sum() for one in weights.values()).backward()
            optimizer.step()
            optimizer.zero_grad()
        getattr(optimizer, "eval", lambda: None)()
        return [float((one.detach() - 1).abs().mean()) for one in weights.values()]

    stopped, learning = moved(0.0, 1.0)
    assert stopped == 0 < learning
    learning, stopped = moved(1.0, 0.0)
    assert stopped == 0 < learning
    slow, fast = moved(0.25, 1.0)
    assert 0 < slow < 0.6 * fast


def test_text_encoders_may_have_a_rate_of_their_own():
    settings = OptimizerSettings(learning_rate=1e-4, text_encoder_learning_rate=1e-5)
    assert learning_rate("unet", settings, ScheduleSettings()) == 1e-4
    assert learning_rate("text_encoder_2", settings, ScheduleSettings()) == 1e-5
    assert learning_rate("text_encoder_2", OptimizerSettings(learning_rate=1e-4), ScheduleSettings()) == 1e-4
    both = settings.model_copy(update={"text_encoder_2_learning_rate": 1e-6})
    assert learning_rate("text_encoder", both, ScheduleSettings()) == 1e-5
    assert learning_rate("text_encoder_2", both, ScheduleSettings()) == 1e-6


@pytest.mark.parametrize("warmup_init", [False, True])
def test_adafactors_own_schedule_gives_the_weights_of_its_librarys_relative_step(warmup_init: bool):
    schedule = ScheduleSettings(scheduler="adafactor", warmup_init=warmup_init)
    first, second = (torch.nn.Parameter(torch.randn(8, 6, generator=torch.Generator().manual_seed(1))) for _ in "ab")
    settings = OptimizerSettings(name="adafactor", learning_rate=0.3, weight_decay=0.1)
    ours = create_optimizer({"unet": [first]}, settings, schedule)
    theirs = Adafactor([second], relative_step=True, scale_parameter=True, warmup_init=warmup_init, weight_decay=0.1)
    for step in range(5):
        ours.param_groups[0]["lr"] = learning_rate_multiplier(schedule, step, 5) * full_learning_rate(0.3, schedule)
        for weights, optimizer in ((first, ours), (second, theirs)):
            (weights - 1).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert torch.equal(first, second)
    doubled = learning_rate("unet up", settings.model_copy(update={"lora_plus_ratio": 2.0}), schedule)
    assert doubled == 2.0


@PRECISIONS
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_loaded_optimizer_remembers_the_very_same(name: OptimizerName, precision: torch.dtype):
    settings = OptimizerSettings(
        name=name,
        learning_rate=1.0 if name in FINDS_ITS_OWN_RATE else 1e-2,
        # Where the pace may rise only so fast, what it was reckoned from hardly matters.
        arguments={"d_limiter": False} if "d_limiter" in known_arguments(name) else {},
    )
    goal = torch.randn(80, 80, generator=torch.Generator().manual_seed(0))

    def updates(weights: torch.nn.Parameter, optimizer: torch.optim.Optimizer, count: int) -> None:
        for number in range(count):
            torch.manual_seed(number)  # as every batch of a run does; some round by chance where weights are in bf16
            (weights - goal).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    first = torch.nn.Parameter(torch.full((80, 80), 0.1, dtype=precision))
    straight = create_optimizer({"unet": [first]}, settings, ScheduleSettings())
    updates(first, straight, 12)
    second, saved = torch.nn.Parameter(first.detach().clone()), io.BytesIO()
    torch.save(straight.state_dict(), saved)
    saved.seek(0)
    loaded = create_optimizer({"unet": [second]}, settings, ScheduleSettings())
    state = torch.load(saved, weights_only=True)
    loaded.load_state_dict(state)
    restore_precision(loaded, state)
    updates(first, straight, 12)
    updates(second, loaded, 12)
    assert torch.equal(first, second)


OUR_OWN = {
    ("prodigy", "bias_correction"),
    ("prodigy", "safeguard_warmup"),
    ("dadapt_adam", "weight_decouple"),
    ("adopt", "weight_decouple"),
    ("adafactor", "scale_parameter"),
    ("sgd", "momentum"),
    ("sgd", "nesterov"),
}
"""Arguments that we give another value than their class does."""


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_arguments_on_record_are_those_of_the_installed_class(name: OptimizerName):
    module, _, kind = OPTIMIZERS[name].kind.partition(":")
    taken = inspect.signature(getattr(importlib.import_module(module), kind).__init__).parameters
    names = {key for key, value in taken.items() if value.kind is not value.VAR_KEYWORD} - {"self", "params"}
    # An argument that its library takes and never reads.
    names -= {"amsgrad"} if OPTIMIZERS[name].library == "bitsandbytes" else set()
    known = known_arguments(name)
    assert set(known) | (set(decided_elsewhere()) & names) == names
    for argument, value in known.items():
        default = taken[argument].default
        if (name, argument) in OUR_OWN:
            assert value != default
        elif value == NUMBER:
            assert default is None
        else:
            assert (tuple(value) if isinstance(value, list) else value) == default
            assert isinstance(default, bool) == isinstance(value, bool)


@pytest.mark.parametrize("name", ["adamw", "adamw8bit", "prodigy"])
def test_a_value_that_its_class_refuses_is_told_before_anything_is_loaded(name: OptimizerName):
    settings = OptimizerSettings(name=name, arguments={"betas": [0.9, 2.0]})
    with pytest.raises(PlainError, match=f"{name} cannot be used with optimizer.arguments betas=0.9,2.0: .*"):
        check_optimizer(settings, ScheduleSettings())


def test_small_tensors_keep_their_averages_in_full_precision_in_eight_bit_optimizers():
    """What the entry of eight-bit AdamW says of small ranks, on the installed bitsandbytes."""
    limit = parameters()["optimizer.name"].numbers["small"]
    small, large = torch.nn.Parameter(torch.ones(limit - 1)), torch.nn.Parameter(torch.ones(limit))
    optimizer = create_optimizer({"unet": [small, large]}, OptimizerSettings(name="adamw8bit"), ScheduleSettings())
    small.grad, large.grad = torch.ones_like(small), torch.ones_like(large)
    optimizer.step()
    assert optimizer.state[small]["state1"].dtype == torch.float32
    assert optimizer.state[large]["state1"].dtype == torch.uint8
