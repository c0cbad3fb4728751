"""What an adapter does, against the layers that LyCORIS itself runs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from engine.tools.adapters import adapters, bias_change, change, families, in_memory, split_name
from engine.tools.files import LoadedTensors
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


def test_what_depends_on_the_base_model_says_so():
    tensors, _ = trained("lora", {"dora_wd": True}, 1.0)
    with pytest.raises(PlainError, match=r"DoRA .* --base"):
        change(next(iter(in_memory(tensors).values())))


def test_a_layer_with_one_half_missing_is_damage():
    with pytest.raises(PlainError, match="incomplete"):
        in_memory({"lora_unet_mid_block_x.lora_up.weight": torch.zeros(4, 2)})


def test_matrices_that_do_not_fit_are_damage():
    found = in_memory({f"lora_unet_x.lora_{half}.weight": torch.zeros(4, 3) for half in ("up", "down")})
    with pytest.raises(PlainError, match="cannot be multiplied out"):
        change(found["lora_unet_x"])
    loha = {f"lora_unet_x.hada_{part}": torch.zeros(4, 3) for part in ("w1_a", "w1_b", "w2_a", "w2_b")}
    with pytest.raises(PlainError, match="do not fit together"):
        change(in_memory(loha)["lora_unet_x"])


def test_a_model_is_not_a_lora():
    with pytest.raises(PlainError, match="not a LoRA file"):
        adapters(LoadedTensors({"model.diffusion_model.out.2.weight": torch.zeros(4, 4)}))


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
