"""What a network holds: its tensors, its trained weights and its file's bytes, exactly as LyCORIS 4.1 makes them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from json.encoder import encode_basestring
from math import isqrt, prod

from knowledge.architectures import Architecture, Layer
from knowledge.config import Algorithm, NetworkSettings, Precision
from knowledge.starting_network import adapted_with

Shape = tuple[int, ...]
Shapes = dict[str, Shape]

BYTES: Mapping[Precision, int] = {"fp32": 4, "fp16": 2, "bf16": 2}
SAFETENSORS_NAMES: Mapping[Precision, str] = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}
NOT_TRAINED = frozenset({"alpha", "on_input"})
"""Tensors that adapters save beside their trained weights."""
ALPHA: Mapping[str, tuple[int, ...]] = {"alpha": ()}


@dataclass(frozen=True)
class NetworkLayer:
    """One adapter: the layer it stands on, its rank, and its tensors' shapes by their names in files."""

    part: str
    layer: Layer
    name: str
    rank: int
    tensors: Shapes
    trainable: int


@lru_cache(maxsize=64)  # one plan asks nine times, and a solver tries many plans
def network_layers(architecture: Architecture, network: NetworkSettings) -> tuple[NetworkLayer, ...]:
    """Every adapter that the settings put on a base model, text encoders first, as files hold them."""
    return tuple(_network_layers(architecture, network))


def trainable_parameters(architecture: Architecture, network: NetworkSettings) -> int:
    """Trained weights of the whole network."""
    return sum(layer.trainable for layer in network_layers(architecture, network))


def file_bytes(
    architecture: Architecture,
    network: NetworkSettings,
    precision: Precision,
    metadata: Mapping[str, str] | None = None,
) -> int:
    """The exact size of the network's safetensors file.

    Without `metadata`, which is known only when the file is written and takes a few thousand bytes, it is left out.
    """
    return (
        _bytes_without_metadata(architecture, network, precision)
        if metadata is None
        else safetensors_bytes(_shapes(architecture, network), precision, metadata)
    )


@lru_cache(maxsize=64)  # nothing but the network decides it, and a solver tries many plans
def _bytes_without_metadata(architecture: Architecture, network: NetworkSettings, precision: Precision) -> int:
    return safetensors_bytes(_shapes(architecture, network), precision, None)


def _shapes(architecture: Architecture, network: NetworkSettings) -> Shapes:
    return {
        f"{layer.name}.{suffix}": shape
        for layer in network_layers(architecture, network)
        for suffix, shape in layer.tensors.items()
    }


def safetensors_bytes(shapes: Mapping[str, Shape], precision: Precision, metadata: Mapping[str, str] | None) -> int:
    """The size of a safetensors file that holds these tensors: 8 bytes, the header padded to 8, the numbers."""
    entries = [f'"__metadata__":{_json(dict(metadata))}'] if metadata is not None else []
    end = 0
    written: dict[Shape, tuple[str, int]] = {}
    for name in sorted(shapes):
        shape = shapes[name]
        if shape not in written:
            sides = ",".join(map(str, shape))
            described = f'"dtype":"{SAFETENSORS_NAMES[precision]}","shape":[{sides}]'
            written[shape] = described, prod(shape) * BYTES[precision]
        described, size = written[shape]
        begin, end = end, end + size
        entries.append(f'{encode_basestring(name)}:{{{described},"data_offsets":[{begin},{end}]}}')
    header = len(("{" + ",".join(entries) + "}").encode())
    return 8 + -(-header // 8) * 8 + end


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _network_layers(architecture: Architecture, network: NetworkSettings) -> Iterator[NetworkLayer]:
    groups = {"attention", "text"} | ({"convolution"} if network.adapts_convolutions else set())
    made: dict[tuple[object, ...], tuple[Shapes, int]] = {}  # a thousand layers have some twenty shapes between them
    for part in sorted(_trained_parts(architecture, network)):
        for layer in architecture.layers[part]:
            if layer.group in groups and layer.kind in ("linear", "conv"):
                name = architecture.saved_name(part, layer)
                own = adapted_with(name, layer.kernel > 1, network)
                if own is not None:
                    shape = (layer.kind, layer.inputs, layer.outputs, layer.kernel, layer.bias, own.rank)
                    if shape not in made:
                        tensors = TENSORS[network.algorithm](layer, own.rank, network)
                        trained = sum(prod(sides) for name, sides in tensors.items() if name not in NOT_TRAINED)
                        made[shape] = tensors, trained
                    yield NetworkLayer(part, layer, name, own.rank, *made[shape])


def _trained_parts(architecture: Architecture, network: NetworkSettings) -> list[str]:
    return ["unet"] * network.train_unet + list(architecture.text_encoders) * network.train_text_encoder


# -- one function per algorithm: the shapes of one layer's tensors ----------------------------------------------------


def _kernel(layer: Layer) -> Shape:
    return (layer.kernel, layer.kernel) if layer.kind == "conv" else ()


def _points(layer: Layer) -> Shape:
    return (1, 1) if layer.kind == "conv" else ()


def lora(layer: Layer, rank: int, network: NetworkSettings) -> Shapes:
    """Hu et al. 2021 (arXiv:2106.09685): ΔW = up · down."""
    return {
        **ALPHA,
        "lora_down.weight": (rank, layer.inputs, *_kernel(layer)),
        "lora_up.weight": (layer.outputs, rank, *_points(layer)),
    }


def dora(layer: Layer, rank: int, network: NetworkSettings) -> Shapes:
    """Liu et al. 2024 (arXiv:2402.09353): LoRA and a magnitude for each input."""
    return {**lora(layer, rank, network), "dora_scale": (1, layer.inputs, *_points(layer))}


def loha(layer: Layer, rank: int, network: NetworkSettings) -> Shapes:
    """Hyeon-Woo et al. 2021 (arXiv:2108.06098): ΔW = (w1_a · w1_b) ⊙ (w2_a · w2_b)."""
    inputs = layer.inputs * layer.kernel**2
    return {
        **ALPHA,
        "hada_w1_a": (layer.outputs, rank),
        "hada_w1_b": (rank, inputs),
        "hada_w2_a": (layer.outputs, rank),
        "hada_w2_b": (rank, inputs),
    }


def lokr(layer: Layer, rank: int, network: NetworkSettings) -> Shapes:
    """Yeh et al. 2023 (arXiv:2309.14859): ΔW = w1 ⊗ w2, and w2 = w2_a · w2_b where that is smaller and not whole."""
    small_in, large_in = factorization(layer.inputs, network.lokr_factor)
    small_out, large_out = factorization(layer.outputs, network.lokr_factor)
    first: Shapes = {**ALPHA, "lokr_w1": (small_out, small_in)}
    if network.lokr_full_matrix or rank >= max(large_out, large_in) / 2:
        return {**first, "lokr_w2": (large_out, large_in, *_kernel(layer))}
    return {**first, "lokr_w2_a": (large_out, rank), "lokr_w2_b": (rank, large_in * layer.kernel**2)}


def glora(layer: Layer, rank: int, network: NetworkSettings) -> Shapes:
    """Chavan et al. 2023 (arXiv:2306.07967): ΔW = W · a1 · a2 + b1 · b2."""
    return {
        **ALPHA,
        "a1.weight": (layer.inputs, rank, *_points(layer)),
        "a2.weight": (rank, layer.inputs, *_points(layer)),
        "b1.weight": (layer.outputs, rank, *_points(layer)),
        "b2.weight": (rank, layer.inputs, *_kernel(layer)),
    }


def oft(layer: Layer, rank: int, network: NetworkSettings) -> Shapes:
    """Qiu et al. 2023 (arXiv:2306.07280): the outputs in blocks, each turned by a matrix of its own."""
    size, blocks = factorization(layer.outputs, rank)
    return {**ALPHA, "oft_blocks": (blocks, size, size)}


def boft(layer: Layer, rank: int, network: NetworkSettings) -> Shapes:
    """Liu et al. 2023 (arXiv:2311.06243): stages of such blocks, each reaching twice as far as the one before."""
    size, blocks = butterfly(layer.outputs, rank)
    return {**ALPHA, "oft_blocks": (blocks.bit_length(), blocks, size, size)}


def ia3(layer: Layer, rank: int, network: NetworkSettings) -> Shapes:
    """Liu et al. 2022 (arXiv:2205.05638): a factor for each output."""
    return {"on_input": (), "weight": (1, layer.outputs, 1, 1) if layer.kind == "conv" else (layer.outputs,)}


def full(layer: Layer, rank: int, network: NetworkSettings) -> Shapes:
    """The weight's difference itself, and the bias'."""
    bias: Shapes = {"diff_b": (layer.outputs,)} if layer.bias else {}
    return {"diff": (layer.outputs, layer.inputs, *_kernel(layer)), **bias}


def butterfly(dimension: int, largest: int) -> tuple[int, int]:
    """Size of the blocks and their number, a power of two: the largest even size up to `largest` that divides so.

    As lycoris.functional.power2factorization. Raises ValueError where there is none.
    """
    for size in range(min(largest, dimension) // 2 * 2, 0, -2):
        blocks, rest = divmod(dimension, size)
        if not rest and blocks.bit_count() == 1:
            return size, blocks
    raise ValueError(f"{dimension} outputs are not a power of two of even blocks of at most {largest}")


def factorization(dimension: int, factor: int) -> tuple[int, int]:
    """Two factors of a dimension, the smaller first: `factor` itself if it divides, else as near to it from below as
    lycoris.functional.factorization finds; -1 means as square as possible."""
    if factor > 0 and dimension % factor == 0:
        small, large = sorted((factor, dimension // factor))
        return small, large
    root = isqrt(dimension)
    small = next(d for d in range(root if factor < 0 else max(1, min(factor, root)), 0, -1) if dimension % d == 0)
    return small, dimension // small


TENSORS: Mapping[Algorithm, Callable[[Layer, int, NetworkSettings], Shapes]] = {
    "lora": lora,
    "locon": lora,
    "dylora": lora,
    "dora": dora,
    "loha": loha,
    "lokr": lokr,
    "glora": glora,
    "oft": oft,
    "boft": boft,
    "ia3": ia3,
    "full": full,
}
