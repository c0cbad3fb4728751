"""Tiny base models with random weights, one thread for torch, and the servers that downloads come from."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hubs import Civitai, Hub
from hypothesis import settings

os.environ["OMP_NUM_THREADS"] = "1"
"""Tiny models are slower on several threads, and sums in another order would not be the same bits. The processes that
tests start take it over."""

settings.register_profile("same for all", derandomize=True)
settings.register_profile("search", derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same for all"))
"""What a property is tried on is drawn alike everywhere, so that a change that breaks nothing fails nowhere;
HYPOTHESIS_PROFILE=search draws anew."""

TOKENIZER = Path(__file__).parent.parent / "engine" / "pocket" / "model" / "tokenizer"


@pytest.fixture(scope="session")
def tiny_sd15(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder of the SD 1.5 classes, a few hundred thousand weights, with the real tokenizer."""
    return build_tiny_sd15(tmp_path_factory.mktemp("tiny") / "sd15")


@pytest.fixture(scope="session")
def tiny_sd2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder of the SD 2 classes that predicts v: linear projections, heads by level, padding with "!"."""
    return build_tiny_sd2(tmp_path_factory.mktemp("tiny") / "sd2")


@pytest.fixture(scope="session")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder of the SDXL classes: two text encoders of different widths, three levels."""
    return build_tiny_sdxl(tmp_path_factory.mktemp("tiny") / "sdxl")


@pytest.fixture
def quick_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither the tokens nor the settings of the person who runs the tests, and no long waits."""
    from engine.acquire.network import Patience

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "CIVITAI_TOKEN", "CIVITAI_API_KEY", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    quick = Patience(attempts=3, attempts_at_first=3, first_wait_seconds=0.01, longest_wait_seconds=2, read_seconds=2)
    monkeypatch.setattr("engine.acquire.network.PATIENCE", quick)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, quick_network: None) -> Iterator[Hub]:
    """A Hugging Face hub on this machine, which HF_ENDPOINT names."""
    with Hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        yield server


@pytest.fixture
def civ(monkeypatch: pytest.MonkeyPatch, quick_network: None) -> Iterator[Civitai]:
    """A Civitai on this machine, which CIVITAI_ENDPOINT names."""
    with Civitai() as server:
        monkeypatch.setenv("CIVITAI_ENDPOINT", server.address)
        yield server


def build_tiny_sd15(folder: Path) -> Path:
    import torch
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    torch.manual_seed(1)
    unet = UNet2DConditionModel(**_unet(cross_attention_dim=32), down_block_types=_down(True), up_block_types=_up(True))
    pipeline = StableDiffusionPipeline(
        unet=unet,
        vae=_vae(),
        text_encoder=_text_encoder(32),
        tokenizer=tiny_tokenizer(),
        scheduler=_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return save_pipeline(pipeline, folder)


def build_tiny_sd2(folder: Path) -> Path:
    import torch
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    torch.manual_seed(3)
    unet = UNet2DConditionModel(
        **_unet(cross_attention_dim=32) | {"attention_head_dim": (2, 4, 4)},
        down_block_types=_down(True),
        up_block_types=_up(True),
        use_linear_projection=True,
    )
    pipeline = StableDiffusionPipeline(
        unet=unet,
        vae=_vae(),
        text_encoder=_text_encoder(32, activation="gelu"),
        tokenizer=tiny_tokenizer(pad_token="!"),
        scheduler=_scheduler(prediction_type="v_prediction"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return save_pipeline(pipeline, folder)


def build_tiny_sdxl(folder: Path) -> Path:
    import torch
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel

    torch.manual_seed(2)
    unet = UNet2DConditionModel(
        **_unet(cross_attention_dim=32 + 64),
        down_block_types=_down(False),
        up_block_types=_up(False),
        transformer_layers_per_block=(1, 1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=8 * 6 + 64,
    )
    pipeline = StableDiffusionXLPipeline(
        unet=unet,
        vae=_vae(),
        text_encoder=_text_encoder(32),
        text_encoder_2=_text_encoder(64, projected=True),
        tokenizer=tiny_tokenizer(),
        tokenizer_2=tiny_tokenizer(pad_token="!"),
        scheduler=_scheduler(),
    )
    return save_pipeline(pipeline, folder)


def save_pipeline(pipeline: Any, folder: Path) -> Path:
    pipeline.save_pretrained(folder)
    for tokenizer in folder.glob("tokenizer*"):  # what transformers writes back is not what it reads offline everywhere
        for name in ("vocab.json", "merges.txt"):
            shutil.copyfile(TOKENIZER / name, tokenizer / name)
    return folder


def _down(all_but_last: bool) -> tuple[str, ...]:
    plain, attention = "DownBlock2D", "CrossAttnDownBlock2D"
    return (attention, attention, plain) if all_but_last else (plain, attention, attention)


def _up(all_but_first: bool) -> tuple[str, ...]:
    plain, attention = "UpBlock2D", "CrossAttnUpBlock2D"
    return (plain, attention, attention) if all_but_first else (attention, attention, plain)


def _unet(cross_attention_dim: int) -> dict[str, Any]:
    return {
        "block_out_channels": (8, 16, 16),
        "norm_num_groups": 4,
        "layers_per_block": 2,
        "attention_head_dim": 4,
        "cross_attention_dim": cross_attention_dim,
        "sample_size": 8,
    }


def _vae() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=64,
        scaling_factor=0.18215,
    )


def _text_encoder(width: int, projected: bool = False, activation: str = "quick_gelu") -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=4,
        projection_dim=width,
        hidden_act="gelu" if projected else activation,
        vocab_size=49408,
        max_position_embeddings=77,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def tiny_tokenizer(pad_token: str = "<|endoftext|>") -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(TOKENIZER, local_files_only=True, pad_token=pad_token)


def _scheduler(prediction_type: str = "epsilon") -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )
