"""How a run is looked at: with one noise for all measurements, and with the weights that would be saved."""

from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from short_runs import Configure, Values, run_to_end, same, weights

from calculator.validation import DRAWS
from engine.batch_loss import loss_of_draw
from engine.samples import denoised
from knowledge.config import LossSettings


@pytest.mark.parametrize(
    "averaging", [{"ema": {"decay": 0.9}}, {"optimizer": {"name": "schedule_free_adamw"}}], ids=["ema", "schedule-free"]
)
def test_a_run_is_looked_at_with_the_same_noise_and_the_weights_that_would_be_saved(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, averaging: Values
):
    config: dict[str, Any] = {
        **averaging,
        "schedule": {"epochs": 1, "gradient_accumulation_steps": 1, "maximum_steps": 2},
        "network": {"dropout": 0.5},
        "noise": {"minimum_timestep": 900},
        "loss": {"function": "huber"},
        "validation": {"share": 0.4, "every_steps": 1},
    }
    draws: list[dict[str, Any]] = []
    seen: list[tuple[bool, dict[str, torch.Tensor]]] = []
    networks: list[Any] = []

    def look() -> None:
        network = networks[-1]
        seen.append((network.training, {name: t.detach().clone() for name, t in network.saved_tensors().items()}))

    def measured(bench: Any, batch: Any, latents: Any, noise: Any, noisy: Any, timesteps: Any, loss: Any) -> Any:
        networks.append(bench.network)
        look()
        assert loss == LossSettings(), "a loss that two runs can be compared by"
        draws.append({"latents": latents, "noise": noise, "timesteps": timesteps})
        return loss_of_draw(bench, batch, latents, noise, noisy, timesteps, loss)

    def drawn(*arguments: Any) -> Any:
        look()
        return denoised(*arguments)

    with monkeypatch.context() as blind:
        blind.setattr("engine.train.validate", lambda *_: iter(()))
        unseen, _ = run_to_end(configure(**config))
    monkeypatch.setattr("engine.watching.loss_of_draw", measured)
    monkeypatch.setattr("engine.watching.denoised", drawn)
    looking: dict[str, Values] = {
        "sampling": {"prompts": ["a toy --s 1"], "every_steps": 1},
        "saving": {"every_steps": 1},
    }
    run, _ = run_to_end(configure(**config, **looking))
    assert same(weights(run), weights(unseen)), "being looked at changes nothing"

    at_once = 2 * DRAWS  # two held-out pictures
    assert len(draws) == 3 * at_once
    for name in ("latents", "noise", "timesteps"):
        at_start, *later = (torch.stack([d[name] for d in draws[n : n + at_once]]) for n in range(0, 24, at_once))
        assert all(torch.equal(each, at_start) for each in later), f"{name} are the same every time"
    assert len({draw["noise"].sum().item() for draw in draws}) == at_once
    assert min(draw["timesteps"].item() for draw in draws) < 900, "over the whole range"

    assert not any(training for training, _ in seen)
    for number, file in ((1, "toy-step000001.safetensors"), (2, "toy.safetensors")):
        saved = load_file(run.checkpoints / file)
        for _, used in seen[number * (at_once + 1) :][: at_once + 1]:
            assert all(torch.equal(used[name], tensor) for name, tensor in saved.items())
