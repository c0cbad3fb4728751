"""What one step allocates and computes, from traces of the engine's own step that ship as data.

`python -m engine.tools.trace_memory` makes them without a GPU; here they are evaluated with the standard library alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from knowledge import blocks
from knowledge.config import CONV_ALGORITHMS, Algorithm, Family, NetworkSettings, TrainingConfig

DATA = Path(__file__).parent.parent / "knowledge" / "data" / "memory"
SMALL: Family = "pocket"
"""The family of which every course is traced; where another's was not, its share over LoRA is taken from here."""
USUAL_AREA: dict[Family, int] = {"pocket": 16**2, "sd15": 64**2, "sd2": 64**2, "sdxl": 128**2}
"""Latent pixels of a picture at the size that the family was made for."""
GATHERED = 0.25
"""Share of the most that a traced moment holds by rank, from which it is gradients that have gathered."""
LARGEST_TRACED_RANK = {"lokr": 32}
"""LoKr's second factor becomes a whole matrix at high ranks, so from there on rank costs nothing more."""
TRACED_RANK = 16
"""Of algorithms whose step does not grow with the rank by itself: rotations' blocks, factors, whole differences."""
RANKLESS = frozenset({"oft", "boft", "ia3", "full"})
SAME_STEP: dict[Algorithm, Algorithm] = {"dylora": "lora"}
"""Algorithms whose step takes what another's does."""


@dataclass(frozen=True)
class Sizes:
    """What a step's cost grows with: pictures in the batch, latent pixels of each, ranks, tokens of a caption."""

    batch: int
    area: float
    rank: int
    conv_rank: int
    tokens: int = 77

    def memory_terms(self) -> tuple[float, ...]:
        """As `Point.features` of the tracer has them."""
        r, c, b, a, t = self.rank, self.conv_rank, self.batch, self.area, self.tokens
        return (1, r, b, b * a, r * b, r * b * a, c, c * b, c * b * a, b * t)

    def work_terms(self) -> tuple[float, ...]:
        """As `Point.work_features` of the tracer has them."""
        r, c, b, a, t = self.rank, self.conv_rank, self.batch, self.area, self.tokens
        return (1, r, b, b * a, r * b, r * b * a, b * a * a, c, c * b, c * b * a, b * t, b * a * t)


@dataclass(frozen=True)
class Course:
    """The course of a step: which layers are trained, how, and in which precision."""

    family: Family
    algorithm: Algorithm
    text_encoder: bool
    half: bool
    checkpointing: bool

    @property
    def name(self) -> str:
        """The course's name in the data that the tracer writes."""
        targets, precision = "unet+text" if self.text_encoder else "unet", "half" if self.half else "fp32"
        return f"{self.algorithm}/{targets}/{precision}/{'checkpointed' if self.checkpointing else 'plain'}"


@dataclass(frozen=True)
class Work:
    """What a step computes: floating-point operations, bytes moved by everything else, kernels started."""

    flops: float
    traffic: float
    launches: float


def course_of(config: TrainingConfig) -> Course:
    """The course of a config's steps."""
    return Course(
        config.base_model.family,
        SAME_STEP.get(config.network.algorithm, config.network.algorithm),
        config.network.train_text_encoder,
        config.memory.precision != "fp32",
        config.memory.gradient_checkpointing,
    )


def sizes_of(config: TrainingConfig, batch: int, area: float) -> Sizes:
    """The sizes of a config's step on pictures of this many latent pixels."""
    network = config.network
    rank = min(network.rank, LARGEST_TRACED_RANK.get(network.algorithm, network.rank))
    rank = TRACED_RANK if network.algorithm in RANKLESS else rank
    conv_rank = network.conv_rank if network.adapts_convolutions else 0
    return Sizes(batch, area, rank, conv_rank, config.base_model.maximum_tokens + 2)


def is_traced(course: Course) -> bool:
    """Whether the family has a trace of this algorithm; the others' are put together from LoRA's."""
    name = replace(course, text_encoder=False, half=True).name
    return name in _document(course.family)["cases"]


def traced_networks(network: NetworkSettings, course: Course) -> tuple[list[NetworkSettings], list[NetworkSettings]]:
    """The networks whose traces make up the UNet's part of a step: those added up, and those taken off again.

    What it trains more or less than these do comes on top.
    """
    rank = LARGEST_TRACED_RANK.get(network.algorithm, network.rank) if network.lokr_full_matrix else network.rank
    usual: dict[str, Any] = {"convolutions": False, "lokr_factor": NetworkSettings().lokr_factor}
    usual |= {"train_text_encoder": False, "rank": rank, "lokr_full_matrix": False}
    plain = network.model_copy(update=usual | dict.fromkeys(blocks.LISTS, ""))
    own: dict[str, Any] = {"algorithm": SAME_STEP.get(network.algorithm, network.algorithm)}
    if network.algorithm in RANKLESS:
        own = {"algorithm": network.algorithm if is_traced(course) else "lora", "rank": TRACED_RANK}
    added = [plain.model_copy(update=own)]
    if not network.convolutions:
        return added, []
    return [*added, plain.model_copy(update={"algorithm": "locon"})], [plain.model_copy(update={"algorithm": "lora"})]


def activation_bytes(course: Course, sizes: Sizes, *, fused_backward: bool = False) -> float:
    """The most that a step allocates above what lasts: activations, temporary results and gradients.

    With `fused_backward` gradients do not gather.
    """
    measure = _peak_without_gradients if fused_backward else _peak
    peak = _combined(course, sizes, measure)
    if course.checkpointing:
        # At high ranks on small pictures the traces count casts of the network's weights twice; computing activations
        # again never holds more than keeping all of them does.
        peak = min(peak, _combined(replace(course, checkpointing=False), sizes, measure))
    return peak


def work(course: Course, sizes: Sizes) -> Work:
    """What the forward and the backward pass of a step compute."""
    return Work(*(_combined(course, sizes, measure) for measure in (_flops, _traffic, _launches)))


def phase_bytes(family: Family, half: bool, phase: str, area: float) -> float:
    """The most that one picture takes in a phase without training: "encode", "denoise" or "decode"."""
    fixed, per_pixel = _document(family)["phases"]["half" if half else "fp32"][phase]["bytes"]
    return float(fixed + per_pixel * area)


def phase_flops(family: Family, half: bool, phase: str, area: float) -> float:
    """Operations of such a phase; denoising is one step of a sample, with and without its prompt."""
    fixed, per_pixel, squared = _document(family)["phases"]["half" if half else "fp32"][phase]["flops"]
    return float(fixed + per_pixel * area + squared * area**2)


def basis(course: Course) -> str:
    """Where a course's figures come from, in words. A trace is outdated when the engine's step has changed since."""
    document = _document(course.family)
    if course.name not in document["cases"]:
        return "put together from traces of the engine's own step"
    if course.name in document.get("outdated", ()):
        return "from a trace of an earlier form of the engine's own step, which needed more"
    return "from a trace of the engine's own step"


def versions(family: Family) -> dict[str, str]:
    """The libraries that the traces were made with."""
    return dict(_document(family)["versions"])


def _combined(course: Course, sizes: Sizes, measure: Any) -> float:
    """A figure of a course, put together where it was not traced itself.

    Text encoders add to any algorithm what they add to LoRA, once for every 75 tokens. Convolutions add to those that
    can leave them out what LoCon adds to LoRA. fp32 multiplies as it does there at the family's usual size: taken at
    each size anew, the share would fall faster than the step grows, and a larger step would seem to need less.
    """
    cases = _document(course.family)["cases"]
    found: dict[str, Any] | None = cases.get(course.name)
    convolutions = sizes.conv_rank > 0 and course.algorithm not in CONV_ALGORITHMS
    if found is not None and not convolutions and not (course.text_encoder and sizes.tokens > 77):
        return float(measure(found, sizes))
    words = replace(sizes, tokens=77, area=0.0)

    def figure(algorithm: Algorithm, text_encoder: bool = False, half: bool = True, sizes: Sizes = sizes) -> float:
        name = Course(course.family, algorithm, text_encoder, half, course.checkpointing).name
        if name not in cases:  # as much more than LoRA as on the pocket model
            small = _document(SMALL)["cases"]
            plain = Course(course.family, "lora", False, True, course.checkpointing).name
            if measure is _peak and algorithm in RANKLESS:  # what they rebuild is added up by its own size
                return float(measure(cases[plain], sizes))
            return float(measure(small[name], sizes) / measure(small[plain], sizes) * measure(cases[plain], sizes))
        return float(measure(cases[name], sizes))

    value = figure(course.algorithm, sizes=replace(sizes, conv_rank=0) if convolutions else sizes)
    if convolutions:
        lora = figure("lora", sizes=replace(sizes, conv_rank=0))
        # What is computed for them grows as it does for the other layers.
        value = value + max(0.0, figure("locon") - lora) if measure is _peak else value * figure("locon") / lora
    if course.text_encoder:
        pieces = -(-(sizes.tokens - 2) // 75)
        added = max(0.0, figure("lora", True, sizes=words) - figure("lora", sizes=words))
        value += pieces * added
        if found is not None:  # the first 75 tokens were traced; a longer caption never takes less than they do
            value = max(value, float(measure(found, replace(sizes, tokens=77))) + (pieces - 1) * added)
    if not course.half:
        usual = Sizes(1, USUAL_AREA[course.family], rank=16, conv_rank=0)
        value *= figure("lora", half=False, sizes=usual) / figure("lora", sizes=usual)
    return value


def _peak(case: dict[str, Any], sizes: Sizes) -> float:
    return max(_dot(plane, sizes.memory_terms()) for plane in case["planes"])


def _peak_without_gradients(case: dict[str, Any], sizes: Sizes) -> float:
    """The peak where each gradient goes as soon as it is there.

    What grows with a rank and not with the pictures is gradients where it is much, and the casts of a few layers'
    weights where it is less than a quarter of the most. Traces of SD 1.5 with a hook that drops gradients lie within
    3 %; those of the pocket model, whose steps are nearly all weights, need up to a fifth more.
    """
    terms = sizes.memory_terms()
    ranks = (1, 6)  # the terms rank and conv_rank
    most = {term: max(plane[term] for plane in case["planes"]) for term in ranks}
    least = {term: min(plane[term] for plane in case["planes"]) for term in ranks}

    def gathered(plane: Sequence[float]) -> float:
        return float(sum((plane[t] - least[t]) * terms[t] for t in ranks if plane[t] > GATHERED * most[t]))

    return max(_dot(plane, terms) - gathered(plane) for plane in case["planes"])


def _flops(case: dict[str, Any], sizes: Sizes) -> float:
    return _dot(case["flops"], sizes.work_terms())


def _traffic(case: dict[str, Any], sizes: Sizes) -> float:
    return _dot(case["traffic"], sizes.memory_terms())


def _launches(case: dict[str, Any], sizes: Sizes) -> float:
    return float(case["launches"])


def _dot(coefficients: Sequence[float], terms: Sequence[float]) -> float:
    return sum(coefficient * term for coefficient, term in zip(coefficients, terms, strict=True))


@lru_cache(maxsize=8)
def _document(family: Family) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((DATA / f"{family}.json").read_text(encoding="utf-8"))
    return document
