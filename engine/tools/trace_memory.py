"""What one training step allocates and computes, traced on torch's meta device: made by hand, shipped as data.

    python -m engine.tools.trace_memory [FAMILY …] [--only PATTERN …]

runs the engine's own step for a grid of configurations without a GPU and without weights, and writes
knowledge/data/memory/FAMILY.json, from which the calculator forecasts memory and time with the standard library alone.
With --only, courses whose names match a pattern ("lora/*/plain") are traced anew; all others stay as they are.

On the meta device a tensor has a size and no content. Every storage that is allocated is logged; CUDA's autocast and
its attention kernels are restated, since the meta device has neither. Each point of the log is affine in the sizes of
the step (`Point.features`), so a peak is the upper envelope of a few planes.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import sys
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from importlib.metadata import version
from math import isqrt
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import _engine_run_backward
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from calculator.step_cost import RANKLESS, TRACED_RANK, Course
from engine.batch_loss import loss_of_draw
from engine.held_weights import Held, hold_weights
from engine.models.family import BaseModel, Conditioning
from engine.models.load import FAMILIES, family_class
from engine.models.reading import class_named
from engine.networks import Network, create_network
from knowledge.architectures import Architecture, architecture
from knowledge.config import CONV_ALGORITHMS, Algorithm, BaseModelSettings, Family, TrainingConfig, with_values
from knowledge.families import family_facts

META = torch.device("meta")
LIBRARIES = ("torch", "diffusers", "transformers", "lycoris-lora")

# What CUDA's autocast computes in half precision, and what in single; everything else takes the widest of its inputs.
# fmt: off
HALF = frozenset((
    "linear", "conv2d", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "baddbmm", "addbmm", "einsum",
    "scaled_dot_product_attention",
))
SINGLE = frozenset((
    "group_norm", "layer_norm", "softmax", "log_softmax", "mse_loss", "l1_loss", "smooth_l1_loss", "norm", "pow", "sum",
    "prod", "exp", "log", "rsqrt", "cumsum", "softplus",
))
# fmt: on


# -- the two modes that watch a step ----------------------------------------------------------------------------------


class CudaOnMeta(TorchFunctionMode):
    """CUDA's autocast and attention for tensors on the meta device.

    Whether autocast is on is read from the CPU's own, which checkpointing saves and restores around its second pass.
    """

    def __init__(self) -> None:
        super().__init__()
        self.casts: dict[int, Tensor] = {}
        self._clear = torch.clear_autocast_cache

    def __enter__(self) -> CudaOnMeta:
        torch.clear_autocast_cache = self._clear_casts
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        torch.clear_autocast_cache = self._clear

    def _clear_casts(self) -> None:
        """What leaving the outermost autocast block does."""
        self.casts.clear()
        self._clear()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "cpu":  # LyCORIS brings a weight to the CPU to take its norm
            return args[0]
        if name == "item" and args[0].is_meta:  # and reads its scale back from a tensor
            return 1.0
        if torch.is_autocast_enabled("cpu"):
            if name in HALF:
                args, kwargs = self._cast(args, torch.bfloat16), self._cast(kwargs, torch.bfloat16)
            elif name in SINGLE:
                args, kwargs = self._cast(args, torch.float32), self._cast(kwargs, torch.float32)
        if name == "scaled_dot_product_attention":
            return attention(*args, **kwargs)
        return func(*args, **kwargs)

    def _cast(self, thing: Any, dtype: torch.dtype) -> Any:
        if isinstance(thing, Tensor):
            if not thing.is_floating_point() or thing.dtype == dtype:
                return thing
            # As CUDA's: weights in training are cast once within a block.
            if dtype == torch.bfloat16 and thing.is_leaf and thing.requires_grad:
                if id(thing) not in self.casts:
                    self.casts[id(thing)] = thing.to(dtype)
                return self.casts[id(thing)]
            return thing.to(dtype)
        if isinstance(thing, list | tuple):
            return type(thing)(self._cast(part, dtype) for part in thing)
        if isinstance(thing, dict):
            return {name: self._cast(part, dtype) for name, part in thing.items()}
        return thing


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **_: Any,
) -> Tensor:
    """Attention by the kernel that CUDA would choose: flash in half precision, the memory-efficient one else."""
    if attn_mask is None and query.dtype in (torch.float16, torch.bfloat16):
        flash: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(
            query, key, value, dropout_p, is_causal, False, scale=scale
        )[0]
        return flash
    needs_grad = any(tensor.requires_grad for tensor in (query, key, value))
    efficient: Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, needs_grad, dropout_p, is_causal, scale=scale
    )[0]
    return efficient


Description = tuple[torch.Size, tuple[int, ...], torch.dtype]
"""Shape, steps and numbers of a tensor."""


@dataclass
class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Every allocation of a step in bytes, and what the step computes."""

    live: int = 0
    log: list[int] = field(default_factory=list)
    flops: float = 0.0
    traffic: float = 0.0
    launches: int = 0
    known: set[int] = field(default_factory=set)
    results: dict[Any, list[Description]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    __hash__ = object.__hash__

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = list(_tensors((args, kwargs)))
        held = {tensor.untyped_storage()._cdata for tensor in inputs}
        result = self._computed(func, args, kwargs or {}, held)
        fresh = [tensor for tensor in _tensors(result) if self._allocated(tensor, held)]
        packet = func._overloadpacket
        if packet in flop_registry:
            self.flops += flop_registry[packet](*args, **(kwargs or {}), out_val=result)
            self.launches += 1
        elif fresh or func._schema.is_mutable:
            self.traffic += sum(tensor.nbytes for tensor in inputs) + sum(tensor.nbytes for tensor in fresh)
            self.launches += 1
        return result

    def _computed(self, func: Any, args: Any, kwargs: Any, held: set[int]) -> Any:
        """What the operation gives. On the meta device most are Python that works out shapes, and a UNet asks for the
        same ones over and over: so results that are new memory are remembered by the shapes that led to them."""
        key = _key((func, args, kwargs))
        described = self.results.get(key)
        if described is not None:
            made = [torch.empty_strided(shape, stride, dtype=dtype, device=META) for shape, stride, dtype in described]
            return made[0] if len(made) == 1 else tuple(made)
        result = func(*args, **kwargs)
        made = [result] if isinstance(result, Tensor) else list(result) if isinstance(result, tuple) else []
        if made and not func._schema.is_mutable and all(_is_own(tensor, held) for tensor in made):
            self.results[key] = [(tensor.shape, tensor.stride(), tensor.dtype) for tensor in made]
        return result

    def _allocated(self, tensor: Tensor, held: set[int]) -> bool:
        """Whether this output is new memory: neither what was logged nor what the operation was given."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.known or key in held:
            return False
        size = storage.nbytes()
        self.known.add(key)
        self.live += size
        self.log.append(self.live)
        weakref.finalize(storage, self._freed, key, size)
        return True

    def _freed(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size


def _key(thing: Any) -> Any:
    """An operation and what it is given, with shapes in the place of tensors."""
    if isinstance(thing, Tensor):
        return (thing.shape, thing.stride(), thing.dtype, thing.device.type)
    if isinstance(thing, list | tuple):
        return tuple(_key(part) for part in thing)
    if isinstance(thing, dict):
        return tuple((name, _key(part)) for name, part in thing.items())
    return (type(thing), thing)


def _is_own(tensor: Any, held: set[int]) -> bool:
    """Whether a result is a tensor with memory of its own, and of no more than it needs."""
    if not isinstance(tensor, Tensor) or not tensor.is_meta:
        return False
    storage = tensor.untyped_storage()
    span = 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return storage._cdata not in held and storage.nbytes() == span * tensor.itemsize and tensor.numel() > 0


def _tensors(thing: Any) -> Iterator[Tensor]:
    """The tensors among an operation's arguments or results."""
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, list | tuple):
        for part in thing:
            yield from _tensors(part)
    elif isinstance(thing, dict):
        for part in thing.values():
            yield from _tensors(part)


# -- our step on the meta device --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """The sizes of one step: rank, rank of convolutions (0 without), pictures, latent height and width, tokens."""

    rank: int
    conv_rank: int
    batch: int
    height: int
    width: int
    tokens: int = 77

    def features(self) -> list[float]:
        r, c, b, a = self.rank, self.conv_rank, self.batch, self.height * self.width
        return [1, r, b, b * a, r * b, r * b * a, c, c * b, c * b * a, b * self.tokens]

    def work_features(self) -> list[float]:
        """For what is computed: attention is quadratic in the latent pixels, and ΔW in full is linear in the rank."""
        r, c, b, a = self.rank, self.conv_rank, self.batch, self.height * self.width
        t = self.tokens
        return [1, r, b, b * a, r * b, r * b * a, b * a * a, c, c * b, c * b * a, b * t, b * a * t]


@dataclass(frozen=True)
class Trace:
    """One step: bytes allocated above what lasts, at every allocation; operations, bytes moved, kernels started."""

    log: np.ndarray
    flops: float
    traffic: float
    launches: int


def meta_model(family: Family, dtype: torch.dtype) -> BaseModel:
    """The base model of a family without content."""
    kind, configs = family_class(family), architecture(family).configs
    parts: dict[str, Any] = {"scheduler": {}}
    with META:
        for name, class_name in kind.kinds.items():
            made, config = class_named(class_name), dict(configs[name])
            part = made.from_config(config) if name in ("unet", "vae") else made(made.config_class(**config))
            parts[name] = part.to(torch.float32 if name == "vae" else dtype).requires_grad_(False).eval()
            if name.startswith("text_encoder"):
                parts[name.replace("text_encoder", "tokenizer")] = Tokenizer()
        return kind.assemble(parts, BaseModelSettings(family=family))


class Tokenizer:
    """Token numbers without content, as many as are asked for."""

    pad_token_id = eos_token_id = 0

    def __call__(self, captions: Sequence[str], *, max_length: int, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(input_ids=torch.zeros(len(captions), max_length, dtype=torch.long, device=META))


class CachedTexts:
    """What the engine's text cache gives: outputs of the text encoders, already there."""

    def __init__(self, known: Architecture, tokens: int, dtype: torch.dtype) -> None:
        self.tokens, self.width, self.pooled = known.text_outputs(tokens)
        self.dtype = dtype

    def conditioning(self, captions: Sequence[str]) -> Conditioning:
        count = len(captions)
        pooled = torch.empty(count, self.pooled, dtype=self.dtype, device=META) if self.pooled else None
        return Conditioning(torch.empty(count, self.tokens, self.width, dtype=self.dtype, device=META), pooled)


def trace(case: Course, points: Sequence[Point]) -> list[Trace]:
    """The engine's step at each of these sizes."""
    dtype = torch.bfloat16 if case.half else torch.float32
    model = meta_model(case.family, dtype)
    with CudaOnMeta():
        hold_weights(model, case.base_weights, case.offloaded, META)
    if case.offloaded:
        keep_off_the_device(model)
    if case.checkpointing:
        model.enable_gradient_checkpointing()
    elif case.selective:
        model.enable_selective_checkpointing()
    traces = []
    for point in points:
        model.maximum_tokens = point.tokens - 2
        network_settings = {
            "network.algorithm": case.algorithm,
            "network.rank": point.rank,
            "network.conv_rank": point.conv_rank or 1,
            "network.train_text_encoder": case.text_encoder,
            "network.convolutions": case.convolutions,
            "network.attention_only": case.attention_only,
        }
        config = with_values(TrainingConfig(), network_settings)
        with CudaOnMeta():
            network = create_network(model, config.network, 0).to(META).train()
            if case.full_half:
                network.halve()
        network.attach()
        traces.append(_trace_step(model, network, config, case, point))
        network.detach()
    return traces


def keep_off_the_device(model: BaseModel) -> None:
    """Give offloaded weights a place in the computer's memory, from where their way to the device is a copy.

    Nothing is ever written there, so the system lends addresses and no memory.
    """
    for module in model.unet.modules():
        held = getattr(module, "held", None)
        if isinstance(held, Held):
            module.held = replace(held, tensors=tuple(torch.empty_like(t, device="cpu") for t in held.tensors))


def _trace_step(model: BaseModel, network: Network, config: TrainingConfig, case: Course, point: Point) -> Trace:
    dtype = torch.bfloat16 if case.half else torch.float32
    known = architecture(case.family)
    texts = None if case.text_encoder else CachedTexts(known, point.tokens, dtype)

    def autocast() -> Any:
        return torch.autocast("cpu", torch.bfloat16) if case.half else contextlib.nullcontext()

    bench = SimpleNamespace(
        config=config,
        model=model,
        accelerator=SimpleNamespace(device=META, autocast=autocast),
        caches=SimpleNamespace(texts=texts, masks=None),
    )
    batch = SimpleNamespace(
        captions=[""] * point.batch,
        sizes=[(0,) * 6] * point.batch,
        items=[SimpleNamespace(regularisation=False)] * point.batch,
    )
    shape = (point.batch, model.latent_channels, point.height, point.width)
    latents, noise, noisy = (torch.empty(shape, device=META) for _ in range(3))
    timesteps = torch.zeros(point.batch, dtype=torch.long, device=META)
    weights = list(network.parameters())
    ledger = Ledger()
    with CudaOnMeta(), ledger:
        loss = loss_of_draw(bench, batch, latents, noise, noisy, timesteps).mean()  # type: ignore[arg-type]
        # Tensor.backward and torch.autograd.backward would leave our modes for the time they take.
        _engine_run_backward((loss,), (torch.ones_like(loss),), False, False, (), True, True)
        del loss
    for weight in weights:
        weight.grad = None
    return Trace(np.array(ledger.log, dtype=np.float64), ledger.flops, ledger.traffic, ledger.launches)


# -- planes -----------------------------------------------------------------------------------------------------------

LARGEST_TRACED = 32
"""Latent pixels of a side. Small sizes tell all terms apart as well as large ones do, as long as every level of the
UNet halves them evenly."""


def traced_side(family: Family) -> int:
    return min(LARGEST_TRACED, isqrt(architecture(family).usual_area))


def points(case: Course) -> list[Point]:
    """The sizes to trace, several pictures each, since one alone takes another course of the same size; for LoRA the
    last is held out of the fit, to see that nothing else is at work."""
    side = traced_side(case.family)
    wide = side * 3 // 2
    if case.algorithm in RANKLESS:
        return [
            Point(TRACED_RANK, 0, *size)
            for size in ((2, side, side), (2, side, wide), (4, side, side), (2, wide, wide))
        ]
    low, high = (1, 3) if case.algorithm == "lokr" and case.family == "pocket" else (4, 16)
    on_convolutions = case.convolutions or case.algorithm in CONV_ALGORITHMS
    ranks = [(low, low), (high, low), (low, high)] if on_convolutions else [(low, 0), (high, 0)]
    chosen = [Point(*rank, 2, *shape) for rank in ranks for shape in [(side, side), (side, wide)]]
    chosen += [Point(*rank, 4, side, side) for rank in ranks]
    chosen += [Point(*ranks[0], 2, wide, wide)]
    if case.algorithm != "lora":
        return chosen
    # Trained text encoders take long captions in pieces, which is another course; the calculator adds those up.
    tokens = 77 if case.text_encoder else 152
    return [*chosen, Point(low, 0, 2, side, side, tokens), Point(8, 0, 3, wide, wide, tokens)]


def fitted(rows: list[list[float]], values: np.ndarray) -> np.ndarray:
    """Coefficients of the features for every column of values; a feature that only repeats an earlier one gets none."""
    matrix = np.array(rows)
    matrix = matrix / np.maximum(matrix.max(axis=0), 1)
    told_apart: list[int] = []
    for column in range(matrix.shape[1]):
        if np.linalg.matrix_rank(matrix[:, [*told_apart, column]]) > len(told_apart):
            told_apart.append(column)
    coefficients = np.zeros((matrix.shape[1], values.shape[1]))
    coefficients[told_apart] = np.linalg.lstsq(matrix[:, told_apart], values, rcond=None)[0]
    scaled: np.ndarray = coefficients / np.maximum(np.array(rows).max(axis=0), 1)[:, None]
    return scaled


def envelope(planes: np.ndarray, domain: np.ndarray) -> np.ndarray:
    """The few planes whose maximum is the peak everywhere in the domain, to one part in ten thousand."""
    heights = planes.T @ domain.T
    peak = heights.max(axis=0)
    kept: list[int] = []
    covered = np.zeros(len(peak))
    while True:
        short = covered < peak * (1 - 1e-4)
        if not short.any():
            return planes[:, kept]
        # the plane that brings most points of the domain to their peak
        gain = (heights[:, short] >= peak[short] * (1 - 5e-5)).sum(axis=1)
        kept.append(int(gain.argmax()))
        covered = np.maximum(covered, heights[kept[-1]])


def domain(case: Course) -> list[Point]:
    """Where the planes must hold: ranks 1 to 256, 1 to 16 pictures, a quarter to twice the usual area."""
    side = isqrt(architecture(case.family).usual_area)
    on_convolutions = case.convolutions or case.algorithm in CONV_ALGORITHMS
    ranks = ((r, c) for r in (1, 4, 8, 16, 32, 64, 128, 256) for c in ((1, 8, 64) if on_convolutions else (0,)))
    lengths = (77, 152, 227) if case.algorithm == "lora" and not case.text_encoder else (77,)
    sizes = itertools.product(ranks, (1, 2, 4, 8, 16), (0.25, 0.5, 1, 2), lengths)
    return [Point(r, c, b, side, round(side * share), tokens) for (r, c), b, share, tokens in sizes]


def measured(case: Course) -> dict[str, Any]:
    """A case's planes and sums of work and, where sizes were held out, how far the planes are off there."""
    chosen = points(case)
    traces = trace(case, chosen)
    lengths = {len(one.log) for one in traces}
    if len(lengths) != 1:
        raise ValueError(f"{case.name}: the step's course depends on its sizes ({sorted(lengths)} allocations)")
    used = len(chosen) - 1 if case.algorithm == "lora" else len(chosen)
    logs = np.array([one.log for one in traces])
    features = [point.features() for point in chosen]
    everywhere = np.array([point.features() for point in [*domain(case), *chosen]])
    planes = envelope(fitted(features[:used], logs[:used]), everywhere)
    predicted = (planes.T @ np.array(features).T).max(axis=0)
    flops, traffic = (np.array([[getattr(one, name)] for one in traces]) for name in ("flops", "traffic"))
    return {
        "planes": rounded(planes.T),
        "error": round(float(np.abs(predicted / logs.max(axis=1) - 1).max()), 6),
        "flops": rounded(fitted([point.work_features() for point in chosen], flops)[:, 0]),
        "traffic": rounded(fitted(features, traffic)[:, 0]),
        "launches": traces[0].launches,
    }


def rounded(values: np.ndarray) -> Any:
    """Nested lists with six digits each, which is more than any size in them has."""
    return [rounded(value) for value in values] if values.ndim else float(f"{values:.6g}")


def phases(family: Family, half: bool) -> dict[str, Any]:
    """Bytes above what lasts and operations by latent pixels: encoding a picture, denoising a sample, decoding it."""
    model = meta_model(family, torch.bfloat16 if half else torch.float32)
    side, factor = traced_side(family), model.latent_factor

    def encode(height: int, width: int) -> Any:
        return model.encode_pictures(torch.empty(1, 3, height * factor, width * factor, device=META))

    def denoise(height: int, width: int) -> Any:
        text = CachedTexts(architecture(family), 77, model.unet.dtype).conditioning(["", ""])
        noisy, timesteps = (
            torch.empty(2, model.latent_channels, height, width, device=META),
            torch.zeros(2, device=META),
        )
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            return model.predict(noisy, timesteps, text, torch.empty(2, 6, device=META))

    def decode(height: int, width: int) -> Any:
        return model.decode_latents(torch.empty(1, model.latent_channels, height, width, device=META))

    found: dict[str, Any] = {}
    for name, work in (("encode", encode), ("denoise", denoise), ("decode", decode)):
        peaks = []
        shapes = [(side, side), (side, 2 * side), (2 * side, 2 * side)]
        for shape in shapes:
            with torch.no_grad(), CudaOnMeta(), Ledger() as ledger:
                work(*shape)
            peaks.append([float(max(ledger.log)), ledger.flops])
        areas = np.array([[1.0, h * w, (h * w) ** 2] for h, w in shapes])
        found[name] = {
            "bytes": rounded(fitted([row[:2] for row in areas.tolist()], np.array(peaks)[:, :1])[:, 0]),
            "flops": rounded(fitted(areas.tolist(), np.array(peaks)[:, 1:])[:, 0]),
        }
    return found


ALGORITHMS: tuple[Algorithm, ...] = ("loha", "lokr", "dora", "locon", "glora", "oft", "boft", "ia3", "full")
IN_FP32: tuple[Algorithm, ...] = ("lora", "locon")
CONVOLUTIONS: tuple[Algorithm, ...] = ("loha", "lokr", "full")
HELD: tuple[dict[str, Any], ...] = (
    *({"base_weights": form} for form in ("fp8", "nf4", "8bit")),
    {"offloaded": True},
    {"offloaded": True, "base_weights": "fp8"},
    {"full_half": True},
)


def cases(family: Family) -> Iterator[Course]:
    """What is traced: every algorithm on the UNet, and on its attention alone; for LoRA also text encoders in training,
    fp32 (for LoCon too), and each way to hold weights smaller or elsewhere.

    The calculator adds and scales by what these make of LoRA where another algorithm meets them.
    """
    for checkpointing, selective in ((True, False), (False, False), (False, True)):
        yield (lora := Course(family, "lora", False, True, checkpointing, selective=selective))
        yield replace(lora, text_encoder=True)
        yield from (replace(lora, algorithm=algorithm, half=False) for algorithm in IN_FP32)
        yield from (replace(lora, algorithm=algorithm) for algorithm in ALGORITHMS)
        yield from (replace(lora, algorithm=algorithm, convolutions=True) for algorithm in CONVOLUTIONS)
        yield from (replace(lora, attention_only=True, half=half) for half in (True, False))
        on_attention = [algorithm for algorithm in ALGORITHMS if algorithm not in CONV_ALGORITHMS]
        yield from (replace(lora, attention_only=True, algorithm=algorithm) for algorithm in on_attention)
        yield from (replace(lora, **changes) for changes in HELD)


def known_courses(path: Path) -> dict[str, Any]:
    """What the file holds; courses traced with other versions of the libraries count as outdated."""
    document: dict[str, Any] = {"versions": {}, "cases": {}, "outdated": []}
    if path.exists():
        document |= json.loads(path.read_text(encoding="utf-8"))
    versions = {name: version(name) for name in LIBRARIES}
    if document["versions"] != versions:
        document |= {"versions": versions, "outdated": list(document["cases"])}
    return document


def main(arguments: Sequence[str]) -> None:
    """Traces what is not there yet or is outdated, or what is asked for; every course is written as it is done."""
    parser = argparse.ArgumentParser(description="What one training step allocates and computes.")
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=f"of {', '.join(FAMILIES)}; all without any")
    parser.add_argument("--only", nargs="+", metavar="PATTERN", help="trace the courses of these names anew")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for family in chosen.families or list(FAMILIES):
        path = family_facts(family).trace
        path.parent.mkdir(parents=True, exist_ok=True)
        document = known_courses(path)
        if not chosen.only:
            document["phases"] = {name: phases(family, name == "half") for name in ("half", "fp32")}
        for case in cases(family):
            if chosen.only:
                wanted = any(fnmatchcase(case.name, pattern) for pattern in chosen.only)
            else:
                wanted = case.name not in document["cases"] or case.name in document["outdated"]
            if not wanted:
                continue
            begun = time.monotonic()
            found = measured(case)
            document["cases"][case.name] = found
            document["outdated"] = [name for name in document["outdated"] if name != case.name]
            text = json.dumps(document, separators=(",", ":")).replace('{"planes"', '\n{"planes"')
            path.write_text(text + "\n", encoding="utf-8")
            print(  # noqa: T201
                f"{family} {case.name}: {len(found['planes'])} planes, off by {found['error']:.1e}, "
                f"{time.monotonic() - begun:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1:])
