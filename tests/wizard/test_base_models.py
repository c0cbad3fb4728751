"""The base model's question: what is here is offered, and what is not can be downloaded without leaving."""

from __future__ import annotations

from pathlib import Path

import pytest
from hubs import Repository, Version, safetensors

from wizard.base_models import models_downloaded
from wizard.cli import main
from wizard.prompts import Move
from wizard.screen_prompts import ask_on_screen
from wizard.session import Session
from wizard.steps import Draft

pytestmark = pytest.mark.usefixtures("own_home")
DOWN, ENTER, ESCAPE, CTRL_C = "\x1b[B", "\r", "\x1b", "\x03"
UNET = "model.diffusion_model."
SDXL = {
    f"{UNET}input_blocks.0.0.weight": (8, 4, 3, 3),
    f"{UNET}input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (4, 2048),
    f"{UNET}label_emb.0.0.weight": (4, 2816),
}
TO_DOWNLOADS = DOWN * 2 + ENTER  # own path, the pocket model, download
SDXL_OF_THE_LIST = DOWN + ENTER


@pytest.fixture
def session():
    return Session(asker=ask_on_screen, draft=Draft({"dataset.goal": "object"}, "base_model.path"))


@pytest.fixture
def sdxl(hub):
    hub.repositories["stabilityai/stable-diffusion-xl-base-1.0"] = Repository(
        {"sd_xl_base_1.0.safetensors": safetensors(SDXL)}
    )
    return hub


def test_a_model_of_the_list_is_downloaded_and_chosen(session, keyboard, sdxl):
    keyboard.send_text(TO_DOWNLOADS + SDXL_OF_THE_LIST + ENTER + CTRL_C)
    with pytest.raises(KeyboardInterrupt):
        session.run()
    path = Path(session.draft.values["base_model.path"])
    assert path == Path.cwd() / "models" / "sd_xl_base_1.0.safetensors"
    assert path.is_file()
    assert session.draft.values["base_model.family"] == "sdxl"
    assert session.draft.at == "dataset.resolution"
    assert list(models_downloaded()) == [(str(path), "Stable Diffusion XL, downloaded")]


SD2 = {
    f"{UNET}input_blocks.0.0.weight": (8, 4, 3, 3),
    f"{UNET}input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight": (4, 1024),
}


@pytest.mark.parametrize(("keys", "prediction"), [(ENTER, "epsilon"), (DOWN + ENTER, "v_prediction")])
def test_what_a_silent_model_of_two_kinds_predicts_is_asked(session, keyboard, keys, prediction):
    Path("two.safetensors").write_bytes(safetensors(SD2))
    keyboard.send_text(ENTER + "two.safetensors" + ENTER + keys + CTRL_C)  # its weights say nothing either
    with pytest.raises(KeyboardInterrupt):
        session.run()
    values = session.draft.values
    assert (values["base_model.family"], values["base_model.prediction_type"]) == ("sd2", prediction)
    assert session.draft.at == "dataset.resolution"


def test_a_model_that_says_what_it_predicts_is_not_asked_about(session, keyboard):
    Path("v.safetensors").write_bytes(safetensors({**SD2, "v_pred": (0,)}))
    keyboard.send_text(ENTER + "v.safetensors" + ENTER + CTRL_C)
    with pytest.raises(KeyboardInterrupt):
        session.run()
    assert session.draft.values["base_model.prediction_type"] == "v_prediction"
    assert session.draft.at == "dataset.resolution"


def test_what_was_downloaded_is_offered_the_next_time(session, keyboard, sdxl):
    with pytest.raises(SystemExit):
        main(["download", "sdxl", "--yes", "--json"])
    keyboard.send_text(DOWN + ENTER + CTRL_C)  # below "a model on this computer": the downloaded one
    with pytest.raises(KeyboardInterrupt):
        session.run()
    assert session.draft.values["base_model.path"].endswith("sd_xl_base_1.0.safetensors")


def test_a_downloaded_one_that_is_chosen_again_does_not_come_twice(session, keyboard, sdxl):
    with pytest.raises(SystemExit):
        main(["download", "sdxl", "--yes", "--json"])
    came = len(sdxl.asked("/cdn/"))
    keyboard.send_text(DOWN * 3 + ENTER + SDXL_OF_THE_LIST + CTRL_C)
    with pytest.raises(KeyboardInterrupt):
        session.run()
    assert session.draft.values["base_model.family"] == "sdxl"
    assert len(sdxl.asked("/cdn/")) == came


def test_an_address_is_typed_and_a_refusal_leads_back_to_the_question(session, keyboard, civ):
    civ.versions = [Version(10, 4, {"style.safetensors": safetensors(SDXL)}, kind="LORA")]
    asked = []
    session.asker = lambda page: (asked.append(page), ask_on_screen(page))[1]
    another = DOWN * 5 + ENTER
    keyboard.send_text(TO_DOWNLOADS + another + f"{civ.address}/models/4" + ENTER + DOWN + ENTER + CTRL_C)
    with pytest.raises(KeyboardInterrupt):
        session.run()
    assert "is a LORA on Civitai" in asked[3].error
    assert asked[3].title == asked[0].title
    assert not Path("models").exists()


def test_going_back_from_a_download_leads_to_the_question(session, keyboard, sdxl):
    keyboard.send_text(TO_DOWNLOADS + SDXL_OF_THE_LIST + DOWN + ENTER + DOWN * 0)
    titles = []

    def asker(page):
        titles.append(page.title)
        return ask_on_screen(page) if len(titles) < 4 else Move.BACK

    session.asker = asker
    from wizard.base_models import base_model

    assert base_model(session, session._around("base_model.path")) is Move.BACK
    assert titles[0] == titles[3]
    assert titles[1:3] == ["Which model shall be downloaded?", "Download this model?"]
    assert not Path("models").exists()


def test_an_interrupted_download_leads_back_and_keeps_the_answers(session, keyboard, sdxl, monkeypatch):
    from wizard import base_models, download

    def interrupted(found, folder, quiet=False):
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "fetch", interrupted)
    errors = []

    def asker(page):
        errors.append(page.error)
        return ask_on_screen(page) if len(errors) < 4 else Move.BACK

    session.asker = asker
    keyboard.send_text(TO_DOWNLOADS + SDXL_OF_THE_LIST + ENTER)
    assert base_models.base_model(session, session._around("base_model.path")) is Move.BACK
    assert "goes on from there" in errors[3]


def test_a_damaged_manifest_does_not_close_the_question(session, keyboard):
    Path("models").mkdir()
    Path("models/manifest.json").write_text("{")
    pages = []
    session.asker = lambda page: (pages.append(page), Move.BACK)[1]
    from wizard.base_models import base_model

    assert base_model(session, session._around("base_model.path")) is Move.BACK
    assert "manifest.json cannot be read" in pages[0].error
