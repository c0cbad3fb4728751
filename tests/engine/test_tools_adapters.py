"""What an adapter does, against the layers that LyCORIS and PEFT themselves run."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from engine.tools.adapters import adapters, in_memory, split_name
from engine.tools.convert import converted
from engine.tools.decompose import Keep, direction
from engine.tools.effect import bias_change, change
from engine.tools.families import families
from engine.tools.files import LoadedTensors
from engine.tools.resize import resize
from knowledge.answers import PlainError

ALGORITHMS = [
    ("lora", {}),
    ("lora", {"use_tucker": True}),
    ("lora", {"dora_wd": True, "wd_on_output": False}),
    ("lora", {"dora_wd": True, "wd_on_output": True}),
    ("lora", {"rs_lora": True}),
    ("loha", {}),
    ("loha", {"use_tucker": True}),
    ("loha", {"dora_wd": True, "wd_on_output": False}),
    ("lokr", {"factor": 4}),
    ("lokr", {"factor": 4, "use_tucker": True}),
    ("lokr", {"full_matrix": True}),
    ("lokr", {"decompose_both": True, "factor": 8}),
    ("glora", {}),
    ("diag-oft", {}),
    ("diag-oft", {"constraint": 0.01}),
    ("diag-oft", {"rescaled": True}),
    ("boft", {}),
    ("boft", {"rescaled": True}),
    ("full", {}),
    ("ia3", {}),
]


class Layers(nn.Module):
    """A linear layer and two convolutions, as UNets have them."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(24, 32)
        self.conv = nn.Conv2d(16, 32, 3, padding=1)
        self.point = nn.Conv2d(16, 32, 1)

    def forward(self, vectors, pictures):
        return self.linear(vectors), self.conv(pictures), self.point(pictures)


def trained(algorithm: str, options: dict, strength: float) -> tuple[dict, list]:
    """A network's saved tensors and the outputs of the layers it is hooked into."""
    from lycoris import create_lycoris
    from lycoris.wrapper import PRESET

    PRESET["tools-test"] = {
        "enable_conv": True,
        "target_module": ["Linear", "Conv2d"],
        "target_name": [],
        "lora_prefix": "lycoris",
        "module_algo_map": {},
        "name_algo_map": {},
        "exclude_name": [],
        "use_fnmatch": False,
    }
    torch.manual_seed(0)
    layers = Layers()
    sizes = {"linear_dim": 4, "linear_alpha": 2, "conv_dim": 3, "conv_alpha": 6}
    network = create_lycoris(layers, strength, algo=algorithm, preset="tools-test", **sizes, **options)
    network.apply_to()
    for parameter in network.parameters():
        parameter.data += torch.randn_like(parameter) * 0.1
    vectors, pictures = torch.randn(2, 24), torch.randn(1, 16, 5, 5)
    with torch.no_grad():
        outputs = layers(vectors, pictures)
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}, [
        outputs,
        vectors,
        pictures,
    ]


@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize(("algorithm", "options"), ALGORITHMS, ids=str)
def test_the_change_is_what_the_training_forward_pass_adds(algorithm, options, strength):
    tensors, (outputs, vectors, pictures) = trained(algorithm, options, strength)
    torch.manual_seed(0)
    layers = Layers()
    found = in_memory(tensors)
    assert len(found) == 3
    with torch.no_grad():
        for module, adapter in found.items():
            layer = getattr(layers, module.rsplit("_", 1)[-1])
            shift = bias_change(adapter, strength)
            layer.weight += change(adapter, layer.weight.clone(), strength).reshape(layer.weight.shape)
            if shift is not None:
                layer.bias += shift
        merged = layers(vectors, pictures)
    for ours, theirs in zip(merged, outputs, strict=True):
        torch.testing.assert_close(ours, theirs, atol=5e-6, rtol=0)


@pytest.mark.parametrize(("algorithm", "options"), ALGORITHMS, ids=str)
def test_every_algorithm_becomes_plain_lora_of_the_same_effect(algorithm, options):
    """With all ranks nothing is lost but rounding; with one, as much as is stated."""
    tensors, _ = trained(algorithm, options, 1.0)
    torch.manual_seed(0)
    layers = Layers()
    weights = {f"lycoris_{name}": getattr(layers, name).weight.detach() for name in ("linear", "conv", "point")}
    found = {name: direction(adapter) for name, adapter in in_memory(tensors).items()}
    for rank in (1000, 1):
        result = resize(found, Keep(rank=rank), dtype=torch.float32, weights=weights.get)
        for layer in result.layers:
            whole = change(found[layer.module], weights[layer.module]).double()
            plain = change(in_memory(result.tensors)[layer.module]).double()
            error = float((whole - plain).norm() / whole.norm())
            assert error == pytest.approx((1 - layer.kept**2) ** 0.5, abs=2e-3)
            assert rank == 1 or error < 1e-5


PLACES = {
    "linear": "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
    "point": "unet.mid_block.attentions.0.proj_in",
    "conv": "unet.mid_block.resnets.0.conv1",
}


def test_the_change_by_dora_is_the_one_that_peft_adds_and_survives_both_ways_of_naming():
    """PEFT lays the magnitudes of convolutions out as [1, out, 1, 1], which elsewhere means one per input."""
    from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model

    torch.manual_seed(0)
    layers = Layers()
    before = {name: getattr(layers, name).weight.detach().clone() for name in PLACES}
    inject_adapter_in_model(LoraConfig(r=4, lora_alpha=6, use_dora=True, target_modules=list(PLACES)), layers)
    for name, parameter in layers.named_parameters():
        if "lora_" in name:
            parameter.data += torch.rand_like(parameter) * 0.1
    saved = {
        f"{PLACES[name.partition('.')[0]]}.{name.partition('.')[2]}": tensor.clone()
        for name, tensor in get_peft_model_state_dict(layers).items()
    }
    metadata = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 6})}
    kohya = converted(saved, metadata, "sd-scripts", "sd15")
    again = converted(kohya.tensors, kohya.metadata, "peft", "sd15")
    assert {name: tensor.shape for name, tensor in again.tensors.items()} == {
        name: tensor.shape for name, tensor in saved.items()
    }
    for file, told in ((saved, metadata), (kohya.tensors, kohya.metadata), (again.tensors, again.metadata)):
        found = {adapter.canonical: adapter for adapter in in_memory(file, told).values()}
        for name, place in PLACES.items():
            layer = getattr(layers, name)
            if not layer.merged:
                layer.merge()
            added = layer.get_base_layer().weight.detach() - before[name]
            ours = change(found[place], before[name]).reshape(added.shape)
            assert float(added.norm()) > 0.1
            torch.testing.assert_close(ours, added, atol=5e-6, rtol=0)


def test_what_depends_on_the_base_model_says_so():
    tensors, _ = trained("lora", {"dora_wd": True}, 1.0)
    with pytest.raises(PlainError, match=r"DoRA .* --base"):
        change(next(iter(in_memory(tensors).values())))


def test_a_layer_with_one_half_missing_is_damage():
    with pytest.raises(PlainError, match="there is only lora_up"):
        in_memory({"lora_unet_mid_block_x.lora_up.weight": torch.zeros(4, 2)})


def test_matrices_that_do_not_fit_are_damage():
    with pytest.raises(PlainError, match=r"lora_up \[4, 3\] and lora_down \[4, 3\] do not fit together"):
        in_memory({f"lora_unet_x.lora_{half}.weight": torch.zeros(4, 3) for half in ("up", "down")})
    with pytest.raises(PlainError, match=r"hada_w1_b .* do not fit together"):
        in_memory({f"lora_unet_x.hada_{part}": torch.zeros(4, 3) for part in ("w1_a", "w1_b", "w2_a", "w2_b")})
    turned = in_memory({"lora_unet_x.oft_blocks": torch.zeros(4, 3, 3)})
    with pytest.raises(PlainError, match="another family"):
        change(turned["lora_unet_x"], torch.zeros(16, 8))


@pytest.mark.parametrize(
    ("name", "shape", "what"),
    [
        ("model.diffusion_model.out.2.weight", (4, 4), "a whole Stable Diffusion checkpoint"),
        ("double_blocks.0.img_attn.qkv.weight", (4, 4), "a Flux model"),
        ("joint_blocks.0.x_block.attn.qkv.weight", (4, 4), "a Stable Diffusion 3 model"),
        ("down_blocks.0.resnets.0.conv1.weight", (4, 4, 3, 3), "the UNet of a diffusers folder"),
        ("first_stage_model.decoder.conv_in.weight", (4, 4, 3, 3), "a VAE"),
        ("text_model.encoder.layers.0.mlp.fc1.weight", (4, 4), "a text encoder"),
        ("control_model.zero_convs.0.0.weight", (4, 4, 1, 1), "a ControlNet"),
        ("emb_params", (3, 768), "an embedding"),
        ("clip_g", (3, 1280), "an embedding"),
        ("something.bias", (768,), "none of its 1 tensor belongs to one"),
    ],
)
def test_what_is_no_lora_is_called_by_its_name(name, shape, what):
    with pytest.raises(PlainError, match=f"x.safetensors is not a LoRA.*{what}"):
        adapters(LoadedTensors({name: torch.zeros(shape)}, called="x.safetensors"))


def test_a_file_of_two_algorithms_in_one_layer_is_damage():
    """Whatever would be left out of it would be left out in silence."""
    tensors = {f"lora_unet_x.lora_{half}.weight": torch.zeros(4, 4) for half in ("up", "down")}
    with pytest.raises(PlainError, match="its diff belongs to another algorithm"):
        in_memory(tensors | {"lora_unet_x.diff": torch.zeros(4, 4)})


def test_peft_scales_a_bias_like_the_product_it_belongs_to():
    from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model

    torch.manual_seed(0)
    layers = Layers()
    inject_adapter_in_model(LoraConfig(r=2, lora_alpha=6, lora_bias=True, target_modules=["linear"]), layers)
    for name, parameter in layers.named_parameters():
        if "lora_" in name:
            parameter.data += torch.rand_like(parameter)
    place, before = PLACES["linear"], layers.linear.get_base_layer().bias.detach().clone()
    saved = {f"{place}.{name.partition('.')[2]}": t.clone() for name, t in get_peft_model_state_dict(layers).items()}
    metadata = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 6})}
    layers.linear.merge()
    added = layers.linear.get_base_layer().bias.detach() - before
    for tensors, told in ((saved, metadata), (converted(saved, metadata, "sd-scripts", "sd15").tensors, {})):
        (adapter,) = in_memory(tensors, told).values()
        torch.testing.assert_close(bias_change(adapter), added)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("unet.mid_block.attn1.processor.to_out_lora.up.weight", ("unet.mid_block.attn1.to_out.0", "up")),
        ("unet.mid_block.attn1.to_q.lora_A.weight", ("unet.mid_block.attn1.to_q", "down")),
        ("text_encoder.layers.0.q_proj.lora_linear_layer.down.weight", ("text_encoder.layers.0.q_proj", "down")),
        ("lora_unet_x.hada_w1_a", ("lora_unet_x", "hada_w1_a")),
        ("something.else", None),
    ],
)
def test_names_of_tensors_tell_layer_and_part(name, expected):
    assert split_name(name) == expected


@pytest.mark.parametrize(("width", "family"), [(768, "sd15"), (1024, "sd2"), (2048, "sdxl"), (1280, "sdxl-refiner")])
def test_the_family_is_read_from_the_width_of_the_text(width, family):
    module = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    found = in_memory(
        {f"{module}.lora_up.weight": torch.zeros(8, 2), f"{module}.lora_down.weight": torch.zeros(2, width)}
    )
    assert list(families(found)) == [family]
