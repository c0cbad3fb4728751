"""The trained network: LyCORIS adapters on the layers of a base model, under the names that applications read."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from engine.models.family import AdaptedLayer, BaseModel
from knowledge.answers import PlainError
from knowledge.config import Algorithm, NetworkSettings
from knowledge.starting_network import adapted_with
from knowledge.words import count

# LyCORIS' fused GPU kernels choose themselves by timing, so two runs would not give the same weights.
os.environ.setdefault("LYCORIS_KERNEL_BACKEND", "torch")


@dataclass(frozen=True)
class AlgorithmRecipe:
    """The LyCORIS class of an algorithm, the arguments it always gets, and those it takes from network settings."""

    kind: str
    arguments: dict[str, Any] = field(default_factory=dict)
    from_settings: dict[str, str] = field(default_factory=dict)
    change: Callable[[Any], Tensor] = lambda adapter: adapter.get_weight(adapter.shape)
    """ΔW of one adapter, for the limit on its norm; a rotation's are its numbers, as in LyCORIS."""
    degree: int | None = None
    """How many of an adapter's factors are multiplied with one another in ΔW, where that is not all of them."""


def _low_rank_change(adapter: Any) -> Tensor:
    change: Tensor = adapter.make_weight() * adapter.scale
    return change


def _scaled_change(adapter: Any) -> Tensor:
    change: Tensor = adapter.differences(adapter.org_module[0].weight.to(adapter.weight.device))[0]
    return change


# LyCORIS' default forward applies ΔW as a second full layer; `bypass_mode` runs the small matrices one after the other
# instead, which is the same function for a fraction of the memory and time.
ALGORITHMS: dict[Algorithm, AlgorithmRecipe] = {
    "lora": AlgorithmRecipe("engine.low_rank:LowRank", {"bypass_mode": True}, change=_low_rank_change),
    "locon": AlgorithmRecipe("engine.low_rank:LowRank", {"bypass_mode": True}, change=_low_rank_change),
    "dylora": AlgorithmRecipe(
        "engine.low_rank:DynamicRank",
        {"bypass_mode": True},
        {"block_size": "dylora_block_size"},
        change=_low_rank_change,
    ),
    # Normed over the input axis: applications apply the other form wrongly (Comfy-Org/ComfyUI#15458).
    "dora": AlgorithmRecipe(
        "lycoris.modules.locon:LoConModule", {"weight_decompose": True, "wd_on_out": False}, change=_low_rank_change
    ),
    "loha": AlgorithmRecipe("engine.low_rank:Hadamard", {"bypass_mode": True}),
    "lokr": AlgorithmRecipe(
        "lycoris.modules.lokr:LokrModule",
        {"bypass_mode": True},
        {"factor": "lokr_factor", "full_matrix": "lokr_full_matrix"},
    ),
    "glora": AlgorithmRecipe(
        "engine.low_rank:GeneralLowRank", {"bypass_mode": True}, change=lambda adapter: adapter.make_weight(), degree=2
    ),
    "oft": AlgorithmRecipe("engine.rebuilt:Rotation", change=lambda adapter: adapter.oft_blocks),
    "boft": AlgorithmRecipe("engine.rebuilt:Butterfly", change=lambda adapter: adapter.oft_blocks),
    "ia3": AlgorithmRecipe("engine.rebuilt:Scaled", change=_scaled_change),
    "full": AlgorithmRecipe("engine.rebuilt:Full", change=lambda adapter: adapter.diff),
}
NO_FACTORS = ("dora_scale", "diff_b")
"""Weights that the limit on ΔW's norm leaves as they are."""


class Network(nn.Module):
    """Adapters by their saved names. Attached, they change what the base model computes; detached, nothing is left."""

    def __init__(self, layers: Sequence[AdaptedLayer], settings: NetworkSettings, seed: int) -> None:
        super().__init__()
        self.adapters: Any = nn.ModuleDict()
        self.part_of: dict[str, str] = {}
        self.rate_of: dict[str, float] = {}
        self.recipe = recipe = ALGORITHMS[settings.algorithm]
        module_name, _, class_name = recipe.kind.partition(":")
        kind = getattr(importlib.import_module(module_name), class_name)
        logging.getLogger("LyCORIS").setLevel(logging.ERROR)  # it tells how each layer was cut, where events belong
        arguments = recipe.arguments | {name: getattr(settings, known) for name, known in recipe.from_settings.items()}
        with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(io.StringIO()):
            torch.manual_seed(seed)
            for layer in layers:
                own = adapted_with(layer.name, _is_spatial(layer.module), settings)
                if own is None:
                    continue
                self.adapters[layer.name] = kind(
                    layer.name,
                    layer.module,
                    1.0,
                    own.rank,
                    own.alpha,
                    settings.dropout,
                    settings.rank_dropout,
                    settings.module_dropout,
                    **arguments,
                )
                self.part_of[layer.name] = layer.part
                self.rate_of[layer.name] = own.rate
        self.float()
        self.requires_grad_(True)

    def attach(self) -> None:
        for adapter in self.adapters.values():
            adapter.apply_to()

    def detach(self) -> None:
        for adapter in self.adapters.values():
            adapter.restore()

    def halve(self) -> None:
        """Keep the trained weights in bf16, and so their gradients and what the optimizer keeps of them."""
        for parameter in self.parameters():
            parameter.data = parameter.data.bfloat16()

    def trained_parameters(self, *, up_apart: bool = False) -> dict[str, list[nn.Parameter]]:
        """The trained weights by part of the base model, text encoders first, in the model's order.

        Blocks with a rate of their own are groups of their own, as "unet ×0.5"; with `up_apart` the matrices that lead
        back up are, as "unet up".
        """
        groups: dict[str, list[nn.Parameter]] = {}
        for name, adapter in self.adapters.items():
            for parameter_name, parameter in adapter.named_parameters():
                up = " up" if up_apart and parameter_name.startswith("lora_up") else ""
                rate = f" ×{self.rate_of[name]:g}" if self.rate_of[name] != 1 else ""
                groups.setdefault(self.part_of[name] + rate + up, []).append(parameter)
        return dict(sorted(groups.items()))

    def freeze_text_encoders(self) -> None:
        """Leave their weights as they are from now on: no gradient reaches them, so that no optimizer moves them."""
        for name, adapter in self.adapters.items():
            if not of_unet(self.part_of[name]):
                adapter.requires_grad_(False)
                for parameter in adapter.parameters():
                    parameter.grad = None

    def reached_by(self, loss: Tensor) -> Tensor:
        """The loss; where module dropout let every layer rest, it hangs on a weight of no influence all the same."""
        if loss.requires_grad:
            return loss
        return loss + 0 * next(weights for weights in self.parameters() if weights.requires_grad).sum()

    def saved_tensors(self) -> dict[str, Tensor]:
        """What a network file holds, by the names that applications read."""
        with torch.no_grad():
            return {
                f"{name}.{suffix}": tensor.detach()
                for name, adapter in self.adapters.items()
                for suffix, tensor in adapter.state_dict().items()
            }

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from the weights of a network file. Raises ValueError that says what the file has and this has not."""
        own = {name.removeprefix("adapters."): parameter for name, parameter in self.named_parameters()}
        fixed = {name: tensor for name, tensor in self.saved_tensors().items() if name not in own}  # alphas, mostly
        there = {name for name in tensors if name not in fixed and not name.endswith(".alpha")}
        for names, what in ((set(own) - there, "lacks"), (there - set(own), "has more than this network, as")):
            if names:
                raise ValueError(f"it {what} {min(names)} ({count(len(names), 'tensor')})")
        for name, parameter in own.items():
            if tensors[name].shape != parameter.shape:
                raise ValueError(f"{name} is {list(tensors[name].shape)} there and {list(parameter.shape)} here")
        for name, value in fixed.items():
            if name in tensors and abs(float(tensors[name]) - float(value)) > 1e-2 * float(value):
                raise ValueError(f"{name} is {float(tensors[name]):g} there and {float(value):g} here")
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(tensors[name])

    def base_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of the base model's weight under each adapter, by saved name."""
        return {name: _shape(adapter.org_module[0]) for name, adapter in self.adapters.items()}

    def exact_tensors(self) -> dict[str, Tensor]:
        """Every trained weight as it is, for a state to resume from."""
        return {name: parameter.detach() for name, parameter in self.named_parameters()}

    def load_exact(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `exact_tensors` gave. Raises KeyError or RuntimeError when it is from another network."""
        own = dict(self.named_parameters())
        if set(own) != set(tensors):
            raise KeyError("the state holds another network's weights")
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(tensors[name])


def create_network(model: BaseModel, settings: NetworkSettings, seed: int) -> Network:
    """A new network on the parts that the settings name, not yet attached; its first weights come from the seed.

    Raises PlainError where its ranks come from a file that lacks a part.
    """
    parts = [part for part in model.parts() if (settings.train_unet if part == "unet" else settings.train_text_encoder)]
    # Text encoders first, as sd-scripts creates and saves them.
    layers = [layer for part in sorted(parts) for layer in model.adapted_layers(part, settings.adapts_convolutions)]
    network = Network(layers, settings, seed)
    lacking = sorted(set(parts) - set(network.part_of.values())) if settings.ranks_in_start else []
    if lacking:
        raise PlainError(
            f"network.rank_from_start is on, but {settings.start_from} has no layers of {' and '.join(lacking)}, which "
            "is to be trained too. Turn network.rank_from_start off, or train only what the file holds."
        )
    return network


def of_unet(group: str) -> bool:
    """Whether a group of trained weights is of the part that predicts, and not of a text encoder."""
    return group.split()[0] == "unet"


@torch.no_grad()
def shares_within(network: Network, maximum: float) -> list[tuple[nn.Parameter, Tensor]]:
    """What brings every ΔW of a larger norm than `maximum` down to it: its factors, each with the share to keep of it.

    Kohya's scale_weight_norms. DoRA's magnitudes and changed biases are no factors of ΔW and stay as they are.
    """
    training = network.training
    network.eval()  # no ranks dropped while norms are taken
    shares = []
    for adapter in network.adapters.values():
        factors = [parameter for name, parameter in adapter.named_parameters() if name not in NO_FACTORS]
        norm = network.recipe.change(adapter).norm()
        share = (maximum / norm.clamp(min=maximum)) ** (1 / (network.recipe.degree or len(factors)))
        shares += [(factor, share) for factor in factors]
    network.train(training)
    return shares


@torch.no_grad()
def limit_norms(network: Network, maximum: float) -> None:
    """Scale every adapter whose ΔW has a larger norm than `maximum` down to it, all its factors by the same share."""
    for factor, share in shares_within(network, maximum):
        factor.mul_(share)


@contextlib.contextmanager
def attached(network: Network) -> Iterator[None]:
    """The network on its base model for the length of a block."""
    network.attach()
    try:
        yield
    finally:
        network.detach()


def _shape(layer: Any) -> tuple[int, ...]:
    """Of a layer's weight, also where a quantised base keeps it packed."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    return layer.out_channels, layer.in_channels, *layer.kernel_size


def _is_spatial(layer: nn.Module) -> bool:
    """Whether a layer is a convolution over more than one pixel, which has a rank of its own."""
    return isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1)
