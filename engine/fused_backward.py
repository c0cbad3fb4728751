"""Update each tensor as soon as its gradient is whole, and let the gradient go before the next one comes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from engine.optimizers import create_optimizer, restore_precision
from knowledge.config import OptimizerSettings, ScheduleSettings


class FusedBackward:
    """An optimizer for each tensor, which takes its step inside the backward pass; used like one for all of them.

    Only for optimizers whose step for a tensor hangs on that tensor alone; the schema forbids the others.
    """

    def __init__(
        self,
        parameters: Mapping[str, Sequence[nn.Parameter]],
        settings: OptimizerSettings,
        schedule: ScheduleSettings,
    ) -> None:
        self._optimizers = [
            create_optimizer({part: [weights]}, settings, schedule)
            for part, several in parameters.items()
            for weights in several
        ]
        self._squares: list[Tensor] = []
        for optimizer in self._optimizers:
            (weights,) = optimizer.param_groups[0]["params"]
            weights.register_post_accumulate_grad_hook(self._taker_of_steps(optimizer))
        if hasattr(self._optimizers[0], "eval"):  # of a schedule-free optimizer
            self.train = lambda: [each.train() for each in self._optimizers]  # type: ignore[attr-defined]
            self.eval = lambda: [each.eval() for each in self._optimizers]  # type: ignore[attr-defined]

    def _taker_of_steps(self, optimizer: torch.optim.Optimizer) -> Any:
        def take_step(weights: Tensor) -> None:
            assert weights.grad is not None
            self._squares.append(weights.grad.detach().square().sum())
            optimizer.step()
            weights.grad = None

        return take_step

    @property
    def optimizer(self) -> FusedBackward:
        """What stands behind it, as an accelerator's optimizer has one behind it."""
        return self

    @property
    def state(self) -> dict[Tensor, Any]:
        return {weights: known for optimizer in self._optimizers for weights, known in optimizer.state.items()}

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self._optimizers for group in optimizer.param_groups]

    def gradient_norm(self, device: torch.device) -> Tensor:
        """The norm over all gradients since the last time that it was asked for, on the device."""
        squares, self._squares = self._squares, []
        return torch.stack(squares).sum().sqrt() if squares else torch.zeros((), device=device)

    def step(self) -> None:
        """Nothing is left to do: every tensor was updated while the gradients came in."""

    def zero_grad(self) -> None:
        """Clear the gradient of a step that was cut short; of all others nothing is left."""
        for optimizer in self._optimizers:
            optimizer.zero_grad()
        self._squares.clear()

    def state_dict(self) -> dict[str, list[dict[str, Any]]]:
        return {"optimizers": [optimizer.state_dict() for optimizer in self._optimizers]}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self._optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
            restore_precision(optimizer, state)
