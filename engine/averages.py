"""The exponential moving average of a network's weights: what is saved and drawn with in place of the last weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from knowledge.config import EmaSettings


class WeightAverage:
    """A running average of these weights, beginning with what they are now."""

    def __init__(self, weights: Sequence[nn.Parameter], decay: float, every_steps: int) -> None:
        self._weights = list(weights)
        # In single precision at least: in half of it an old average would round away all that it takes in.
        self._averages = [
            parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32), copy=True)
            for parameter in self._weights
        ]
        self._decay = decay
        self._every_steps = every_steps

    @torch.no_grad()
    def take_in(self, step: int) -> None:
        """Move the average toward the weights after update number `step`, counted from 1; only every so many updates.

        Polyak and Juditsky 1992, with the young average forgetting faster: OneTrainer's min(decay, step / (step + 9)).
        """
        if step % self._every_steps == 0:
            decay = min(self._decay, step / (step + 9))
            weights = [
                parameter.data.to(average) for parameter, average in zip(self._weights, self._averages, strict=True)
            ]
            torch._foreach_lerp_(self._averages, weights, 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The averages in place of the weights, which come back untouched; neither is copied."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state_dict(self) -> dict[str, list[Tensor]]:
        return {"averages": self._averages}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for average, saved in zip(self._averages, state["averages"], strict=True):
            average.copy_(saved)

    def _swap(self) -> None:
        for index, parameter in enumerate(self._weights):
            parameter.data, self._averages[index] = self._averages[index], parameter.data


def create_average(weights: Sequence[nn.Parameter], settings: EmaSettings) -> WeightAverage | None:
    """The average that the settings ask for; None where they ask for none."""
    return None if settings.decay is None else WeightAverage(weights, settings.decay, settings.every_steps)
