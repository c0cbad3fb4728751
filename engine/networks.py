"""The trained network: LyCORIS adapters on the layers of a base model, under the names that applications read."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from engine.models.sd import AdaptedLayer, StableDiffusion
from knowledge.config import CONV_ALGORITHMS, Algorithm, NetworkSettings

# LyCORIS' fused GPU kernels choose themselves by timing, so two runs would not give the same weights.
os.environ.setdefault("LYCORIS_KERNEL_BACKEND", "torch")


@dataclass(frozen=True)
class AlgorithmRecipe:
    """The LyCORIS class of an algorithm, the arguments it always gets, and those it takes from network settings."""

    kind: str
    arguments: dict[str, Any] = field(default_factory=dict)
    from_settings: dict[str, str] = field(default_factory=dict)


# LyCORIS' default forward applies ΔW as a second full layer; `bypass_mode` runs the small matrices one after the other
# instead, which is the same function for a fraction of the memory and time.
ALGORITHMS: dict[Algorithm, AlgorithmRecipe] = {
    "lora": AlgorithmRecipe("lycoris.modules.locon:LoConModule", {"bypass_mode": True}),
    "locon": AlgorithmRecipe("lycoris.modules.locon:LoConModule", {"bypass_mode": True}),
    # Normed over the input axis: applications apply the other form wrongly (Comfy-Org/ComfyUI#15458).
    "dora": AlgorithmRecipe("lycoris.modules.locon:LoConModule", {"weight_decompose": True, "wd_on_out": False}),
    "loha": AlgorithmRecipe("lycoris.modules.loha:LohaModule", {"bypass_mode": True}),
    "lokr": AlgorithmRecipe("lycoris.modules.lokr:LokrModule", {"bypass_mode": True}, {"factor": "lokr_factor"}),
}


class Network(nn.Module):
    """Adapters by their saved names. Attached, they change what the base model computes; detached, nothing is left."""

    def __init__(self, layers: Sequence[AdaptedLayer], settings: NetworkSettings, seed: int) -> None:
        super().__init__()
        self.adapters: Any = nn.ModuleDict()
        self.part_of: dict[str, str] = {}
        recipe = ALGORITHMS[settings.algorithm]
        module_name, _, class_name = recipe.kind.partition(":")
        kind = getattr(importlib.import_module(module_name), class_name)
        arguments = recipe.arguments | {name: getattr(settings, known) for name, known in recipe.from_settings.items()}
        with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(io.StringIO()):
            torch.manual_seed(seed)
            for layer in layers:
                rank, alpha = _rank_and_alpha(layer.module, settings)
                self.adapters[layer.name] = kind(
                    layer.name, layer.module, 1.0, rank, alpha, settings.dropout, **arguments
                )
                self.part_of[layer.name] = layer.part
        self.float()
        self.requires_grad_(True)

    def attach(self) -> None:
        for adapter in self.adapters.values():
            adapter.apply_to()

    def detach(self) -> None:
        for adapter in self.adapters.values():
            adapter.restore()

    def trained_parameters(self) -> dict[str, list[nn.Parameter]]:
        """The trained weights by part of the base model, text encoders first, in the model's order."""
        by_part: dict[str, list[nn.Parameter]] = {}
        for name, adapter in self.adapters.items():
            by_part.setdefault(self.part_of[name], []).extend(adapter.parameters())
        return dict(sorted(by_part.items()))

    def saved_tensors(self) -> dict[str, Tensor]:
        """What a network file holds, by the names that applications read."""
        with torch.no_grad():
            return {
                f"{name}.{suffix}": tensor.detach()
                for name, adapter in self.adapters.items()
                for suffix, tensor in adapter.state_dict().items()
            }

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


def create_network(model: StableDiffusion, settings: NetworkSettings, seed: int) -> Network:
    """A new network on the parts that the settings name, not yet attached; its first weights come from the seed."""
    convolutions = settings.algorithm in CONV_ALGORITHMS
    parts = [part for part in model.parts() if (settings.train_unet if part == "unet" else settings.train_text_encoder)]
    # Text encoders first, as sd-scripts creates and saves them.
    layers = [layer for part in sorted(parts) for layer in model.adapted_layers(part, convolutions)]
    return Network(layers, settings, seed)


@contextlib.contextmanager
def attached(network: Network) -> Iterator[None]:
    """The network on its base model for the length of a block."""
    network.attach()
    try:
        yield
    finally:
        network.detach()


def _rank_and_alpha(layer: nn.Module, settings: NetworkSettings) -> tuple[int, float]:
    if isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1):
        return settings.conv_rank, settings.conv_alpha
    return settings.rank, settings.alpha
