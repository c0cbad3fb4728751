"""Numbers in another format: refused where they do not fit, and how far the rounding has taken them."""

from __future__ import annotations

import torch
from torch import Tensor

from knowledge.answers import PlainError


def cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """The tensor in this format; flags and whole numbers stay. Raises PlainError where a number is too large for it."""
    if dtype is None or dtype == tensor.dtype or not tensor.is_floating_point():
        return tensor
    largest = float(tensor.double().abs().max()) if tensor.numel() else 0.0
    if largest > torch.finfo(dtype).max:
        name = str(dtype).removeprefix("torch.")
        raise PlainError(f"A weight of {largest:.3g} does not fit into {name}. Use bf16 or fp32.")
    return tensor.to(dtype)


def cast_exactly(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """The tensor in this format if every number of it has a place there, else in float32, else as it is. For alphas."""
    for narrow in () if dtype is None or not tensor.is_floating_point() else (dtype, torch.float32):
        if torch.equal(tensor.to(narrow).double(), tensor.double()):
            return tensor.to(narrow)
    return tensor


class Rounding:
    """Casts tensors and remembers how far all of them together were rounded."""

    def __init__(self) -> None:
        self._moved = self._whole = 0.0

    def cast(self, exact: Tensor, dtype: torch.dtype | None) -> Tensor:
        """As `cast`."""
        stored = cast(exact, dtype)
        if exact.is_floating_point():
            self._moved += float((stored.double() - exact.double()).square().sum())
            self._whole += float(exact.double().square().sum())
        return stored

    @property
    def error(self) -> float:
        """‖stored − exact‖ / ‖exact‖ over everything that was cast."""
        return float((self._moved / self._whole) ** 0.5) if self._whole > 0 else 0.0
