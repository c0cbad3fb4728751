"""Resize, convert, merge and extract, measured in float64 and on real models."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from trained_networks import trained_network, unet_answer

from engine.networks import ALGORITHMS
from engine.tools.adapters import adapters, in_memory
from engine.tools.checkpoints import Checkpoint
from engine.tools.convert import converted
from engine.tools.decompose import Keep, leading, singular, singular_of_product
from engine.tools.effect import change
from engine.tools.files import LoadedTensors, TensorFile, open_tensors
from engine.tools.inspect import inspect
from engine.tools.merge import Weighted, combine, extract, merge_into
from engine.tools.resize import resize
from engine.tools.writing import save_tensors
from knowledge.answers import PlainError

KOHYA = Path(__file__).parent.parent / "data" / "network_fp16.safetensors"
LINEAR = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
CONV = "lora_unet_mid_block_resnets_0_conv1"


def network(seed: int, rank: int = 6, alpha: float = 3.0, modules=(LINEAR, CONV)) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    tensors = {}
    for module in modules:
        kernel = (3, 3) if module.endswith("conv1") else ()
        tensors[f"{module}.lora_up.weight"] = torch.randn(40, rank, *(1 for _ in kernel))
        tensors[f"{module}.lora_down.weight"] = torch.randn(rank, 24, *kernel)
        tensors[f"{module}.alpha"] = torch.tensor(alpha)
    return tensors


def loha(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    halves = {f"{LINEAR}.hada_{p}": torch.randn(*s) for p, s in (("w1_a", (40, 2)), ("w1_b", (2, 24)))}
    halves |= {f"{LINEAR}.hada_{p}": torch.randn(*s) for p, s in (("w2_a", (40, 2)), ("w2_b", (2, 24)))}
    return halves | {f"{LINEAR}.alpha": torch.tensor(1.0)}


def product(tensors: dict[str, torch.Tensor], module: str) -> torch.Tensor:
    """ΔW in float64, from the definition: up · down · alpha / rank."""
    up, down = (tensors[f"{module}.lora_{half}.weight"].double() for half in ("up", "down"))
    return up.flatten(1) @ down.flatten(1) * float(tensors[f"{module}.alpha"]) / down.shape[0]


def test_singular_values_of_a_product_are_those_of_the_dense_matrix():
    torch.manual_seed(1)
    up, down = torch.randn(50, 5), torch.randn(5, 30)
    factored, dense = singular_of_product(up, down), singular(up @ down)
    torch.testing.assert_close(factored.values, dense.values[:5].double(), rtol=1e-5, atol=1e-5)
    whole = up.double() @ down.double()
    torch.testing.assert_close(factored.left * factored.values @ factored.right, whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(300, 200), (160, 400)])
def test_the_first_values_alone_are_as_good_as_cutting_all_of_them(shape):
    torch.manual_seed(30)
    left, right = torch.linalg.qr(torch.randn(shape[0], 150)).Q, torch.linalg.qr(torch.randn(shape[1], 150)).Q
    matrix = left * torch.linspace(1, 0.1, 150) ** 3 @ right.T
    first, every = leading(matrix, 8), singular(matrix)
    assert len(first.values) == 8
    torch.testing.assert_close(first.values, every.values[:8], rtol=3e-3, atol=0)
    best = float(every.values[8:].double().norm())  # Eckart and Young 1936
    error = float((matrix.double() - (first.left * first.values @ first.right).double()).norm())
    assert error == pytest.approx(best, rel=2e-3)
    assert first.energy == pytest.approx(every.energy, rel=1e-5)
    assert len(leading(matrix, None).values) == min(shape)


def test_only_a_limit_in_ranks_spares_the_rest_of_the_values():
    assert Keep(rank=8).most("x") == 8
    assert Keep(rank=8, norm_share=0.9).most("x") is None
    assert Keep(norm_share=0.9, ranks={"x": 3}).most("x") == 3


@pytest.mark.parametrize("alpha", [None, 1.0, 8.0])
@pytest.mark.parametrize("rank", [1, 3, 6, 50])
def test_a_resized_layer_is_the_best_approximation_of_its_rank(rank, alpha):
    tensors = network(2)
    result = resize(in_memory(tensors), Keep(rank=rank), alpha=alpha)
    for layer in result.layers:
        whole = product(tensors, layer.module)
        values = torch.linalg.svdvals(whole)
        new = product(result.tensors, layer.module)
        best = float(values[rank:].square().sum().sqrt())  # Eckart and Young 1936
        assert float((whole - new).norm()) == pytest.approx(best, rel=1e-4, abs=1e-4)
        assert layer.kept == pytest.approx(float(values[:rank].norm() / values.norm()), rel=1e-5)
        assert layer.new_rank == min(rank, 6)
        assert float(result.tensors[f"{layer.module}.alpha"]) == (layer.new_rank / 2 if alpha is None else alpha)
    assert result.tensors[f"{CONV}.lora_down.weight"].shape[1:] == (24, 3, 3)


def test_shares_are_reached_with_the_fewest_values():
    tensors = network(3)
    for keep, power in ((Keep(norm_share=0.9), 2), (Keep(values_share=0.8), 1)):
        for layer in resize(in_memory(tensors), keep).layers:
            values = torch.linalg.svdvals(product(tensors, layer.module)) ** power
            target = float(values.sum()) * (0.9**2 if power == 2 else 0.8)
            assert float(values[: layer.new_rank].sum()) >= target * (1 - 1e-6)
            assert float(values[: layer.new_rank - 1].sum()) < target


def test_single_layers_and_blocks_can_have_a_rank_of_their_own():
    result = resize(in_memory(network(4)), Keep(rank=4, ranks={"resnets": 2}))
    assert {layer.module: layer.new_rank for layer in result.layers} == {LINEAR: 4, CONV: 2}


def test_what_was_kept_in_all_is_the_share_of_the_whole_norm():
    tensors = network(5)
    result = resize(in_memory(tensors), Keep(rank=2))
    lost = sum(float((product(tensors, m) - product(result.tensors, m)).norm()) ** 2 for m in (LINEAR, CONV))
    whole = sum(float(product(tensors, m).norm()) ** 2 for m in (LINEAR, CONV))
    assert result.error == pytest.approx((lost / whole) ** 0.5, rel=1e-4)


def test_loha_becomes_lora_with_the_error_that_is_stated():
    tensors = loha(6)
    whole = change(in_memory(tensors)[LINEAR]).double()
    for rank in (2, 4):  # a LoHa of rank 2 has at most rank 4
        result = resize(in_memory(tensors), Keep(rank=rank))
        error = float((whole - product(result.tensors, LINEAR)).norm() / whole.norm())
        assert result.error == pytest.approx(error, abs=2e-4)
        assert (error < 1e-5) == (rank == 4)


@pytest.mark.parametrize("naming", ["diffusers-paths", "peft"])
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_other_names_and_back_are_the_same_bits(naming, family):
    tensors = network(7, rank=8, alpha=4.0)
    if family == "sdxl":
        tensors = converted(tensors, {}, "sd-scripts", "sdxl").tensors
        assert any("middle_block_1" in name for name in tensors)
    tensors = {name: tensor.half() for name, tensor in tensors.items()}
    there = converted(tensors, {"ss_x": "1"}, naming, family)
    assert there.tensors.keys() != tensors.keys() or (naming, family) == ("diffusers-paths", "sd15")
    back = converted(there.tensors, there.metadata, "sd-scripts", family)
    assert back.tensors.keys() == tensors.keys()
    assert all(torch.equal(back.tensors[name], tensors[name]) for name in tensors)
    assert back.metadata == {"ss_x": "1"}


def test_peft_files_carry_alpha_in_their_weights():
    tensors = network(8, rank=6, alpha=2.0)
    peft = converted(tensors, {}, "peft", "sd15").tensors
    module = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    plain = peft[f"{module}.lora_B.weight"].double() @ peft[f"{module}.lora_A.weight"].double()
    torch.testing.assert_close(plain, product(tensors, LINEAR), rtol=1e-5, atol=1e-5)


def test_peft_refuses_what_diffusers_cannot_load():
    with pytest.raises(PlainError, match=r"LoHa, which diffusers cannot load.*--rank"):
        converted(loha(9), {}, "peft", "sd15")


def test_half_precision_refuses_numbers_that_do_not_fit():
    tensors = network(10)
    tensors[f"{LINEAR}.lora_up.weight"][0, 0] = 1e6
    with pytest.raises(PlainError, match="bf16"):
        converted(tensors, {}, "sd-scripts", "sd15", torch.float16)


def test_side_by_side_is_the_exact_weighted_sum():
    one, other = network(11), network(12, rank=3, alpha=9.0, modules=(LINEAR,))
    networks = [Weighted(in_memory(one), 0.7), Weighted(in_memory(other), -0.4)]
    result = combine(networks, dtype=torch.float32)
    expected = 0.7 * product(one, LINEAR) - 0.4 * product(other, LINEAR)
    torch.testing.assert_close(product(result.tensors, LINEAR), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(product(result.tensors, CONV), 0.7 * product(one, CONV), rtol=1e-5, atol=1e-5)
    assert result.tensors[f"{LINEAR}.lora_down.weight"].shape[0] == 9


def test_a_merge_to_one_rank_is_the_best_of_that_rank_for_any_algorithms():
    one, other = network(13, modules=(LINEAR,)), loha(14)
    result = combine(
        [Weighted(in_memory(one)), Weighted(in_memory(other), 0.5)], keep=Keep(rank=3), dtype=torch.float32
    )
    whole = product(one, LINEAR) + 0.5 * change(in_memory(other)[LINEAR]).double()
    best = float(torch.linalg.svdvals(whole)[3:].norm())
    assert float((whole - product(result.tensors, LINEAR)).norm()) == pytest.approx(best, rel=1e-4)
    with pytest.raises(PlainError, match="--rank"):
        combine([Weighted(in_memory(other))])


@pytest.mark.parametrize(
    "algorithm", [*ALGORITHMS, "loha+", "lokr+", "glora+", "oft+", "boft+", "ia3+", "full+", "dora+"]
)
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_a_merged_model_answers_as_the_trained_one_did(algorithm, family, tiny_sd15, tiny_sdxl, tmp_path):
    from diffusers import UNet2DConditionModel

    folder = {"sd15": tiny_sd15, "sdxl": tiny_sdxl}[family]
    tensors, answer = trained_network(folder, algorithm)
    base = Checkpoint(folder)
    merged = merge_into(base, [Weighted(in_memory(tensors))], tmp_path / "merged")
    assert merged.homeless == ()
    assert merged.layers == len(in_memory(tensors))
    loaded = UNet2DConditionModel.from_pretrained(tmp_path / "merged" / "unet", low_cpu_mem_usage=False)
    untouched = unet_answer(UNet2DConditionModel.from_pretrained(folder / "unet", low_cpu_mem_usage=False))
    effect = float((answer - untouched).abs().max())
    assert effect > 1e-3
    assert float((unet_answer(loaded) - answer).abs().max()) < effect * 1e-3


def test_the_difference_of_two_checkpoints_is_the_lora_that_was_merged(tiny_sd15, tmp_path):
    tensors, _ = trained_network(tiny_sd15, "locon")
    found = in_memory(tensors)
    base = Checkpoint(tiny_sd15)
    merge_into(base, [Weighted(found)], tmp_path / "merged")
    result = extract(base, Checkpoint(tmp_path / "merged"), Keep(rank=4), conv_rank=3, dtype=torch.float32)
    assert result.kept == pytest.approx(1.0, abs=1e-4)
    assert result.network.tensors.keys() == tensors.keys()
    for module, adapter in found.items():
        whole = change(adapter).double()
        again = change(in_memory(result.network.tensors)[module]).double()
        assert float((whole - again).norm() / whole.norm()) < 1e-3


def test_extract_says_how_much_it_cannot_reach(tiny_sd15, tmp_path):
    tensors, _ = trained_network(tiny_sd15, "locon")
    merge_into(Checkpoint(tiny_sd15), [Weighted(in_memory(tensors))], tmp_path / "merged")
    result = extract(Checkpoint(tiny_sd15), Checkpoint(tmp_path / "merged"), Keep(rank=4))
    assert 0 < result.reach < 1
    with pytest.raises(PlainError, match="nothing to extract"):
        extract(Checkpoint(tiny_sd15), Checkpoint(tiny_sd15), Keep(rank=4))


def test_a_single_file_of_sdxl_takes_its_lora_in_every_part(tmp_path):
    torch.manual_seed(23)
    names = {
        "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight": (8, 8),
        "model.diffusion_model.input_blocks.4.0.in_layers.2.weight": (8, 8, 3, 3),
        "conditioner.embedders.0.transformer.text_model.encoder.layers.0.mlp.fc1.weight": (16, 8),
        "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight": (24, 8),
        "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_bias": (24,),
        "first_stage_model.encoder.conv_in.weight": (8, 3, 3, 3),
    }
    base = {name: torch.randn(*shape).half() for name, shape in names.items()}
    save_tensors(tmp_path / "base.safetensors", base, {"modelspec.title": "base"})
    lora = {}
    for module, out, width, kernel in (
        ("lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q", 8, 8, ()),
        ("lora_unet_input_blocks_4_0_in_layers_2", 8, 8, (3, 3)),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1", 16, 8, ()),
        ("lora_te2_text_model_encoder_layers_0_self_attn_k_proj", 8, 8, ()),
    ):
        lora[f"{module}.lora_up.weight"] = torch.randn(out, 2, *(1 for _ in kernel))
        lora[f"{module}.lora_down.weight"] = torch.randn(2, width, *kernel)
        lora[f"{module}.alpha"] = torch.tensor(1.0)
    merged = merge_into(
        Checkpoint(tmp_path / "base.safetensors"), [Weighted(in_memory(lora), 0.5)], tmp_path / "out.safetensors"
    )
    assert (merged.layers, merged.homeless) == (4, ())
    after = TensorFile(tmp_path / "out.safetensors")
    modules = list(dict.fromkeys(name.split(".")[0] for name in lora))
    for name, module in zip(list(names)[:3], modules[:3], strict=True):
        expected = base[name].double() + 0.5 * product(lora, module).reshape(base[name].shape)
        torch.testing.assert_close(after[name].double(), expected, rtol=1e-3, atol=1e-3)
    packed = "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight"
    difference = after[packed].double() - base[packed].double()
    torch.testing.assert_close(difference[8:16], 0.5 * product(lora, modules[3]), rtol=1e-2, atol=5e-3)
    assert difference[:8].abs().max() == 0
    assert difference[16:].abs().max() == 0
    for name in list(names)[4:]:
        assert torch.equal(after[name], base[name])
    assert after.metadata == {"modelspec.title": "base"}


def test_a_lora_of_another_family_is_refused(tiny_sd15):
    module = "lora_te2_text_model_encoder_layers_30_mlp_fc1"
    wrong = {f"{module}.lora_up.weight": torch.zeros(4, 2), f"{module}.lora_down.weight": torch.zeros(2, 4)}
    with pytest.raises(PlainError, match="another family"):
        merge_into(Checkpoint(tiny_sd15), [Weighted(in_memory(wrong))], Path("never"))
    with pytest.raises(PlainError, match="another model"):
        merge_into(Checkpoint(tiny_sd15), [Weighted(in_memory(network(24)))], Path("never"))


def test_merging_holds_one_tensor_at_a_time(tmp_path):
    import tracemalloc

    base = {
        f"model.diffusion_model.input_blocks.1.1.transformer_blocks.{i}.attn1.to_q.weight": torch.zeros(512, 512)
        for i in range(40)
    }
    save_tensors(tmp_path / "base.safetensors", base)
    module = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    lora = {f"{module}.lora_up.weight": torch.ones(512, 1), f"{module}.lora_down.weight": torch.ones(1, 512)}
    read = []
    checkpoint = Checkpoint(tmp_path / "base.safetensors")
    tracemalloc.start()
    merge_into(
        checkpoint,
        [Weighted(in_memory(lora))],
        tmp_path / "out.safetensors",
        lambda done, total: read.append((done, total)),
    )
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert read[-1] == (40, 40)
    assert peak < 8 * 2**20  # the file has 40 MiB


def test_sd_scripts_own_file_is_looked_into():
    report = inspect(KOHYA)
    assert report.families == ("sd15",)
    assert report.algorithms == ("LoRA",)
    assert report.precisions == ("fp16",)
    assert len(report.layers) == 192
    assert {layer.rank for layer in report.layers} == {4}
    assert report.hash_as_stated is True
    assert report.hashes["AutoV3"] == report.metadata["sshs_model_hash"][:12]
    assert (report.dead, report.broken) == ([], [])
    assert dict(report.tags)["sks toy"] == 6
    assert {reading.application: reading.verdict for reading in report.readings} == dict.fromkeys(
        ("ComfyUI", "A1111", "Forge", "diffusers"), "yes"
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nothing_is_computed_from_a_broken_file(value, tiny_sd15, tmp_path):
    tensors = network(31)
    tensors[f"{CONV}.lora_down.weight"].flatten()[7] = value
    found = in_memory(tensors)
    attempts = (
        lambda: resize(found, Keep(rank=2)),
        lambda: combine([Weighted(found)], keep=Keep(rank=2)),
        lambda: combine([Weighted(found)]),
        lambda: merge_into(Checkpoint(tiny_sd15), [Weighted(found)], tmp_path / "merged"),
    )
    for attempt in attempts:
        with pytest.raises(PlainError, match=r"conv1.*not finite"):
            attempt()
    assert not (tmp_path / "merged").exists()


def test_norms_by_block_are_those_of_the_definition():
    tensors = {name: tensor.float() for name, tensor in open_tensors(KOHYA).items()}
    for layer in inspect(KOHYA).layers:
        assert layer.norm == pytest.approx(float(product(tensors, layer.module).norm()), rel=1e-5)


def test_dead_and_broken_layers_are_found(tmp_path):
    tensors = network(25)
    tensors[f"{LINEAR}.lora_up.weight"].zero_()
    tensors[f"{CONV}.lora_up.weight"][0, 0] = float("nan")
    save_tensors(tmp_path / "x.safetensors", tensors)
    report = inspect(tmp_path / "x.safetensors")
    assert (report.dead, report.broken) == ([LINEAR], [CONV])


def test_a_network_of_another_model_is_described_and_not_judged_by_key_maps_that_do_not_know_it(tmp_path):
    tensors = {}
    for module in ("lora_unet_double_blocks_0_img_attn_qkv", "lora_unet_single_blocks_11_linear1"):
        tensors |= {f"{module}.lora_up.weight": torch.ones(8, 2), f"{module}.lora_down.weight": torch.ones(2, 8)}
    save_tensors(tmp_path / "x.safetensors", tensors)
    report = inspect(tmp_path / "x.safetensors")
    assert report.families == ("flux",)
    assert report.readings == ()
    assert [block.name for block in report.blocks] == ["double blocks", "single blocks"]


@pytest.mark.parametrize("algorithm", ["oft", "boft", "ia3", "glora"])
def test_layers_that_change_nothing_are_found_without_the_base_model_too(algorithm, tiny_sd15, tmp_path):
    tensors, _ = trained_network(tiny_sd15, algorithm)
    first = next(iter(in_memory(tensors)))
    for name in tensors:
        if name.startswith(first + ".") and not name.endswith("alpha"):
            tensors[name].zero_()
    save_tensors(tmp_path / "x.safetensors", tensors)
    assert inspect(tmp_path / "x.safetensors").dead == [first]


READERS = {
    "lora": {"ComfyUI": "yes", "A1111": "yes", "Forge": "yes", "diffusers": "yes"},
    "locon": {"ComfyUI": "yes", "A1111": "yes", "Forge": "yes", "diffusers": "yes"},
    "dora": {"ComfyUI": "yes", "A1111": "yes", "Forge": "yes", "diffusers": "partly"},
    "loha": {"ComfyUI": "yes", "A1111": "yes", "Forge": "yes", "diffusers": "no"},
    "lokr": {"ComfyUI": "yes", "A1111": "yes", "Forge": "yes", "diffusers": "no"},
    "dylora": {"ComfyUI": "yes", "A1111": "yes", "Forge": "yes", "diffusers": "yes"},
    "glora": {"ComfyUI": "yes", "A1111": "yes", "Forge": "yes", "diffusers": "no"},
    "oft": {"ComfyUI": "yes", "A1111": "yes", "Forge": "no", "diffusers": "no"},
    "boft": {"ComfyUI": "yes", "A1111": "yes", "Forge": "no", "diffusers": "no"},
    "ia3": {"ComfyUI": "no", "A1111": "yes", "Forge": "no", "diffusers": "no"},
    "full": {"ComfyUI": "yes", "A1111": "yes", "Forge": "yes", "diffusers": "no"},
}


@pytest.mark.parametrize("algorithm", READERS)
def test_who_reads_what_our_engine_saves(algorithm, tiny_sd15, tmp_path):
    tensors, _ = trained_network(tiny_sd15, algorithm)
    save_tensors(tmp_path / "x.safetensors", tensors)
    report = inspect(tmp_path / "x.safetensors")
    assert {reading.application: reading.verdict for reading in report.readings} == READERS[algorithm]


def test_comfyui_reads_a_quarter_of_a_peft_file(tmp_path):
    """240 modules, of which it loads 64: recorded by running ComfyUI on a file of SD 1.5."""
    tensors = {}
    for block in range(16):
        root = f"unet.down_blocks.0.attentions.{block}"
        inner = [f"transformer_blocks.0.attn{i}.{p}" for i in (1, 2) for p in ("to_q", "to_k", "to_v", "to_out.0")]
        for name in [
            *inner,
            "proj_in",
            "proj_out",
            "transformer_blocks.0.ff.net.0.proj",
            "transformer_blocks.0.ff.net.2",
        ]:
            tensors[f"{root}.{name}.lora_A.weight"] = torch.zeros(2, 4)
            tensors[f"{root}.{name}.lora_B.weight"] = torch.zeros(4, 2)
    for layer in range(12):
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            tensors[f"text_encoder.encoder.layers.{layer}.self_attn.{name}.lora_A.weight"] = torch.zeros(2, 4)
            tensors[f"text_encoder.encoder.layers.{layer}.self_attn.{name}.lora_B.weight"] = torch.zeros(4, 2)
    save_tensors(tmp_path / "x.safetensors", tensors)
    comfyui = inspect(tmp_path / "x.safetensors").readings[0]
    assert (comfyui.read, comfyui.layers) == (64, 240)


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_diffusers_knows_every_name_of_a_converted_file(family, tiny_sd15, tiny_sdxl, tmp_path):
    from diffusers import UNet2DConditionModel

    folder = {"sd15": tiny_sd15, "sdxl": tiny_sdxl}[family]
    tensors, _ = trained_network(folder, "locon")
    peft = converted(tensors, {}, "peft", family).tensors
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", low_cpu_mem_usage=False)
    layers = {f"unet.{name}" for name, _ in unet.named_modules()}
    modules = {name.split(".lora_")[0] for name in peft}
    assert modules <= layers
    assert {adapter.canonical for adapter in in_memory(tensors).values()} == modules


def test_diffusers_renders_a_converted_file_as_the_original(tiny_sd15, tmp_path):
    pytest.importorskip("peft", reason="diffusers loads LoRA files through peft")
    from diffusers import StableDiffusionPipeline

    tensors, answer = trained_network(tiny_sd15, "locon")
    for naming in ("sd-scripts", "peft"):
        outcome = converted(tensors, {}, naming, "sd15")
        save_tensors(tmp_path / f"{naming}.safetensors", outcome.tensors, outcome.metadata)
        pipeline = StableDiffusionPipeline.from_pretrained(tiny_sd15, safety_checker=None)
        pipeline.load_lora_weights(tmp_path, weight_name=f"{naming}.safetensors")
        torch.testing.assert_close(unet_answer(pipeline.unet), answer, atol=1e-4, rtol=1e-3)


def test_the_order_of_files_in_a_folder_does_not_matter(tiny_sd15, tmp_path):
    """A folder with weights in shards is merged like one with a single file."""
    from safetensors.torch import load_file

    folder = tmp_path / "sharded"
    shutil.copytree(tiny_sd15, folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    whole = load_file(weights)
    weights.unlink()
    names = sorted(whole)
    index = {"metadata": {}, "weight_map": {}}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        shard = f"diffusion_pytorch_model-0000{number}-of-00002.safetensors"
        save_tensors(folder / "unet" / shard, {name: whole[name] for name in part})
        index["weight_map"] |= dict.fromkeys(part, shard)
    index_file = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index_file.write_text(json.dumps(index), encoding="utf-8")
    tensors, _ = trained_network(tiny_sd15, "lora")
    merge_into(Checkpoint(folder), [Weighted(in_memory(tensors))], tmp_path / "a")
    merge_into(Checkpoint(tiny_sd15), [Weighted(in_memory(tensors))], tmp_path / "b")
    one = load_file(tmp_path / "b" / "unet" / "diffusion_pytorch_model.safetensors")
    shards = [load_file(file) for file in sorted((tmp_path / "a" / "unet").glob("*.safetensors"))]
    other = {name: tensor for shard in shards for name, tensor in shard.items()}
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert (tmp_path / "a" / "unet" / index_file.name).exists()


def test_an_adapter_keeps_its_file_closed():
    found = adapters(open_tensors(KOHYA))
    adapter = next(iter(found.values()))
    assert dataclasses.is_dataclass(adapter)
    assert adapter.scale == 0.5 or adapter.scale > 0
    assert isinstance(found[adapter.module].tensors, TensorFile)
    assert adapters(LoadedTensors(dict(open_tensors(KOHYA)))).keys() == found.keys()
