"""What a tool says it lost is what it lost, in every precision, against products in float64."""

from __future__ import annotations

import json

import pytest
import torch

from engine.tools.adapters import in_memory
from engine.tools.convert import converted, copied
from engine.tools.decompose import Keep
from engine.tools.effect import change
from engine.tools.files import LoadedTensors, TensorFile
from engine.tools.merge import Weighted, combine
from engine.tools.precision import cast, cast_exactly
from engine.tools.resize import resize
from knowledge.answers import PlainError

LINEAR = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
CONV = "lora_unet_mid_block_resnets_0_conv1"
PRECISIONS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def network(seed: int, alpha: float = 7.1, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    tensors = {}
    for module, kernel in ((LINEAR, ()), (CONV, (3, 3))):
        tensors[f"{module}.lora_up.weight"] = torch.randn(40, 6, *(1 for _ in kernel)).to(dtype)
        tensors[f"{module}.lora_down.weight"] = torch.randn(6, 24, *kernel).to(dtype)
        tensors[f"{module}.alpha"] = torch.tensor(alpha, dtype=dtype)
    return tensors


def effects(tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> dict[str, torch.Tensor]:
    return {a.canonical: change(a, precision=torch.float64) for a in in_memory(tensors, metadata).values()}


def off(ours: dict[str, torch.Tensor], whole: dict[str, torch.Tensor]) -> float:
    """‖ours − whole‖ / ‖whole‖ over all layers."""
    assert ours.keys() == whole.keys()
    moved = sum(float((ours[name] - whole[name]).square().sum()) for name in whole)
    return (moved / sum(float(matrix.square().sum()) for matrix in whole.values())) ** 0.5


@pytest.mark.parametrize("rank", [2, 6])
@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
def test_a_resize_states_its_error_with_the_rounding_in_it(dtype, rank):
    whole = effects(network(1))
    for alpha in (None, 5.3):
        result = resize(in_memory(network(1)), Keep(rank=rank), alpha=alpha, dtype=dtype)
        measured = off(effects(result.tensors), whole)
        assert result.error == pytest.approx(measured, rel=1e-3, abs=1e-7)
        assert rank == 2 or (measured < 1e-6) == (dtype in (torch.float64, torch.float32))


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
def test_a_merge_states_its_error_with_the_rounding_in_it(dtype):
    networks = [Weighted(in_memory(network(2)), 0.7), Weighted(in_memory(network(3)), -0.4)]
    one, other = effects(network(2)), effects(network(3))
    whole = {name: 0.7 * one[name] - 0.4 * other[name] for name in one}
    for keep in (None, Keep(rank=12), Keep(rank=3)):
        result = combine(networks, keep=keep, dtype=dtype)
        assert result.error == pytest.approx(off(effects(result.tensors), whole), rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("naming", ["diffusers-paths", "peft"])
@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
def test_other_names_keep_the_effect_to_the_last_bits_of_the_precision(dtype, naming):
    """Under PEFT's names alpha / rank goes into lora_B, which gets the room that the quotient takes."""
    tensors = network(4, dtype=dtype)
    there = converted(tensors, {}, naming, "sd15")
    again = converted(there.tensors, there.metadata, "sd-scripts", "sd15")
    limit = {torch.float64: 1e-15, torch.float32: 1e-7}.get(dtype, 1e-7)
    assert there.rounding < limit
    assert off(effects(there.tensors, there.metadata), effects(tensors)) < 2 * limit
    assert off(effects(again.tensors), effects(tensors)) < 2 * limit
    if dtype in (torch.float16, torch.bfloat16):
        assert all(torch.equal(again.tensors[name], tensors[name]) for name in tensors)


def test_a_conversion_of_precision_states_how_far_it_rounded(tmp_path):
    tensors = network(5)
    for dtype in PRECISIONS:
        renamed = converted(tensors, {}, "diffusers-paths", "sd15", dtype)
        stated = copied(LoadedTensors(tensors), tmp_path / "x.safetensors", dtype, hashes=True)
        for written in (renamed.tensors, TensorFile(tmp_path / "x.safetensors")):
            weights = [name for name in tensors if not name.endswith("alpha")]
            assert all(written[name].dtype == dtype for name in weights)
            moved = sum(float((written[name].double() - tensors[name]).square().sum()) for name in weights)
            whole = sum(float(tensors[name].square().sum()) for name in weights)
            assert renamed.rounding == pytest.approx((moved / whole) ** 0.5, rel=1e-9)
            assert float(written[f"{LINEAR}.alpha"].double()) == 7.1  # as a factor of everything it is never rounded
        assert stated == pytest.approx(renamed.rounding, rel=1e-3)


def test_what_does_not_fit_into_half_precision_is_refused_and_not_made_infinite():
    large = torch.tensor([1e5])
    with pytest.raises(PlainError, match=r"1e\+05 does not fit into float16"):
        cast(large, torch.float16)
    assert cast(large, torch.bfloat16).isfinite()
    assert cast(torch.tensor([3]), torch.float16).dtype == torch.int64
    assert cast_exactly(torch.tensor(0.1), torch.float16).dtype == torch.float32
    assert cast_exactly(torch.tensor(0.5), torch.float16).dtype == torch.float16
    tensors = {name: tensor * (1e4 if "up" in name else 1) for name, tensor in network(6).items()}
    with pytest.raises(PlainError, match="does not fit"):
        combine([Weighted(in_memory(tensors), 50.0)], dtype=torch.float16)


@pytest.mark.parametrize("alpha", [3.0, 7.1])
def test_a_file_of_diffusers_is_resized_with_the_alpha_of_its_metadata_and_keeps_its_names(alpha):
    """Its alpha goes into the weights, so the entry that told of it must not be applied again."""
    from wizard.network_files import _network_metadata

    tensors = {}
    for name, tensor in network(7).items():
        module, _, part = name.partition(".")
        path = in_memory(network(7))[module].canonical
        if part != "alpha":
            tensors[f"{path}.{part.replace('lora_up', 'lora_B').replace('lora_down', 'lora_A')}"] = tensor
    metadata = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": alpha})}
    whole = effects(tensors, metadata)
    result = resize(in_memory(tensors, metadata), Keep(rank=6), dtype=torch.float32)
    assert result.tensors.keys() == tensors.keys()
    after = _network_metadata(metadata, result)
    assert off(effects(result.tensors, after), whole) < 1e-6
    kohya = converted(result.tensors, after, "sd-scripts", "sd15")
    assert off(effects(kohya.tensors), whole) < 1e-6
    with pytest.raises(PlainError, match="know no alpha"):
        resize(in_memory(tensors, metadata), Keep(rank=6), alpha=2.0)


def test_peft_with_rank_stabilised_scale_divides_by_the_root_of_the_rank():
    """lora_alpha / √r, Kalajdzievski 2023 (arXiv:2312.03732)."""
    tensors = {"unet.mid_block.attentions.0.proj_in.lora_A.weight": torch.randn(4, 8)}
    tensors["unet.mid_block.attentions.0.proj_in.lora_B.weight"] = torch.randn(16, 4)
    told = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 6, "unet.use_rslora": True})}
    (adapter,) = in_memory(tensors, told).values()
    assert adapter.scale == pytest.approx(6 / 4**0.5)
