"""Groups of weights with rates of their own under optimizers whose library takes the first group's rate for all.

D-Adaptation and Prodigy find one pace for all weights. Their authors' own code lets a group have that pace or none;
that of pytorch_optimizer moves every group by the first one's rate, which here is a text encoder's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch


@cache
def by_group(kind: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """The same optimizer, each group of which moves by its own rate's share of the largest rate."""

    def step(self: Any, closure: Callable[[], Any] | None = None) -> Any:
        rates = [group["lr"] for group in self.param_groups]
        most = max(rates)
        if min(rates) == most:
            return kind.step(self, closure)
        slower = [(group, rate / most) for group, rate in zip(self.param_groups, rates, strict=True) if rate < most]
        before = [[weights.detach().clone() for weights in group["params"]] for group, _ in slower]
        for group in self.param_groups:
            group["lr"] = most
        try:
            result = kind.step(self, closure)
        finally:
            for group, rate in zip(self.param_groups, rates, strict=True):
                group["lr"] = rate
        with torch.no_grad():
            for (group, share), kept in zip(slower, before, strict=True):
                for weights, start in zip(group["params"], kept, strict=True):
                    weights.copy_(start.lerp_(weights, share))
        return result

    return type(kind.__name__, (kind,), {"step": step, "__module__": kind.__module__, "__doc__": kind.__doc__})
