"""Tokens that are asked for when one is needed: not shown, sent where they belong, and in no file."""

from __future__ import annotations

from pathlib import Path

import pytest
from booru import KEY, USER, Gelbooru, picture
from hubs import Repository, Version, safetensors
from terminal import ENTER, Terminal

UNET = "model.diffusion_model."
SDXL = {
    f"{UNET}input_blocks.0.0.weight": (8, 4, 3, 3),
    f"{UNET}input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (4, 2048),
    f"{UNET}label_emb.0.0.weight": (4, 2816),
}


@pytest.fixture
def here(tmp_path, monkeypatch, quick_network):
    for name in ("GELBOORU_API_KEY", "GELBOORU_USER_ID"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "here"
    folder.mkdir()
    return folder


def never_written(terminal: Terminal, here: Path, *secrets: str) -> None:
    """None of the secrets is to be seen, nor in any file below the folder that is the program's home as well."""
    files = [path for path in here.rglob("*") if path.is_file()]
    assert files
    for secret in secrets:
        assert secret not in terminal.text
        assert not [path for path in files if secret.encode() in path.read_bytes()]


def test_the_wizard_asks_for_the_token_of_a_gated_model(here, hub, photos):
    hub.repositories["maker/gated"] = Repository({"a.safetensors": safetensors(SDXL)}, access="gated")
    terminal = Terminal("new", "--goal", "object", "--pictures", str(photos), here=here, HF_ENDPOINT=hub.address)
    terminal.sees("Which word shall call it up?")
    terminal.press("zorb", ENTER)
    terminal.sees("Which model")
    terminal.point_at("Download a model")
    terminal.press(ENTER)
    terminal.sees("Which model shall be downloaded?")
    terminal.point_at("Another one")
    terminal.press(ENTER)
    terminal.sees("What is its address?", "you are asked for a token")
    terminal.press("maker/gated", ENTER)
    terminal.sees("Have you a token for Hugging Face?", "accept", "kept nowhere")
    terminal.press("hf_mistyped", ENTER)
    terminal.sees("does not know your token")
    terminal.press("hf_member", ENTER)
    terminal.sees("Download this model?", "maker/gated")
    terminal.press(ENTER)
    terminal.sees("maker/gated/a.safetensors is in models")
    assert (here / "models" / "a.safetensors").is_file()
    never_written(terminal, here, "hf_member", "hf_mistyped")
    assert {request.token for request in hub.asked("/cdn/")} == {None}


def test_nothing_typed_for_a_token_leads_back_with_the_reason(here, civ, photos):
    civ.versions = [Version(10, 4, {"style.safetensors": safetensors(SDXL)}, access="login")]
    terminal = Terminal("new", "--goal", "object", "--pictures", str(photos), here=here, CIVITAI_ENDPOINT=civ.address)
    terminal.sees("Which word shall call it up?")
    terminal.press("zorb", ENTER)
    terminal.sees("Which model")
    terminal.point_at("Download a model")
    terminal.press(ENTER)
    terminal.point_at("Another one")
    terminal.press(ENTER)
    terminal.sees("What is its address?")
    terminal.press(f"{civ.address}/models/4", ENTER)
    terminal.sees("Have you a token for Civitai?")
    terminal.press(ENTER)
    terminal.sees("✗", "can be downloaded only by who is logged in", "Download a model")
    assert not (here / "models").exists() or not list((here / "models").rglob("*.safetensors"))


def test_the_command_asks_for_the_key_of_civitai(here, civ):
    civ.versions = [Version(10, 4, {"style.safetensors": safetensors(SDXL)}, access="login")]
    terminal = Terminal("download", f"{civ.address}/models/4", here=here, CIVITAI_ENDPOINT=civ.address)
    terminal.sees("can be downloaded only by who is logged in", "Civitai token:")
    terminal.press("civ_member", ENTER)
    terminal.sees("Download it?")
    terminal.press(ENTER)
    assert terminal.ends(60) == 0
    assert (here / "models" / "style.safetensors").is_file()
    never_written(terminal, here, "civ_member")


def test_a_private_dataset_is_imported_inside_the_wizard_with_a_token_that_is_asked_for(here, hub):
    hub.repositories["maker/pics"] = Repository(
        {"a.png": picture(1), "a.txt": b"a toy"}, access="private", kind="datasets"
    )
    terminal = Terminal("new", here=here, HF_ENDPOINT=hub.address)
    terminal.sees("What do you want to teach?")
    terminal.press(ENTER)
    terminal.sees("Where are your pictures?")
    terminal.press(ENTER)
    terminal.point_at("From a dataset on Hugging Face")
    terminal.press(ENTER)
    terminal.sees("Which dataset?")
    terminal.press(f"{hub.address}/datasets/maker/pics", ENTER)
    terminal.sees("Into which new folder shall they go?")
    terminal.press(ENTER)
    terminal.sees("that can be seen without a", "Hugging Face token:")
    terminal.press("hf_member", ENTER)
    terminal.sees("1 picture", "Download them?")
    terminal.press("y", ENTER)
    terminal.sees("1 picture and 1 caption are now in datasets/pics.", "Enter goes on.")
    terminal.press(ENTER)
    terminal.sees("Are these the right pictures?", "1 picture in")
    never_written(terminal, here, "hf_member")


def test_gelboorus_key_and_number_are_asked_for_inside_the_wizard(here):
    with Gelbooru() as server:
        terminal = Terminal("new", here=here, GELBOORU_ENDPOINT=server.address)
        terminal.sees("What do you want to teach?")
        terminal.press(ENTER)
        terminal.sees("Where are your pictures?")
        terminal.press(ENTER)
        terminal.looks_on_gelbooru("1girl", at_most="2")
        terminal.press(ENTER)
        terminal.sees("API key:")
        terminal.press(KEY, ENTER)
        terminal.sees("User id:")
        terminal.press(USER, ENTER)
        terminal.sees("Download 2 pictures into datasets/1girl?")
        terminal.press("y", ENTER)
        terminal.sees("2 pictures and 2 captions", "Enter goes on.")
        terminal.press(ENTER)
        terminal.sees("Are these the right pictures?", "2 pictures")
        never_written(terminal, here, KEY)
