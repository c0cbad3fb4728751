"""Models from a Civitai on this machine: what an address means, what comes of it, and where the key goes."""

from __future__ import annotations

import hashlib

import pytest
from hubs import Version, safetensors
from model_files import LORA, SD15, SDXL, VAE, fetched
from servers import Fault

from engine.acquire import civitai
from engine.acquire.models import bring_in, recognise
from engine.acquire.models_folder import MANIFEST, ModelsFolder
from knowledge.answers import PlainError

pytestmark = pytest.mark.usefixtures("quick_network")


@pytest.fixture
def folder(tmp_path):
    return ModelsFolder(tmp_path / "models")


@pytest.mark.parametrize(
    ("text", "model", "version"),
    [
        ("https://civitai.com/models/4201", "4201", ""),
        ("civitai.com/models/4201/realistic-vision?modelVersionId=501240", "4201", "501240"),
        ("https://civitai.red/models/4201?modelVersionId=7", "4201", "7"),
        ("https://civitai.com/api/download/models/501240?type=Model&format=SafeTensor&token=abc", "", "501240"),
        ("https://civitai.com/api/v1/model-versions/501240", "", "501240"),
        ("https://civitai.com/api/v1/models/4201", "4201", ""),
        ("urn:air:sdxl:checkpoint:civitai:4201@501240", "4201", "501240"),
    ],
)
def test_every_address_of_civitai_is_understood(text, model, version):
    found = civitai.parse(text)
    assert (found.model, found.version) == (model, version)
    assert "abc" not in repr(found)


def test_other_pages_of_civitai_are_named_as_such():
    assert civitai.parse("owner/name") is None
    with pytest.raises(PlainError, match="not the page of a model"):
        civitai.parse("https://civitai.com/articles/5")


def test_a_civitai_model_comes_checked_with_its_version(civ, folder):
    content = safetensors(SDXL)
    civ.versions = [
        Version(20, 4, {"newV2.safetensors": content}, name="v2.0"),
        Version(10, 4, {"oldV1.safetensors": safetensors(SD15)}, name="v1.0", base_model="SD 1.5"),
    ]
    offer = civitai.offer(f"{civ.address}/models/4/dream-shape")
    assert offer.title == "Dream Shape v2.0 (newV2.safetensors)"
    assert "SDXL 1.0" in offer.notes[0]
    model = fetched(offer, folder)
    assert (model.name, model.family, model.revision) == ("newV2.safetensors", "sdxl", "20")
    assert model.page == f"{civ.address}/models/4?modelVersionId=20"
    assert model.files["newV2.safetensors"]["sha256"] == hashlib.sha256(content).hexdigest()
    older = fetched(civitai.offer(f"{civ.address}/models/4?modelVersionId=10"), folder)
    assert older.family == "sd15"
    assert [kept.name for kept in folder.models()] in (
        ["newV2.safetensors", "oldV1.safetensors"],
        ["oldV1.safetensors", "newV2.safetensors"],
    )


def test_the_token_goes_to_civitai_in_a_header_and_nowhere_else(civ, folder, monkeypatch):
    civ.versions = [Version(10, 4, {"a.safetensors": safetensors(SDXL)}, access="login")]
    with pytest.raises(PlainError) as told:
        recognise(civitai.offer(f"{civ.address}/api/download/models/10"), folder)
    assert "CIVITAI_TOKEN" in str(told.value)
    assert "logged in" in str(told.value)
    monkeypatch.setenv("CIVITAI_API_KEY", "civ_stranger")
    with pytest.raises(PlainError, match="does not take your key"):
        recognise(civitai.offer(f"{civ.address}/api/download/models/10"), folder)
    monkeypatch.setenv("CIVITAI_TOKEN", "civ_member")
    civ.requests.clear()
    fetched(civitai.offer(f"{civ.address}/api/download/models/10?token=civ_member"), folder)
    assert {request.token for request in civ.asked("/api/")} == {"civ_member"}
    assert not any("Authorization" in request.headers for request in civ.asked("/store/"))
    assert not any("token" in request.query for request in civ.requests)
    assert "civ_member" not in (folder.path / MANIFEST).read_text()


def test_a_download_address_on_a_strange_host_gets_no_key(civ, monkeypatch):
    monkeypatch.setenv("CIVITAI_TOKEN", "civ_member")
    entry = {"name": "a.safetensors", "downloadUrl": "https://elsewhere.example/a"}
    assert civitai._source(entry, civitai.Address(civ.address), "1").token == ""
    entry["downloadUrl"] = "https://civitai.com/api/download/models/1?token=theirs&fp=fp16"
    source = civitai._source(entry, civitai.Address(civ.address), "1")
    assert (source.token, source.url) == ("civ_member", "https://civitai.com/api/download/models/1?fp=fp16")


def test_a_wrong_hash_on_civitai_is_refused_and_nothing_stays(civ, folder):
    civ.versions = [Version(10, 4, {"a.safetensors": safetensors(SDXL)}, claimed={"a.safetensors": "0" * 64})]
    with pytest.raises(PlainError, match="its hash is another"):
        fetched(civitai.offer(f"{civ.address}/models/4"), folder)
    assert not folder.path.exists()


@pytest.mark.parametrize(
    ("version", "words"),
    [
        (Version(10, 4, {"a.safetensors": safetensors(SDXL)}, access="early"), "early access"),
        (Version(10, 4, {"a.safetensors": safetensors(LORA)}, kind="LORA"), "is a LORA on Civitai"),
        (Version(10, 4, {"a.safetensors": safetensors(LORA)}), "is a LoRA, not a base model"),
        (Version(10, 4, {"a.ckpt": b"pickle"}), "as a pickle only"),
        (Version(10, 4, {"a.zip": b"PK"}), "no .safetensors file"),
        (Version(10, 4, {}), "no .safetensors file"),
        (Version(11, 4, {"a.safetensors": safetensors(SDXL)}), "There is no"),
    ],
    ids=["early access", "lora by its page", "lora by its tensors", "pickle", "zip", "nothing", "gone"],
)
def test_what_civitai_has_and_we_cannot_use_is_refused(civ, folder, version, words):
    civ.versions = [version]
    with pytest.raises(PlainError, match=words):
        recognise(civitai.offer(f"{civ.address}/models/4?modelVersionId=10"), folder)
    assert not folder.path.exists()


def test_the_file_of_a_version_can_be_chosen(civ, folder):
    files = {"a.safetensors": safetensors(SDXL), "a.vae.safetensors": safetensors(VAE)}
    civ.versions = [Version(10, 4, files)]
    assert recognise(civitai.offer(f"{civ.address}/models/4"), folder).kind == "base model"
    assert recognise(civitai.offer(f"{civ.address}/models/4", file="a.vae.safetensors"), folder).kind == "vae"
    with pytest.raises(PlainError, match=r"It has: a.safetensors, a.vae.safetensors"):
        civitai.offer(f"{civ.address}/models/4", file="b.safetensors")


def test_a_cut_civitai_download_goes_on(civ, folder):
    content = safetensors(SDXL)
    civ.versions = [Version(10, 4, {"a.safetensors": content})]
    found = recognise(civitai.offer(f"{civ.address}/models/4"), folder)
    civ.faults = [Fault("/store/", cut_after=300_000)]
    bring_in(found, folder)
    assert civ.asked("/store/")[-1].headers["Range"] == "bytes=262144-"
    assert (folder.path / "a.safetensors").read_bytes() == content
