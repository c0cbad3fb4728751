"""`lora-wizard download`, from a hub and a Civitai on this machine."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pexpect
import pytest
from hubs import Repository, Version, safetensors
from servers import Fault

from knowledge.answers import PlainError
from wizard.cli import main
from wizard.download import check_address, kind_in_words

pytestmark = pytest.mark.usefixtures("own_home")

UNET = "model.diffusion_model."
SDXL = {
    f"{UNET}input_blocks.0.0.weight": (8, 4, 3, 3),
    f"{UNET}input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (4, 2048),
    f"{UNET}label_emb.0.0.weight": (4, 2816),
    f"{UNET}out.0.weight": (300, 1000),
}
VAE = {"decoder.conv_in.weight": (8, 4, 3, 3)}
VAE_CONFIG = json.dumps({"_class_name": "AutoencoderKL", "latent_channels": 4}).encode()


def run(capsys, *words):
    """Exit code, and what was printed to stdout and to stderr."""
    with pytest.raises(SystemExit) as end:
        main(["download", *map(str, words)])
    printed = capsys.readouterr()
    return int(end.value.code or 0), printed.out, printed.err


def document(capsys, *words):
    code, out, _ = run(capsys, *words, "--json")
    assert code == 0, out
    return json.loads(out)


@pytest.fixture
def sdxl(hub):
    """The model and the VAE that the short names sdxl and sdxl-vae stand for, on our hub."""
    content = safetensors({**SDXL, "v_pred": (0,), "ztsnr": (0,)})
    hub.repositories["stabilityai/stable-diffusion-xl-base-1.0"] = Repository(
        {"sd_xl_base_1.0.safetensors": content, "another.safetensors": content}
    )
    hub.repositories["madebyollin/sdxl-vae-fp16-fix"] = Repository(
        {"config.json": VAE_CONFIG, "diffusion_pytorch_model.safetensors": safetensors(VAE)}
    )
    return hub


def test_a_model_by_its_short_name_with_its_vae(sdxl, capsys):
    told = document(capsys, "sdxl", "--with-vae", "--yes")
    assert told["path"] == "models/sd_xl_base_1.0.safetensors"
    assert Path(told["path"]).is_file()
    assert (told["family"], told["prediction_type"], told["zero_terminal_snr"]) == ("sdxl", "v_prediction", True)
    assert told["vae_path"] == "models/sdxl-vae-fp16-fix"
    assert Path(told["vae_path"], "config.json").is_file()
    listed = document(capsys, "--list")
    assert {model["name"] for model in listed["models"]} == {"sd_xl_base_1.0.safetensors", "sdxl-vae-fp16-fix"}
    assert {model["kind"] for model in listed["models"]} == {"base model", "vae"}


def test_the_page_says_what_it_is_and_what_comes_next(sdxl, capsys):
    code, out, _ = run(capsys, "sdxl", "--yes")
    assert code == 0
    text = " ".join(out.split())
    assert "Stable Diffusion XL base model; it predicts v, and its noise ends without signal" in text
    assert f"{sdxl.address}/stabilityai/stable-diffusion-xl-base-1.0" in text
    assert "lora-wizard download sdxl-vae" in text
    assert "lora-wizard new --base-model models/sd_xl_base_1.0.safetensors" in text
    _, again, _ = run(capsys, "sdxl", "--yes")
    assert "was here already" in " ".join(again.split())
    assert len(sdxl.asked("/cdn/")) == 2  # its beginning once, and the whole of it once


def test_a_dry_run_says_how_large_it_is_and_leaves_nothing(sdxl, capsys):
    told = document(capsys, "sdxl-vae", "--dry-run")
    assert told["downloaded"] is False
    assert told["kind"] == "vae"
    assert told["bytes"] == len(VAE_CONFIG) + len(safetensors(VAE))
    assert not Path("models").exists()


def test_another_family_than_the_one_asked_for_is_refused(sdxl, capsys):
    code, _, err = run(capsys, "sdxl", "--family", "sd15", "--yes")
    assert code == 1
    assert "of the family sdxl, not sd15" in err
    assert not Path("models").exists()


def test_the_models_folder_can_be_another(sdxl, capsys, tmp_path, monkeypatch):
    assert document(capsys, "sdxl", "--to", tmp_path / "m", "--yes")["path"].startswith(str(tmp_path / "m"))
    monkeypatch.setenv("LORA_WIZARD_MODELS", str(tmp_path / "n"))
    assert document(capsys, "sdxl-vae", "--yes")["path"].startswith(str(tmp_path / "n"))


def test_half_or_full_weights_are_what_was_asked_for(hub, capsys, tiny_sd15):
    files = {
        path.relative_to(tiny_sd15).as_posix(): path.read_bytes() for path in tiny_sd15.rglob("*") if path.is_file()
    }
    files |= {
        name.replace(".safetensors", ".fp16.safetensors"): body for name, body in files.items() if "safet" in name
    }
    hub.repositories["maker/both"] = Repository(files)
    half = document(capsys, "maker/both", "--dry-run")["files"]
    full = document(capsys, "maker/both", "--weights", "full", "--dry-run")["files"]
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in half
    assert "unet/diffusion_pytorch_model.safetensors" in full
    assert len(half) == len(full)


def test_a_file_and_a_revision_are_passed_on(sdxl, capsys):
    name = "stabilityai/stable-diffusion-xl-base-1.0"
    assert document(capsys, name, "--file", "another.safetensors", "--dry-run")["name"] == "another.safetensors"
    code, _, err = run(capsys, name, "--revision", "v9", "--file", "another.safetensors", "--yes")
    assert (code, "no revision v9" in err) == (2, True)


def test_civitai_by_its_page(civ, capsys):
    civ.versions = [Version(10, 4, {"dream.safetensors": safetensors(SDXL)}, base_model="Illustrious")]
    code, out, _ = run(capsys, f"{civ.address}/models/4", "--yes")
    assert code == 0
    assert "Civitai calls its base “Illustrious”" in out
    assert Path("models/dream.safetensors").is_file()


def test_what_is_refused_is_one_sentence_and_an_exit_code(hub, capsys):
    hub.repositories["maker/gated"] = Repository({"a.safetensors": safetensors(SDXL)}, access="gated")
    code, _, err = run(capsys, "maker/gated", "--yes")
    assert code == 1
    assert f"{hub.address}/maker/gated" in err
    code, out, _ = run(capsys, "maker/gated", "--yes", "--json")
    assert json.loads(out)["exit_code"] == code == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "Name a model: sd15, sdxl"),
        (("sdxl",), "--yes"),
        (("sdlx", "--yes"), 'Did you mean "sdxl"'),
        (("https://example.org/model", "--yes"), "no address of a model"),
    ],
    ids=["nothing", "nobody to ask", "misspelt", "somewhere else"],
)
def test_wrong_use_is_told_without_asking_anybody(hub, capsys, words, told):
    code, _, err = run(capsys, *words)
    assert code == 2
    assert told in err
    assert hub.requests == []


def test_a_model_that_is_here_already_is_not_looked_for_elsewhere(hub, capsys, tmp_path):
    (tmp_path / "own.safetensors").write_bytes(b"x")
    code, _, err = run(capsys, tmp_path / "own.safetensors", "--yes")
    assert code == 2
    assert "--base-model" in err


def test_an_address_is_checked_without_the_network(hub):
    assert check_address(" sdxl ") == "sdxl"
    assert check_address("owner/name") == "owner/name"
    with pytest.raises(PlainError, match="no address"):
        check_address("what?")
    assert hub.requests == []


def test_what_a_model_is_in_words():
    assert kind_in_words("vae", "", "", False).startswith("VAE")
    assert kind_in_words("base model", "sd15", "epsilon", False).endswith("it predicts the noise (epsilon)")
    assert "its weights will tell" in kind_in_words("base model", "sd2", "", False)


def test_what_is_here_already_of_a_cut_download_is_told(hub, capsys):
    content = safetensors({**SDXL, f"{UNET}out.1.weight": (3000, 1000)})
    hub.repositories["maker/big"] = Repository({"big.safetensors": content})
    hub.faults = [Fault("/cdn/"), Fault("/cdn/", cut_after=4_000_000)]  # its beginning comes whole
    hub.faults += [Fault("/cdn/", status=500, times=99)]
    code, _, err = run(capsys, "maker/big", "--yes")
    assert (code, "goes on from there" in " ".join(err.split())) == (1, True)
    hub.faults.clear()
    code, out, _ = run(capsys, "maker/big", "--yes")
    assert code == 0
    assert "of which 4.0 MB are here already" in " ".join(out.split())
    assert hub.asked("/cdn/")[-1].headers["Range"].startswith("bytes=39")


def test_in_a_terminal_it_asks_first_and_shows_a_bar(sdxl, tmp_path):
    terminal = pexpect.spawn(
        sys.executable, ["-m", "wizard.cli", "download", "sdxl"], encoding="utf-8", dimensions=(30, 100), timeout=30
    )
    terminal.expect("Download it")
    terminal.sendline("n")
    terminal.expect(pexpect.EOF)
    assert not Path("models").exists()
    terminal = pexpect.spawn(
        sys.executable, ["-m", "wizard.cli", "download", "sdxl"], encoding="utf-8", dimensions=(30, 100), timeout=30
    )
    terminal.expect("Download it")
    terminal.sendline("")
    terminal.expect("sd_xl_base")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0
    assert Path("models/sd_xl_base_1.0.safetensors").is_file()
