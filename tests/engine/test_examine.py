"""What a network of the pocket model has learnt is measured on the weights that programs would draw with."""

import pytest
import torch

from engine.models.load import load
from engine.networks import ALGORITHMS, create_network
from engine.pocket.examine import examine, merged
from engine.tools.writing import save_tensors
from knowledge.config import BaseModelSettings, NetworkSettings


@pytest.fixture(scope="module")
def model():
    return load(BaseModelSettings(), torch.float32)


def stirred(model, path, algorithm, by=0.02, **settings):
    """A network of this type with something in every weight, saved; the network itself."""
    network = create_network(
        model, NetworkSettings(algorithm=algorithm, rank=6, alpha=6.0, dylora_block_size=2, **settings), seed=1
    )
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in network.parameters():
            weight += by * torch.randn(weight.shape, generator=generator)
    save_tensors(path, network.saved_tensors())
    return network


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_merged_weights_predict_what_the_trained_network_predicts(model, tmp_path, algorithm):
    network = stirred(model, tmp_path / "n.safetensors", algorithm, train_text_encoder=True)
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    sizes = torch.zeros(1, 6)

    @torch.no_grad()
    def predict():
        return model.predict(latents, torch.tensor([500]), model.encode_prompt(["a zorblat"]), sizes)

    before = predict()
    network.attach()
    network.eval()
    trained = predict()
    network.detach()
    with merged(model.parts(), tmp_path / "n.safetensors"):
        assert torch.allclose(predict(), trained, atol=2e-4)
    assert not torch.allclose(trained, before, atol=1e-2)
    assert torch.equal(predict(), before), "the model's own weights must come back"


def test_the_base_knows_its_scenes_better_than_the_creature_and_a_stirred_network_harms_both(tmp_path):
    model = load(BaseModelSettings(), torch.float32)
    stirred(model, tmp_path / "n.safetensors", "lora", by=0.3)
    base, last = examine([tmp_path / "n.safetensors"])
    assert base["known_loss"] < 0.5 * base["creature_loss"]
    assert base["wordless_loss"] != base["creature_loss"]
    assert set(last) == set(base)
    assert last["known_loss"] > 1.1 * base["known_loss"]
