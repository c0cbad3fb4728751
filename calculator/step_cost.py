"""What one step allocates and computes, from traces of the engine's own step that ship as data.

`python -m engine.tools.trace_memory` makes them without a GPU; here they are evaluated with the standard library alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from knowledge import blocks
from knowledge.architectures import architecture
from knowledge.config import CONV_ALGORITHMS, Algorithm, BaseWeights, NetworkSettings, TrainingConfig
from knowledge.families import family_facts
from knowledge.starting_network import with_ranks_of_start

SMALL = "pocket"
"""The family of which every course is traced; where another's was not, its share over LoRA is taken from here."""
GATHERED = 0.25
"""Share of the most that a traced moment holds by rank, from which it is gradients that have gathered."""
LARGEST_TRACED_RANK = {"lokr": 32}
"""LoKr's second factor becomes a whole matrix at high ranks, so from there on rank costs nothing more."""
TRACED_RANK = 16
"""Of algorithms whose step does not grow with the rank by itself: rotations' blocks, factors, whole differences."""
RANKLESS = frozenset({"oft", "boft", "ia3", "full"})
SAME_STEP: dict[tuple[Algorithm, bool], Algorithm] = {("dylora", False): "lora", ("dylora", True): "locon"}
"""Algorithms, without and with convolutions, whose step takes what another's does."""


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
    """The course of a step: which layers are trained, how, in which precision, and how the frozen ones are held."""

    family: str
    algorithm: Algorithm
    text_encoder: bool
    half: bool
    checkpointing: bool
    convolutions: bool = False
    """Whether an algorithm that can leave them out adapts the 3x3 convolutions too."""
    base_weights: BaseWeights = "same"
    offloaded: bool = False
    full_half: bool = False
    selective: bool = False
    """Whether norms and activation functions alone are computed again; never along with `checkpointing`."""
    attention_only: bool = False

    @property
    def name(self) -> str:
        """The course's name in the data that the tracer writes."""
        targets = "attention" if self.attention_only else "unet"
        targets += "+conv" * self.convolutions + "+text" * self.text_encoder
        words = [self.algorithm, targets, "half" if self.half else "fp32"]
        words += ["checkpointed" if self.checkpointing else "selective" if self.selective else "plain"]
        words += [self.base_weights] * (self.base_weights != "same")
        words += ["offloaded"] * self.offloaded + ["full half"] * self.full_half
        return "/".join(words)


@dataclass(frozen=True)
class Work:
    """What a step computes: floating-point operations, bytes moved by everything else, kernels started, and bytes that
    are fetched from main memory."""

    flops: float
    traffic: float
    launches: float
    copied: float = 0.0


def course_of(config: TrainingConfig) -> Course:
    """The course of a config's steps."""
    network, memory = config.network, config.memory
    algorithm = SAME_STEP.get((network.algorithm, network.convolutions), network.algorithm)
    return Course(
        config.base_model.family,
        algorithm,
        network.train_text_encoder,
        memory.precision != "fp32",
        memory.gradient_checkpointing,
        network.convolutions and algorithm not in CONV_ALGORITHMS,
        memory.base_weights,
        memory.offload_blocks,
        memory.full_half,
        memory.selective_checkpointing and not memory.gradient_checkpointing,
        network.attention_only,
    )


def traced_rank(network: NetworkSettings, rank: int) -> int:
    """The rank at which traces say what this one costs: where it does not cost anything, or not any more, another."""
    if network.algorithm in RANKLESS or (network.lokr_full_matrix and network.algorithm in LARGEST_TRACED_RANK):
        return TRACED_RANK
    return min(rank, LARGEST_TRACED_RANK.get(network.algorithm, rank))


def sizes_of(config: TrainingConfig, batch: int, area: float) -> Sizes:
    """The sizes of a config's step on pictures of this many latent pixels."""
    network = with_ranks_of_start(config.network)
    conv_rank = traced_rank(network, network.conv_rank) if network.adapts_convolutions else 0
    rank = traced_rank(network, network.rank)
    return Sizes(batch, area, rank, conv_rank, config.base_model.maximum_tokens + 2)


def traced_as(course: Course) -> Course:
    """The course whose trace stands for this one: itself, or with frozen weights held and trained ones kept as usual.

    A layer made whole comes and goes within what plain weights need at the peak: of the courses traced both ways, fp8
    and offloaded steps need up to a twentieth less and at most a hundredth more.
    """
    as_usual: dict[str, Any] = {"base_weights": "same", "offloaded": False}
    others = (replace(course, full_half=False), replace(course, **as_usual))
    usual = replace(course, full_half=False, **as_usual)
    document = _document(course.family)
    # A trace of an earlier form of the step says less than one of today's on plain weights.
    known = document["cases"].keys() - (() if usual.name in document["outdated"] else document["outdated"])
    return next((one for one in (course, *others) if one.name in known), usual)


def is_traced(course: Course) -> bool:
    """Whether the family has a trace of this algorithm; the others' are put together from LoRA's."""
    return _on_the_unet(course, convolutions=False).name in _document(course.family)["cases"]


def has_traced_convolutions(course: Course) -> bool:
    """Whether the family has a trace of this algorithm on convolutions; else they are added as LoCon adds them."""
    return course.convolutions and _on_the_unet(course).name in _document(course.family)["cases"]


def has_traced_attention(course: Course) -> bool:
    """Whether the family has a trace of this algorithm on attention alone; else LoRA's tells how much less it takes."""
    return traced_as(course).name in _document(course.family)["cases"]


def _on_the_unet(course: Course, **changes: Any) -> Course:
    """The same algorithm without text encoders, in half precision, with everything held as usual."""
    plain = Course(course.family, course.algorithm, False, True, course.checkpointing, course.convolutions)
    return replace(plain, **changes)


def traced_networks(network: NetworkSettings, course: Course) -> tuple[list[NetworkSettings], list[NetworkSettings]]:
    """The networks whose traces make up the UNet's part of a step: those added up, and those taken off again.

    What it trains more or less than these do comes on top.
    """
    network = with_ranks_of_start(network)
    usual: dict[str, Any] = {"convolutions": False, "lokr_factor": NetworkSettings().lokr_factor}
    usual |= {"train_text_encoder": False, "lokr_full_matrix": False}
    usual |= {"rank": traced_rank(network, network.rank), "conv_rank": traced_rank(network, network.conv_rank)}
    plain = network.model_copy(update=usual | dict.fromkeys(blocks.LISTS, ""))
    own: dict[str, Any] = {"algorithm": course.algorithm, "convolutions": has_traced_convolutions(course)}
    apart = network.attention_only and not has_traced_attention(course)
    if apart:
        own["attention_only"] = False
    if network.algorithm in RANKLESS and not is_traced(course):
        own["algorithm"] = "lora"
    added = [plain.model_copy(update=own)]
    lora = plain.model_copy(update={"algorithm": "lora"})
    if apart:
        return [*added, lora], [lora.model_copy(update={"attention_only": False})]
    if not course.convolutions or own["convolutions"]:
        return added, []
    return [*added, plain.model_copy(update={"algorithm": "locon"})], [lora]


def activation_bytes(course: Course, sizes: Sizes, *, fused_backward: bool = False) -> float:
    """The most that a step allocates above what lasts: activations, temporary results and gradients.

    With `fused_backward` gradients do not gather.
    """
    peak = _combined(course, sizes, _peak)
    return min(peak, _combined(course, sizes, _peak_without_gradients)) if fused_backward else peak


def work(course: Course, sizes: Sizes) -> Work:
    """What the forward and the backward pass of a step compute, all weights being at hand as they are computed with."""
    at_hand = replace(course, base_weights="same", offloaded=False, full_half=False)
    return Work(*(_combined(at_hand, sizes, measure) for measure in (_flops, _traffic, _launches)))


def phase_bytes(family: str, half: bool, phase: str, area: float) -> float:
    """The most that one picture takes in a phase without training: "encode", "denoise" or "decode"."""
    fixed, per_pixel = _document(family)["phases"]["half" if half else "fp32"][phase]["bytes"]
    return float(fixed + per_pixel * area)


def phase_flops(family: str, half: bool, phase: str, area: float) -> float:
    """Operations of such a phase; denoising is one step of a sample, with and without its prompt."""
    fixed, per_pixel, squared = _document(family)["phases"]["half" if half else "fp32"][phase]["flops"]
    return float(fixed + per_pixel * area + squared * area**2)


def basis(course: Course) -> str:
    """Where a course's figures come from, in words. A trace is outdated when the engine's step has changed since."""
    document = _document(course.family)
    if course.name not in document["cases"]:
        return "put together from traces of the engine's own step"
    if course.name in document.get("outdated", ()):
        return "from a trace of an earlier form of the engine's own step"
    return "from a trace of the engine's own step"


def versions(family: str) -> dict[str, str]:
    """The libraries that the traces were made with."""
    return dict(_document(family)["versions"])


def _combined(course: Course, sizes: Sizes, measure: Any) -> float:
    """A figure of a course, put together where it was not traced itself.

    fp32 multiplies as it does for LoRA at the family's usual size: taken at each size anew, the share would fall faster
    than the step grows, and a larger step would seem to need less. Selective checkpointing and attention alone save
    what they do for LoRA. Longer captions and text encoders in training add what they add to LoRA, these once for every
    75 tokens; convolutions add to algorithms that can leave them out what LoCon adds to LoRA. Where convolutions learn,
    which keeps their input, LoCon stands for LoRA.
    """
    course = traced_as(course)
    cases = _document(course.family)["cases"]
    found: dict[str, Any] | None = cases.get(course.name)
    short = replace(sizes, tokens=77)
    like = Course(course.family, "lora", False, course.half, course.checkpointing)
    like = replace(like, selective=course.selective, attention_only=course.attention_only)
    if found is not None and not course.text_encoder:
        if sizes.tokens == 77 or course.algorithm == "lora":
            return float(measure(found, sizes))
        longer = cases[like.name]
        return float(measure(found, short) + measure(longer, sizes) - measure(longer, short))
    if found is not None and sizes.tokens == 77:
        return float(measure(found, sizes))
    if course.convolutions or course.algorithm in CONV_ALGORITHMS:
        like = replace(like, algorithm="locon")
    if not course.half:
        usual = Sizes(
            1, architecture(course.family).usual_area, rank=16, conv_rank=16 if like.algorithm == "locon" else 0
        )
        more = measure(cases[like.name], usual) / measure(cases[replace(like, half=True).name], usual)
        return float(more * _combined(replace(course, half=True), sizes, measure))
    for saving in ("attention_only", "selective"):
        if getattr(course, saving):
            off: dict[str, Any] = {saving: False}
            saved = measure(cases[replace(like, **off).name], sizes) - measure(cases[like.name], sizes)
            return _combined(replace(course, **off), sizes, measure) - float(saved)
    return _put_together(course, sizes, measure, found)


def _put_together(course: Course, sizes: Sizes, measure: Any, found: dict[str, Any] | None) -> float:
    """As `_combined`, in half precision and without what saves; `found` is a trace with short captions."""
    cases = _document(course.family)["cases"]
    lora = Course(course.family, "lora", False, True, course.checkpointing)
    words = replace(sizes, tokens=77, area=0.0)

    def figure(one: Course, sizes: Sizes = sizes) -> float:
        if sizes.tokens > 77 and one.algorithm != "lora":  # traced with short captions
            short = replace(sizes, tokens=77)
            return figure(one, short) + figure(lora, sizes) - figure(lora, short)
        if one.name not in cases:  # as much more than LoRA as on the pocket model
            small = _document(SMALL)["cases"]
            if measure is _peak and one.algorithm in RANKLESS:  # what they rebuild is added up by its own size
                return float(measure(cases[lora.name], sizes))
            return float(measure(small[one.name], sizes) / measure(small[lora.name], sizes)) * figure(lora, sizes)
        return float(measure(cases[one.name], sizes))

    if course.convolutions and not has_traced_convolutions(course):
        value = figure(_on_the_unet(course, convolutions=False), replace(sizes, conv_rank=0))
        without, locon = figure(lora, replace(sizes, conv_rank=0)), figure(replace(lora, algorithm="locon"))
        # What is computed for them grows as it does for the other layers.
        value = value + max(0.0, locon - without) if measure is _peak else value * locon / without
    else:
        value = figure(_on_the_unet(course))
    if course.text_encoder:
        pieces = -(-(sizes.tokens - 2) // 75)
        added = max(0.0, figure(replace(lora, text_encoder=True), words) - figure(lora, words))
        value += pieces * added
        if found is not None:  # a longer caption never takes less than the first 75 tokens do
            value = max(value, float(measure(found, replace(sizes, tokens=77))) + (pieces - 1) * added)
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
def _document(family: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(family_facts(family).trace.read_text(encoding="utf-8"))
    return document
