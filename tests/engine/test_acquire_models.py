"""Models from a hub and a Civitai on this machine: what is offered, what it is, what is refused, what stays."""

from __future__ import annotations

import hashlib
import json
import struct
import threading

import pytest
from hubs import Repository, Version, safetensors
from servers import Fault

from engine.acquire import civitai, huggingface
from engine.acquire.models import MANIFEST, ModelsFolder, bring_in, models_folder, recognise, set_aside
from engine.models.detect import TELLING_BIAS, detect
from knowledge.answers import PlainError

pytestmark = pytest.mark.usefixtures("quick_network")
UNET = "model.diffusion_model."
SDXL = {
    f"{UNET}input_blocks.0.0.weight": (8, 4, 3, 3),
    f"{UNET}input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (4, 2048),
    f"{UNET}label_emb.0.0.weight": (4, 2816),
    f"{UNET}out.0.weight": (300, 1000),
}
SD15 = {
    f"{UNET}input_blocks.0.0.weight": (8, 4, 3, 3),
    f"{UNET}input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight": (4, 768),
    f"{UNET}out.0.weight": (300, 1000),
}
INPAINTING = {**SD15, f"{UNET}input_blocks.0.0.weight": (8, 9, 3, 3)}
NOOB = {**SDXL, "v_pred": (0,), "ztsnr": (0,)}
SD2 = {
    f"{UNET}input_blocks.0.0.weight": (8, 4, 3, 3),
    f"{UNET}input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight": (4, 1024),
    f"{UNET}{TELLING_BIAS}": (320,),
    f"{UNET}out.0.weight": (300, 1000),
}
VAE = {"decoder.conv_in.weight": (8, 4, 3, 3), "decoder.up_blocks.0.resnets.0.conv1.weight": (8, 8)}
LORA = {"lora_unet_x.lora_down.weight": (4, 8), "lora_unet_x.lora_up.weight": (8, 4)}


@pytest.fixture
def folder(tmp_path):
    return ModelsFolder(tmp_path / "models")


def fetched(offer, folder):
    return bring_in(recognise(offer, folder), folder)


def left_in(folder):
    """Everything in the models folder but the lock of its manifest."""
    return sorted(path.relative_to(folder.path).as_posix() for path in folder.path.rglob("*") if path.is_file())


def diffusers_folder(source):
    return {path.relative_to(source).as_posix(): path.read_bytes() for path in source.rglob("*") if path.is_file()}


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


# --- Civitai


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
