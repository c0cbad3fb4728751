"""Models from a hub and a Civitai on this machine: what is offered, what it is, what is refused, what stays."""

from __future__ import annotations

import hashlib
import json
import struct
import threading

import pytest
from hubs import Repository, safetensors
from model_files import INPAINTING, LORA, NOOB, SD2, SD15, SDXL, VAE, diffusers_folder, fetched, left_in
from servers import Fault

from engine.acquire import huggingface
from engine.acquire.models import bring_in, recognise, set_aside
from engine.acquire.models_folder import MANIFEST, ModelsFolder, models_folder
from engine.models.detect import detect
from knowledge.answers import PlainError

pytestmark = pytest.mark.usefixtures("quick_network")


@pytest.fixture
def folder(tmp_path):
    return ModelsFolder(tmp_path / "models")


# --- Hugging Face


@pytest.mark.parametrize(
    ("text", "repository", "revision", "path"),
    [
        ("owner/name", "owner/name", "", ""),
        ("owner/name@refs/pr/3", "owner/name", "refs/pr/3", ""),
        ("https://huggingface.co/owner/name", "owner/name", "", ""),
        ("huggingface.co/owner/name/", "owner/name", "", ""),
        ("https://hf.co/owner/name/tree/dev", "owner/name", "dev", ""),
        ("https://huggingface.co/owner/name/blob/main/a%20b.safetensors", "owner/name", "main", "a b.safetensors"),
        (
            "https://huggingface.co/owner/name/resolve/main/vae/x.safetensors?download=true",
            "owner/name",
            "main",
            "vae/x.safetensors",
        ),
        ("https://huggingface.co/owner/name/tree/refs/pr/3/vae", "owner/name", "refs/pr/3", "vae"),
    ],
)
def test_every_address_of_the_hub_is_understood(text, repository, revision, path):
    found = huggingface.parse(text)
    assert (found.repository, found.revision, found.path) == (repository, revision, path)


def test_other_addresses_are_left_to_others(monkeypatch):
    assert huggingface.parse("https://civitai.com/models/1") is None
    assert huggingface.parse("https://huggingface.co/datasets/a/b").kind == "datasets"
    monkeypatch.setenv("HF_ENDPOINT", "https://hf-mirror.example")
    assert huggingface.parse("https://hf-mirror.example/a/b").repository == "a/b"
    with pytest.raises(PlainError, match="not the page of a model"):
        huggingface.parse("https://huggingface.co/spaces/a/b")


@pytest.mark.parametrize(
    ("fill", "prediction"), [(b"\0", "epsilon"), (b"\0\x3c\0\xbc", "v_prediction")], ids=["alike", "spread"]
)
def test_what_an_sd2_file_does_not_say_its_weights_tell_once_they_are_here(hub, folder, fill, prediction):
    hub.repositories["maker/two"] = Repository({"two.safetensors": safetensors(SD2, fill=fill)})
    found = recognise(huggingface.offer("maker/two"), folder)
    assert (found.detected.family, found.detected.prediction_supposed) == ("sd2", True)
    assert (bring_in(found, folder).family, folder.models()[0].prediction_type) == ("sd2", prediction)


def test_a_single_file_is_recognised_before_it_comes_and_kept_with_its_story(hub, folder):
    content = safetensors(NOOB)
    hub.repositories["maker/noob"] = Repository({"README.md": b"hello", "noob.safetensors": content})
    found = recognise(huggingface.offer("maker/noob"), folder)
    assert (found.detected.family, found.detected.prediction_type) == ("sdxl", "v_prediction")
    assert found.detected.zero_terminal_snr
    assert found.offer.size_bytes == len(content)
    assert not folder.path.exists()  # looking leaves nothing
    told = []
    model = bring_in(found, folder, lambda path, done: told.append((path, done)))
    assert told[-1] == ("noob.safetensors", len(content))
    assert (folder.path / "noob.safetensors").read_bytes() == content
    (kept,) = folder.models()
    assert kept == model
    assert kept.page == f"{hub.address}/maker/noob"
    assert kept.revision == hub.repositories["maker/noob"].commit
    assert kept.files["noob.safetensors"]["sha256"] == hashlib.sha256(content).hexdigest()
    assert kept.zero_terminal_snr
    assert kept.downloaded.startswith("20")
    assert left_in(folder) == [".unfinished/manifest.lock", "manifest.json", "noob.safetensors"]
    assert folder.find(huggingface.offer("maker/noob")) == model
    (folder.path / "noob.safetensors").write_bytes(b"cut")
    assert folder.find(huggingface.offer("maker/noob")) is None


def test_a_diffusers_folder_brings_what_a_training_needs_and_no_more(hub, folder, tiny_sd15):
    files = diffusers_folder(tiny_sd15)
    for part, name in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ):
        whole = files[f"{part}/{name}.safetensors"]
        files[f"{part}/{name}.fp16.safetensors"] = whole
        files[f"{part}/{name}.bin"] = b"pickle"
    files |= {"unet/diffusion_pytorch_model.non_ema.safetensors": b"other", "v1-5.ckpt": b"pickle", "README.md": b"hi"}
    files["safety_checker/model.safetensors"] = b"not wanted"
    hub.repositories["maker/tiny"] = Repository(files)
    model = fetched(
        huggingface.offer("https://huggingface.co/maker/tiny".replace("https://huggingface.co", hub.address)), folder
    )
    assert (model.name, model.kind, model.family) == ("tiny", "base model", "sd15")
    assert detect(folder.path / "tiny").family == "sd15"
    weights = sorted(path for path in left_in(folder) if not path.endswith((".json", ".txt", ".lock")))
    assert weights == [
        "tiny/text_encoder/model.fp16.safetensors",
        "tiny/unet/diffusion_pytorch_model.fp16.safetensors",
        "tiny/vae/diffusion_pytorch_model.fp16.safetensors",
    ]
    full = huggingface.offer("maker/tiny", weights="full")
    assert "unet/diffusion_pytorch_model.safetensors" in {file.path for file in full.files}
    assert not any("fp16" in file.path for file in full.files)


def test_a_downloaded_folder_is_loaded_by_the_engine(hub, folder, tiny_sd15):
    import torch

    from engine.models.load import load
    from knowledge.config import BaseModelSettings

    hub.repositories["maker/tiny"] = Repository(diffusers_folder(tiny_sd15))
    model = fetched(huggingface.offer("maker/tiny"), folder)
    loaded = load(BaseModelSettings(path=str(folder.path / model.name), family="sd15"), torch.float32)
    assert sum(weight.numel() for weight in loaded.unet.parameters()) > 1000


def test_a_vae_is_told_from_a_base_model_as_file_and_as_folder(hub, folder):
    config = json.dumps({"_class_name": "AutoencoderKL", "latent_channels": 4}).encode()
    content = safetensors(VAE)
    hub.repositories["maker/vae"] = Repository({"config.json": config, "diffusion_pytorch_model.safetensors": content})
    hub.repositories["maker/one"] = Repository({"fine.vae.safetensors": content})
    model = fetched(huggingface.offer("maker/vae"), folder)
    assert (model.kind, model.family, model.name) == ("vae", "", "vae")
    assert sorted(path.name for path in (folder.path / "vae").iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]
    assert fetched(huggingface.offer("maker/one"), folder).kind == "vae"
    flux = json.dumps({"_class_name": "AutoencoderKL", "latent_channels": 16}).encode()
    hub.repositories["maker/flux"] = Repository({"config.json": flux, "diffusion_pytorch_model.safetensors": content})
    with pytest.raises(PlainError, match="16 channels"):
        recognise(huggingface.offer("maker/flux"), folder)
    assert not folder.staging(huggingface.offer("maker/flux")).exists()


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"model.safetensors": safetensors(INPAINTING)}, "an inpainting model"),
        ({"style.safetensors": safetensors(LORA)}, "is a LoRA, not a base model"),
        ({"page.safetensors": b"<!doctype html><html>...</html>"}, "not a safetensors file"),
        ({"cut.safetensors": safetensors(SDXL)[:-7]}, "cut short: 7 bytes"),
        ({"model.ckpt": b"\x80\x04pickle"}, "pickles only"),
        ({"notes.txt": b"hello"}, "holds no model"),
        ({"config.json": b"{}", "model.safetensors": safetensors(LORA)}, "neither a base model nor a VAE"),
    ],
    ids=["inpainting", "lora", "web page", "cut", "pickle", "nothing", "some other model"],
)
def test_what_cannot_be_trained_is_refused_before_it_comes(hub, folder, files, words):
    hub.repositories["maker/thing"] = Repository(files)
    with pytest.raises(PlainError, match=words):
        recognise(huggingface.offer("maker/thing"), folder)
    assert not folder.path.exists()
    assert all("Range" in request.headers for request in hub.asked("/cdn/"))


def test_several_files_are_named_and_one_can_be_chosen(hub, folder):
    hub.repositories["maker/two"] = Repository({"a.safetensors": safetensors(SDXL), "b.safetensors": safetensors(SD15)})
    with pytest.raises(PlainError, match=r"--file:\n  a.safetensors\n  b.safetensors"):
        huggingface.offer("maker/two")
    assert recognise(huggingface.offer("maker/two", file="b.safetensors"), folder).detected.family == "sd15"
    link = f"{hub.address}/maker/two/resolve/main/a.safetensors"
    assert recognise(huggingface.offer(link), folder).detected.family == "sdxl"
    with pytest.raises(PlainError, match=r'Did you mean "a.safetensors"'):
        huggingface.offer("maker/two", file="aa.safetensors")
    with pytest.raises(PlainError, match="pickle"):
        huggingface.offer("maker/two", file="c.ckpt")


def test_a_revision_is_honoured_and_a_missing_one_named(hub, folder):
    hub.repositories["maker/old"] = Repository({"a.safetensors": safetensors(SD15)}, revisions=("main", "v2"))
    assert huggingface.offer("maker/old@v2").revision == hub.repositories["maker/old"].commit
    assert hub.asked("/revision/v2")
    with pytest.raises(PlainError, match="no revision v3"):
        huggingface.offer("maker/old", revision="v3")


def test_a_gated_model_is_explained_with_the_page_to_accept(hub, folder, monkeypatch):
    hub.repositories["maker/gated"] = Repository({"a.safetensors": safetensors(SD15)}, access="gated")
    with pytest.raises(PlainError) as without:
        recognise(huggingface.offer("maker/gated"), folder)
    assert f"accept them on {hub.address}/maker/gated" in str(without.value)
    assert "HF_TOKEN" in str(without.value)
    monkeypatch.setenv("HF_TOKEN", "hf_stranger")
    with pytest.raises(PlainError) as stranger:
        recognise(huggingface.offer("maker/gated"), folder)
    assert "has not been let in" in str(stranger.value)
    assert "hf_stranger" not in str(stranger.value)
    monkeypatch.setenv("HF_TOKEN", "hf_member")
    assert fetched(huggingface.offer("maker/gated"), folder).family == "sd15"
    assert "hf_member" not in (folder.path / MANIFEST).read_text()
    assert hub.asked("/cdn/")
    assert not any("Authorization" in request.headers for request in hub.asked("/cdn/"))
    monkeypatch.setenv("HF_TOKEN", "hf_mistyped")
    with pytest.raises(PlainError, match="does not know your token"):
        huggingface.offer("maker/gated")


def test_a_private_or_misspelt_model_is_told_apart_from_a_gated_one(hub, folder, monkeypatch):
    hub.repositories["maker/private"] = Repository({"a.safetensors": safetensors(SD15)}, access="private")
    with pytest.raises(PlainError, match="seen without a token"):
        huggingface.offer("maker/private")
    monkeypatch.setenv("HF_TOKEN", "hf_stranger")
    with pytest.raises(PlainError, match="seen with your token"):
        huggingface.offer("maker/private")
    monkeypatch.setenv("HF_TOKEN", "hf_member")
    assert fetched(huggingface.offer("maker/private"), folder).name == "a.safetensors"


def test_a_lie_about_the_content_is_found_and_nothing_stays(hub, folder):
    content = safetensors(SDXL, fill=b"\1")
    hub.repositories["maker/lie"] = Repository({"a.safetensors": content})
    found = recognise(huggingface.offer("maker/lie"), folder)
    changed = content[:-1] + b"\2"
    hub.faults = [Fault("/cdn/", status=200, body=changed)]
    with pytest.raises(PlainError, match="its hash is another"):
        bring_in(found, folder)
    assert not folder.path.exists()


def test_a_refusal_in_the_end_leaves_nothing(hub, folder):
    hub.repositories["maker/a"] = Repository({"a.safetensors": safetensors(SD15)})
    found = recognise(huggingface.offer("maker/a"), folder)
    hub.faults = [Fault("/resolve/", status=403)]
    with pytest.raises(PlainError, match="refused maker/a"):
        bring_in(found, folder)
    assert not folder.path.exists()


def test_an_interrupted_folder_goes_on_with_the_file_it_was_at(hub, folder, tiny_sd15):
    hub.repositories["maker/tiny"] = Repository(diffusers_folder(tiny_sd15))
    found = recognise(huggingface.offer("maker/tiny"), folder)
    largest = max(found.offer.files, key=lambda file: file.source.size_bytes)
    digest = largest.source.sha256
    hub.faults = [Fault(digest, cut_after=200_000), Fault(digest, status=500, times=9)]
    with pytest.raises(PlainError, match="goes on from there"):
        bring_in(found, folder)
    assert not (folder.path / "tiny").exists()
    assert folder.models() == []
    hub.faults.clear()
    hub.requests.clear()
    bring_in(found, folder)
    assert hub.asked(digest)[0].headers["Range"].startswith("bytes=196608-")
    assert detect(folder.path / "tiny").family == "sd15"
    assert [path for path in left_in(folder) if "unfinished" in path] == [".unfinished/manifest.lock"]


def test_what_somebody_else_put_there_is_not_touched(hub, folder):
    folder.path.mkdir()
    (folder.path / "a.safetensors").write_bytes(b"mine")
    hub.repositories["maker/a"] = Repository({"a.safetensors": safetensors(SD15)})
    assert fetched(huggingface.offer("maker/a"), folder).name == "a-2.safetensors"
    assert (folder.path / "a.safetensors").read_bytes() == b"mine"


def test_two_downloads_of_one_model_do_not_write_over_each_other(hub, folder):
    hub.repositories["maker/a"] = Repository({"a.safetensors": safetensors(SD15)})
    found = recognise(huggingface.offer("maker/a"), folder)
    with folder.working_on(found.offer), pytest.raises(PlainError, match="running already"):
        bring_in(found, folder)


def test_looking_only_leaves_nothing_but_keeps_what_had_begun(hub, folder, tiny_sd15):
    hub.repositories["maker/tiny"] = Repository(diffusers_folder(tiny_sd15))
    found = recognise(huggingface.offer("maker/tiny"), folder)
    assert folder.staging(found.offer).is_dir()
    set_aside(found, folder)
    assert not folder.path.exists()
    found = recognise(huggingface.offer("maker/tiny"), folder)
    begun = folder.staging(found.offer) / "unet" / "diffusion_pytorch_model.safetensors.part"
    begun.write_bytes(b"half of it")
    set_aside(found, folder)
    assert begun.exists()


def test_a_disk_that_is_too_small_is_told_before_anything_comes(hub, folder, monkeypatch):
    hub.repositories["maker/a"] = Repository({"a.safetensors": safetensors(SD15)})
    found = recognise(huggingface.offer("maker/a"), folder)
    monkeypatch.setattr("engine.acquire.transfer.SPARE_BYTES", 10**18)
    asked = len(hub.requests)
    with pytest.raises(PlainError, match="not room enough"):
        bring_in(found, folder)
    assert len(hub.requests) == asked


def test_offline_means_offline(hub, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(PlainError, match="HF_HUB_OFFLINE"):
        huggingface.offer("maker/a")
    assert hub.requests == []


def test_a_busy_hub_is_asked_again(hub, folder):
    hub.repositories["maker/a"] = Repository({"a.safetensors": safetensors(SD15)})
    hub.faults = [Fault("/api/", status=429, headers={"Retry-After": "0"}), Fault("/resolve/", status=503)]
    assert fetched(huggingface.offer("maker/a"), folder).family == "sd15"


def test_a_header_longer_than_the_first_look_is_read_whole(hub, folder, monkeypatch):
    monkeypatch.setattr("engine.acquire.models.FIRST_BYTES", 64)
    hub.repositories["maker/a"] = Repository({"a.safetensors": safetensors(SDXL)})
    assert recognise(huggingface.offer("maker/a"), folder).detected.family == "sdxl"


def test_a_header_that_claims_to_be_endless_is_not_read(hub, folder):
    hub.repositories["maker/a"] = Repository({"a.safetensors": struct.pack("<Q", 1 << 60) + b"{}" * 100})
    with pytest.raises(PlainError, match="not a safetensors file"):
        recognise(huggingface.offer("maker/a"), folder)


# --- the folder


def test_the_models_folder_is_the_chosen_one_or_the_environments(tmp_path):
    assert models_folder(tmp_path, {"LORA_WIZARD_MODELS": "/elsewhere"}).path == tmp_path
    assert str(models_folder(None, {"LORA_WIZARD_MODELS": "/elsewhere"}).path) == "/elsewhere"
    assert str(models_folder(None, {}).path) == "models"


def test_a_damaged_manifest_is_said_so(folder):
    folder.path.mkdir()
    (folder.path / MANIFEST).write_text("{ not json")
    with pytest.raises(PlainError, match="Move it away"):
        folder.models()


def test_models_entered_at_the_same_time_are_all_kept(hub, folder):
    names = [f"maker/{letter}" for letter in "abcd"]
    for name in names:
        hub.repositories[name] = Repository({f"{name[-1]}.safetensors": safetensors(SD15, fill=name[-1].encode())})
    workers = [threading.Thread(target=lambda name=name: fetched(huggingface.offer(name), folder)) for name in names]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(model.name for model in folder.models()) == [f"{letter}.safetensors" for letter in "abcd"]
