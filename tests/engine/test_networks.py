import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from engine.models import original
from engine.models.family import AdaptedLayer
from engine.models.load import load
from engine.models.sd import StableDiffusion
from engine.models.sdxl import StableDiffusionXL
from engine.networks import ALGORITHMS, Network, attached, create_network, limit_norms
from engine.optimizers import learning_rate
from knowledge.config import (
    CONVOLUTIONS_TOO,
    BaseModelSettings,
    NetworkSettings,
    OptimizerSettings,
    ScheduleSettings,
    TrainingConfig,
)

DATA = Path(__file__).parent.parent / "data"
RECORDED = json.loads((DATA / "network_layers.json").read_text())


@pytest.fixture(scope="module")
def sd15(tiny_sd15: Path) -> StableDiffusion:
    return load(BaseModelSettings(path=str(tiny_sd15), family="sd15"), torch.float32)


@pytest.fixture(scope="module")
def sdxl(tiny_sdxl: Path) -> StableDiffusion:
    return load(BaseModelSettings(path=str(tiny_sdxl), family="sdxl"), torch.float32)


def shapes_of_full_size(family: str, model: StableDiffusion) -> StableDiffusion:
    """The family at its real size, without memory for its weights; the VAE is borrowed."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(original.configs(family) / "unet"))
        encoders = {
            folder.name: (CLIPTextModelWithProjection if folder.name.endswith("2") else CLIPTextModel)(
                CLIPTextConfig.from_pretrained(folder)
            )
            for folder in sorted((original.configs(family)).glob("text_encoder*"))
        }
    kind = StableDiffusionXL if family == "sdxl" else StableDiffusion
    return kind(unet, model.vae, encoders, [])


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_a_full_size_network_has_kohyas_layers_names_and_shapes(family: str, sd15: StableDiffusion):
    recorded = RECORDED[f"{family}_conv"]
    model = shapes_of_full_size(family, sd15)
    settings = NetworkSettings(
        algorithm="locon",
        rank=recorded["dim"],
        alpha=float(recorded["alpha"]),
        conv_rank=int(recorded["kwargs"]["conv_dim"]),
        conv_alpha=float(recorded["kwargs"]["conv_alpha"]),
        train_text_encoder=True,
    )
    tensors = create_network(model, settings, 0).saved_tensors()
    ours = {name: list(tensor.shape) for name, tensor in tensors.items() if not name.endswith(".alpha")}
    kohyas = {f"{name}.lora_down.weight": down for name, down, _ in recorded["modules"]}
    kohyas |= {f"{name}.lora_up.weight": up for name, _, up in recorded["modules"]}
    assert ours == kohyas


def settings_for(algorithm: str, **more: object) -> NetworkSettings:
    """Settings of an algorithm; one with "+" behind it adapts the convolutions too."""
    values = {"rank": 4, "alpha": 2.0, "conv_rank": 2, "conv_alpha": 1.0, "lokr_factor": 4, "train_text_encoder": True}
    values |= {"dylora_block_size": 2, "convolutions": algorithm.endswith("+")}
    return NetworkSettings(algorithm=algorithm.removesuffix("+"), **(values | more))


WITH_CONVOLUTIONS = [*ALGORITHMS, *(f"{name}+" for name in sorted(CONVOLUTIONS_TOO))]


def predict(model: StableDiffusion) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    noisy = torch.randn((2, 4, 8, 8), generator=generator)
    sizes = torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2)
    with torch.no_grad():
        return model.predict(noisy, torch.tensor([10, 900]), model.encode_prompt(["a cat", "a red car"]), sizes)


def stir(network: Network, strength: float = 0.2) -> None:
    """Give every trained weight a value of its own, as training would."""
    generator = torch.Generator().manual_seed(6)
    for parameter in network.parameters():
        parameter.data += strength * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
@pytest.mark.parametrize("algorithm", WITH_CONVOLUTIONS)
def test_a_new_network_changes_nothing_and_a_trained_one_does(
    algorithm: str, family: str, request: pytest.FixtureRequest
):
    model = request.getfixturevalue(family)
    base = predict(model)
    network = create_network(model, settings_for(algorithm), seed=3)
    with attached(network):
        torch.testing.assert_close(predict(model), base, rtol=1e-4, atol=1e-5)
        stir(network)
        assert (predict(model) - base).abs().max() > 1e-3
    assert torch.equal(predict(model), base)


@pytest.mark.parametrize("algorithm", WITH_CONVOLUTIONS)
def test_every_weight_learns(algorithm: str, sd15: StableDiffusion):
    network = create_network(sd15, settings_for(algorithm), seed=3)
    stir(network)
    with attached(network):
        prediction = sd15.predict(
            torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(1)),
            torch.tensor([10, 900]),
            sd15.encode_prompt(["a cat", "a red car"]),
            torch.zeros(2, 6),
        )
        prediction.square().mean().backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    # The last text layer's queries and keys always see a gradient; nothing may be left out.
    assert silent == []


def test_the_same_seed_gives_the_same_first_weights(sd15: StableDiffusion):
    first, again, other = (create_network(sd15, settings_for("lora"), seed).exact_tensors() for seed in (3, 3, 4))
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert any(not torch.equal(tensor, other[name]) for name, tensor in first.items())


def test_rank_and_alpha_are_those_of_the_settings(sd15: StableDiffusion):
    tensors = create_network(sd15, settings_for("locon"), 0).saved_tensors()
    linear = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    convolution = "lora_unet_mid_block_resnets_0_conv1"
    assert tensors[f"{linear}.lora_down.weight"].shape[0] == 4
    assert tensors[f"{linear}.alpha"] == 2
    assert tensors[f"{convolution}.lora_down.weight"].shape[0] == 2
    assert tensors[f"{convolution}.alpha"] == 1


@pytest.mark.parametrize("algorithm", sorted(CONVOLUTIONS_TOO))
def test_convolutions_are_adapted_where_they_are_asked_for(algorithm: str, sd15: StableDiffusion):
    convolution = "lora_unet_mid_block_resnets_0_conv1"
    without, with_them = (create_network(sd15, settings_for(name), 0).adapters for name in (algorithm, f"{algorithm}+"))
    assert (convolution in without, convolution in with_them) == (False, True)
    assert set(without) < set(with_them)


def test_train_unet_and_train_text_encoder_choose_the_parts(sdxl: StableDiffusion):
    both = create_network(sdxl, settings_for("lora"), 0).trained_parameters()
    unet_only = create_network(sdxl, settings_for("lora", train_text_encoder=False), 0).trained_parameters()
    text_only = create_network(sdxl, settings_for("lora", train_unet=False), 0).trained_parameters()
    assert list(both) == ["text_encoder", "text_encoder_2", "unet"]
    assert list(unet_only) == ["unet"]
    assert list(text_only) == ["text_encoder", "text_encoder_2"]


@pytest.mark.parametrize("kind", ["dropout", "rank_dropout", "module_dropout"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_dropout_acts_while_training_and_not_while_drawing(algorithm: str, kind: str, sd15: StableDiffusion):
    network_settings = settings_for(algorithm, **{kind: 0.5})
    try:
        TrainingConfig(network=network_settings)
    except ValidationError:
        return  # this algorithm knows no such dropout, and the config says so
    network = create_network(sd15, network_settings, 0)
    stir(network)
    with attached(network):
        network.train()
        assert not torch.equal(predict(sd15), predict(sd15))
        network.eval()
        assert torch.equal(predict(sd15), predict(sd15))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_limit_norms_brings_every_large_change_down_to_the_limit_and_leaves_the_rest(
    algorithm: str, sd15: StableDiffusion
):
    network = create_network(sd15, settings_for(algorithm), 0)
    stir(network, 0.5)
    before = {name: network.recipe.change(adapter).norm().item() for name, adapter in network.adapters.items()}
    limit = sorted(before.values())[len(before) // 2]
    limit_norms(network, limit)
    for name, adapter in network.adapters.items():
        assert network.recipe.change(adapter).norm().item() == pytest.approx(min(before[name], limit), rel=1e-4)


@pytest.mark.parametrize("algorithm", WITH_CONVOLUTIONS)
def test_a_new_network_takes_over_the_weights_of_a_file_of_its_kind(algorithm: str, sd15: StableDiffusion):
    first, second = (create_network(sd15, settings_for(algorithm), seed) for seed in (1, 2))
    stir(first)
    second.take(first.saved_tensors())
    ours, theirs = first.exact_tensors(), second.exact_tensors()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_factors_over_the_inputs_are_not_taken_for_factors_over_the_outputs(sd15: StableDiffusion):
    network = create_network(sd15, settings_for("ia3"), 0)
    elsewhere = {name: torch.ones_like(t) if "on_input" in name else t for name, t in network.saved_tensors().items()}
    with pytest.raises(ValueError, match="on_input is 1 there and 0 here"):
        network.take(elsewhere)


def test_limit_norms_is_kohyas():
    recorded = json.loads((DATA / "max_norm.json").read_text())
    layers = []
    for name in ("lora_unet_x0", "lora_unet_x1", "lora_unet_x2"):
        down, up = (torch.tensor(recorded["before"][f"{name}.lora_{side}.weight"]) for side in ("down", "up"))
        if down.dim() == 4:
            layer: torch.nn.Module = torch.nn.Conv2d(down.shape[1], up.shape[0], down.shape[2])
        else:
            layer = torch.nn.Linear(down.shape[1], up.shape[0])
        rank, alpha = down.shape[0], float(recorded["before"][f"{name}.alpha"])
        settings = NetworkSettings(algorithm="locon", rank=rank, alpha=alpha, conv_rank=rank, conv_alpha=alpha)
        network = Network([AdaptedLayer(name, layer, "unet")], settings, 0)
        for parameter_name, parameter in network.named_parameters():
            parameter.data.copy_(torch.tensor(recorded["before"][parameter_name.removeprefix("adapters.")]))
        layers.append(network)
        limit_norms(network, recorded["max_norm"])
        for parameter_name, parameter in network.named_parameters():
            after = torch.tensor(recorded["after"][parameter_name.removeprefix("adapters.")])
            torch.testing.assert_close(parameter.data, after, rtol=1e-6, atol=1e-6)
    assert len(layers) == recorded["keys_scaled"]


def test_matrices_that_lead_up_are_groups_of_their_own_for_lora_plus(sd15: StableDiffusion):
    network = create_network(sd15, settings_for("lora"), 0)
    together, apart = network.trained_parameters(), network.trained_parameters(up_apart=True)
    assert list(apart) == ["text_encoder", "text_encoder up", "unet", "unet up"]
    assert all(len(apart[part]) == len(apart[f"{part} up"]) == len(together[part]) / 2 for part in together)
    assert (
        learning_rate("unet up", OptimizerSettings(learning_rate=1e-4, lora_plus_ratio=16.0), ScheduleSettings())
        == 16e-4
    )


def test_dylora_trains_one_block_of_ranks_at_a_time_on_those_before_it(sd15: StableDiffusion):
    network = create_network(sd15, settings_for("dylora", rank=6, dylora_block_size=2), 0)
    stir(network)
    taught = set()
    with attached(network.train()):
        for seed in range(6):
            torch.manual_seed(seed)
            sd15.predict(torch.ones(1, 4, 8, 8), torch.tensor([10]), sd15.encode_prompt(["a"]), None).sum().backward()
            for adapter in network.adapters.values():
                learning = adapter.lora_down.weight.grad.flatten(1).any(dim=1).view(3, 2)
                assert learning.sum() == 2
                assert learning.any(dim=1).sum() == 1, "the ranks of a block learn together"
                assert torch.equal(adapter.lora_up.weight.grad.flatten(1).any(dim=0), learning.flatten())
                taught.add(int(learning.any(dim=1).nonzero()))
            network.zero_grad()
    assert taught == {0, 1, 2}


def test_dyloras_later_ranks_do_not_act_while_an_earlier_block_learns(sd15: StableDiffusion, monkeypatch):
    layer = torch.nn.Linear(8, 8)
    settings = settings_for("dylora", rank=4, alpha=4.0, dylora_block_size=2)
    network = Network([AdaptedLayer("layer", layer, "unet")], settings, 0).train()
    stir(network, 1.0)
    adapter, x = network.adapters["layer"], torch.randn(3, 8)
    monkeypatch.setattr(torch, "randint", lambda high, size: torch.tensor(0))
    down, up = adapter.lora_down.weight, adapter.lora_up.weight
    # alpha ÷ rank is one; half of the ranks are strengthened by the square root of two.
    expected = layer(x) + x @ down[:2].t() @ up[:, :2].t() * 2**0.5
    with attached(network):
        torch.testing.assert_close(layer(x), expected)


def test_gloras_rank_dropout_leaves_out_the_share_that_is_set(sd15: StableDiffusion):
    layer = torch.nn.Linear(8, 8, bias=False)
    network = Network([AdaptedLayer("layer", layer, "unet")], settings_for("glora", rank=400, rank_dropout=0.25), 0)
    adapter = network.adapters["layer"].train()
    torch.nn.init.zeros_(adapter.a1.weight)
    torch.nn.init.ones_(adapter.b1.weight)
    torch.nn.init.ones_(adapter.b2.weight)
    with torch.no_grad():
        torch.manual_seed(0)
        kept = adapter.bypass_forward_diff(torch.ones(1, 8)) / 8 / adapter.scale / 400
    assert kept.mean() == pytest.approx(0.75, abs=0.06)


def test_full_leaves_the_base_model_alone_and_changes_biases_too(sd15: StableDiffusion):
    before = {name: tensor.clone() for name, tensor in sd15.unet.state_dict().items()}
    network = create_network(sd15, settings_for("full+"), 0)
    stir(network)
    with attached(network):
        pass
    after = sd15.unet.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert sum(name.endswith(".diff_b") for name in network.saved_tensors()) > 0


def test_blocks_have_their_own_ranks_alphas_and_rates_or_are_left_out(sd15: StableDiffusion):
    lists = {"block_ranks": "3", "block_alphas": "6", "conv_block_ranks": "1", "conv_block_alphas": "5"}
    lists |= {"block_rates": "1"}
    lists = {name: [value] * 25 for name, value in lists.items()}
    lists["block_ranks"][12], lists["block_rates"][12], lists["block_rates"][13:] = "2", "0.5", ["0"] * 12
    settings = settings_for("locon", **{name: ",".join(values) for name, values in lists.items()})
    network = create_network(sd15, settings, 0)
    tensors = network.saved_tensors()
    middle = "lora_unet_mid_block_attentions_0_proj_in"
    assert tensors[f"{middle}.lora_down.weight"].shape[0] == 2
    assert tensors[f"{middle}.alpha"] == 6
    assert tensors["lora_unet_mid_block_resnets_0_conv1.lora_down.weight"].shape[0] == 1
    assert tensors["lora_unet_mid_block_resnets_0_conv1.alpha"] == 5
    assert not any("up_blocks" in name for name in tensors)
    groups = network.trained_parameters(up_apart=True)
    assert list(groups) == ["text_encoder", "text_encoder up", "unet", "unet up", "unet ×0.5", "unet ×0.5 up"]
    assert sum(map(len, groups.values())) == len(list(network.parameters()))
    rate = learning_rate(
        "unet ×0.5 up", OptimizerSettings(learning_rate=1e-4, lora_plus_ratio=16.0), ScheduleSettings()
    )
    assert rate == pytest.approx(8e-4)


def test_making_a_network_prints_nothing(sd15: StableDiffusion, capfd: pytest.CaptureFixture[str]):
    for algorithm in ("oft", "boft", "lokr"):
        create_network(sd15, settings_for(algorithm, rank=12), 0)
    assert capfd.readouterr().out == ""


def test_a_whole_lokr_has_no_split_half(sd15: StableDiffusion):
    split, whole = (
        {name.rpartition(".")[2] for name in create_network(sd15, settings, 0).saved_tensors()}
        for settings in (settings_for("lokr"), settings_for("lokr", lokr_full_matrix=True))
    )
    assert "lokr_w2_a" in split
    assert whole == {"alpha", "lokr_w1", "lokr_w2"}


def test_lokr_factor_shapes_the_factors(sd15: StableDiffusion):
    shapes = [
        create_network(sd15, settings_for("lokr", lokr_factor=factor), 0)
        .saved_tensors()["lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_2.lokr_w1"]
        .shape
        for factor in (2, 4)
    ]
    assert shapes == [(2, 2), (4, 4)]
