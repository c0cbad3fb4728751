"""Weights held small: one layer, a whole run, what it needs, and resuming."""

import pytest
import torch
from safetensors.torch import load_file
from short_runs import Configure, run_to_end, same, stopped_at
from torch import nn

from calculator.held_weights import held_bytes
from engine.checkpoints import DTYPES
from engine.events import RunStarted, StepFinished
from engine.held_weights import HeldConvolution, HeldLinear, _HeldLayer, hold_weights
from engine.models.family import AdaptedLayer
from engine.models.load import load
from engine.networks import ALGORITHMS, Network, attached, shares_within
from engine.optimizers import create_optimizer
from engine.run_folder import RunFolder
from engine.train import train
from knowledge.answers import PlainError
from knowledge.architectures import read_architecture
from knowledge.config import BaseModelSettings, NetworkSettings, OptimizerSettings, ScheduleSettings
from knowledge.optimizers import OPTIMIZERS

FORMS = ["same", "fp8", "8bit", "nf4"]
CPU = torch.device("cpu")
# What rounding a normal weight may cost at most, as a share of its norm: eight steps an octave in fp8, bitsandbytes'
# 256 values by size, its 16 values.
ROUNDING = {"same": 0.0, "fp8": 0.03, "8bit": 0.015, "nf4": 0.11}


def held(layer: nn.Module, form: str, stays: bool = False) -> nn.Module:
    layer.__class__ = HeldLinear if isinstance(layer, nn.Linear) else HeldConvolution
    layer.hold(form, stays, CPU)
    return layer


LAYERS = {
    "linear": (lambda: nn.Linear(48, 40), (2, 5, 48)),
    "linear without bias": (lambda: nn.Linear(48, 40, bias=False), (2, 5, 48)),
    "3x3 with a stride": (lambda: nn.Conv2d(16, 24, 3, 2, 1), (2, 16, 6, 4)),
    "1x1": (lambda: nn.Conv2d(16, 24, 1), (2, 16, 6, 4)),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", LAYERS)
def test_a_held_layer_computes_with_its_rounded_weight_forward_and_back(form, kind):
    make, shape = LAYERS[kind]
    torch.manual_seed(0)
    layer = make().requires_grad_(False)
    weight = layer.weight.clone()
    plain = make()
    plain.load_state_dict(layer.state_dict())
    held(layer, form)
    assert 0 <= (layer.weight - weight).norm() / weight.norm() <= ROUNDING[form]
    plain.weight.data = layer.weight
    x, other = torch.randn(shape, requires_grad=True), torch.zeros(shape, requires_grad=True)
    other.data = x.data.clone()
    answers = layer(x), plain.requires_grad_(False)(other)
    for answer in answers:
        answer.pow(2).sum().backward()
    torch.testing.assert_close(*answers)
    torch.testing.assert_close(x.grad, other.grad)


def test_nothing_whole_is_kept_for_the_backward_pass():
    kept: list[torch.Tensor] = []
    layer = held(nn.Linear(64, 64).requires_grad_(False), "fp8")
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: (kept.append(tensor), tensor)[1], lambda tensor: tensor
    ):
        layer(torch.randn(2, 64, requires_grad=True))
    assert not kept


def test_an_offloaded_weight_stays_where_it_is_and_a_packed_one_goes_along_unconverted():
    layer = held(nn.Linear(64, 64).requires_grad_(False), "same", stays=True).to("meta")
    assert layer.held.tensors[0].device.type == "cpu"
    assert layer.bias.device.type == "meta"
    assert layer(torch.empty(2, 64, device="meta")).device.type == "meta"
    moved = held(nn.Linear(64, 64).requires_grad_(False), "fp8").to("meta", torch.bfloat16)
    assert moved.held.tensors[0].device.type == "meta"
    assert moved.held.tensors[0].dtype == torch.float8_e4m3fn


@pytest.mark.parametrize(("form", "share"), [("fp8", 0.5), ("8bit", 0.5), ("nf4", 0.25)])
def test_the_blocks_take_the_share_that_the_calculator_counts(form, share, tiny_sdxl):
    model = load(BaseModelSettings(path=str(tiny_sdxl), family="sdxl"), torch.bfloat16)
    hold_weights(model, form, False, CPU)
    layers = [module for module in model.unet.modules() if isinstance(module, _HeldLayer)]
    codes = {"fp8": 0, "8bit": 1024, "nf4": 64}[form]  # a table that every layer has beside its weights
    there = sum(sum(t.nbytes for t in layer.held.tensors) - codes for layer in layers)
    there += sum(parameter.nbytes for parameter in model.unet.parameters())
    counted = held_bytes(read_architecture(tiny_sdxl, "sdxl"), form, 2)
    assert there == pytest.approx(counted, rel=0.02)
    whole = 2 * read_architecture(tiny_sdxl, "sdxl").weights["unet"]
    assert there < (share + 0.2) * whole  # tiny layers have many scales


# -- whole runs -------------------------------------------------------------------------------------------------------


def weights_of(run) -> torch.Tensor:
    (path,) = run.checkpoints.glob("toy.safetensors")
    return torch.cat(
        [tensor.flatten().float() for name, tensor in sorted(load_file(path).items()) if "alpha" not in name]
    )


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_network_works_beside_weights_that_stay_in_the_computers_memory(algorithm):
    layer = held(nn.Linear(48, 64), "same", stays=True)
    settings = NetworkSettings(algorithm=algorithm, rank=8, dylora_block_size=2)
    network = Network([AdaptedLayer("layer", layer, "unet")], settings, 0).to("meta").train()  # a card, in effect
    layer.to("meta")
    assert layer.held.tensors[0].device == CPU
    with attached(network):
        layer(torch.ones(2, 5, 48, device="meta")).sum().backward()
    assert any(weights.grad is not None for weights in network.parameters())
    assert {share.device.type for _, share in shares_within(network, 1.0)} == {"meta"}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_offloaded_run_learns_exactly_what_the_plain_one_does(configure: Configure, checkpointing):
    plain, offloaded = (
        run_to_end(configure(memory={"offload_blocks": on, "gradient_checkpointing": checkpointing}))[0]
        for on in (False, True)
    )
    torch.testing.assert_close(weights_of(offloaded), weights_of(plain), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_holds_its_base_model_where_and_as_it_was_asked_to(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, offload, precision
):
    models = []
    monkeypatch.setattr("engine.train.load", lambda *how, **more: models.append(load(*how, **more)) or models[0])
    config = configure(memory={"offload_blocks": offload, "precision": precision})
    next(event for event in train(config, RunFolder.create(config)) if isinstance(event, RunStarted))
    (model,) = models
    held_layers = [layer for layer in model.unet.modules() if isinstance(layer, _HeldLayer)]
    assert bool(held_layers) == offload
    assert all(layer.held.stays for layer in held_layers)
    tensors = [tensor for layer in held_layers for tensor in layer.held.tensors]
    tensors += [weight for part in model.parts().values() for weight in part.parameters()]
    assert {tensor.dtype for tensor in tensors} == {DTYPES[precision]}
    assert {weight.dtype for weight in model.vae.parameters()} == {torch.float32}  # in half precision it draws black


@pytest.mark.parametrize("form", ["8bit", "nf4"])
def test_numbers_that_a_missing_library_makes_are_refused_before_anything_is_loaded(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, form
):
    monkeypatch.setattr("engine.held_weights.find_spec", lambda name: None)
    monkeypatch.setattr("engine.train.load", lambda *_, **__: pytest.fail("the model was loaded"))
    config = configure(memory={"base_weights": form})
    with pytest.raises(PlainError, match=f"memory.base_weights is {form}, which needs bitsandbytes"):
        list(train(config, RunFolder.create(config)))


@pytest.mark.parametrize(("form", "apart"), [("fp8", 0.1), ("8bit", 0.05), ("nf4", 0.35)])
def test_a_run_on_rounded_weights_learns_nearly_the_same(configure: Configure, form, apart):
    changes = {"optimizer": {"name": "sgd", "learning_rate": 1e-2}}
    plain = weights_of(run_to_end(configure(**changes))[0])
    start = weights_of(run_to_end(configure(**{"optimizer": {"name": "sgd", "learning_rate": 1e-12}}))[0])
    rounded = weights_of(run_to_end(configure(memory={"base_weights": form}, **changes))[0])
    distance = ((rounded - plain).norm() / (plain - start).norm()).item()
    assert 0 < distance < apart


@pytest.mark.parametrize(
    "memory",
    [
        {"base_weights": "fp8"},
        {"base_weights": "8bit"},
        {"full_half": True, "precision": "bf16"},
    ],
)
def test_a_stopped_and_resumed_run_is_straight_through_bit_for_bit(configure: Configure, memory):
    changes = {"memory": {**memory, "gradient_checkpointing": True}, "schedule": {"maximum_steps": 2}}
    config = configure(**changes)
    straight = weights_of(run_to_end(config)[0])
    run = RunFolder.create(config)
    done = 0

    def stop() -> bool:
        return done >= 1

    for event in train(config, run, should_stop=stop):
        done += isinstance(event, StepFinished)
    assert done == 1
    list(train(config, run, resume=True))
    assert torch.equal(weights_of(run), straight)


def test_all_that_saves_memory_together_is_stopped_and_resumed_bit_for_bit(configure: Configure, tmp_path):
    """Beside it an average, a network to start from, held-out pictures and samples: what carries a memory is kept."""
    start = tmp_path / "start.safetensors"
    run_to_end(configure(schedule={"maximum_steps": 1}))[0].checkpoints.joinpath("toy.safetensors").rename(start)
    config = configure(
        memory={
            "precision": "bf16",
            "full_half": True,
            "base_weights": "nf4",
            "offload_blocks": True,
            "gradient_checkpointing": True,
            "fused_backward": True,
        },
        optimizer={"maximum_gradient_norm": 0.0},
        schedule={"gradient_accumulation_steps": 1, "maximum_steps": 2},
        ema={"decay": 0.9, "saved": "both"},
        network={"start_from": str(start)},
        validation={"share": 0.2},
        sampling={"prompts": ["a toy --s 1"], "every_steps": 1},
    )
    straight, resumed = run_to_end(config)[0], stopped_at(config, [1])
    for place in ("toy.safetensors", "plain/toy.safetensors"):
        assert same(*(load_file(run.checkpoints / place) for run in (straight, resumed)))


def test_full_half_keeps_the_weights_in_bf16_learns_nearly_the_same_and_says_so(configure: Configure):
    from safetensors import safe_open

    plain, half = (run_to_end(configure(memory={"precision": "bf16", "full_half": on}))[0] for on in (False, True))
    distance = (weights_of(half) - weights_of(plain)).norm() / weights_of(plain).norm()
    assert 0 < distance < 0.05
    # Nothing between two numbers of bf16 is left.
    assert torch.equal(weights_of(half), weights_of(half).bfloat16().float())
    (file,) = half.checkpoints.glob("toy.safetensors")
    with safe_open(file, "pt") as opened:
        assert opened.metadata()["ss_full_bf16"] == "True"
    with pytest.raises(ValueError, match=r"memory\.full_half is on and memory\.precision is fp32"):
        configure(memory={"full_half": True})


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_keeps_the_counted_share_of_its_state_for_weights_in_bf16(name):
    def state(dtype: torch.dtype) -> int:
        weights = [nn.Parameter(torch.randn(64, 320).to(dtype))]
        settings = OptimizerSettings(name=name)
        optimizer = create_optimizer({"unet": weights}, settings, ScheduleSettings())
        if hasattr(optimizer, "train"):
            optimizer.train()
        for _ in range(2):
            weights[0].grad = torch.ones_like(weights[0])
            optimizer.step()
        assert torch.isfinite(weights[0]).all()
        return sum(t.nbytes for kept in optimizer.state.values() for t in kept.values() if torch.is_tensor(t))

    assert state(torch.bfloat16) / state(torch.float32) == pytest.approx(OPTIMIZERS[name].state_in_half, abs=0.01)
