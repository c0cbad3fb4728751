"""TrainingConfig: every setting of a training run with its type, its hard range and its neutral default.

Here stands what a setting *is*. What we believe about it (explanation, recommended values, sources) stands in
data/parameters/. A combination that the engine cannot honour is a validator below; one that it can honour but the user
would regret is a rule in data/rules/.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, Self, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from knowledge import blocks
from knowledge.families import family_facts, family_names
from knowledge.optimizer_arguments import Argument, argument_problems, as_arguments
from knowledge.optimizers import OPTIMIZERS

SCHEMA_VERSION: Final = 1
POCKET_MODEL = "pocket"
"""The value of base_model.path that means the tiny base model shipped with the program."""


@dataclass(frozen=True)
class OneOf:
    """Marks a text as one of the values that there are when it is looked at; a Literal knows them before."""

    values: Callable[[], tuple[str, ...]]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._checked, handler(source))

    def _checked(self, value: str) -> str:
        if value not in (values := self.values()):
            *others, last = map(repr, values)
            expected = f"{', '.join(others)} or {last}"
            raise PydanticCustomError("literal_error", "Input should be {expected}", {"expected": expected})
        return value


Family = Annotated[str, OneOf(family_names)]
"""A family of base models, by the name of its folder under data/architectures."""
PredictionType = Literal["epsilon", "v_prediction"]
Goal = Literal["character", "style", "object", "concept"]
Algorithm = Literal["lora", "locon", "dylora", "dora", "loha", "lokr", "glora", "oft", "boft", "ia3", "full"]
OptimizerName = Annotated[str, OneOf(lambda: tuple(OPTIMIZERS))]
"""An optimizer, by the name of its row in data/optimizers.toml."""
Scheduler = Literal[
    "constant",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "rex",
    "warmup_stable_decay",
    "adafactor",
]
AverageSaved = Literal["average", "both"]
LossFunction = Literal["l2", "l1", "huber", "smooth_l1"]
HuberSchedule = Literal["constant", "exponential", "snr"]
Precision = Literal["fp32", "fp16", "bf16"]
MIXED_PRECISION: dict[Precision, str] = {"fp32": "no", "fp16": "fp16", "bf16": "bf16"}
"""Precisions as accelerate, and every trainer that is built on it, calls them."""
BaseWeights = Literal["same", "fp8", "8bit", "nf4"]
CacheLocation = Literal["disk", "memory"]
TimestepSampling = Literal["uniform", "logit_normal"]
TrackerName = Literal["none", "tensorboard", "wandb"]
MetadataKept = Literal["full", "minimal", "none"]
Sampler = Literal[
    "ddim",
    "ddpm",
    "pndm",
    "lms",
    "lms_karras",
    "euler",
    "euler_karras",
    "euler_ancestral",
    "heun",
    "dpm2",
    "dpm2_ancestral",
    "dpm_solver",
    "dpmpp_2m",
    "dpmpp_2m_karras",
    "dpmpp_2m_sde",
    "dpmpp_2m_sde_karras",
    "dpmpp_2s",
    "dpmpp_sde",
    "dpmpp_sde_karras",
    "deis",
    "unipc",
    "unipc_karras",
    "sa_solver",
    "lcm",
    "tcd",
]

ZERO_SNR_SAMPLERS: frozenset[str] = frozenset(
    {
        "ddim", "ddpm", "euler", "euler_karras", "euler_ancestral", "dpm_solver", "dpmpp_2m", "dpmpp_2m_karras",
        "dpmpp_2m_sde", "dpmpp_2m_sde_karras", "unipc", "unipc_karras", "lcm", "tcd",
    }
)  # fmt: skip
"""Samplers that can begin where nothing is left of the picture, as models with a zero-terminal schedule do."""
CONV_ALGORITHMS: frozenset[str] = frozenset({"locon"})
"""Algorithms that always adapt the 3x3 convolutions, at network.conv_rank and network.conv_alpha."""
CONVOLUTIONS_TOO: frozenset[str] = frozenset({"dylora", "loha", "lokr", "full"})
"""Algorithms that adapt the 3x3 convolutions where network.convolutions is on."""
UP_ALGORITHMS: frozenset[str] = frozenset({"lora", "locon", "dylora", "dora"})
"""Algorithms of a matrix down and a matrix up; optimizer.lora_plus_ratio lets the second learn faster."""
LACKING_DROPOUT: Mapping[str, Mapping[str, str]] = {
    "dropout": {
        "dora": "DoRA has no such dropout",
        "oft": "OFT turns weights, and has no inner values to leave out",
        "boft": "BOFT turns weights, and has no inner values to leave out",
        "ia3": "(IA)³ scales weights, and has no inner values to leave out",
        "full": "a full difference has no inner values to leave out",
    },
    "rank_dropout": {
        "dylora": "DyLoRA leaves out ranks by itself",
        "lokr": "LoKr has no ranks to leave out",
        "oft": "OFT has no ranks to leave out",
        "boft": "BOFT has no ranks to leave out",
        "ia3": "(IA)³ has no ranks to leave out",
    },
}
"""Dropouts of network by the algorithms that do not have them, with the reason."""
RANK_IN_FILE: Mapping[str, tuple[str, int]] = {
    "lora": ("lora_down.weight", 0),
    "locon": ("lora_down.weight", 0),
    "dora": ("lora_down.weight", 0),
    "loha": ("hada_w1_b", 0),
    "glora": ("b2.weight", 0),
}
"""Algorithms whose files tell each layer's rank: the tensor, and which of its sides it is."""

NUMBERS = r"^( *\d+(\.\d+)? *(, *\d+(\.\d+)? *)*)?$"
"""Numbers of zero or more with commas between them, or nothing."""

CAPTION_CHANGES = (
    "shuffle_tags",
    "wildcards",
    "caption_dropout_rate",
    "caption_dropout_every_epochs",
    "tag_dropout_rate",
)
"""Settings of dataset that give a picture another caption each time it is shown."""

PICTURE_CHANGES = ("random_crop", "colour_augmentation")
"""Settings of dataset that make a picture look different each time in more ways than can be kept."""


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


class Settings(BaseModel):
    """Base of every section: frozen, no unknown keys, no infinities, no silent conversions between text and numbers."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, strict=True, validate_default=True, protected_namespaces=()
    )


Prompts = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]


class BaseModelSettings(Settings):
    path: str = Field(POCKET_MODEL, min_length=1)
    family: Family = "pocket"
    prediction_type: PredictionType = "epsilon"
    zero_terminal_snr: bool = False
    clip_skip: int = Field(1, ge=1, le=12)
    maximum_tokens: int = Field(75, ge=75, le=225, multiple_of=75)
    pad_captions: bool = True
    vae: str = ""


class DatasetFolder(Settings):
    """One folder of pictures; its pictures are shown `repeats` times in an epoch."""

    path: str = Field(min_length=1)
    repeats: int = Field(1, ge=1, le=10_000)
    regularisation: bool = False
    caption: str = ""
    masks: str = ""


class DatasetSettings(Settings):
    goal: Goal = "character"
    folders: Annotated[tuple[DatasetFolder, ...], BeforeValidator(_as_tuple)] = ()
    trigger_word: str = ""
    caption_extension: str = Field(".txt", pattern=r"^\.[A-Za-z0-9]+$")
    resolution: int = Field(512, ge=16, le=4096, multiple_of=8)
    buckets: bool = True
    bucket_step: int = Field(64, ge=8, le=512, multiple_of=8)
    bucket_minimum_side: int = Field(256, ge=8, le=8192)
    bucket_maximum_side: int = Field(1024, ge=8, le=8192)
    bucket_no_upscale: bool = False
    flip: bool = False
    random_crop: bool = False
    colour_augmentation: bool = False
    alpha_masks: bool = False
    shuffle_tags: bool = False
    keep_tokens: int = Field(0, ge=0, le=255)
    keep_tokens_separator: str = Field("", max_length=20)
    caption_prefix: str = ""
    caption_suffix: str = ""
    weighted_captions: bool = False
    wildcards: bool = False
    caption_dropout_rate: float = Field(0.0, ge=0.0, le=1.0)
    caption_dropout_every_epochs: int | None = Field(None, ge=1, le=100_000)
    tag_dropout_rate: float = Field(0.0, ge=0.0, le=1.0)


class NetworkSettings(Settings):
    algorithm: Algorithm = "lora"
    rank: int = Field(16, ge=1, le=1024)
    alpha: float = Field(16.0, gt=0.0, le=4096.0)
    attention_only: bool = False
    convolutions: bool = False
    conv_rank: int = Field(8, ge=1, le=1024)
    conv_alpha: float = Field(8.0, gt=0.0, le=4096.0)
    lokr_factor: int = Field(8, ge=-1, le=1024)
    lokr_full_matrix: bool = False
    dylora_block_size: int = Field(4, ge=1, le=1024)
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    rank_dropout: float = Field(0.0, ge=0.0, lt=1.0)
    module_dropout: float = Field(0.0, ge=0.0, lt=1.0)
    maximum_norm: float | None = Field(None, gt=0.0, le=1000.0)
    block_ranks: str = Field("", pattern=NUMBERS)
    block_alphas: str = Field("", pattern=NUMBERS)
    conv_block_ranks: str = Field("", pattern=NUMBERS)
    conv_block_alphas: str = Field("", pattern=NUMBERS)
    block_rates: str = Field("", pattern=NUMBERS)
    block_rate_threshold: float = Field(0.0, ge=0.0, le=1.0)
    train_unet: bool = True
    train_text_encoder: bool = False
    text_encoder_share: float = Field(1.0, gt=0.0, le=1.0)
    start_from: str = ""
    rank_from_start: bool = False

    @property
    def ranks_in_start(self) -> bool:
        """Whether every layer has the rank and alpha of the file that the run starts from."""
        return self.rank_from_start and bool(self.start_from)

    @property
    def adapts_convolutions(self) -> bool:
        """Whether the 3x3 convolutions are adapted too, at conv_rank and conv_alpha."""
        return self.convolutions or self.algorithm in CONV_ALGORITHMS


class OptimizerSettings(Settings):
    name: OptimizerName = "adamw"
    learning_rate: float = Field(1e-4, gt=0.0, le=10.0)
    text_encoder_learning_rate: float | None = Field(None, gt=0.0, le=10.0)
    text_encoder_2_learning_rate: float | None = Field(None, gt=0.0, le=10.0)
    lora_plus_ratio: float = Field(1.0, ge=1.0, le=1000.0)
    weight_decay: float = Field(0.01, ge=0.0, le=10.0)
    maximum_gradient_norm: float = Field(1.0, ge=0.0, le=1e6)
    arguments: Annotated[Mapping[str, Argument], BeforeValidator(as_arguments)] = {}


class ScheduleSettings(Settings):
    epochs: int = Field(10, ge=1, le=100_000)
    maximum_steps: int | None = Field(None, ge=1, le=100_000_000)
    batch_size: int = Field(1, ge=1, le=1024)
    gradient_accumulation_steps: int = Field(1, ge=1, le=1024)
    scheduler: Scheduler = "constant"
    warmup: float = Field(0.0, ge=0.0, le=100_000_000.0)
    cycles: int = Field(1, ge=1, le=1000)
    power: float = Field(1.0, gt=0.0, le=100.0)
    decay: float = Field(0.2, ge=0.0, le=100_000_000.0)
    minimum_ratio: float = Field(0.0, ge=0.0, le=1.0)
    warmup_init: bool = False


class EmaSettings(Settings):
    decay: float | None = Field(None, gt=0.0, lt=1.0)
    every_steps: int = Field(1, ge=1, le=100_000)
    saved: AverageSaved = "average"


class LossSettings(Settings):
    function: LossFunction = "l2"
    huber_threshold: float = Field(0.1, gt=0.0, le=100.0)
    huber_schedule: HuberSchedule = "snr"
    minimum_snr_gamma: float | None = Field(None, gt=0.0, le=1000.0)
    debiased: bool = False
    scaled_like_noise_prediction: bool = False
    v_prediction_like: float = Field(0.0, ge=0.0, le=100.0)
    prior_weight: float = Field(1.0, ge=0.0, le=100.0)
    unmasked_weight: float = Field(0.0, ge=0.0, le=1.0)


class NoiseSettings(Settings):
    offset: float = Field(0.0, ge=0.0, le=1.0)
    offset_random: bool = False
    offset_adaptive: float = Field(0.0, ge=-1.0, le=1.0)
    multires_iterations: int = Field(0, ge=0, le=64)
    multires_discount: float = Field(0.3, gt=0.0, le=1.0)
    input_perturbation: float = Field(0.0, ge=0.0, le=1.0)
    timestep_sampling: TimestepSampling = "uniform"
    minimum_timestep: int = Field(0, ge=0, le=999)
    maximum_timestep: int = Field(1000, ge=1, le=1000)


class MemorySettings(Settings):
    precision: Precision = "fp32"
    full_half: bool = False
    base_weights: BaseWeights = "same"
    offload_blocks: bool = False
    gradient_checkpointing: bool = False
    selective_checkpointing: bool = False
    fused_backward: bool = False
    cache_latents: bool = True
    cache_text_encoder_outputs: bool = False
    cache_location: CacheLocation = "disk"
    make_room: bool = False


class SamplingSettings(Settings):
    prompts: Prompts = ()
    negative_prompt: str = ""
    at_start: bool = True
    every_epochs: int | None = Field(None, ge=1, le=100_000)
    every_steps: int | None = Field(None, ge=1, le=100_000_000)
    sampler: Sampler = "ddim"
    steps: int = Field(20, ge=1, le=1000)
    guidance_scale: float = Field(7.5, ge=1.0, le=100.0)
    width: int | None = Field(None, ge=16, le=4096, multiple_of=8)
    height: int | None = Field(None, ge=16, le=4096, multiple_of=8)
    seed: int = Field(42, ge=0, lt=2**63)


class ValidationSettings(Settings):
    share: float = Field(0.0, ge=0.0, le=0.5)
    every_epochs: int | None = Field(1, ge=1, le=100_000)
    every_steps: int | None = Field(None, ge=1, le=100_000_000)


class SavingSettings(Settings):
    precision: Precision = "fp16"
    every_epochs: int | None = Field(1, ge=1, le=100_000)
    every_steps: int | None = Field(None, ge=1, le=100_000_000)
    keep_last: int | None = Field(None, ge=1, le=100_000)
    state_every_epochs: int | None = Field(None, ge=1, le=100_000)
    metadata: MetadataKept = "full"


class LoggingSettings(Settings):
    tracker: TrackerName = "none"


class OutputSettings(Settings):
    name: str = Field("my-lora", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    folder: str = Field("runs", min_length=1)
    author: str = ""
    description: str = ""


class TrainingConfig(Settings):
    """Every setting of one run. Raises pydantic.ValidationError naming all problems of all sections together."""

    schema_version: Literal[1] = SCHEMA_VERSION
    seed: int = Field(42, ge=0, lt=2**63)
    base_model: BaseModelSettings = BaseModelSettings()
    dataset: DatasetSettings = DatasetSettings()
    network: NetworkSettings = NetworkSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    ema: EmaSettings = EmaSettings()
    loss: LossSettings = LossSettings()
    noise: NoiseSettings = NoiseSettings()
    memory: MemorySettings = MemorySettings()
    sampling: SamplingSettings = SamplingSettings()
    validation: ValidationSettings = ValidationSettings()
    saving: SavingSettings = SavingSettings()
    logging: LoggingSettings = LoggingSettings()
    output: OutputSettings = OutputSettings()

    @model_validator(mode="after")
    def _the_engine_can_honour_it(self) -> Self:
        problems = list(_contradictions(self))
        if problems:
            raise ValueError("\n".join(problems))
        return self


def _contradictions(config: TrainingConfig) -> Iterator[str]:
    """One sentence for each combination that the engine cannot honour."""
    dataset, network, memory, noise = config.dataset, config.network, config.memory, config.noise
    if dataset.buckets and dataset.bucket_minimum_side > dataset.bucket_maximum_side:
        yield (
            f"dataset.bucket_minimum_side ({dataset.bucket_minimum_side}) is above dataset.bucket_maximum_side "
            f"({dataset.bucket_maximum_side}); no picture shape fits between them. Swap them."
        )
    if dataset.buckets and not dataset.bucket_no_upscale and dataset.bucket_maximum_side < dataset.resolution:
        yield (
            f"dataset.bucket_maximum_side ({dataset.bucket_maximum_side}) is below dataset.resolution "
            f"({dataset.resolution}); not even a square picture would fit. Raise it to {dataset.resolution} or more."
        )
    if dataset.buckets and dataset.bucket_step > dataset.resolution:
        yield (
            f"dataset.bucket_step ({dataset.bucket_step}) is above dataset.resolution ({dataset.resolution}); no shape "
            f"is that small. Lower it to {min(64, dataset.resolution)} or less."
        )
    if not (network.train_unet or network.train_text_encoder):
        yield (
            "network.train_unet and network.train_text_encoder are both false; nothing would be trained. "
            "Turn network.train_unet on."
        )
    if memory.full_half and memory.precision != "bf16":
        yield (
            f"memory.full_half is on and memory.precision is {memory.precision}: trained weights can be kept in bf16 "
            "alone. Set memory.precision to bf16, or turn memory.full_half off."
        )
    if memory.cache_text_encoder_outputs and network.train_text_encoder:
        yield (
            "memory.cache_text_encoder_outputs and network.train_text_encoder are both true: cached outputs never "
            "change, so the text encoder would not learn. Turn one of them off."
        )
    changing = [f"dataset.{name}" for name in CAPTION_CHANGES if getattr(dataset, name)]
    if memory.cache_text_encoder_outputs and changing:
        yield (
            f"memory.cache_text_encoder_outputs keeps one fixed caption per picture, but {' and '.join(changing)} "
            "would change captions while training. Turn the cache or the changes off."
        )
    changing = [f"dataset.{name}" for name in PICTURE_CHANGES if getattr(dataset, name)]
    if memory.cache_latents and changing:
        yield (
            f"memory.cache_latents keeps pictures as they were encoded once, but {' and '.join(changing)} would change "
            "them each time they are shown. Turn the cache or the changes off."
        )
    if not config.base_model.pad_captions:
        yield from _unpadded_contradictions(config)
    yield from _network_contradictions(network, config.base_model.family)
    if config.optimizer.lora_plus_ratio > 1 and network.algorithm not in UP_ALGORITHMS:
        yield (
            f"optimizer.lora_plus_ratio is {config.optimizer.lora_plus_ratio:g}, but {network.algorithm} has no pair "
            "of matrices to tell apart. Set it to 1, or network.algorithm to lora, locon, dylora or dora."
        )
    if memory.fused_backward:
        yield from _fused_contradictions(config)
    yield from argument_problems(config.optimizer.name, config.optimizer.arguments)
    yield from _lacking_in_family(config)
    sampling = config.sampling
    if config.base_model.zero_terminal_snr and sampling.prompts and sampling.sampler not in ZERO_SNR_SAMPLERS:
        yield (
            f"sampling.sampler is {sampling.sampler}, which cannot begin at pure noise, where base_model."
            "zero_terminal_snr has the model begin. Set it to euler, ddim or dpmpp_2m."
        )
    if noise.minimum_timestep >= noise.maximum_timestep:
        yield (
            f"noise.minimum_timestep ({noise.minimum_timestep}) is not below noise.maximum_timestep "
            f"({noise.maximum_timestep}); no timestep is left to train on. Lower the first or raise the second."
        )


def _lacking_in_family(config: TrainingConfig) -> Iterator[str]:
    """What the family of the base model does not have, and is set all the same."""
    family = family_facts(config.base_model.family)
    for name, why in family.lacking.items():
        value, usual = value_of(config, name), fields()[name].default
        if value != usual:
            shown = f"{value:g}" if isinstance(value, float) else value
            instead = "Leave it empty" if usual is None else f"Set it to {str(usual).lower()}"
            yield f"{name} is {shown}, but {family.title} {why}. {instead}."


def _unpadded_contradictions(config: TrainingConfig) -> Iterator[str]:
    """Why captions cannot be left at their own length."""
    if config.base_model.maximum_tokens > 75:
        yield (
            f"base_model.pad_captions is off, but base_model.maximum_tokens ({config.base_model.maximum_tokens}) has "
            "captions read in whole pieces of 75. Set it to 75, or turn base_model.pad_captions on."
        )
    if config.memory.cache_text_encoder_outputs:
        yield (
            "base_model.pad_captions is off, so that a caption's length hangs on the others of its batch, but "
            "memory.cache_text_encoder_outputs keeps each caption by itself. Turn the one on or the other off."
        )


def _fused_contradictions(config: TrainingConfig) -> Iterator[str]:
    """Why weights cannot be updated while their gradients come in."""
    optimizer, steps = config.optimizer, config.schedule.gradient_accumulation_steps
    what = "memory.fused_backward updates each weight as soon as its gradient is known"
    if OPTIMIZERS[optimizer.name].pace:
        yield (
            f"{what}, but optimizer.name is {optimizer.name}, which reckons its pace from all of them together. "
            "Turn it off, or choose another optimizer."
        )
    if optimizer.maximum_gradient_norm > 0:
        yield (
            f"{what}, but optimizer.maximum_gradient_norm ({optimizer.maximum_gradient_norm:g}) has to know all "
            "gradients before it can shorten any. Set it to 0, or turn memory.fused_backward off."
        )
    if steps > 1:
        yield (
            f"{what}, but schedule.gradient_accumulation_steps ({steps}) adds up the gradients of several batches "
            "first. Set it to 1, or turn memory.fused_backward off."
        )
    if config.memory.precision == "fp16":
        yield (
            f"{what}, but in fp16 (memory.precision) the scaler has to look at all gradients first. Use bf16 or fp32, "
            "or turn memory.fused_backward off."
        )


def _network_contradictions(network: NetworkSettings, family: Family) -> Iterator[str]:
    algorithm = network.algorithm
    if network.text_encoder_share < 1 and not network.train_unet:
        yield (
            f"network.text_encoder_share is {network.text_encoder_share:g} and network.train_unet is false; after that "
            "share of the run nothing would be left to train. Set it to 1, or turn network.train_unet on."
        )
    for name, lacking in LACKING_DROPOUT.items():
        share = getattr(network, name)
        if share > 0 and algorithm in lacking:
            others = [
                f"network.{other}" for other in ("dropout", "rank_dropout") if algorithm not in LACKING_DROPOUT[other]
            ]
            instead = " and ".join([*others, "network.module_dropout"])
            yield (f"network.{name} is {share:g}, but {lacking[algorithm]}. Set it to 0; what there is: {instead}.")
    if network.convolutions and algorithm not in CONVOLUTIONS_TOO | CONV_ALGORITHMS:
        instead = (
            "LoRA on convolutions too is called LoCon: set network.algorithm to locon"
            if algorithm == "lora"
            else f"set network.algorithm to one of {', '.join(sorted(CONVOLUTIONS_TOO))}"
        )
        yield (
            f"network.convolutions is true, but {algorithm} adapts no 3x3 convolutions here; {instead}, "
            "or network.convolutions to false."
        )
    if network.attention_only and network.adapts_convolutions:
        plain = "network.algorithm to lora" if algorithm in CONV_ALGORITHMS else "network.convolutions to false"
        yield (
            "network.attention_only leaves everything but attention as it is, and the 3x3 convolutions are to be "
            f"adapted too. Set {plain}, or network.attention_only to false."
        )
    if network.ranks_in_start:
        yield from _start_contradictions(network)
    wrong = list(blocks.problems(network, family))
    yield from wrong
    if wrong:
        return
    ranks = {"network.rank": network.rank} | (
        {"network.conv_rank": network.conv_rank} if network.adapts_convolutions else {}
    )
    listed = ["block_ranks", *(["conv_block_ranks"] if network.adapts_convolutions else [])]
    of_blocks = [(f"network.{name}", int(n)) for name in listed for n in blocks.numbers(getattr(network, name)) if n]
    for name, rank in [*ranks.items(), *of_blocks]:
        size = network.dylora_block_size
        if algorithm == "dylora" and rank % size:
            yield (
                f"{name} is {rank}, which is not a multiple of network.dylora_block_size ({size}). "
                f"Set it to {-(-rank // size) * size}."
            )
        smallest = family_facts(family).smallest_boft_rank
        if algorithm == "boft" and rank < smallest:
            yield (
                f"{name} is {rank}; BOFT cannot cut the layers of this model into blocks that small. "
                f"Set it to {smallest} or more."
            )


def _start_contradictions(network: NetworkSettings) -> Iterator[str]:
    """Why ranks cannot come from the file that a run starts from."""
    if network.algorithm not in RANK_IN_FILE:
        yield (
            f"network.rank_from_start is on, but a file of {network.algorithm} does not tell its ranks here. Turn it "
            f"off and give network.rank; the files of {', '.join(RANK_IN_FILE)} tell them."
        )
    given = [f"network.{name}" for name in blocks.LISTS if name != "block_rates" and getattr(network, name)]
    if given:
        yield (
            f"network.rank_from_start takes every rank and alpha from a file, and {' and '.join(given)} would set them "
            "too. Leave one of the two out."
        )


def sections() -> dict[str, type[Settings]]:
    """The section classes of TrainingConfig by name, in the order in which they are declared."""
    return {
        name: field.annotation
        for name, field in TrainingConfig.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Settings)
    }


def fields() -> dict[str, FieldInfo]:
    """Every parameter's field by dotted name, in the order of declaration.

    The columns of dataset.folders are listed after it, as dataset.folders.path and so on.
    """
    named: dict[str, FieldInfo] = {"seed": TrainingConfig.model_fields["seed"]}
    for section, settings in sections().items():
        for name, field in settings.model_fields.items():
            named[f"{section}.{name}"] = field
            if name == "folders":
                named |= {f"{section}.{name}.{column}": f for column, f in DatasetFolder.model_fields.items()}
    return named


def choices(field: FieldInfo) -> tuple[str, ...]:
    """The values that a field with a list of choices accepts; empty for every other field."""
    for known in field.metadata:
        if isinstance(known, OneOf):
            return known.values()
    arguments = get_args(field.annotation)
    return arguments if arguments and all(isinstance(value, str) for value in arguments) else ()


def value_of(config: TrainingConfig, name: str) -> Any:
    """The value of the parameter with this dotted name. Raises KeyError for an unknown name."""
    value: Any = config
    for part in name.split("."):
        if part not in type(value).model_fields:
            raise KeyError(name)
        value = getattr(value, part)
    return value


def with_values(config: TrainingConfig, changes: dict[str, Any]) -> TrainingConfig:
    """A validated copy of the config in which every dotted name in `changes` has its new value.

    All changes are applied before validation, so two that only make sense together can be made together.
    Raises KeyError for an unknown name and pydantic.ValidationError for a value that is not allowed.
    """
    document = config.model_dump()
    for name, value in changes.items():
        value_of(config, name)
        *path, last = name.split(".")
        table = document
        for part in path:
            table = table[part]
        table[last] = value
    return TrainingConfig.model_validate(document)


def with_possible_values(config: TrainingConfig, changes: dict[str, Any]) -> TrainingConfig | None:
    """What `with_values` gives; None where the values do not go together."""
    try:
        return with_values(config, changes)
    except ValidationError:
        return None
