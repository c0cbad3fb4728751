"""Everything that a run holds in its hands, and what of it is lent to whom for a while."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer

from calculator.steps import Run
from engine.averages import WeightAverage
from engine.dataset.ahead import PicturesAhead
from engine.dataset.batches import Batch
from engine.dataset.images import UnreadablePictureError
from engine.dataset.latents import LatentCache
from engine.dataset.masks import Masks
from engine.dataset.text_outputs import TextCache
from engine.events import Event, PictureSkipped, SampleSaved
from engine.fused_backward import FusedBackward
from engine.loss_watch import LossWatch
from engine.memory import leave
from engine.models.family import BaseModel, Conditioning
from engine.networks import Network, limit_norms, shares_within
from engine.run_folder import RunFolder
from engine.samples import SamplePrompt
from engine.together import ALONE, Together
from knowledge.config import TrainingConfig
from knowledge.facts import DatasetFacts

FASTER_COPY = "z"
"""Where schedule-free optimizers keep their own copy of a weight, by Defazio et al. 2024 (arXiv:2405.15682)."""


@dataclass(frozen=True)
class Caches:
    """What was encoded once, before the first step; None where it is encoded anew in every step, or not there."""

    latents: LatentCache | None
    texts: TextCache | None
    masks: Masks | None = None
    ahead: PicturesAhead = field(default_factory=PicturesAhead)

    def readable(self, batch: Batch) -> tuple[Batch, list[UnreadablePictureError]]:
        """The batch without pictures that broke since the run began; what is cached cannot break any more."""
        return (batch, []) if self.latents is not None else self.ahead.readable(batch)

    def replaced(self, model: BaseModel) -> list[torch.nn.Module]:
        """The parts of the base model that have done their work."""
        encoders = list(model.text_encoders.values()) if self.texts is not None else []
        return [*encoders, *([model.vae] if self.latents is not None else [])]


class Skipped:
    """The pictures that broke in this run; each is told once."""

    def __init__(self) -> None:
        self._paths: set[str] = set()

    def tell(self, problems: Iterable[tuple[str, str]], step: int) -> Iterator[Event]:
        """Of these paths and reasons, those that were not told before."""
        for path, reason in problems:
            if path not in self._paths:
                self._paths.add(path)
                yield PictureSkipped(path=path, reason=reason, step=step)


@dataclass(frozen=True)
class Bench:
    """Everything that a run holds in its hands."""

    config: TrainingConfig
    run: RunFolder
    accelerator: Accelerator
    model: BaseModel
    network: Network
    optimizer: AcceleratedOptimizer | FusedBackward
    caches: Caches
    dataset: DatasetFacts
    length: Run
    prompts: tuple[SamplePrompt, ...]
    held_out: list[Batch]
    started_at: float
    average: WeightAverage | None = None
    together: Together = ALONE
    watch: LossWatch = field(default_factory=LossWatch)
    skipped: Skipped = field(default_factory=Skipped)
    drawn: list[SampleSaved] = field(default_factory=list)
    """All samples of the run so far."""

    def epoch_of(self, step: int) -> int:
        """The epoch that this update, counted from 1, belongs to; 0 before the first."""
        return math.ceil(step / self.length.updates_per_epoch)

    @contextmanager
    def at_rest(self, *, averaged: bool = True) -> Iterator[None]:
        """The network as it is used: without dropout, and with the averaged weights of a schedule-free optimizer.

        `averaged`: with the moving average of its weights, where one is kept.
        """
        averaging = hasattr(self.optimizer.optimizer, "eval")
        learning = [weights.detach().clone() for weights in self.network.parameters()] if averaging else []
        self.network.eval()
        if averaging:
            self.optimizer.optimizer.eval()
        try:
            with self.average.in_place() if self.average is not None and averaged else nullcontext():
                yield
        finally:
            if averaging:
                self.optimizer.optimizer.train()
                # There and back again rounds; the run goes on from the very weights that it left.
                for weights, was in zip(self.network.parameters(), learning, strict=True):
                    weights.data.copy_(was)
            self.network.train()

    @torch.no_grad()
    def limit_norms(self) -> None:
        """Hold every layer's ΔW to network.maximum_norm, if there is one: as it would be saved, not as it learns.

        A schedule-free optimizer saves a mean of the weights and of a faster copy of them; all three are scaled alike.
        """
        maximum = self.config.network.maximum_norm
        if maximum is None:
            return
        with self.at_rest(averaged=False):
            shares = shares_within(self.network, maximum)
        memories = self.optimizer.state
        for weights, share in shares:
            weights.mul_(share)
            faster = memories.get(weights, {}).get(FASTER_COPY)
            if faster is not None:
                faster.mul_(share)

    def take_in_average(self, step: int) -> None:
        """Let the moving average, if one is kept, see the weights after this update; its ΔW stay limited as theirs."""
        if self.average is None:
            return
        self.average.take_in(step)
        if self.config.network.maximum_norm is not None:
            with self.average.in_place():
                limit_norms(self.network, self.config.network.maximum_norm)

    def encoder(self) -> Callable[[Sequence[str]], Conditioning]:
        """What gives the conditioning of sample prompts: the cache, where the captions are in it, or the encoders."""
        texts, device = self.caches.texts, self.accelerator.device
        if texts is None:
            return self.model.encode_prompt
        return lambda captions: texts.conditioning(captions).to(device)

    @contextmanager
    def decoder_in_place(self) -> Iterator[None]:
        """The VAE on the device; where it was not, the UNet makes room for it meanwhile."""
        model, device = self.model, self.accelerator.device
        if model.vae.device == device:
            yield
            return
        leave(model.unet)
        model.vae.to(device)
        try:
            yield
        finally:
            leave(model.vae)
            model.unet.to(device)

    def remembering(self) -> dict[str, Any]:
        """What carries a memory from update to update, beside the weights themselves."""
        return {
            "optimizer": self.optimizer,
            "scaler": self.accelerator.scaler,
            "loss watch": self.watch,
            "average": self.average,
        }


def seeded(*parts: object) -> int:
    """A seed out of numbers and words: the same on every machine and in every run."""
    return random.Random(" ".join(map(str, parts))).getrandbits(63)
