"""Taggers and captioners from a hub on this machine: whole and checked, from where an earlier call stopped, or told."""

from __future__ import annotations

import subprocess
import sys
import time

import onnx
import pytest
from hubs import Repository
from PIL import Image
from servers import Fault
from taggers import make_captioner, make_tagger

from engine.acquire.picture_models import bring, look
from engine.captioning import Captioner, captioner
from engine.tagging import Tagger, tagger
from knowledge.answers import PlainError

WD = "SmilingWolf/wd-vit-tagger-v3"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "no-cache"))
    monkeypatch.setenv("LORA_WIZARD_MODELS", str(tmp_path / "models"))
    return tmp_path


@pytest.fixture
def wd(hub, here):
    files = {path.name: path.read_bytes() for path in make_tagger(here / "theirs").iterdir()}
    hub.repositories[WD] = Repository({**files, "README.md": b"#", "model.safetensors": b"another form"})
    return hub


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_tagger_is_fetched_once_with_nothing_beside_it(wd, here):
    model = tagger("wd14-vit-v3")
    assert model.here() is None
    coming = look(model)
    told: list[tuple[str, int]] = []
    folder = bring(coming, lambda path, done: told.append((path, done)))
    assert names(here / "models") == ["for-pictures/wd-vit-v3/model.onnx", "for-pictures/wd-vit-v3/selected_tags.csv"]
    assert told[-1] == ("selected_tags.csv", coming.size_bytes)
    assert [done for _, done in told] == sorted(done for _, done in told)
    assert Tagger(folder).side == 32
    asked = len(wd.requests)
    assert model.here() == folder
    assert len(wd.requests) == asked


def test_what_a_killed_process_began_is_gone_on_with(wd, here):
    files = wd.repositories[WD].files
    large = onnx.load_from_string(files["model.onnx"])
    large.doc_string = "x" * 400_000
    files["model.onnx"] = large.SerializeToString()
    wd.faults.append(Fault("/cdn/", seconds=0.2, slice_bytes=70_000))
    code = "from engine.acquire.picture_models import bring, look; from engine.tagging import tagger\n"
    with subprocess.Popen([sys.executable, "-c", f"{code}bring(look(tagger('wd-vit-v3')))"]) as first:
        end = time.monotonic() + 60
        while not any(path.stat().st_size > 100_000 for path in (here / "models").rglob("*.part")):
            assert time.monotonic() < end
            time.sleep(0.02)
        first.kill()
    model = tagger("wd-vit-v3")
    assert model.here() is None
    (part,) = (here / "models").rglob("*.part")
    kept, before = part.stat().st_size, len(wd.requests)
    Tagger(bring(look(model)))
    ranges = [request.headers.get("Range") for request in wd.requests[before:] if request.path.startswith("/cdn/")]
    assert ranges == [f"bytes={kept}-"]
    assert not list((here / "models").rglob(".*"))


@pytest.mark.parametrize("status", [429, 500])
def test_a_hub_that_is_busy_is_asked_again(wd, status):
    wd.faults.append(Fault("/api/|/resolve/", times=2, status=status, headers={"Retry-After": "0"}))
    assert names(bring(look(tagger("wd-vit-v3")))) == ["model.onnx", "selected_tags.csv"]


@pytest.mark.parametrize(("status", "words"), [(401, "can be seen"), (404, "can be seen"), (403, "refused")])
def test_a_hub_that_refuses_is_told_and_nothing_is_there(wd, here, status, words):
    wd.faults.append(Fault("/api/", times=9, status=status))
    with pytest.raises(PlainError, match=words):
        look(tagger("wd-vit-v3"))
    wd.faults.clear()
    coming = look(tagger("wd-vit-v3"))
    wd.faults.append(Fault("/resolve/", times=9, status=status))
    with pytest.raises(PlainError, match=words):
        bring(coming)
    assert names(here / "models") == []


def test_a_file_with_another_hash_is_refused(wd, here):
    coming = look(tagger("wd-vit-v3"))
    wrong = bytearray(wd.repositories[WD].files["model.onnx"])
    wrong[-1] ^= 1
    wd.faults.append(Fault("/cdn/", status=200, body=bytes(wrong)))
    with pytest.raises(PlainError, match=r"model\.onnx is not the file .* promised"):
        bring(coming)
    assert tagger("wd-vit-v3").here() is None
    assert names(here / "models") == []


def test_the_token_goes_to_the_hub_and_not_to_its_store(wd, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_member")
    wd.repositories[WD].access = "private"
    bring(look(tagger("wd-vit-v3")))
    assert {request.token for request in wd.asked("/resolve/")} == {"hf_member"}
    assert [request.token for request in wd.asked("/cdn/")] == [None]


def test_a_repository_without_the_files_says_so(wd):
    del wd.repositories[WD].files["selected_tags.csv"]
    with pytest.raises(PlainError, match=r"has no selected_tags\.csv any more"):
        look(tagger("wd-vit-v3"))


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_a_captioner_is_fetched_and_writes(hub, here, tmp_path, weights):
    (tmp_path / "theirs").mkdir()
    folder = make_captioner(tmp_path / "theirs")
    if weights == "pytorch_model.bin":
        import torch
        from safetensors.torch import load_file

        torch.save(load_file(folder / "model.safetensors"), folder / weights)
        (folder / "model.safetensors").unlink()
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    hub.repositories["Salesforce/blip-image-captioning-base"] = Repository(files | {"tf_model.h5": b"for others"})
    fetched = bring(look(captioner("blip-base")))
    assert {"config.json", weights} <= set(names(fetched))
    assert "tf_model.h5" not in names(fetched)
    (sentence,) = Captioner(fetched).captions([Image.new("RGB", (40, 30))])
    assert sentence == Captioner(folder).captions([Image.new("RGB", (40, 30))])[0]
