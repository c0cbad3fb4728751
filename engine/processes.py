"""The device that trains, and what several processes that train together must agree on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from torch import Tensor

from engine.dataset.batches import Batch
from engine.dataset.images import UnreadablePictureError
from engine.networks import Network
from engine.together import Together
from knowledge.answers import PlainError
from knowledge.config import MIXED_PRECISION, Precision


def create_accelerator(precision: Precision, *, fused_backward: bool = False) -> Accelerator:
    """The device that trains. Raises PlainError when it, or several processes together, cannot do what is asked for."""
    # A process may train more than once, and accelerate would silently keep the first run's precision.
    AcceleratorState._reset_state(reset_partial_state=True)
    state = join()
    if precision == "fp16" and state.device.type == "cpu":
        raise PlainError('memory.precision is fp16, which needs a GPU, and there is none. Set it to "fp32" or "bf16".')
    accelerator = Accelerator(mixed_precision=MIXED_PRECISION[precision], cpu=state._cpu)
    if fused_backward and accelerator.num_processes > 1:
        raise PlainError(
            "memory.fused_backward updates each weight as soon as its gradient is known, but several processes have to "
            "add up their gradients first. Turn it off, or train on one card."
        )
    return accelerator


def join() -> PartialState:
    """This process among those that were launched with it, connected to all of them, with the device it computes on."""
    # Several processes on a computer without a GPU find each other only where the CPU was asked for.
    return PartialState(cpu=Together.as_launched().size > 1 and not torch.accelerator.is_available())


def own(update: list[tuple[int, Batch]], accelerator: Accelerator) -> list[tuple[int, Batch]]:
    """This process's batches of an update."""
    return update[accelerator.process_index :: accelerator.num_processes]


def add_up_gradients(accelerator: Accelerator, network: Network) -> None:
    """Sum of all processes' gradients. LyCORIS works through hooks that DistributedDataParallel does not see."""
    if accelerator.num_processes == 1:
        return
    for parameter in (parameter for parameter in network.parameters() if parameter.requires_grad):
        if parameter.grad is None:  # this process had no batch in an epoch's last update
            parameter.grad = torch.zeros_like(parameter)
        parameter.grad = accelerator.reduce(parameter.grad, "sum")


def met_by_all(
    together: Together, problems: Sequence[UnreadablePictureError], batches_read: int
) -> list[tuple[str, str]]:
    """Path and reason of every picture that one of the processes could not read in its part of an update.

    Raises PlainError when none of them had a batch to read.
    """
    met = together.gathered((batches_read, [(problem.path, problem.reason) for problem in problems]))
    if not any(read for read, _ in met):
        raise PlainError("Not one picture of this step can be read any more. Put the pictures back, then resume.")
    return [problem for _, found in met for problem in found]


def mean_and_norm(accelerator: Accelerator, losses: list[Tensor], norm: Tensor) -> tuple[float, float]:
    """The mean loss over the batches of all processes, and the gradient norm, in one transfer from the device."""
    total = torch.stack(losses).sum() if losses else torch.zeros((), device=accelerator.device)
    both = torch.stack([total, torch.full_like(total, len(losses))])
    if accelerator.num_processes > 1:
        both = accelerator.reduce(both, "sum")
    loss, count, norm_value = torch.cat([both, norm.reshape(1).to(both)]).tolist()
    return loss / count, norm_value
