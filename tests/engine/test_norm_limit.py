"""A limit on the norm of each layer's change holds for what is saved, whatever copies of weights are kept beside it."""

from __future__ import annotations

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from benches import bare_bench
from safetensors.torch import load_file
from short_runs import RESTLESS, Configure, run_to_end, same, stopped_at, weights

from engine.averages import create_average
from engine.bench import Bench
from engine.fused_backward import FusedBackward
from engine.models.family import AdaptedLayer
from engine.networks import Network, attached
from engine.optimizers import create_optimizer
from engine.processes import create_accelerator
from engine.tools.adapters import in_memory
from engine.tools.effect import change
from knowledge.config import OptimizerName, TrainingConfig
from knowledge.optimizers import OPTIMIZERS

LIMIT = 0.2


def bench_of_one_layer(layer: torch.nn.Module, name: OptimizerName, fused: bool) -> Bench:
    config = TrainingConfig.model_validate(
        {
            "network": {"rank": 2, "alpha": 2.0, "maximum_norm": LIMIT},
            "optimizer": {"name": name, "learning_rate": 0.1, **RESTLESS.get(name, {})},
            "ema": {"decay": 0.7},
        }
    )
    network = Network([AdaptedLayer("layer", layer, "unet")], config.network, 0)
    groups, accelerator = network.trained_parameters(), create_accelerator("fp32")
    optimizer = (
        FusedBackward(groups, config.optimizer, config.schedule)
        if fused
        else AcceleratedOptimizer(create_optimizer(groups, config.optimizer, config.schedule))
    )
    average = create_average(list(network.parameters()), config.ema)
    return bare_bench(config=config, accelerator=accelerator, network=network, optimizer=optimizer, average=average)


@pytest.mark.parametrize(
    ("name", "fused"),
    [
        *((name, False) for name in OPTIMIZERS),
        *((name, True) for name in OPTIMIZERS if not OPTIMIZERS[name].pace),
    ],
)
def test_what_would_be_saved_is_never_above_the_limit_and_reaches_it(name: OptimizerName, fused: bool):
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 64, bias=False).requires_grad_(False)
    x, goal = torch.randn(32, 64), torch.randn(32, 64)
    bench = bench_of_one_layer(layer, name, fused)
    norms = []
    with attached(bench.network.train()):
        for step in range(1, 25):
            ((layer(x) - goal) ** 2).sum().backward()
            bench.optimizer.step()
            bench.optimizer.zero_grad()
            bench.limit_norms()
            bench.take_in_average(step)
            for averaged in (False, True):
                with bench.at_rest(averaged=averaged):
                    (found,) = in_memory(bench.network.saved_tensors()).values()
                    norms.append(float(change(found).norm()))
    assert LIMIT * 0.9 < max(norms) < LIMIT * (1 + 1e-5)


def test_a_run_saves_what_is_within_the_limit_and_goes_on_from_a_file_bit_for_bit(configure: Configure):
    first, _ = run_to_end(configure(schedule={"maximum_steps": 1}))
    config = configure(
        network={"maximum_norm": 0.02, "start_from": str(first.checkpoints / "toy.safetensors")},
        optimizer={"name": "schedule_free_adamw"},
        ema={"decay": 0.5, "saved": "both"},
    )
    run, _ = run_to_end(config)
    assert same(weights(stopped_at(config, [1, 3])), weights(run))
    for file in (run.checkpoints / "toy.safetensors", run.checkpoints / "plain" / "toy.safetensors"):
        norms = [float(change(adapter).norm()) for adapter in in_memory(load_file(file)).values()]
        assert max(norms) == pytest.approx(0.02, rel=1e-4)
