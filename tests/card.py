"""A device of torch that stands for a GPU: it computes on the CPU, and counts how often the program waits for it.

On a GPU the processor runs ahead, and every read of a number and every copy that is not asked to go on by itself makes
it wait until all that was asked for is done. On the CPU none of this shows. Here "card" is a device as CUDA is one for
torch: tensors go there and come back by copies, kernels refuse tensors of both, and what would wait is written down.
It has no autocast and no generator.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

CARD = torch.device("lazy:0")
"""A device that torch has a name for and nothing else; its backward pass runs in the thread that asks for it."""

SIZED_BY_CONTENT = {
    "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount", "repeat_interleave",
    "_local_scalar_dense", "equal", "is_nonzero", "allclose",
}  # fmt: skip
"""What the processor cannot do before it knows what a tensor holds."""


class OnCard(Tensor):
    """A tensor on the card; `there` is what it holds."""

    there: Tensor

    @staticmethod
    def __new__(cls, there: Tensor) -> OnCard:
        made: OnCard = Tensor._make_wrapper_subclass(
            cls, there.size(), there.stride(), there.storage_offset(), dtype=there.dtype, device=CARD
        )
        made.there = there
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:
        return f"OnCard({self.there!r})"


class Card(TorchDispatchMode):
    """Makes tensors on the card, and writes down what waits for it and where in the program that is."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if waits(func, args, kwargs):
            self.waits.append(f"{func} {place()}")
        return compute(func, args, kwargs)

    def since(self) -> list[str]:
        """What waited since this was last asked."""
        seen, self.waits = self.waits, []
        return seen


class Literals(TorchFunctionMode):
    """What torch does without telling the other mode: tensors made of numbers on a device, and lists of a tensor's."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (Tensor.tolist, Tensor.numpy) and isinstance(args[0], OnCard):
            return func(args[0].cpu())
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)  # as CUDA has it
        return func(*args, **kwargs)


@contextmanager
def counting() -> Iterator[Card]:
    """The count of what waits in this block."""
    asks, casts = torch.is_autocast_enabled, torch.autocast
    stands_in = {
        "is_autocast_enabled": lambda kind="card": kind != CARD.type and asks(kind),
        "autocast": lambda kind, *some, **more: nullcontext() if kind == CARD.type else casts(kind, *some, **more),
        CARD.type: SimpleNamespace(),  # where checkpointing looks for a generator; that of CUDA is kept on the CPU
    }
    with mock.patch.multiple(torch, create=True, **stands_in), Literals(), Card() as card:
        yield card


def is_card(thing: Any) -> bool:
    return isinstance(thing, torch.device) and thing.type == CARD.type


def waits(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether a call makes the processor wait for the card."""
    on_card = [isinstance(part, OnCard) for part in tree_flatten((args, kwargs))[0] if isinstance(part, Tensor)]
    name = func._schema.name.split("::")[1]
    if name == "copy_":
        by_itself = args[2] if len(args) > 2 else kwargs.get("non_blocking")
        return on_card[0] != on_card[1] and not by_itself
    if name == "_to_copy":
        goes = kwargs.get("device")
        return goes is not None and is_card(goes) != on_card[0] and not kwargs.get("non_blocking")
    if name.startswith(("index", "_index")) and any(on_card):  # by a mask: how many there are must be known
        places = args[1] if isinstance(args[1], list | tuple) else []
        return any(part is not None and part.dtype in (torch.bool, torch.uint8) for part in places)
    return name in SIZED_BY_CONTENT and any(on_card)


def compute(func: Any, args: Any, kwargs: Any) -> Any:
    """What the call gives, on the device where CUDA would give it. Raises RuntimeError for tensors of two devices."""
    name = func._schema.name.split("::")[1]
    flat, _ = tree_flatten((args, kwargs))
    tensors = [part for part in flat if isinstance(part, Tensor)]
    cards = [part for part in tensors if isinstance(part, OnCard)]
    asked = next((part for part in flat if isinstance(part, torch.device)), None)
    lies = asked is not None and is_card(asked) if asked is not None else bool(cards)
    copies = name in ("copy_", "_to_copy")
    strangers = [part for part in tensors if not isinstance(part, OnCard) and (part.dim() or name == "_foreach_copy_")]
    if cards and strangers and not copies and name not in ("index", "_index_put_impl_", "index_put_"):
        raise RuntimeError(f"{func} got tensors on the card and on the CPU")

    def inner(part: Any) -> Any:
        if isinstance(part, OnCard):
            return part.there
        return torch.device("cpu") if is_card(part) else part

    result = func(*tree_map(inner, args), **tree_map(inner, kwargs))
    known = {id(part.there): part for part in cards}

    def outer(part: Any) -> Any:
        if not isinstance(part, Tensor) or isinstance(part, OnCard):
            return part
        if id(part) in known:
            return known[id(part)]
        return OnCard(part) if lies else part

    return tree_map(outer, result)


def place() -> str:
    """Where the program is: its own frames and those of libraries other than torch, the innermost first."""
    frames = [
        f"{Path(frame.filename).name}:{frame.lineno} {frame.name}"
        for frame in traceback.extract_stack()
        if "/torch/" not in frame.filename and frame.filename != __file__
    ]
    return " < ".join(reversed(frames[-4:]))
