"""`lora-wizard tools publish` against a hub on this machine: what goes up, how it reads there, and what never does."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from click.testing import CliRunner
from hubs import Repository, WritableHub
from PIL import Image
from servers import Fault

from engine.events import SampleSaved
from engine.run_folder import RunFolder
from engine.tools.headers import read_header
from engine.tools.metadata import edited, write_metadata
from engine.tools.writing import save_tensors
from knowledge.answers import PlainError
from knowledge.config import TrainingConfig, with_values
from wizard.tools import tools

KOHYA = Path(__file__).parent.parent / "data" / "network_fp16.safetensors"
TOKEN = "hf_member"


def run(*arguments: object) -> str:
    """What the command prints; errors are raised as they reach the program's own handler."""
    outcome = CliRunner().invoke(tools, [str(argument) for argument in arguments], standalone_mode=False)
    if outcome.exception is not None:
        raise outcome.exception
    return outcome.stdout


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch):
    """A hub that speaks to the plain way of sending, and a token that it knows."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda _: None, time=time.time))
    with WritableHub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        yield server


@pytest.fixture
def fox(own_home: Path, photos: Path) -> RunFolder:
    """A finished run with samples before and after, in ./runs."""
    config = with_values(
        TrainingConfig(),
        {
            "output.name": "fox",
            "output.author": "Mila",
            "output.description": "A fox | with a [tail].",
            "base_model.family": "sd15",
            "base_model.path": "/home/mila/secret-project/v1-5.safetensors",
            "dataset.trigger_word": "zwx fox",
            "dataset.folders": ({"path": str(photos)},),
        },
    )
    made = RunFolder.create(config)
    shutil.copyfile(KOHYA, made.checkpoints / "fox.safetensors")
    with made.event_log() as log:
        for step in (0, 20):
            path = f"samples/step-{step:06d}_00.png"
            Image.new("RGB", (64, 64), (step, 90, 90)).save(made.path / path)
            prompt = 'zwx fox: in the "snow" | night'
            log.write(SampleSaved(at=step, step=step, epoch=0, index=0, prompt=prompt, seed=1, path=path))
    return made


PUBLISH = ("publish", "fox", "--license", "cc-by-4.0", "--yes")


def card_of(text: str) -> tuple[dict, str]:
    """The hub's fields and the page of a card."""
    _, fields, page = text.split("---\n", 2)
    return yaml.safe_load(fields), page


def test_a_run_goes_up_privately_with_a_card_written_from_it(hub, fox):
    text = run(*PUBLISH)
    assert "only you can see it" in text
    there = hub.repositories["mila/fox"]
    assert there.access == "private"
    assert there.files["fox.safetensors"] == KOHYA.read_bytes()
    assert set(there.files) == {"README.md", "fox.safetensors", "samples/step-000020_00.png", "before-after.png"}
    fields, page = card_of(there.files["README.md"].decode())
    assert fields["license"] == "cc-by-4.0"
    assert fields["instance_prompt"] == "zwx fox"
    assert {"lora", "text-to-image", "stable-diffusion"} <= set(fields["tags"])
    assert fields["widget"][0] == {
        "text": 'zwx fox: in the "snow" | night',
        "output": {"url": "samples/step-000020_00.png"},
    }
    for piece in (
        "`zwx fox`",
        "A LoRA of a character for `v1-5.safetensors`",
        "ComfyUI/models/loras",
        "<lora:fox:1>",
        'load_lora_weights("mila/fox", weight_name="fox.safetensors")',
        "before-after.png",
        "| Rank | 16 |",
        "By Mila.",
        "cc-by-4.0 (anything",
        "| `fox.safetensors` | ",
    ):
        assert piece in page, piece
    assert "secret-project" not in there.files["README.md"].decode()


def test_public_is_said_and_not_assumed(hub, fox):
    run(*PUBLISH, "--public", "--repo", "mila/open-fox")
    assert hub.repositories["mila/open-fox"].access == "open"
    hub.repositories["mila/taken"] = Repository({})
    with pytest.raises(PlainError, match="everybody can see it"):
        run(*PUBLISH, "--repo", "mila/taken")
    assert hub.repositories["mila/taken"].files == {}


def test_a_dry_run_lists_what_would_go_up_and_asks_nobody(hub, fox, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    text = run("publish", "fox", "--license", "mit", "--dry-run")
    for piece in ("private", "fox.safetensors", "before-after.png", "# fox", "license: mit", "OWNER/fox"):
        assert piece in text
    document = json.loads(run("publish", "fox", "--license", "mit", "--dry-run", "--json"))
    assert [file["path"] for file in document["files"]][:2] == ["README.md", "fox.safetensors"]
    assert (document["private"], document["url"]) == (True, None)
    assert hub.requests == []


def test_what_broke_off_goes_on_without_sending_twice(hub, fox):
    hub.faults.append(Fault(r"/commit/", status=400, method="POST"))
    with pytest.raises(PlainError, match="not sent again") as caught:
        run(*PUBLISH)
    assert "400" in str(caught.value)
    assert hub.repositories["mila/fox"].files == {}
    sent = len(hub.asked("/store/", "PUT"))
    assert sent == 3
    run(*PUBLISH)
    assert len(hub.asked("/store/", "PUT")) == sent
    assert hub.repositories["mila/fox"].files["fox.safetensors"] == KOHYA.read_bytes()


TRIES = 6
"""The hub's library tries each request so often."""


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ({"hang_up_after": 5000}, "the connection broke"),
        ({"status": 503}, "it answered with 503"),
    ],
    ids=str,
)
def test_an_upload_that_breaks_in_the_middle_heals_itself_or_goes_on_with_the_next_start(
    hub, fox, fault, expected, caplog, monkeypatch
):
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "propagate", True)
    hub.faults.append(Fault(r"/store/", method="PUT", **fault))
    run(*PUBLISH, "--repo", "mila/healed")
    assert hub.repositories["mila/healed"].files["fox.safetensors"] == KOHYA.read_bytes()
    hub.stored.clear()
    network = hashlib.sha256(KOHYA.read_bytes()).hexdigest()
    hub.faults.append(Fault(rf"/store/(?!{network})", method="PUT", times=TRIES, **fault))
    with pytest.raises(PlainError, match=rf"{expected}\. What is up already is not sent again"):
        run(*PUBLISH)
    assert set(hub.stored) == {network}
    assert hub.repositories["mila/fox"].files == {}
    before = len(hub.asked(rf"/store/{network}", "PUT"))
    run(*PUBLISH)
    assert len(hub.asked(rf"/store/{network}", "PUT")) == before
    assert len(hub.repositories["mila/fox"].files) == 4
    assert "/store/" not in caplog.text  # where it goes is signed, so whoever reads it could write there


def test_a_token_that_expires_in_the_middle_is_said_so_and_a_new_one_goes_on(hub, fox, monkeypatch):
    answer = hub.reply

    def expiring(request):
        if hub.stored:
            hub.members.discard(TOKEN)
        return answer(request)

    monkeypatch.setattr(hub, "reply", expiring)
    with pytest.raises(PlainError, match="does not know your token"):
        run(*PUBLISH)
    sent = len(hub.asked("/store/", "PUT"))
    assert (sent, hub.repositories["mila/fox"].files) == (1, {})
    monkeypatch.setattr(hub, "reply", answer)
    hub.members.add("hf_renewed")
    hub.known.add("hf_renewed")
    monkeypatch.setenv("HF_TOKEN", "hf_renewed")
    run(*PUBLISH)
    assert len(hub.asked("/store/", "PUT")) == 3
    assert hub.repositories["mila/fox"].files["fox.safetensors"] == KOHYA.read_bytes()


def test_a_process_killed_while_it_sends_has_lost_nothing(hub, fox, monkeypatch):
    answer = hub.reply
    command = [sys.executable, "-m", "wizard.cli", "tools", *PUBLISH]
    environment = os.environ | {"HF_HUB_DISABLE_XET": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def deadly(request):
        if request.method == "PUT" and hub.stored:
            process.kill()
            process.wait()
        return answer(request)

    monkeypatch.setattr(hub, "reply", deadly)
    assert process.wait(timeout=120) != 0
    monkeypatch.setattr(hub, "reply", answer)
    assert hub.repositories["mila/fox"].files == {}
    first = hub.asked("/store/", "PUT")[0].path
    run(*PUBLISH)
    assert len(hub.asked(first, "PUT")) == 1
    assert len(hub.repositories["mila/fox"].files) == 4


def test_a_dry_run_lists_exactly_what_goes_up(hub, fox):
    for more in ((), ("--no-samples",)):
        listed = json.loads(run(*PUBLISH, *more, "--repo", f"mila/fox{len(more)}", "--dry-run", "--json"))
        run(*PUBLISH, *more, "--repo", f"mila/fox{len(more)}")
        there = hub.repositories[f"mila/fox{len(more)}"].files
        assert {file["path"]: file["bytes"] for file in listed["files"]} == {k: len(v) for k, v in there.items()}
        assert there["README.md"].decode() == listed["card"]


def test_neither_home_nor_user_stands_in_what_goes_up(hub, fox, photos):
    run(*PUBLISH)
    for name, content in hub.repositories["mila/fox"].files.items():
        for private in (str(Path.home()), str(photos), "secret-project", TOKEN):
            assert private.encode() not in content, (name, private)


def test_a_card_that_was_edited_there_stays(hub, fox):
    hub.repositories["mila/fox"] = Repository({"README.md": b"mine"}, "private")
    assert "stays as it is" in run(*PUBLISH)
    assert hub.repositories["mila/fox"].files["README.md"] == b"mine"
    run(*PUBLISH, "--replace-card")
    assert b"# fox" in hub.repositories["mila/fox"].files["README.md"]


def test_the_token_goes_to_the_hub_alone_and_into_no_file(hub, fox):
    text = run(*PUBLISH)
    assert TOKEN not in text
    for request in hub.requests:
        assert TOKEN.encode() not in request.body
        if request.path.startswith("/store/"):
            assert "Authorization" not in request.headers
    assert not any(TOKEN.encode() in content for content in hub.repositories["mila/fox"].files.values())


def test_a_file_that_names_the_home_folder_is_pointed_out(hub, own_home):
    """Only other programs write paths into their files."""
    told = read_header(KOHYA).metadata | {"ss_sd_model_name": str(Path.home() / "models" / "secret.safetensors")}
    write_metadata(KOHYA, "toy.safetensors", told)
    arguments = ("publish", "toy.safetensors", "--repo", "m/toy", "--license", "mit", "--dry-run")
    assert "In toy.safetensors stands the path of your home folder" in " ".join(run(*arguments).split())
    assert json.loads(run(*arguments, "--json"))["names_home_folder"] == ["toy.safetensors"]


@pytest.mark.parametrize("secret", ["hf_" + "aB3" * 12, "ghp_" + "aB3" * 12, "a-password-of-mine"])
def test_a_secret_in_the_metadata_stops_everything(hub, fox, monkeypatch, secret):
    monkeypatch.setenv("CIVITAI_API_KEY", "a-password-of-mine")
    file = fox.checkpoints / "fox.safetensors"
    padding = {"my.padding": "x" * 5_000_000}  # wherever in the header it stands
    write_metadata(KOHYA, file, edited(padding, {"my.note": f"made with {secret}"}))
    with pytest.raises(PlainError, match=r"fox\.safetensors contains a secret") as caught:
        run(*PUBLISH)
    assert secret not in str(caught.value)
    assert hub.asked("", "POST") == hub.asked("", "PUT") == []


@pytest.mark.parametrize(
    ("token", "expected"),
    [("hf_unknown", "does not know your token"), ("hf_reader", "may not write to"), ("", "HF_TOKEN")],
)
def test_a_token_that_will_not_do_is_said_so_without_it(hub, fox, monkeypatch, token, expected):
    hub.members.add("hf_reader")
    hub.known.add("hf_reader")
    hub.readers.add("hf_reader")
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(PlainError, match=expected) as caught:
        run(*PUBLISH)
    assert not token or token not in str(caught.value)


def test_without_a_network_it_says_so(fox, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(PlainError, match="connection broke"):
        run(*PUBLISH)


def test_a_licence_is_asked_and_never_assumed(hub, fox):
    with pytest.raises(PlainError, match="--license") as caught:
        run("publish", "fox", "--yes")
    assert caught.value.exit_code == 2
    with pytest.raises(PlainError, match="no licence's name"):
        run("publish", "fox", "--yes", "--license", "do what you want!")
    run("publish", "fox", "--yes", "--license", "faipl-1.0-sd")
    fields, _ = card_of(hub.repositories["mila/fox"].files["README.md"].decode())
    assert (fields["license"], fields["license_name"]) == ("other", "faipl-1.0-sd")


def test_a_file_alone_is_published_with_the_recipe_it_carries(hub, own_home):
    shutil.copyfile(KOHYA, "toy.safetensors")
    run("publish", "toy.safetensors", "--repo", "toy", "--base-model", "a/b", "--license", "mit", "--yes")
    fields, page = card_of(hub.repositories["mila/toy"].files["README.md"].decode())
    assert fields["base_model"] == "a/b"
    assert "A LoRA for `a/b`" in page  # a kohya file does not say what was taught
    assert re.search(r"\| Rank \| 4 \|", page)
    assert 'from_pretrained(\n    "a/b"' in page


def test_a_broken_file_stays_here(hub, fox):
    from safetensors.torch import load_file

    tensors = load_file(KOHYA)
    next(iter(tensors.values())).flatten()[0] = float("nan")
    save_tensors(fox.checkpoints / "fox.safetensors", tensors)
    with pytest.raises(PlainError, match="not finite"):
        run(*PUBLISH)
    assert hub.asked("", "POST") == hub.asked("", "PUT") == []
