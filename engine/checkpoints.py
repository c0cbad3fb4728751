"""Network files that applications load, and states that a run goes on from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.networks import Network
from engine.optimizers import restore_precision
from engine.run_folder import unwritten, whole_file
from knowledge.answers import PlainError
from knowledge.config import Precision
from knowledge.words import agreeing, count

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def network_tensors(network: Network, precision: Precision) -> dict[str, Tensor]:
    """What the file will hold: a copy of every weight on the CPU, rounded to the precision of the file."""
    dtype = DTYPES[precision]
    saved = network.saved_tensors()
    return {name: tensor.to("cpu", dtype, copy=True).contiguous() for name, tensor in saved.items()}


def save_network(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> int:
    """Write a network file and read it back; its size in bytes.

    Raises PlainError, and leaves no file, when a weight is not finite or what is on the disk is not what was written.
    """
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        rounded = all(tensors[name].dtype == torch.float16 and not tensors[name].isnan().any() for name in broken)
        hold = agreeing(len(broken), "holds", "hold")
        raise PlainError(
            f"The network is broken: {len(broken)} of its {count(len(tensors), 'tensor')} {hold} values that are not "
            f"numbers ({broken[0]} is the first). It was not saved. "
            + (
                "They are too large for saving.precision fp16: set it to bf16 or fp32."
                if rounded
                else "Training has run away: lower optimizer.learning_rate."
            )
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        try:
            save_file(dict(tensors), partial, metadata=dict(metadata))
        except SafetensorError as problem:  # also what a full disk looks like from here
            raise unwritten(path, problem, path.parent) from problem
        _compare(partial, path, tensors)
    return path.stat().st_size


def _compare(written: Path, path: Path, tensors: Mapping[str, Tensor]) -> None:
    try:
        with safe_open(written, framework="pt") as file:
            same = set(file.keys()) == set(tensors) and all(
                torch.equal(file.get_tensor(name), tensor) for name, tensor in tensors.items()
            )
    except SafetensorError:
        same = False
    if not same:
        raise PlainError(f"{path} was written, but reading it back gave something else. The disk may be failing.")


def start_from(network: Network, path: Path) -> None:
    """Give a new network the weights of a finished file. Raises PlainError that says what does not fit."""
    try:
        network.take(load_file(path))
    except (SafetensorError, OSError) as problem:
        raise PlainError(
            f"network.start_from is {path}, which is no safetensors file that can be read: {problem}"
        ) from None
    except ValueError as problem:
        raise PlainError(
            f"network.start_from is {path}, whose weights do not fit this run: {problem}. network.algorithm, rank, "
            "alpha, train_unet and train_text_encoder must be those of its own training; lora-wizard tools inspect "
            "tells them, and lora-wizard tools convert --names sd-scripts gives it the names that are needed."
        ) from None


# -- states -----------------------------------------------------------------------------------------------------------


def save_state(folder: Path, step: int, network: Network, remembering: Mapping[str, Any]) -> int:
    """Write everything that the next update depends on; bytes written. `remembering` has state_dict methods by name."""
    path = folder / "state.pt"
    state = {
        "step": step,
        "network": network.exact_tensors(),
        "remembering": {name: part.state_dict() for name, part in remembering.items() if part is not None},
    }
    try:
        torch.save(state, path)
    except RuntimeError as problem:  # torch's own writer, when the disk is full
        raise unwritten(f"The state of step {step}", problem, folder) from problem
    return path.stat().st_size


def load_state(folder: Path, network: Network, remembering: Mapping[str, Any]) -> int:
    """Take over what `save_state` wrote; its step. Raises PlainError when it is damaged or of another network.

    A scaler that the state does not know begins anew: the run went on in fp16 where memory ended in fp32.
    """
    try:
        # weights_only: a state is data, and opening one must never run a program.
        state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
        network.load_exact(state["network"])
        for name, part in remembering.items():
            if part is not None and (name in state["remembering"] or name != "scaler"):
                part.load_state_dict(state["remembering"][name])
            if isinstance(part, torch.optim.Optimizer):
                restore_precision(part, state["remembering"][name])
        return int(state["step"])
    except (OSError, KeyError, ValueError, RuntimeError, EOFError, TypeError, UnpicklingError) as problem:
        raise PlainError(f"The state in {folder} cannot be used: {problem}") from problem
