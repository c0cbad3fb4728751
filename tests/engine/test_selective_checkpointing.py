from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.activations import GEGLU
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from engine.models.selective_checkpointing import _SingleLayerNorm, keep_less


def residual(**changes: Any) -> nn.Module:
    return ResnetBlock2D(**{"in_channels": 32, "out_channels": 64, "temb_channels": 16} | changes)


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "convolution": (lambda: nn.Conv2d(32, 8, 3, padding=1), (2, 32, 8, 6)),
    "convolution with a stride": (lambda: nn.Conv2d(32, 8, 3, 2, 1), (2, 32, 8, 6)),
    "convolution without bias": (lambda: nn.Conv2d(32, 8, 3, padding="same", bias=False), (2, 32, 8, 6)),
    "1x1": (lambda: nn.Conv2d(32, 8, 1), (2, 32, 8, 6)),
    "groups, dilated": (lambda: nn.Conv2d(32, 8, 3, padding=2, dilation=2, groups=4), (2, 32, 8, 6)),
    "reflecting": (lambda: nn.Conv2d(32, 8, 3, padding=1, padding_mode="reflect"), (2, 32, 8, 6)),
    "residual block": (residual, (2, 32, 8, 6)),
    "residual block, scaled": (lambda: residual(output_scale_factor=1.5), (2, 32, 8, 6)),
    "residual block, upsampling": (lambda: residual(up=True), (2, 32, 8, 6)),
    "residual block, scale and shift": (lambda: residual(time_embedding_norm="scale_shift"), (2, 32, 8, 6)),
    "gated": (lambda: GEGLU(32, 24), (2, 5, 32)),
    "layer norm": (lambda: nn.LayerNorm(32), (2, 5, 32)),
}


def frozen(name: str) -> tuple[nn.Module, nn.Module, Tensor]:
    """torch's and diffusers' own layer, ours with the same weights, and an input."""
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    plain = nn.ModuleList([make()]).requires_grad_(False).eval()
    for weights in plain.parameters():
        nn.init.normal_(weights, std=0.2)
    lean = copy.deepcopy(plain)
    keep_less(lean)
    return plain[0], lean[0], torch.randn(shape)


def more_inputs(layer: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """What the layer takes beside x: a residual block takes the embedded noise level."""
    return (torch.linspace(-2, 2, 32).view(2, 16).to(x),) if isinstance(layer, ResnetBlock2D) else ()


def passed(layer: Callable[..., Tensor], x: Tensor, *more: Tensor, again: bool = False) -> tuple[Tensor, Tensor]:
    """What a layer answers and the gradient of its input; `again`: within a checkpoint."""
    x = x.detach().requires_grad_()
    output = checkpoint(layer, x, *more, use_reentrant=False) if again else layer(x, *more)
    (output.float() * torch.linspace(-1, 1, output.numel()).view(output.shape).to(output.device)).sum().backward()
    assert x.grad is not None
    return output.detach(), x.grad


def kept_bytes(layer: nn.Module, x: Tensor) -> int:
    """The bytes that a layer keeps for its backward pass, each tensor once and without weights."""
    storages: dict[int, int] = {}
    lasting = {weights.data_ptr() for weights in layer.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in lasting:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    more = more_inputs(layer, x)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = layer(x.requires_grad_(), *more)
    assert output.requires_grad
    return sum(storages.values())


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "autocast", "autocast over fp32"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_lean_layer_gives_the_same_bits_forward_and_backward(name: str, precision: str, order: torch.memory_format):
    plain, lean, x = frozen(name)
    if x.dim() == 4:
        x = x.contiguous(memory_format=order)
    if precision in ("bf16", "autocast"):
        plain, lean = plain.bfloat16(), lean.bfloat16()
        x = x.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision.startswith("autocast")):
        more = more_inputs(plain, x)
        expected = passed(plain, x, *more)
        found = passed(lean, x, *more)
        checkpointed = passed(lean, x, *more, again=True)
    for theirs, ours, ours_again in zip(expected, found, checkpointed, strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.stride() == theirs.stride()
        assert torch.equal(ours, theirs)
        assert torch.equal(ours_again, theirs)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", LAYERS)
def test_a_lean_layer_gives_the_same_bits_under_a_gpus_autocast(name: str, precision: torch.dtype):
    plain, lean, x = (thing.to("cuda", precision) for thing in frozen(name))
    with torch.autocast("cuda", precision):
        more = more_inputs(plain, x)
        for theirs, ours in zip(passed(plain, x, *more), passed(lean, x, *more), strict=True):
            assert ours.dtype == theirs.dtype
            assert torch.equal(ours, theirs)


def test_a_layer_norm_in_single_precision_is_that_of_the_widened_input():
    layer = nn.LayerNorm(32).requires_grad_(False).bfloat16()
    torch.manual_seed(0)
    for weights in layer.parameters():
        nn.init.normal_(weights)
    x = torch.randn(2, 5, 32).bfloat16()
    arguments = (layer.normalized_shape, layer.weight, layer.bias, layer.eps)
    expected = passed(lambda x: F.layer_norm(x.float(), (32,), layer.weight.float(), layer.bias.float()), x)
    found = passed(lambda x: _SingleLayerNorm.apply(x, *arguments), x)
    for theirs, ours in zip(expected, found, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("convolution", 0),
        ("1x1", 0),
        # what goes into the two norms
        ("residual block", 4 * (2 * 32 * 48 + 2 * 64 * 48)),
        # both halves of what is gated, and no activated gate
        ("gated", 4 * 2 * 5 * 48),
    ],
)
def test_a_lean_layer_keeps_no_more_than_it_says(name: str, most: int):
    plain, lean, x = frozen(name)
    assert kept_bytes(lean, x) <= most < kept_bytes(plain, x)


def test_a_checkpoint_computes_no_convolution_again_whose_output_nobody_keeps(monkeypatch: pytest.MonkeyPatch):
    _, lean, x = frozen("residual block")
    counted = []
    convolution = F.conv2d

    def count(x: Tensor, *more: Any) -> Tensor:
        counted.append(x.shape)
        return convolution(x, *more)

    monkeypatch.setattr(F, "conv2d", count)
    passed(lean, x, *more_inputs(lean, x), again=True)
    assert len(counted) == 3 + 1  # all, and once more the first, which the second norm needs


def test_a_layer_that_learns_gets_its_gradient():
    plain, lean, x = frozen("convolution")
    for layer in (plain, lean):
        layer.requires_grad_(True)
        passed(layer, x)
    for theirs, ours in zip(plain.parameters(), lean.parameters(), strict=True):
        assert ours.grad is not None
        assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize("name", ["convolution", "residual block", "gated"])
def test_a_lean_layer_can_be_compiled(name: str):
    plain, lean, x = frozen(name)
    more = more_inputs(plain, x)
    expected, found = passed(plain, x, *more), passed(torch.compile(lean, backend="aot_eager"), x, *more)
    for theirs, ours in zip(expected, found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
