"""Search: the changes that hurt least and make a run fit a card, an evening or a number of steps."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any

from calculator.measurements import Measurement
from calculator.plan import Plan, plan
from knowledge.architectures import Architecture
from knowledge.config import (
    CAPTION_CHANGES,
    PICTURE_CHANGES,
    TrainingConfig,
    value_of,
    with_possible_values,
    with_values,
)
from knowledge.facts import DatasetFacts, Hardware
from knowledge.families import family_facts
from knowledge.optimizers import OPTIMIZERS
from knowledge.parameters import parameters

Changes = dict[str, Any]
STEPS_OF_RESOLUTION = 64
MOST_TRIED = 400
MOST_GENTLE = 2.0
"""What a move may hurt and yet come before a shorter run."""
USABLE = 0.95
"""The share of a card that a run may fill; the screen and other programs have the rest. The rules warn above it."""
LEAST_RELIEF = 0.05
"""The share of the estimated memory by which a change after running out of it must need less."""


@dataclass(frozen=True)
class Move:
    """One way to need less. `hurt` orders the moves; `effect` says what becomes of the result."""

    name: str
    hurt: float
    effect: str
    changes: Callable[[TrainingConfig, Hardware], Changes]
    """What to change, empty where the move is not possible or already made."""
    keeps_state: bool = False
    """Whether a run that is half done can go on with it: network and optimizer stay what they are."""


@dataclass(frozen=True)
class Case:
    """Everything that a plan is made of."""

    config: TrainingConfig
    dataset: DatasetFacts
    hardware: Hardware
    architecture: Architecture | None = None
    measurements: Sequence[Measurement] = ()
    processes: int = 1

    @property
    def plan(self) -> Plan:
        return plan(self.config, self.dataset, self.hardware, self.architecture, self.measurements, self.processes)

    def changed(self, changes: Changes) -> Case:
        """The same case with other settings."""
        return replace(self, config=with_values(self.config, changes)) if changes else self


@dataclass(frozen=True)
class Made:
    """A move as it is made: the settings it changes, what becomes of the result, and the plan before and after it."""

    changes: Changes
    effect: str
    before: Plan
    after: Plan


@dataclass(frozen=True)
class Proposal:
    """Moves that reach the goal, the gentlest first, and the plan without and with them."""

    moves: tuple[Made, ...]
    before: Plan
    reached: bool = True

    @property
    def changes(self) -> Changes:
        """What all of the moves change together."""
        return {name: value for move in self.moves for name, value in move.changes.items()}

    @property
    def effects(self) -> tuple[str, ...]:
        """What becomes of the result, each thing said once."""
        return tuple(dict.fromkeys(move.effect for move in self.moves))

    @property
    def after(self) -> Plan:
        return self.moves[-1].after if self.moves else self.before


def usable(card_bytes: int) -> float:
    """The bytes of a card of this size that a run may fill."""
    return USABLE * card_bytes


# -- what can be given up ------------------------------------------------------------------------------------------


def _cache_texts(config: TrainingConfig, hardware: Hardware) -> Changes:
    changing = any(getattr(config.dataset, name) for name in CAPTION_CHANGES)
    if config.memory.cache_text_encoder_outputs or config.network.train_text_encoder or changing:
        return {}
    return {"memory.cache_text_encoder_outputs": True}


def _cache_latents(config: TrainingConfig, hardware: Hardware) -> Changes:
    changing = any(getattr(config.dataset, name) for name in PICTURE_CHANGES)
    return {} if config.memory.cache_latents or changing else {"memory.cache_latents": True}


def _half_precision(config: TrainingConfig, hardware: Hardware) -> Changes:
    if config.memory.precision != "fp32" or hardware.capability is None:
        return {}
    return {"memory.precision": "bf16" if hardware.capability >= (8, 0) else "fp16"}


def _eight_bit(config: TrainingConfig, hardware: Hardware) -> Changes:
    if hardware.capability is None:
        return {}
    versions = [name for name, row in OPTIMIZERS.items() if row.eight_bits_of == config.optimizer.name]
    return {"optimizer.name": versions[0]} if versions else {}


def _selective_checkpointing(config: TrainingConfig, hardware: Hardware) -> Changes:
    memory = config.memory
    possible = not (memory.gradient_checkpointing or memory.selective_checkpointing)
    return {"memory.selective_checkpointing": True} if possible else {}


def _checkpointing(config: TrainingConfig, hardware: Hardware) -> Changes:
    wanted: Changes = {"memory.gradient_checkpointing": True, "memory.selective_checkpointing": False}
    return {} if config.memory.gradient_checkpointing else wanted


def _eight_bit_base(config: TrainingConfig, hardware: Hardware) -> Changes:
    usable = config.memory.base_weights == "same" and config.memory.gradient_checkpointing
    return {"memory.base_weights": "fp8"} if usable and hardware.name != "CPU" else {}


def _offload(config: TrainingConfig, hardware: Hardware) -> Changes:
    usable = config.memory.base_weights != "same" and not config.memory.offload_blocks
    return {"memory.offload_blocks": True} if usable and hardware.name != "CPU" else {}


def _smaller_batch(config: TrainingConfig, hardware: Hardware) -> Changes:
    """Half the batch, added up over twice as many: the same pictures behind every step."""
    schedule = config.schedule
    if schedule.batch_size == 1 or config.memory.fused_backward:
        return {}
    smaller = schedule.batch_size // 2
    added_up = schedule.gradient_accumulation_steps * schedule.batch_size // smaller
    return {"schedule.batch_size": smaller, "schedule.gradient_accumulation_steps": added_up}


def _fewer_at_once(config: TrainingConfig, hardware: Hardware) -> Changes:
    """Half the batch where nothing can be added up, since each weight is updated as soon as its gradient is known."""
    usable = config.memory.fused_backward and config.schedule.batch_size > 1
    return {"schedule.batch_size": config.schedule.batch_size // 2} if usable else {}


def _no_text_encoder(config: TrainingConfig, hardware: Hardware) -> Changes:
    network = config.network
    if not (network.train_text_encoder and network.train_unet):
        return {}
    return {"network.train_text_encoder": False}


def _smaller_rank(config: TrainingConfig, hardware: Hardware) -> Changes:
    """Half the rank and half of alpha, so that the network pulls as strongly as before."""
    network = config.network
    if network.rank < 8 or network.ranks_in_start:
        return {}
    return {"network.rank": network.rank // 2, "network.alpha": network.alpha * (network.rank // 2) / network.rank}


def _plain_lora(config: TrainingConfig, hardware: Hardware) -> Changes:
    network = config.network
    if network.algorithm == "lora" or network.ranks_in_start:
        return {}
    return {"network.algorithm": "lora"} | ({"network.convolutions": False} if network.convolutions else {})


def _smaller_pictures(config: TrainingConfig, hardware: Hardware) -> Changes:
    dataset = config.dataset
    smaller = dataset.resolution * 3 // 4 // STEPS_OF_RESOLUTION * STEPS_OF_RESOLUTION
    # Below half the side that its family was made for, a base model draws nothing that could be learned from.
    if smaller < max(family_facts(config.base_model.family).side // 2, dataset.bucket_step):
        return {}
    return {
        "dataset.resolution": smaller,
        "dataset.bucket_minimum_side": min(dataset.bucket_minimum_side, smaller // 2),
    }


def _no_checkpointing(config: TrainingConfig, hardware: Hardware) -> Changes:
    memory = config.memory
    wanted: Changes = {"memory.gradient_checkpointing": False, "memory.selective_checkpointing": False}
    return wanted if memory.gradient_checkpointing or memory.selective_checkpointing else {}


def _fewer_samples(config: TrainingConfig, hardware: Hardware) -> Changes:
    sampling = config.sampling
    if not sampling.prompts or (sampling.every_epochs is None and sampling.every_steps is None):
        return {}
    return {"sampling.every_epochs": None, "sampling.every_steps": None}


FOR_MEMORY = (
    Move("cache text", 0.1, "Captions are read once; the result is the same.", _cache_texts, keeps_state=True),
    Move("cache pictures", 0.1, "Pictures are encoded once; the result is the same.", _cache_latents, keeps_state=True),
    Move(
        "half precision",
        1.0,
        "Numbers are rounded more; the pictures look the same.",
        _half_precision,
        keeps_state=True,
    ),
    Move(
        "selective checkpointing",
        1.5,
        "Each step takes a little longer; the result is the same.",
        _selective_checkpointing,
        keeps_state=True,
    ),
    Move("checkpointing", 2.0, "Each step takes longer; the result is the same.", _checkpointing, keeps_state=True),
    Move("8-bit optimizer", 2.5, "The optimizer's memory is rounded; rarely visible.", _eight_bit),
    Move(
        "smaller batch",
        3.0,
        "The same pictures stand behind each step; a little slower.",
        _smaller_batch,
        keeps_state=True,
    ),
    Move(
        "eight-bit base", 4.0, "The base model is rounded while it is learned from.", _eight_bit_base, keeps_state=True
    ),
    Move("no text encoder", 5.0, "A new word is learned a little less firmly.", _no_text_encoder),
    Move("fewer at once", 5.5, "Each step learns from fewer pictures, so that there are more of them.", _fewer_at_once),
    Move("plain LoRA", 6.0, "Another network, with less room for fine detail.", _plain_lora),
    Move("smaller rank", 6.5, "Less room for detail; a smaller file.", _smaller_rank),
    Move(
        "base model in main memory",
        8.0,
        "Each step waits for the base model, the more the smaller the batch; the result is the same.",
        _offload,
        keeps_state=True,
    ),
    Move("smaller pictures", 9.0, "Fine detail is lost: the model sees smaller pictures.", _smaller_pictures),
)
FOR_TIME = (
    Move("cache text", 0.1, "Captions are read once; the result is the same.", _cache_texts),
    Move("cache pictures", 0.1, "Pictures are encoded once; the result is the same.", _cache_latents),
    Move("no checkpointing", 0.2, "Needs more memory; the result is the same.", _no_checkpointing),
    Move("half precision", 1.0, "Numbers are rounded more; the pictures look the same.", _half_precision),
    Move("fewer samples", 2.0, "You see pictures at the start and the end only.", _fewer_samples),
    Move("no text encoder", 5.0, "A new word is learned a little less firmly.", _no_text_encoder),
    Move("plain LoRA", 6.0, "Another network, with less room for fine detail.", _plain_lora),
    Move("smaller pictures", 12.0, "Fine detail is lost: the model sees smaller pictures.", _smaller_pictures),
)


# -- goals ---------------------------------------------------------------------------------------------------------


def fit_memory(case: Case, vram_bytes: int) -> Proposal:
    """The changes that hurt least and bring the likely need under what a card of this size has for a run."""
    room = usable(vram_bytes)
    return _search(case, FOR_MEMORY, lambda found: found.vram.likely_bytes <= room, lambda f: f.vram.likely_bytes)


def relieve_memory(case: Case, phase: str = "training") -> Proposal:
    """The changes that hurt least, let a run go on that has begun, and need clearly less than what was too much.

    The estimate said that it would fit, and it did not: so what counts is by how much the estimate of the phase in
    which memory ran out goes down, one of `MemoryEstimate.phases`.
    """

    def need(found: Plan) -> int:
        return sum(found.vram.phases.get(phase, {}).values())

    goal = min(need(case.plan) * (1 - LEAST_RELIEF), case.hardware.vram_bytes or math.inf)
    moves = tuple(move for move in FOR_MEMORY if move.keeps_state)
    return _search(case, moves, lambda found: need(found) <= goal, need)


def fit_time(case: Case, limit_seconds: float) -> Proposal:
    """The changes that hurt least and end the run in this time: what costs no quality, then fewer epochs as long as
    the run stays long enough to learn, then what costs quality, then still fewer epochs.

    Nothing is proposed that would not fit the card any more.
    """
    room = max(usable(case.hardware.vram_bytes), case.plan.vram.likely_bytes)

    def reached(found: Plan) -> bool:
        return found.duration.likely_seconds <= limit_seconds and found.vram.likely_bytes <= room

    def seconds(found: Plan) -> float:
        return found.duration.likely_seconds

    gentle, costly = (
        tuple(move for move in FOR_TIME if (move.hurt <= MOST_GENTLE) is wanted) for wanted in (True, False)
    )
    free = _search(case, gentle, reached, seconds, room)
    if free.reached:
        return free
    freed = case.changed(free.changes)
    for epochs in dict.fromkeys((_enough_epochs(freed), 1)):
        shorter = _search(freed.changed({"schedule.epochs": epochs}), costly, reached, seconds, room)
        if shorter.reached:
            break
    made = _made_again(freed, shorter.moves)
    changed = freed.changed(shorter.changes)
    most = _most_epochs(changed, epochs, reached)
    if most < changed.config.schedule.epochs:
        before, after = changed.plan, changed.changed({"schedule.epochs": most}).plan
        told = f"Each picture is seen {after.times_seen} instead of {before.times_seen}."
        made = (*made, Made({"schedule.epochs": most}, told, before, after))
    return Proposal((*free.moves, *made), free.before, shorter.reached)


def fit_steps(case: Case, steps: int) -> Proposal:
    """Exactly this many steps: whole epochs, and a limit inside the last one where they do not divide."""
    before = case.plan
    if not before.updates_per_epoch:
        return Proposal((), before, reached=False)
    epochs = ceil(steps / before.updates_per_epoch)
    limit = None if epochs * before.updates_per_epoch == steps else steps
    changes = _netted(case.config, {"schedule.epochs": epochs, "schedule.maximum_steps": limit})
    if not changes:
        return Proposal((), before)
    after = case.changed(changes).plan
    told = f"Each picture is seen {after.times_seen} instead of {before.times_seen}."
    return Proposal((Made(changes, told, before, after),), before)


def _enough_epochs(case: Case) -> int:
    """The fewest epochs that make as many steps as a LoRA takes at the least; all of them where that is less."""
    known = parameters()["schedule.epochs"].numbers
    steps = known["pocket_steps"] / 2 if case.config.base_model.family == "pocket" else known["least_steps"]
    return min(case.config.schedule.epochs, ceil(float(steps) / max(1, case.plan.updates_per_epoch)))


def _most_epochs(case: Case, fewest: int, reached: Callable[[Plan], bool]) -> int:
    """The most epochs, up to those of the case, with which a goal is reached; `fewest` where none reaches it."""
    low, high = fewest, case.config.schedule.epochs + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if reached(case.changed({"schedule.epochs": middle}).plan) else (low, middle)
    return low


def _made_again(case: Case, moves: Sequence[Made]) -> tuple[Made, ...]:
    """The same moves made one after the other in this case."""
    made = []
    for move in moves:
        before, case = case.plan, case.changed(move.changes)
        made.append(replace(move, before=before, after=case.plan))
    return tuple(made)


@dataclass(order=True)
class _Path:
    """Moves that were made, and one more whose plan is not known yet."""

    hurt: float
    order: int
    config: TrainingConfig = field(compare=False)
    last: int = field(compare=False)
    made: tuple[Made, ...] = field(compare=False, default=())
    changes: Changes = field(compare=False, default_factory=dict)
    effect: str = field(compare=False, default="")


def _search(
    case: Case,
    moves: Sequence[Move],
    reached: Callable[[Plan], bool],
    need: Callable[[Plan], float],
    room: float | None = None,
) -> Proposal:
    """Sets of moves in the order of their hurt until one reaches the goal; without any, the one that needs least."""
    before = case.plan
    counter = itertools.count()
    waiting = [_Path(0.0, next(counter), case.config, 0)]
    nearest = Proposal((), before, reached=False)
    seen: set[tuple[tuple[str, Any], ...]] = set()
    for _ in range(MOST_TRIED):
        if not waiting:
            break
        path = heapq.heappop(waiting)
        made = path.made
        if path.changes:
            after = replace(case, config=path.config).plan
            made = (*made, Made(path.changes, path.effect, made[-1].after if made else before, after))
        found = Proposal(made, before)
        if reached(found.after):
            return found
        if need(found.after) < need(nearest.after) and (room is None or found.after.vram.likely_bytes <= room):
            nearest = replace(found, reached=False)
        for index in range(path.last, len(moves)):
            move = moves[index]
            changes = move.changes(path.config, case.hardware)
            if changes:
                together = _netted(case.config, {**found.changes, **changes})
                if (known := tuple(sorted(together.items()))) in seen:  # one move may take back another
                    continue
                seen.add(known)
                config = with_possible_values(case.config, together)
                if config is None:  # something else that was chosen forbids the move
                    continue
                own = _netted(path.config, changes)
                heapq.heappush(
                    waiting, _Path(path.hurt + move.hurt, next(counter), config, index, made, own, move.effect)
                )
    return nearest


def _netted(config: TrainingConfig, changes: Mapping[str, Any]) -> Changes:
    return {name: value for name, value in changes.items() if value_of(config, name) != value}


# -- tables --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """One entry of a table: what was asked and what it takes."""

    batch_size: int
    resolution: int
    gradient_checkpointing: bool
    vram_bytes: int
    duration_seconds: float


def table(
    case: Case, batch_sizes: Sequence[int] = (1, 2, 4, 8), resolutions: Sequence[int] = (512, 768, 1024)
) -> Iterator[Cell]:
    """Memory and time for every batch size, resolution and either way of checkpointing."""
    for resolution, batch_size, checkpointing in itertools.product(resolutions, batch_sizes, (False, True)):
        changes: Changes = {
            "dataset.resolution": resolution,
            "schedule.batch_size": batch_size,
            "memory.gradient_checkpointing": checkpointing,
            "dataset.bucket_maximum_side": max(case.config.dataset.bucket_maximum_side, resolution),
        }
        found = case.changed(changes).plan
        yield Cell(batch_size, resolution, checkpointing, found.vram.likely_bytes, found.duration.likely_seconds)


MOST_BATCH = 64
ONE_PICTURE: Changes = {"schedule.batch_size": 1, "network.rank_from_start": False}
RANKS = tuple(2**power for power in range(9))


@dataclass(frozen=True)
class Allowance:
    """What a card allows at one resolution, with checkpointing or without: the largest batch at the rank of the case,
    and the largest rank at batch 1, of powers of two; 0 where not even the smallest fits."""

    resolution: int
    gradient_checkpointing: bool
    batch_size: int
    rank: int


def allowed(case: Case, vram_bytes: int, resolutions: Sequence[int] = (512, 768, 1024)) -> Iterator[Allowance]:
    """What this much memory would allow, everything else as in the case."""
    for resolution, checkpointing in itertools.product(resolutions, (False, True)):
        base: Changes = {
            "dataset.resolution": resolution,
            "dataset.bucket_maximum_side": max(case.config.dataset.bucket_maximum_side, resolution),
            "dataset.bucket_minimum_side": min(case.config.dataset.bucket_minimum_side, resolution),
            "memory.gradient_checkpointing": checkpointing,
        }

        def fits(changes: Changes, base: Changes = base) -> bool:
            return case.changed(base | changes).plan.vram.likely_bytes <= usable(vram_bytes)

        batch_size = _most(lambda count: fits({"schedule.batch_size": count}), MOST_BATCH)
        fitting = _most(lambda count: fits({**ONE_PICTURE, "network.rank": RANKS[count - 1]}), len(RANKS))
        yield Allowance(resolution, checkpointing, batch_size, RANKS[fitting - 1] if fitting else 0)


def _most(fits: Callable[[int], bool], most: int) -> int:
    """The largest number from 1 to `most` that fits, 0 when none does; what fits goes on fitting below."""
    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
