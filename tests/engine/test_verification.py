from pathlib import Path

import pytest
import torch

from engine.models.load import load
from engine.networks import ALGORITHMS, Network, create_network
from engine.verification import verify
from knowledge.answers import PlainError
from knowledge.config import BaseModelSettings, NetworkSettings

EXACT = {
    "ComfyUI": {"lora", "locon", "dora", "loha", "lokr", "dylora", "glora", "boft", "oft", "full"},
    "A1111": {"lora", "locon", "dora", "loha", "lokr", "dylora", "glora", "boft", "oft", "full", "ia3"},
    "Forge": {"lora", "locon", "dora", "loha", "lokr", "dylora", "glora", "full"},
    "diffusers": {"lora", "locon", "dylora"},
}


def network(folder: Path, algorithm: str, family: str) -> Network:
    base = load(BaseModelSettings(path=str(folder), family=family), torch.float32)
    settings = NetworkSettings(algorithm=algorithm, rank=4, conv_rank=2, lokr_factor=4, train_text_encoder=True)
    return create_network(base, settings, seed=1)


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_new_network_is_silent_a_trained_one_is_not_and_its_readers_are_known(algorithm, family, request):
    made = network(request.getfixturevalue(f"tiny_{family}"), algorithm, family)
    fresh = verify(made.saved_tensors(), made.base_shapes(), family)
    assert len(fresh.silent) == fresh.layers == len(made.adapters)
    for parameter in made.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    trained = verify(made.saved_tensors(), made.base_shapes(), family)
    assert trained.silent == ()
    exact = {name for name, verdict in trained.applications.items() if verdict == "yes"}
    assert exact == {name for name, known in EXACT.items() if algorithm in known}


def test_no_application_has_the_pocket_model(tiny_sd15):
    made = network(tiny_sd15, "lora", "sd15")
    assert verify(made.saved_tensors(), made.base_shapes(), "sd15").applications
    assert verify(made.saved_tensors(), made.base_shapes(), "pocket").applications == {}


def test_weights_that_rounding_takes_away_are_noticed(tiny_sd15):
    made = network(tiny_sd15, "lora", "sd15")
    tiny = {name: torch.full_like(tensor, 1e-9).half() for name, tensor in made.saved_tensors().items()}
    assert len(verify(tiny, made.base_shapes(), "sd15").silent) == len(made.adapters)


def renamed(tensors: dict[str, torch.Tensor], to: str) -> dict[str, torch.Tensor]:
    layer = next(iter(tensors)).partition(".")[0]
    return {name.replace(f"{layer}.", f"{to}."): tensor for name, tensor in tensors.items()}


def test_a_missing_and_a_misshapen_layer_are_refused_and_an_unknown_name_is_told(tiny_sd15):
    made = network(tiny_sd15, "lora", "sd15")
    tensors, base = made.saved_tensors(), made.base_shapes()
    layer = next(iter(base))
    others = {name: shape for name, shape in base.items() if name != layer}
    few = {name: tensor for name, tensor in tensors.items() if not name.startswith(f"{layer}.")}
    with pytest.raises(PlainError, match=f"lacks {layer}"):
        verify(few, base, "sd15")
    with pytest.raises(PlainError, match="more layers than were trained"):
        verify(tensors, others, "sd15")
    elsewhere = "lora_unet_elsewhere"
    unknown = verify(renamed(tensors, elsewhere), others | {elsewhere: base[layer]}, "sd15")
    assert unknown.applications["ComfyUI"].startswith("partly: layers it does not know by this name (1 layer)")
    with pytest.raises(PlainError, match="do not fit the base model"):
        verify(tensors, base | {layer: (7, 7)}, "sd15")
