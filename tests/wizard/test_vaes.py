"""The VAE's question: the model's own, one that is here, or one from a hub on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hubs import Repository, safetensors

from knowledge.answers import PlainError
from wizard.base_models import base_model
from wizard.screen_prompts import ask_on_screen
from wizard.session import Session
from wizard.settings import change
from wizard.steps import Draft
from wizard.vaes import vae_at

pytestmark = pytest.mark.usefixtures("own_home")
UP, DOWN, ENTER, CTRL_C = "\x1b[A", "\x1b[B", "\r", "\x03"
VAE = {"decoder.conv_in.weight": (8, 4, 3, 3), "encoder.conv_in.weight": (8, 3, 3, 3)}
OTHERS_VAE = {"decoder.conv_in.weight": (8, 16, 3, 3), "encoder.conv_in.weight": (8, 3, 3, 3)}
FITTING = "madebyollin/sdxl-vae-fp16-fix"
CONFIG = {
    "_class_name": "AutoencoderKL",
    "latent_channels": 4,
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"],
    "block_out_channels": [8],
}


@pytest.fixture
def session():
    values = {"base_model.path": "model.safetensors", "base_model.family": "sdxl"}
    return Session(asker=ask_on_screen, draft=Draft(values, "base_model.path"))


@pytest.fixture
def fitting(hub):
    hub.repositories[FITTING] = Repository(
        {
            "config.json": json.dumps(CONFIG).encode(),
            "diffusion_pytorch_model.safetensors": safetensors(VAE),
            "sdxl_vae.safetensors": safetensors(VAE),
        }
    )
    return hub


def asked(session):
    pages = []
    session.asker = lambda page: (pages.append(page), ask_on_screen(page))[1]
    return pages


def test_the_one_that_fits_the_family_is_downloaded_from_the_models_question_and_offered_again(
    session, keyboard, fitting
):
    pages = asked(session)
    keyboard.send_text(DOWN * 3 + ENTER + DOWN * 2 + ENTER + ENTER + ENTER + CTRL_C)  # VAE, download, fitting, yes
    with pytest.raises(KeyboardInterrupt):
        base_model(session, session._around("base_model.path"))
    path = Path(session.draft.values["base_model.vae"])
    assert path.parent == Path.cwd() / "models"
    assert vae_at(str(path)) == str(path)
    listed = next(page for page in pages if page.title == "Which VAE shall be downloaded?")
    assert [option.label for option in listed.options] == ["SDXL VAE, safe in half precision", "Another one …"]
    assert pages[-1].options[-1].hint.endswith(path.name[-20:])

    keyboard.send_text(UP + ENTER)  # the model's own
    assert change(session, "base_model.vae", session._around("base_model.path"))
    assert any("downloaded, fits" in option.hint for option in pages[-1].options)
    assert session.situation().config.base_model.vae == ""


def test_a_vae_on_this_computer_is_named_by_its_path(session, keyboard):
    Path("my vae.safetensors").write_bytes(safetensors(VAE))
    keyboard.send_text(DOWN + ENTER + "nothing" + ENTER + "\x15my vae.safetensors" + ENTER)
    pages = asked(session)
    assert change(session, "base_model.vae", session._around("base_model.path"))
    assert session.draft.values["base_model.vae"] == str(Path("my vae.safetensors").resolve())
    assert [page.title for page in pages] == ["Which VAE shall encode the pictures?", "Where is the VAE?"]


def test_a_base_model_is_no_vae(session, keyboard, fitting):
    unet = {"model.diffusion_model.input_blocks.0.0.weight": (8, 4, 3, 3)}
    unet["model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"] = (4, 768)
    fitting.repositories["maker/base"] = Repository({"base.safetensors": safetensors(unet)})
    pages = asked(session)
    keyboard.send_text(DOWN * 2 + ENTER + DOWN + ENTER + "maker/base" + ENTER + CTRL_C)
    with pytest.raises(KeyboardInterrupt):
        change(session, "base_model.vae", session._around("base_model.path"))
    assert "is a base model, and no VAE" in pages[-1].error


@pytest.mark.parametrize(
    ("content", "said"), [(safetensors(OTHERS_VAE), "16 channels"), (safetensors({"a": (1,)}), "is no VAE")]
)
def test_what_is_no_vae_of_ours_is_named(content, said):
    Path("a.safetensors").write_bytes(content)
    with pytest.raises(PlainError, match=said):
        vae_at("a.safetensors")
    for text in ("", "gone"):
        with pytest.raises(PlainError):
            vae_at(text)
