"""The family is a seam: one that is nothing like Stable Diffusion trains through the same loop."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from engine import train as loop
from engine.events import RunFinished, SampleSaved, StepFinished, Validated
from engine.models.load import load
from engine.models.sd import Conditioning, StableDiffusion
from engine.run_folder import RunFolder
from knowledge.config import BaseModelSettings, LossSettings, Sampler, TrainingConfig

PICTURES = Path(__file__).parent.parent / "data" / "pictures" / "10_sks toy"
TRANSFORMER = {
    "sample_size": 8,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 1,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "caption_projection_dim": 16,
    "pooled_projection_dim": 32,
    "pos_embed_max_size": 16,
}


class SmallFlow(StableDiffusion):
    """A transformer in the manner of Stable Diffusion 3 that learns the straight way from noise to picture.

    Lipman et al. 2022 (arXiv:2210.02747): x_t = (1 - σ) x_0 + σ ε, and the target is ε - x_0.
    """

    attention_blocks: ClassVar[tuple[str, ...]] = ("JointTransformerBlock",)

    def encode_prompt(self, captions: Sequence[str], *, padded: bool = True) -> Conditioning:
        (encoder,) = self.text_encoders.values()
        outputs, _ = self.encode(0, encoder, captions, padded)
        return Conditioning(outputs.last_hidden_state, outputs.pooler_output)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        sigma = (timesteps.float() / 1000).view(-1, 1, 1, 1)
        return (1 - sigma) * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return noise - latents

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning, sizes: Tensor) -> Tensor:
        prediction: Tensor = self.unet(
            noisy, conditioning.hidden_states, conditioning.pooled, timesteps, return_dict=False
        )[0]
        return prediction

    def loss_per_image(
        self,
        prediction: Tensor,
        target: Tensor,
        timesteps: Tensor,
        regularisation: Tensor,
        settings: LossSettings,
        mask: Tensor | None,
    ) -> Tensor:
        return F.mse_loss(prediction, target, reduction="none").mean(dim=(1, 2, 3))

    def sampling_scheduler(self, sampler: Sampler) -> Any:
        from diffusers import FlowMatchEulerDiscreteScheduler

        return FlowMatchEulerDiscreteScheduler()


def small_flow(tiny_sd15: Path) -> SmallFlow:
    """Built from its config; the VAE and the text encoder are the tiny ones of the other tests."""
    from diffusers import SD3Transformer2DModel

    torch.manual_seed(0)
    transformer = SD3Transformer2DModel.from_config(TRANSFORMER)
    # What a new model is: its last layer is zero, and nothing in front of it would learn.
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.5)
    transformer.requires_grad_(False).eval()
    other = load(BaseModelSettings(path=str(tiny_sd15), family="sd15"), torch.float32)
    return SmallFlow(transformer, other.vae, other.text_encoders, other.tokenizers)


def test_a_flow_matching_family_trains_and_draws_without_a_change_to_the_loop(
    tiny_sd15: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(loop, "load", lambda settings, dtype, unet_later: small_flow(tiny_sd15))
    config = TrainingConfig.model_validate(
        {
            "base_model": {"path": str(tiny_sd15), "family": "sd15"},
            "dataset": {
                "folders": [{"path": str(PICTURES)}],
                "resolution": 32,
                "bucket_step": 16,
                "bucket_minimum_side": 16,
                "bucket_maximum_side": 64,
            },
            "network": {"rank": 4, "alpha": 4.0, "train_text_encoder": True},
            "optimizer": {"learning_rate": 2e-2},
            "schedule": {"epochs": 16, "batch_size": 2},
            "sampling": {"prompts": ["a toy --s 2"], "at_start": False, "every_epochs": 16},
            "validation": {"share": 0.2, "every_epochs": None},
            "saving": {"precision": "fp32", "every_epochs": None},
            "output": {"name": "flow", "folder": str(tmp_path / "runs")},
        }
    )
    run = RunFolder.create(config)
    events = list(loop.train(config, run))
    losses = [event.loss for event in events if isinstance(event, StepFinished)]
    assert sum(losses[-6:]) < 0.9 * sum(losses[:6])
    assert any(isinstance(event, SampleSaved) for event in events)
    before, after = (event.loss for event in events if isinstance(event, Validated))
    assert after < before
    assert isinstance(events[-1], RunFinished)
    names = {name.partition(".")[0] for name in load_file(run.checkpoints / "flow.safetensors")}
    assert "lora_unet_transformer_blocks_0_attn_to_q" in names
    assert "lora_te_text_model_encoder_layers_0_mlp_fc1" in names
