"""‖ΔW‖ in float64 against each algorithm's definition, written out here in numpy one kernel position at a time.

Every algorithm × rank × alpha (as the rank, another, none in the file) × linear layers and convolutions.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.tools.adapters import in_memory
from engine.tools.checkpoints import Checkpoint
from engine.tools.decompose import Keep
from engine.tools.effect import change
from engine.tools.files import TensorFile
from engine.tools.merge import Weighted, merge_into
from engine.tools.resize import resize
from engine.tools.writing import save_tensors

Array = NDArray[np.float64]
OUT, IN = 32, 16
KERNELS = {"linear": (), "1x1": (1, 1), "3x3": (3, 3)}
MODULES = {
    "linear": "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q",
    "1x1": "lora_unet_mid_block_attentions_0_proj_in",
    "3x3": "lora_unet_mid_block_resnets_0_conv1",
}
WEIGHTS = {
    "linear": "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight",
    "1x1": "model.diffusion_model.middle_block.1.proj_in.weight",
    "3x3": "model.diffusion_model.middle_block.0.in_layers.2.weight",
}


class Layer:
    """A layer's random weight, a rank, the scale of the definition, and a source of random tensors."""

    def __init__(self, kernel: tuple[int, ...], rank: int, alpha: float | None) -> None:
        self.chance = np.random.default_rng([rank, len(kernel), *kernel])
        self.kernel, self.rank, self.alpha = kernel, rank, alpha
        self.scale = alpha / rank if alpha else 1.0
        self.ones = (1,) * len(kernel)
        self.weight = self.draw(OUT, IN, *kernel)

    def draw(self, *shape: int) -> Array:
        """Numbers that float32 holds exactly, so that a file in it has the same effect."""
        return self.chance.standard_normal(shape, dtype=np.float32).astype(np.float64)

    def each(self, at: Callable[[tuple[int, ...]], Array]) -> Array:
        """A weight [out, in, …kernel] from its matrix at each position of the kernel."""
        whole = np.empty_like(self.weight)
        for place in product(*(range(size) for size in self.kernel)):
            whole[(slice(None), slice(None), *place)] = at(place)
        return whole


def at(array: Array, place: tuple[int, ...]) -> Array:
    return array[(slice(None), slice(None), *place)]


Made = tuple[dict[str, Array], Array]
"""The tensors of a file by the end of their name, and ΔW by definition."""


def lora(layer: Layer) -> Made:
    up, down = layer.draw(OUT, layer.rank, *layer.ones), layer.draw(layer.rank, IN, *layer.kernel)
    whole = layer.each(lambda place: layer.scale * at(up, (0,) * len(place)) @ at(down, place))
    return {"lora_up.weight": up, "lora_down.weight": down}, whole


def lora_with_a_core(layer: Layer) -> Made:
    up, down = layer.draw(OUT, layer.rank, 1, 1), layer.draw(layer.rank, IN, 1, 1)
    core = layer.draw(layer.rank, layer.rank, *layer.kernel)
    whole = layer.each(lambda place: layer.scale * up[..., 0, 0] @ at(core, place) @ down[..., 0, 0])
    return {"lora_up.weight": up, "lora_down.weight": down, "lora_mid.weight": core}, whole


def loha(layer: Layer) -> Made:
    taps = int(np.prod(layer.kernel))
    a1, a2 = layer.draw(OUT, layer.rank), layer.draw(OUT, layer.rank)
    b1, b2 = layer.draw(layer.rank, IN * taps), layer.draw(layer.rank, IN * taps)
    whole = np.empty((OUT, IN * taps))
    for row, column in np.ndindex(*whole.shape):
        whole[row, column] = layer.scale * (a1[row] @ b1[:, column]) * (a2[row] @ b2[:, column])
    return {"hada_w1_a": a1, "hada_w1_b": b1, "hada_w2_a": a2, "hada_w2_b": b2}, whole.reshape(layer.weight.shape)


def loha_with_cores(layer: Layer) -> Made:
    parts = {}
    for side in ("1", "2"):
        parts[f"hada_t{side}"] = layer.draw(layer.rank, layer.rank, *layer.kernel)
        parts[f"hada_w{side}_a"], parts[f"hada_w{side}_b"] = layer.draw(layer.rank, OUT), layer.draw(layer.rank, IN)

    def half(side: str, place: tuple[int, ...]) -> Array:
        return parts[f"hada_w{side}_a"].T @ at(parts[f"hada_t{side}"], place) @ parts[f"hada_w{side}_b"]

    return parts, layer.each(lambda place: layer.scale * half("1", place) * half("2", place))


def lokr(layer: Layer, left_whole: bool, right: str) -> Made:
    """Kronecker product of [4, 2] and [8, 8, …]: row 8a + c, column 8b + d is left[a, b] · right[c, d]."""
    parts, rank = {}, layer.rank
    if left_whole:
        parts["lokr_w1"] = left = layer.draw(4, 2)
    else:
        parts["lokr_w1_a"], parts["lokr_w1_b"] = layer.draw(4, rank), layer.draw(rank, 2)
        left = parts["lokr_w1_a"] @ parts["lokr_w1_b"]
    if right == "whole":
        parts["lokr_w2"] = small = layer.draw(8, 8, *layer.kernel)
    elif right == "halves":
        a, b = layer.draw(8, rank), layer.draw(rank, 8 * int(np.prod(layer.kernel)))
        parts |= {"lokr_w2_a": a, "lokr_w2_b": b}
        small = (a @ b).reshape(8, 8, *layer.kernel)
    else:
        core, a, b = layer.draw(rank, rank, *layer.kernel), layer.draw(rank, 8), layer.draw(rank, 8)
        parts |= {"lokr_t2": core, "lokr_w2_a": a, "lokr_w2_b": b}
        small = np.empty((8, 8, *layer.kernel))
        for place in np.ndindex(*layer.kernel):
            small[(slice(None), slice(None), *place)] = a.T @ at(core, place) @ b
    scale = 1.0 if left_whole and right == "whole" else layer.scale  # two whole factors have no rank to scale by
    whole = np.empty_like(layer.weight)
    for row, column in np.ndindex(OUT, IN):
        whole[row, column] = scale * left[row // 8, column // 8] * small[row % 8, column % 8]
    return parts, whole


def magnitude(layer: Layer, inner: Callable[[Layer], Made], axis: int, named: str = "dora_scale") -> Made:
    """DoRA: every row (axis 0) or every column (axis 1, all its taps) of W + ΔW stretched to a length of its own."""
    parts, plain = inner(layer)
    lengths = 1 + abs(layer.draw((OUT, IN)[axis]))
    moved = np.moveaxis(layer.weight + plain, axis, 0).copy()
    for index, length in enumerate(lengths):
        moved[index] *= length / np.sqrt(np.sum(moved[index] ** 2))
    shape = [1] * layer.weight.ndim
    shape[axis] = -1
    return parts | {named: lengths.reshape(shape)}, np.moveaxis(moved, 0, axis) - layer.weight


def peft_magnitude(layer: Layer) -> Made:
    """PEFT keeps one length per row: flat for linear layers, [1, out, 1, 1] for convolutions (peft 0.21, dora.py)."""
    parts, whole = magnitude(layer, lora, 0)
    flat = parts["dora_scale"].reshape(1, -1, 1, 1) if layer.kernel else parts["dora_scale"].reshape(-1)
    names = {"lora_A.weight": parts["lora_down.weight"], "lora_B.weight": parts["lora_up.weight"]}
    return names | {"lora_magnitude_vector": flat}, whole


def glora(layer: Layer) -> Made:
    """ΔW = (W·A + B) · scale with A = a1·a2 and B = b1·b2, Chavan et al. 2023 (arXiv:2306.07967)."""
    rank, ones = layer.rank, layer.ones
    a1, a2 = layer.draw(IN, rank, *ones), layer.draw(rank, IN, *ones)
    b1, b2 = layer.draw(OUT, rank, *ones), layer.draw(rank, IN, *layer.kernel)
    through, out = a1.reshape(IN, rank) @ a2.reshape(rank, IN), b1.reshape(OUT, rank)
    whole = layer.each(lambda place: layer.scale * (at(layer.weight, place) @ through + out @ at(b2, place)))
    return {"a1.weight": a1, "a2.weight": a2, "b1.weight": b1, "b2.weight": b2}, whole


def rotation(block: Array, shrink: float) -> Array:
    """Cayley: (I + Q)(I − Q)⁻¹ of the skew part Q of a block."""
    skew = (block - block.T) * shrink
    identity = np.eye(len(block))
    turned: Array = np.linalg.solve((identity - skew).T, (identity + skew).T).T
    np.testing.assert_allclose(turned @ turned.T, identity, atol=1e-12)
    return turned


def shrink(blocks: Array, layer: Layer) -> float:
    """What brings ‖Q‖ of all blocks together down to the constraint, alpha × the layer's rows; without one nothing."""
    limit = (layer.alpha or 0.0) * OUT
    length = float(np.sqrt(np.sum((blocks - np.swapaxes(blocks, -1, -2)) ** 2)))
    return min(1.0, limit / length) if limit else 1.0


def diag_oft(layer: Layer, rescaled: bool = False) -> Made:
    """Rows in groups of `rank`, each turned: R_kᵀ W_k."""
    blocks = layer.draw(OUT // layer.rank, layer.rank, layer.rank)
    turn = np.zeros((OUT, OUT))
    for group, block in enumerate(blocks):
        own = slice(group * layer.rank, (group + 1) * layer.rank)
        turn[own, own] = rotation(block, shrink(blocks, layer)).T
    return rotated(layer, blocks, turn, rescaled)


def boft(layer: Layer, rescaled: bool = False) -> Made:
    """A product of stages; stage i turns groups of `rank` rows whose two halves lie 2^i · rank / 2 apart."""
    size, count = layer.rank, OUT // layer.rank
    stages = int(np.log2(count)) + 1
    blocks = layer.draw(stages, count, size, size)
    turn = np.eye(OUT)
    for stage in range(stages):
        half = 2**stage * (size // 2)
        partners = [(start + first, start + first + half) for start in range(0, OUT, 2 * half) for first in range(half)]
        rows = [row for pair in partners for row in pair]
        step = np.zeros((OUT, OUT))
        for group in range(count):
            own = rows[group * size : (group + 1) * size]
            step[np.ix_(own, own)] = rotation(blocks[stage, group], shrink(blocks, layer))
        turn = step @ turn
    return rotated(layer, blocks, turn, rescaled)


def rotated(layer: Layer, blocks: Array, turn: Array, rescaled: bool) -> Made:
    parts = {"oft_blocks": blocks}
    if rescaled:
        parts["rescale"] = layer.draw(OUT, *(1,) * (layer.weight.ndim - 1))
        turn = np.diag(parts["rescale"].reshape(-1)) @ turn
    return parts, np.tensordot(turn, layer.weight, axes=1) - layer.weight


def ia3(layer: Layer, on_input: bool) -> Made:
    """ΔW = W ∘ l, l along the inputs or the outputs, Liu et al. 2022 (arXiv:2205.05638) with l counted from 1."""
    vector = layer.draw(IN if on_input else OUT)
    diagonal = np.diag(vector)
    whole = layer.each(
        lambda place: at(layer.weight, place) @ diagonal if on_input else diagonal @ at(layer.weight, place)
    )
    shape = (1, -1, 1, 1) if layer.kernel else (-1,)
    return {"weight": vector.reshape(shape), "on_input": np.array(float(on_input))}, whole


def full(layer: Layer) -> Made:
    difference = layer.draw(*layer.weight.shape)
    return {"diff": difference}, difference


LOW_RANK: dict[str, Callable[[Layer], Made]] = {
    "LoRA": lora,
    "LoRA with a core": lora_with_a_core,
    "LoHa": loha,
    "LoHa with cores": loha_with_cores,
    "LoKr whole × whole": lambda layer: lokr(layer, True, "whole"),
    "LoKr whole × halves": lambda layer: lokr(layer, True, "halves"),
    "LoKr halves × whole": lambda layer: lokr(layer, False, "whole"),
    "LoKr halves × halves": lambda layer: lokr(layer, False, "halves"),
    "LoKr whole × core": lambda layer: lokr(layer, True, "core"),
    "DoRA of rows": lambda layer: magnitude(layer, lora, 0),
    "DoRA of columns": lambda layer: magnitude(layer, lora, 1),
    "DoRA of PEFT": peft_magnitude,
    "DoRA over LoHa": lambda layer: magnitude(layer, loha, 0),
    "DoRA over LoKr": lambda layer: magnitude(layer, lambda inner: lokr(inner, True, "halves"), 1),
    "GLoRA": glora,
}
ROTATIONS: dict[str, Callable[[Layer], Made]] = {
    "diag-OFT": diag_oft,
    "diag-OFT rescaled": lambda layer: diag_oft(layer, rescaled=True),
    "BOFT": boft,
    "BOFT rescaled": lambda layer: boft(layer, rescaled=True),
}
WITHOUT_RANK: dict[str, Callable[[Layer], Made]] = {
    "IA³ on outputs": lambda layer: ia3(layer, False),
    "IA³ on inputs": lambda layer: ia3(layer, True),
    "full": full,
}


ALGORITHMS = LOW_RANK | ROTATIONS | WITHOUT_RANK
Case = tuple[str, str, int, float | None]
"""Algorithm, kernel, rank (of rotations: the size of a block), alpha (of rotations: the constraint)."""


def cases() -> list[Case]:
    low = [
        (name, kernel, rank, alpha)
        for name, kernel, rank in product(LOW_RANK, KERNELS, (1, 4, 16))
        if kernel == "3x3" or "core" not in name
        for alpha in (float(rank), 7.1, 0.0, None)
    ]
    turns = list(product(ROTATIONS, KERNELS, (2, 4, 8), (0.005, 3.0, 0.0, None)))
    return low + turns + [(name, kernel, 1, None) for name, kernel in product(WITHOUT_RANK, KERNELS)]


def one_of_each() -> list[Case]:
    """Every algorithm with every kernel once: rank 4 with an alpha that is not the rank, rotations constrained."""
    return [case for case in cases() if case[0] in WITHOUT_RANK or case[2:] in ((4, 7.1), (4, 0.005))]


def of(algorithm: str, kernel: str, rank: int, alpha: float | None) -> tuple[dict[str, Tensor], Tensor, Array]:
    """The tensors of a network file in float64, the weight of its layer, and ΔW by definition as a matrix."""
    layer = Layer(KERNELS[kernel], rank, alpha)
    parts, expected = ALGORITHMS[algorithm](layer)
    tensors = {f"{MODULES[kernel]}.{name}": torch.from_numpy(array.copy()) for name, array in parts.items()}
    if alpha is not None:
        tensors[f"{MODULES[kernel]}.alpha"] = torch.tensor(alpha, dtype=torch.float64)
    return tensors, torch.from_numpy(layer.weight), expected.reshape(OUT, -1)


def distance(ours: Tensor, expected: Array) -> float:
    """‖ours − expected‖ / ‖expected‖."""
    return float(np.linalg.norm(ours.double().numpy() - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize(("algorithm", "kernel", "rank", "alpha"), cases())
def test_the_effect_is_that_of_the_definition_in_float64(algorithm, kernel, rank, alpha):
    """LyCORIS' own merge_to applies alpha / rank twice to LoHa and LoKr; a file's effect is that of the training."""
    tensors, weight, expected = of(algorithm, kernel, rank, alpha)
    (adapter,) = in_memory(tensors).values()
    ours = change(adapter, weight, precision=torch.float64)
    assert ours.dtype == torch.float64
    assert distance(ours, expected) < 1e-10
    assert float(ours.norm()) == pytest.approx(float(np.linalg.norm(expected)), rel=1e-12)


@pytest.mark.parametrize(("algorithm", "kernel", "rank", "alpha"), one_of_each())
def test_a_merge_adds_the_effect_to_the_base(algorithm, kernel, rank, alpha, tmp_path):
    """In a base of float64 to its last bits; in one of float32 to those that are left of W + ΔW."""
    tensors, weight, expected = of(algorithm, kernel, rank, alpha)
    for precision, error in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        save_tensors(tmp_path / "base.safetensors", {WEIGHTS[kernel]: weight.to(precision)})
        base = Checkpoint(tmp_path / "base.safetensors")
        merge_into(base, [Weighted(in_memory(tensors))], tmp_path / "merged.safetensors")
        after = TensorFile(tmp_path / "merged.safetensors")[WEIGHTS[kernel]]
        assert after.dtype == precision
        assert distance((after.double() - weight).flatten(1), expected) < error


@pytest.mark.parametrize(("algorithm", "kernel", "rank", "alpha"), one_of_each())
def test_plain_lora_of_any_algorithm_is_off_by_what_is_stated(algorithm, kernel, rank, alpha):
    """At full rank by nothing but float32's rounding; below it by the stated share of ‖ΔW‖ (DoRA: of its direction)."""
    tensors, weight, expected = of(algorithm, kernel, rank, alpha)
    found = in_memory({name: tensor.float() for name, tensor in tensors.items()})
    for keep in (Keep(rank=1000), Keep(norm_share=1.0), Keep(rank=2)):
        result = resize(found, keep, dtype=torch.float32, weights=lambda _: weight)
        (plain,) = in_memory(result.tensors).values()
        assert plain.algorithm in ("lora", "locon")
        off = distance(change(plain, weight, precision=torch.float64), expected)
        if keep.rank != 2:
            assert result.error < 1e-5
            assert off < 1e-5
        elif not plain.decomposed:
            assert result.error > 0.01
            assert off == pytest.approx(result.error, abs=1e-5)
