"""VRAM of a run, by part and by phase: what lasts is counted, what a step needs comes from traces of our engine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod

from calculator.buckets import Size
from calculator.held_weights import held_bytes, whole_layer
from calculator.network_size import BYTES, NOT_TRAINED, Shape, butterfly, network_layers, trainable_parameters
from calculator.step_cost import (
    RANKLESS,
    activation_bytes,
    basis,
    course_of,
    is_traced,
    phase_bytes,
    sizes_of,
    traced_as,
    traced_networks,
    traced_rank,
)
from knowledge.architectures import Architecture, Layer
from knowledge.config import NetworkSettings, OptimizerName, TrainingConfig, value_of, with_values
from knowledge.expressions import evaluate
from knowledge.facts import Hardware
from knowledge.optimizer_arguments import Argument, all_arguments
from knowledge.optimizers import OPTIMIZERS

MIB = 1024**2


@dataclass(frozen=True)
class MemoryEstimate:
    """Memory in bytes: low, likely and high, the phase that makes the peak, and the parts of that and every phase.

    Low: everything that is allocated. Likely: and what the allocator cannot use between pieces. High: and workspaces of
    the kernels, which differ between cards and drivers.
    """

    low_bytes: int
    likely_bytes: int
    high_bytes: int
    phase: str
    parts: dict[str, int]
    basis: str
    phases: dict[str, dict[str, int]]


# -- the optimizer's state, bytes of one tensor --------------------------------------------------------------------


def tensor_facts(shape: Shape) -> dict[str, float]:
    """What the formulas of data/optimizers.toml read of a tensor.

    weights: how many it has. sums: how many numbers one for every row and one for every column are, counted once more
    for every place in a kernel. long_sums: how many remain where either of the two longest sides is summed up.
    longest: the longest side; 0 where there is but one.
    """
    weights, sides = prod(shape), sorted(shape)[-2:]
    if len(shape) < 2:
        return {"weights": weights, "sums": weights, "long_sums": weights, "longest": 0}
    sums = prod(shape[:-1]) + prod(shape[:-2]) * shape[-1]
    return {"weights": weights, "sums": sums, "long_sums": sum(weights / side for side in sides), "longest": sides[-1]}


@lru_cache(maxsize=4096)  # a network has few shapes, and a search for settings meets them again
def state_bytes(optimizer: OptimizerName, shape: Shape, arguments: tuple[tuple[str, Argument], ...]) -> float:
    """Bytes that the optimizer keeps of a tensor of this shape, given all these arguments."""
    row = OPTIMIZERS[optimizer]
    known = dict.fromkeys(row.arguments) | dict(arguments) | tensor_facts(shape)
    return float(evaluate(row.state, known.__getitem__))


def optimizer_bytes(architecture: Architecture, config: TrainingConfig) -> int:
    """What the optimizer keeps from step to step."""
    arguments = tuple(all_arguments(config.optimizer.name, config.optimizer.arguments).items())
    share = OPTIMIZERS[config.optimizer.name].state_in_half if config.memory.full_half else 1.0
    return round(share * _state_bytes(architecture, config.network, config.optimizer.name, arguments))


@lru_cache(maxsize=64)  # one plan asks four times
def _state_bytes(
    architecture: Architecture,
    network: NetworkSettings,
    optimizer: OptimizerName,
    arguments: tuple[tuple[str, Argument], ...],
) -> int:
    layers = network_layers(architecture, network)
    shapes = (shape for layer in layers for name, shape in layer.tensors.items() if name not in NOT_TRAINED)
    return round(sum(state_bytes(optimizer, shape, arguments) for shape in shapes))


def average_bytes(architecture: Architecture, config: TrainingConfig) -> int:
    """What a moving average of the trained weights keeps from step to step."""
    if config.ema.decay is None:
        return 0
    return 4 * sum(layer.trainable for layer in network_layers(architecture, config.network))


def set_aside_bytes(architecture: Architecture, config: TrainingConfig) -> int:
    """The weights that a schedule-free optimizer goes on learning with, kept while others stand in their place."""
    if not OPTIMIZERS[config.optimizer.name].averages:
        return 0
    return trained_size(config) * sum(layer.trainable for layer in network_layers(architecture, config.network))


# -- the estimate --------------------------------------------------------------------------------------------------

CUDA_CONTEXT = 460 * MIB
"""What CUDA takes before the first tensor: 0.3 to 0.6 GiB, by card and driver."""
PROGRAM = 900 * MIB
"""What Python and the libraries take on a computer without a card, measured on the pocket model."""
FRAGMENTED = {(False, False): 0.03, (True, False): 0.11, (False, True): 0.26, (True, True): 0.57}
"""By (several shapes, checkpointing): what lies unused between pieces, as a share of all that comes and goes, from
replays of a step's allocations through a model of CUDA's allocator. Of the weights it is a twentieth."""
WORKSPACE_SHARE = 0.15
"""Published figures lie up to this much above what is allocated and fragmented; kernels' workspaces are the suspect."""


COMPUTED_AGAIN = ("memory.gradient_checkpointing", "memory.selective_checkpointing")
"""The settings by which a step computes again instead of keeping; the first that is on counts."""


def estimate_memory(
    config: TrainingConfig,
    architecture: Architecture,
    views: Mapping[Size, int],
    hardware: Hardware,
    in_main_memory: int = 0,
) -> MemoryEstimate:
    """The most memory that the run takes at any time: the card's, or the computer's where it has none.

    `views` are the pictures of an epoch by bucket; a bucket with fewer than a batch never fills one. `in_main_memory`
    bytes of them are kept there, encoded.
    """
    cuda = hardware.name != "CPU"
    if not cuda:  # what would leave the card is in the computer's memory anyway
        config = with_values(config, {"memory.offload_blocks": False})
    phases = {
        "caching": _caching(config, architecture, views),
        "training": _training(config, architecture, views),
        "sampling": _sampling(config, architecture),
        "saving": _saving(config, architecture),
    }
    if not cuda and in_main_memory:
        phases = {name: parts | {"kept pictures": in_main_memory} for name, parts in phases.items() if parts}
    unused = {name: round(_fragmentation(parts, len(views) > 1)) for name, parts in phases.items()}
    if config.memory.gradient_checkpointing:
        # More lies unused between the pieces that come and go, but never more than keeping all of them would take.
        plain = _training(with_values(config, {"memory.gradient_checkpointing": False}), architecture, views)
        most = sum(plain.values()) + round(_fragmentation(plain, len(views) > 1)) - sum(phases["training"].values())
        torn = round(_fragmentation(phases["training"], len(views) > 1, checkpointing=True))
        unused["training"] = min(torn, most)
    phase = max(phases, key=lambda name: sum(phases[name].values()) + cuda * unused[name])
    allocated = sum(phases[phase].values())
    more = {
        name: {"CUDA context": CUDA_CONTEXT, "fragmentation": unused[name]} if cuda else {"program": PROGRAM}
        for name in phases
    }
    everything = {
        name: {part: size for part, size in parts.items() if size} | more[name]
        for name, parts in phases.items()
        if parts
    }
    parts = everything[phase]
    known = f"weights and optimizer counted, activations {basis(course_of(config))}"
    likely = sum(parts.values())
    return MemoryEstimate(
        low_bytes=allocated + (CUDA_CONTEXT if cuda else PROGRAM),
        likely_bytes=likely,
        high_bytes=round(likely * (1 + WORKSPACE_SHARE)),
        phase=phase,
        parts=parts,
        basis=known,
        phases=everything,
    )


def _fragmentation(parts: Mapping[str, int], several_shapes: bool, checkpointing: bool = False) -> float:
    """Bytes that the allocator holds and cannot use."""
    weights = parts.get("base model", 0)
    return 0.05 * weights + FRAGMENTED[several_shapes, checkpointing] * (sum(parts.values()) - weights)


def _training(config: TrainingConfig, architecture: Architecture, views: Mapping[Size, int]) -> dict[str, int]:
    layers = network_layers(architecture, config.network)
    trainable = sum(layer.trainable for layer in layers)
    memory = config.memory
    size = trained_size(config)
    shapes = [shape for layer in layers for name, shape in layer.tensors.items() if name not in NOT_TRAINED]
    gradients = size * (max(map(prod, shapes)) if memory.fused_backward else trainable)
    half = memory.precision != "fp32"
    step, encoding = 0.0, 0.0
    for (width, height), count in views.items():
        batch = min(count, config.schedule.batch_size)
        area = width * height / architecture.latent_factor**2
        step = max(step, step_bytes(config, architecture, batch, area))
        if not memory.cache_latents:
            encoding = max(encoding, batch * phase_bytes(architecture.family, half, "encode", area))
    # The trace holds the gradients of one batch as they appear; those of earlier batches lie beside it.
    accumulated = gradients if config.schedule.gradient_accumulation_steps > 1 else 0
    most = max(step, encoding, gradients) + accumulated
    return {
        "base model": _weights(config, architecture, _resident(config, architecture)),
        "network": size * trainable,
        "optimizer": optimizer_bytes(architecture, config),
        "averaged weights": average_bytes(architecture, config),
        "gradients": gradients,
        "activations": round(most) - gradients,
    }


def step_bytes(config: TrainingConfig, architecture: Architecture, batch: int, area: float) -> float:
    """The most that a step on so many pictures of so many latent pixels allocates above what lasts.

    Computing activations again never holds more than keeping all of them does, nor do fewer layers: at high ranks on
    small pictures the traces count casts of the network's weights twice.
    """
    memory = config.memory
    course = course_of(config)
    need = activation_bytes(course, sizes_of(config, batch, area), fused_backward=memory.fused_backward)
    need += untraced_bytes(config, architecture)
    if memory.full_half and not traced_as(course).full_half and not memory.fused_backward:
        # The traces are of gradients in fp32.
        need -= (4 - trained_size(config)) * trainable_parameters(architecture, config.network)
    saving = next((name for name in ("network.attention_only", *COMPUTED_AGAIN) if value_of(config, name)), None)
    if saving is None:
        return need
    return min(need, step_bytes(with_values(config, {saving: False}), architecture, batch, area))


def untraced_bytes(config: TrainingConfig, architecture: Architecture) -> float:
    """What a step needs above its traces for weights that were not in them: gradients, casts, rebuilt weights."""
    network, half = config.network, config.memory.precision != "fp32"
    course = course_of(config)
    added, taken_off = traced_networks(network, course)
    signed = [(1, network.model_copy(update={"train_text_encoder": False}))]
    signed += [(-1, one) for one in added] + [(1, one) for one in taken_off]
    weights = sum(sign * trainable_parameters(architecture, one) for sign, one in signed)
    if network.train_text_encoder:  # of which LoRA's were traced
        text = {"train_unet": False, "convolutions": False}
        rank = traced_rank(network, network.rank)
        lora = network.model_copy(update=text | {"algorithm": "lora", "rank": rank})
        weights += max(
            0,
            trainable_parameters(architecture, network.model_copy(update=text))
            - trainable_parameters(architecture, lora),
        )
    # A sum of weight and difference is cast, and not the difference itself.
    size = 4.0 * weights + (2 * max(weights, 0) if half and network.algorithm != "full" else 0)
    return size + _rebuilt_bytes(config, architecture)


def _rebuilt_bytes(config: TrainingConfig, architecture: Architecture) -> float:
    """Of weights that a step rebuilds and no trace holds: all stay until the backward pass, or one layer's alone."""
    network, number = config.network, BYTES[config.memory.precision]
    layers = [one.layer for one in network_layers(architecture, network) if one.part == "unet"]
    course = traced_as(course_of(config))
    if network.algorithm in RANKLESS and not is_traced(course):
        temporary = {"full": 2, "ia3": 2, "oft": 3}.get(network.algorithm) or 2 + _stages(network, layers)
    elif network.convolutions and network.algorithm == "loha" and not course.convolutions:
        layers, temporary = [layer for layer in layers if layer.kernel > 1], 1
    else:
        return 0
    sizes = [layer.outputs * layer.inputs * layer.kernel**2 for layer in layers]
    kept = 0 if config.memory.gradient_checkpointing else sum(sizes) * number
    return kept + max(sizes, default=0) * (number + 4 * temporary)


def _stages(network: NetworkSettings, layers: Sequence[Layer]) -> int:
    """The most stages that BOFT turns a layer's outputs in."""
    return max((butterfly(layer.outputs, network.rank)[1].bit_length() for layer in layers), default=0)


def _caching(config: TrainingConfig, architecture: Architecture, views: Mapping[Size, int]) -> dict[str, int]:
    """The VAE with a picture, or the text encoders after it; nothing else is on the device yet."""
    passes: list[dict[str, int]] = [{}]
    if config.memory.cache_latents and views:
        area = max(width * height for width, height in views) / architecture.latent_factor**2
        picture = round(phase_bytes(architecture.family, config.memory.precision != "fp32", "encode", area))
        passes.append({"base model": _weights(config, architecture, ["vae"]), "picture": picture})
    if config.memory.cache_text_encoder_outputs:
        passes.append({"base model": _weights(config, architecture, architecture.text_encoders)})
    return max(passes, key=lambda parts: sum(parts.values()))


def _sampling(config: TrainingConfig, architecture: Architecture) -> dict[str, int]:
    """The UNet while it denoises, or the VAE while it decodes; it takes the UNet's place unless it never left."""
    if not config.sampling.prompts:
        return {}
    width = config.sampling.width or config.dataset.resolution
    height = config.sampling.height or config.dataset.resolution
    area, half = width * height / architecture.latent_factor**2, config.memory.precision != "fp32"
    resident = _resident(config, architecture)
    memory = config.memory
    made_whole = whole_layer(architecture, memory.base_weights, BYTES[memory.precision], memory.offload_blocks)
    decoding = ["vae"] if config.memory.cache_latents else []
    decoding += [part for part in resident if part != "unet" or not config.memory.cache_latents]
    passes = [
        {
            "base model": _weights(config, architecture, parts),
            "network": trained_size(config) * trainable_parameters(architecture, config.network),
            "optimizer": optimizer_bytes(architecture, config),
            "averaged weights": average_bytes(architecture, config) + set_aside_bytes(architecture, config),
            "picture": round(phase_bytes(architecture.family, half, name, area))
            + (made_whole if name == "denoise" else 0),
        }
        for name, parts in (("denoise", resident), ("decode", decoding))
    ]
    return max(passes, key=lambda parts: sum(parts.values()))


def _saving(config: TrainingConfig, architecture: Architecture) -> dict[str, int]:
    """What stays while a file is written: the tensors are rounded on their way to the main memory, one by one."""
    trainable = trainable_parameters(architecture, config.network)
    return {
        "base model": _weights(config, architecture, _resident(config, architecture)),
        "network": trained_size(config) * trainable,
        "optimizer": optimizer_bytes(architecture, config),
        "averaged weights": average_bytes(architecture, config) + set_aside_bytes(architecture, config),
    }


def _resident(config: TrainingConfig, architecture: Architecture) -> list[str]:
    """The parts of the base model that stay on the device while it trains: those that no cache stands in for."""
    memory = config.memory
    encoders = [] if memory.cache_text_encoder_outputs else architecture.text_encoders
    return ["unet", *encoders, *([] if memory.cache_latents else ["vae"])]


def _weights(config: TrainingConfig, architecture: Architecture, parts: Iterable[str]) -> int:
    """Bytes of the base model's weights on the device; the VAE always computes in fp32."""
    size, memory = BYTES[config.memory.precision], config.memory
    total = 0
    for part in parts:
        if part == "unet":
            total += held_bytes(architecture, memory.base_weights, size, memory.offload_blocks)
        else:
            total += architecture.weights[part] * (4 if part == "vae" else size)
    return total


def trained_size(config: TrainingConfig) -> int:
    """Bytes of one trained weight and of its gradient."""
    return 2 if config.memory.full_half else 4
