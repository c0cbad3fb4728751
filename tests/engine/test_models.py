import json
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from original_layout import write_original
from safetensors.torch import load_file, save_file

from engine.models import original
from engine.models.detect import detect
from engine.models.load import load
from engine.models.original import shipped_tokenizer
from engine.models.sd import StableDiffusion
from engine.models.sdxl import StableDiffusionXL
from knowledge.answers import PlainError
from knowledge.config import BaseModelSettings

DATA = Path(__file__).parent.parent / "data"
FAMILIES = ["sd15", "sdxl"]


@pytest.fixture
def folder(request: pytest.FixtureRequest) -> Callable[[str], Path]:
    return lambda family: request.getfixturevalue(f"tiny_{family}")


def answer(model: StableDiffusion) -> torch.Tensor:
    """One prediction, which depends on the UNet and on all text encoders."""
    noisy = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(1))
    sizes = torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2)
    with torch.no_grad():
        return model.predict(noisy, torch.tensor([3, 700]), model.encode_prompt(["a cat", "two red cars"]), sizes)


# -- detection --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_diffusers_folder_is_recognised(folder: Callable[[str], Path], family: str):
    found = detect(folder(family))
    assert (found.family, found.prediction_type, found.layout) == (family, "epsilon", "folder")
    assert not found.zero_terminal_snr


@pytest.mark.parametrize("family", FAMILIES)
def test_a_single_file_is_recognised_with_its_markers(folder: Callable[[str], Path], family: str, tmp_path: Path):
    plain = write_original(folder(family), tmp_path / "plain.safetensors")
    markers = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    marked = write_original(folder(family), tmp_path / "marked.safetensors", markers)
    found = detect(plain)
    assert (found.family, found.prediction_type, found.layout) == (family, "epsilon", "single file")
    assert not found.zero_terminal_snr
    found = detect(marked)
    assert (found.prediction_type, found.zero_terminal_snr) == ("v_prediction", True)


def test_pocket_is_the_model_that_comes_with_the_program():
    found = detect("pocket")
    assert found.family == "pocket"
    assert (found.path / "model_index.json").is_file()


def header_only(path: Path, shapes: dict[str, list[int]]) -> Path:
    """A safetensors file of empty tensors under these names."""
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, path)
    return path


def test_what_cannot_be_trained_is_refused_in_words(tmp_path: Path, tiny_sd15: Path):
    unet = "model.diffusion_model."
    context = f"{unet}input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"
    (tmp_path / "old.ckpt").write_bytes(b"whatever")
    (tmp_path / "page.safetensors").write_bytes(b"<html>not found</html>")
    (tmp_path / "empty").mkdir()
    whole = header_only(tmp_path / "whole.safetensors", {context: [4, 768]}).read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-10])
    (tmp_path / "short.safetensors").write_bytes(struct.pack("<Q", 10**6) + b"{}")
    refused = {
        tmp_path / "gone.safetensors": "nothing is there",
        tmp_path / "old.ckpt": "is a pickle checkpoint.*Download the .safetensors version.*Save Checkpoint",
        "somebody/some-model": "nor this model of the Hugging Face hub.*lora-wizard download somebody/some-model",
        tmp_path / "page.safetensors": "is not a safetensors file",
        tmp_path / "short.safetensors": "is not a safetensors file",
        tmp_path / "cut.safetensors": "is cut short: 10 bytes are missing",
        tmp_path / "empty": "has no model_index.json",
        tiny_sd15 / "unet": "Give the folder above it",
        tiny_sd15.parent: f"one folder deeper. Give {re.escape(str(tiny_sd15))}",
        header_only(tmp_path / "lora.safetensors", {"lora_unet_x.lora_down.weight": [1, 1]}): "is a LoRA, not a base",
        header_only(
            tmp_path / "flux.safetensors", {"double_blocks.0.img_attn.norm.key_norm.scale": [1]}
        ): "is a Flux model",
        header_only(
            tmp_path / "inpaint.safetensors", {f"{unet}input_blocks.0.0.weight": [4, 9, 3, 3], context: [4, 768]}
        ): "is an inpainting model",
        header_only(
            tmp_path / "refiner.safetensors",
            {
                f"{unet}label_emb.0.0.weight": [4, 2560],
                f"{unet}input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": [4, 1280],
            },
        ): "is the SDXL refiner",
        header_only(tmp_path / "vae.safetensors", {"encoder.conv_in.weight": [1]}): "holds no UNet",
        header_only(tmp_path / "unet.safetensors", {"conv_in.weight": [1]}): "one part of a diffusers folder",
    }
    for path, words in refused.items():
        with pytest.raises(PlainError, match=words):
            detect(path)


# -- loading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_single_file_is_the_same_model_as_its_folder(
    folder: Callable[[str], Path], family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.copytree(folder(family), tmp_path / "configs" / family, ignore=shutil.ignore_patterns("*.safetensors"))
    monkeypatch.setattr(original, "configs", (tmp_path / "configs").joinpath)
    path = write_original(folder(family), tmp_path / "model.safetensors")
    from_folder = load(BaseModelSettings(path=str(folder(family)), family=family), torch.float32)
    from_file = load(BaseModelSettings(path=str(path), family=family), torch.float32)
    torch.testing.assert_close(answer(from_file), answer(from_folder), rtol=1e-5, atol=1e-6)
    picture = torch.rand((1, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    for ours, theirs in zip(from_file.encode_pictures(picture), from_folder.encode_pictures(picture), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_merge_without_the_level_text_model_is_the_same_model(
    tiny_sd15: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.copytree(tiny_sd15, tmp_path / "configs" / "sd15", ignore=shutil.ignore_patterns("*.safetensors"))
    monkeypatch.setattr(original, "configs", (tmp_path / "configs").joinpath)
    usual = write_original(tiny_sd15, tmp_path / "usual.safetensors")
    merge = tmp_path / "merge.safetensors"
    save_file(
        {name.replace("transformer.text_model.", "transformer."): t for name, t in load_file(usual).items()}, merge
    )
    from_merge, from_usual = (
        load(BaseModelSettings(path=str(path), family="sd15"), torch.float32) for path in (merge, usual)
    )
    assert torch.equal(answer(from_merge), answer(from_usual))


def test_a_name_on_the_hub_means_what_the_hubs_cache_holds(tiny_sd15: Path, tmp_path: Path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--somebody--tiny"
    shutil.copytree(tiny_sd15, repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    found = detect("somebody/tiny")
    assert (found.family, found.path) == ("sd15", repository / "snapshots" / ("0" * 40))
    assert load(BaseModelSettings(path="somebody/tiny", family="sd15"), torch.float32).latent_factor == 8


@pytest.mark.parametrize("family", FAMILIES)
def test_the_configurations_we_ship_are_those_of_the_families(family: str):
    unet = json.loads((original.configs(family) / "unet" / "config.json").read_text())
    assert unet["cross_attention_dim"] == {"sd15": 768, "sdxl": 2048}[family]
    vae = json.loads((original.configs(family) / "vae" / "config.json").read_text())
    assert vae["scaling_factor"] == {"sd15": 0.18215, "sdxl": 0.13025}[family]


def test_weights_take_the_precision_asked_for_and_the_vae_stays_exact(tiny_sdxl: Path):
    model = load(BaseModelSettings(path=str(tiny_sdxl), family="sdxl"), torch.bfloat16)
    assert model.unet.dtype == torch.bfloat16
    assert {encoder.dtype for encoder in model.text_encoders.values()} == {torch.bfloat16}
    assert model.vae.dtype == torch.float32
    assert not any(p.requires_grad for part in (*model.parts().values(), model.vae) for p in part.parameters())


def test_a_wrong_family_or_prediction_or_clip_skip_is_told(tiny_sd15: Path, tmp_path: Path):
    with pytest.raises(PlainError, match=r'base_model\.family = "sd15"'):
        load(BaseModelSettings(path=str(tiny_sd15), family="sdxl"), torch.float32)
    with pytest.raises(PlainError, match=r"base_model\.clip_skip is 9, but .* has 3 layers"):
        load(BaseModelSettings(path=str(tiny_sd15), family="sd15", clip_skip=9), torch.float32)
    predicts_v = shutil.copytree(tiny_sd15, tmp_path / "v")
    config = predicts_v / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"prediction_type": "v_prediction"}))
    with pytest.raises(PlainError, match=r'base_model\.prediction_type = "v_prediction"'):
        load(BaseModelSettings(path=str(predicts_v), family="sd15"), torch.float32)
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rescale_betas_zero_snr": True}))
    predicting_v = BaseModelSettings(path=str(predicts_v), family="sd15", prediction_type="v_prediction")
    with pytest.raises(PlainError, match=r"Set base_model\.zero_terminal_snr = true"):
        load(predicting_v, torch.float32)
    exact = predicting_v.model_copy(update={"zero_terminal_snr": True})
    assert load(exact, torch.float32).alphas_cumprod[-1] == 0


@pytest.mark.parametrize("missing", ["vae", "tokenizer", "unet/diffusion_pytorch_model.safetensors"])
def test_an_incomplete_folder_is_told(tiny_sd15: Path, tmp_path: Path, missing: str):
    copy = shutil.copytree(tiny_sd15, tmp_path / "copy")
    gone = copy / missing
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    with pytest.raises(PlainError, match=r"is missing|cannot be loaded"):
        load(BaseModelSettings(path=str(copy), family="sd15"), torch.float32)


# -- text -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("maximum", [75, 150, 225])
@pytest.mark.parametrize("tokenizer", ["sd1", "sdxl_te2"])
def test_captions_become_kohyas_token_numbers(tiny_sd15: Path, tokenizer: str, maximum: int):
    recorded = json.loads((DATA / "token_ids.json").read_text())
    model = load(BaseModelSettings(path=str(tiny_sd15), family="sd15", maximum_tokens=maximum), torch.float32)
    model.tokenizers = [shipped_tokenizer({"sd1": "<|endoftext|>", "sdxl_te2": "!"}[tokenizer])]
    assert model.token_ids(0, recorded["captions"]).tolist() == recorded[tokenizer][str(maximum)]


@pytest.mark.parametrize("family", FAMILIES)
def test_long_captions_reach_the_unet_whole(folder: Callable[[str], Path], family: str):
    settings = BaseModelSettings(path=str(folder(family)), family=family, maximum_tokens=150)
    model = load(settings, torch.float32)
    words = " ".join(["cat"] * 100)
    with torch.no_grad():
        long, other = (model.encode_prompt([words + last]).hidden_states for last in (" red", " blue"))
    assert long.shape[1] == 152
    assert not torch.equal(long, other)


def test_a_vae_of_its_own_takes_the_place_of_the_models(tiny_sd15: Path, tiny_sdxl: Path, tmp_path: Path):
    def mean(vae: str) -> torch.Tensor:
        model = load(BaseModelSettings(path=str(tiny_sd15), family="sd15", vae=vae), torch.float32)
        with torch.no_grad():
            return model.encode_pictures(torch.ones(1, 3, 32, 32))[0]

    assert not torch.equal(mean(str(tiny_sdxl)), mean(""))
    assert torch.equal(mean(str(tiny_sdxl / "vae")), mean(str(tiny_sdxl)))
    (tmp_path / "vae.safetensors").write_bytes(b"no vae")
    with pytest.raises(PlainError, match=r"vae\.safetensors"):
        mean(str(tmp_path / "vae.safetensors"))


@pytest.mark.parametrize("layout", ["diffusers", "original"])
def test_a_vae_file_is_read_in_either_layout(
    tiny_sd15: Path, tiny_sdxl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
):
    shutil.copytree(tiny_sd15, tmp_path / "sd15", ignore=shutil.ignore_patterns("*.safetensors"))
    monkeypatch.setattr(original, "configs", (tmp_path).joinpath)
    path = tiny_sdxl / "vae" / "diffusion_pytorch_model.safetensors"
    if layout == "original":
        whole = load_file(write_original(tiny_sdxl, tmp_path / "whole.safetensors"))
        prefix = "first_stage_model."
        path = tmp_path / "vae.safetensors"
        save_file({n.removeprefix(prefix): t for n, t in whole.items() if n.startswith(prefix)}, path)
    ours = load(BaseModelSettings(path=str(tiny_sd15), family="sd15", vae=str(path)), torch.float32).vae
    theirs = load(BaseModelSettings(path=str(tiny_sdxl), family="sdxl"), torch.float32).vae
    assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in ours.state_dict().items())


def test_clip_skip_takes_an_earlier_layer_and_the_final_norm(tiny_sd15: Path):
    last, earlier = (
        load(BaseModelSettings(path=str(tiny_sd15), family="sd15", clip_skip=skip), torch.float32) for skip in (1, 2)
    )
    (encoder,) = last.text_encoders.values()
    with torch.no_grad():
        plain = encoder(last.token_ids(0, ["a cat"]), output_hidden_states=True)
        torch.testing.assert_close(last.encode_prompt(["a cat"]).hidden_states, plain.last_hidden_state)
        skipped = earlier.encode_prompt(["a cat"]).hidden_states
    norm = torch.nn.functional.layer_norm(plain.hidden_states[-2], (32,), *map(torch.nn.Parameter, norm_of(encoder)))
    torch.testing.assert_close(skipped, norm)


def norm_of(encoder: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    state = encoder.state_dict()
    return next(v for k, v in state.items() if k.endswith("final_layer_norm.weight")), next(
        v for k, v in state.items() if k.endswith("final_layer_norm.bias")
    )


def test_sdxl_conditions_agree_with_diffusers(tiny_sdxl: Path):
    from diffusers import StableDiffusionXLPipeline

    model = load(BaseModelSettings(path=str(tiny_sdxl), family="sdxl"), torch.float32)
    assert isinstance(model, StableDiffusionXL)
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl, local_files_only=True)
    hidden, _, pooled, _ = pipeline.encode_prompt(
        "two red cars", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    with torch.no_grad():
        ours = model.encode_prompt(["two red cars"])
    torch.testing.assert_close(ours.hidden_states, hidden)
    torch.testing.assert_close(ours.pooled, pooled)


def test_the_sizes_that_sdxl_sees_are_embedded_as_kohya_does():
    from diffusers.models.embeddings import Timesteps

    embed = Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)
    for case in json.loads((DATA / "sdxl_size_embeddings.json").read_text()):
        sizes = torch.tensor([*case["original_hw"], *case["crop_top_left"], *case["target_hw"]], dtype=torch.float32)
        ours = embed(sizes)
        torch.testing.assert_close(ours[:, :8], torch.tensor(case["first8_each256"]), rtol=1e-6, atol=1e-6)
        assert ours.sum().item() == pytest.approx(case["sum"], rel=1e-5)


def test_pictures_go_through_the_vae_and_come_back_in_range(tiny_sd15: Path):
    model = load(BaseModelSettings(path=str(tiny_sd15), family="sd15"), torch.float32)
    assert model.latent_factor == 8
    with torch.no_grad():
        mean, std = model.encode_pictures(torch.zeros(1, 3, 64, 32))
        assert mean.shape == std.shape == (1, 4, 8, 4)
        pixels = model.decode_latents(torch.randn(1, 4, 8, 4, generator=torch.Generator().manual_seed(0)) * 10)
    assert pixels.shape == (1, 3, 64, 32)
    assert pixels.abs().max() <= 1


def test_a_header_alone_tells_what_a_file_is(tmp_path):
    """What a download is, is decided before it comes: from its first bytes."""
    from hubs import safetensors

    from engine.models.detect import detect_header, header_length, is_vae, parse_header

    unet = "model.diffusion_model."
    shapes = {
        f"{unet}input_blocks.0.0.weight": (8, 4, 3, 3),
        f"{unet}input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (4, 2048),
        f"{unet}label_emb.0.0.weight": (4, 2816),
        "v_pred": (0,),
        "ztsnr": (0,),
    }
    content = safetensors(shapes)
    length = header_length(content[:8], len(content), "it")
    header = parse_header(content[8 : 8 + length], len(content), "it")
    found = detect_header(header, tmp_path / "noob.safetensors", "it")
    assert (found.family, found.prediction_type, found.zero_terminal_snr) == ("sdxl", "v_prediction", True)
    assert not is_vae(header)
    with pytest.raises(PlainError, match="cut short"):
        parse_header(content[8 : 8 + length], len(content) - 1, "it")


def test_a_vae_is_told_by_its_entrance_and_another_kind_of_latents_is_refused():
    from engine.models.detect import Header, is_vae

    assert is_vae(Header({"decoder.conv_in.weight": (512, 4, 3, 3)}, {}))
    assert is_vae(Header({"first_stage_model.decoder.conv_in.weight": (512, 4, 3, 3)}, {}))
    assert not is_vae(Header({"text_model.embeddings.position_embedding.weight": (77, 768)}, {}))
    with pytest.raises(PlainError, match="16 channels"):
        is_vae(Header({"decoder.conv_in.weight": (512, 16, 3, 3)}, {}))


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_every_attention_is_the_fused_one_of_pytorch(tiny_sd15: Path, tiny_sdxl: Path, family: str):
    folder = {"sd15": tiny_sd15, "sdxl": tiny_sdxl}[family]
    model = load(BaseModelSettings(path=str(folder), family=family), torch.float32)
    assert {type(processor).__name__ for processor in model.unet.attn_processors.values()} == {"AttnProcessor2_0"}
    assert {encoder.config._attn_implementation for encoder in model.text_encoders.values()} == {"sdpa"}
