"""Stable Diffusion 2.x: told without loading, read in either layout, trained to a file that diffusers reads."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from original_layout import write_original
from safetensors.torch import load_file, save_file

from engine.models import original
from engine.models.detect import TELLING_BIAS, UNET_PREFIX, detect
from engine.models.load import load
from knowledge.answers import PlainError
from knowledge.architectures import read_architecture
from knowledge.config import BaseModelSettings
from knowledge.families import DATA

SETTINGS = {"family": "sd2", "prediction_type": "v_prediction"}


@pytest.fixture
def one_file(tiny_sd2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny model in the original layout, beside the configurations that it is read with."""
    shutil.copytree(tiny_sd2, tmp_path / "configs" / "sd2", ignore=shutil.ignore_patterns("*.safetensors"))
    monkeypatch.setattr(original, "configs", (tmp_path / "configs").joinpath)
    return write_original(tiny_sd2, tmp_path / "model.safetensors")


def test_both_layouts_are_recognised_and_a_folder_says_what_it_predicts(tiny_sd2: Path, one_file: Path):
    found = detect(tiny_sd2)
    assert (found.family, found.prediction_type, found.prediction_supposed) == ("sd2", "v_prediction", False)
    found = detect(one_file)
    assert (found.family, found.layout, found.prediction_supposed) == ("sd2", "single file", True)
    assert read_architecture(tiny_sd2, "sd2").configs["unet"]["use_linear_projection"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("deviation", "prediction"), [(0.05, "epsilon"), (0.2, "v_prediction")])
def test_the_spread_of_one_tensor_tells_what_a_silent_file_predicts(tmp_path: Path, dtype, deviation, prediction):
    path = tmp_path / "model.safetensors"
    context = f"{UNET_PREFIX}input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"
    values = deviation * torch.tensor([1.0, -1.0]).repeat(160) + 3.0
    save_file({context: torch.zeros(2, 1024), UNET_PREFIX + TELLING_BIAS: values.to(dtype)}, path)
    found = detect(path)
    assert (found.family, found.prediction_type, found.prediction_supposed) == ("sd2", prediction, True)
    save_file(load_file(path), path, {"modelspec.prediction_type": "epsilon"})
    found = detect(path)
    assert (found.prediction_type, found.prediction_supposed) == ("epsilon", False)


def test_an_unclip_model_is_refused_in_words(tmp_path: Path):
    names = (f"{UNET_PREFIX}label_emb.0.0.weight", "cond_stage_model.model.ln_final.weight")
    save_file({name: torch.zeros(2, 2) for name in names}, tmp_path / "unclip.safetensors")
    with pytest.raises(PlainError, match="is an unCLIP model"):
        detect(tmp_path / "unclip.safetensors")


def test_a_single_file_is_the_same_model_as_its_folder(tiny_sd2: Path, one_file: Path):
    def answer(path: Path) -> torch.Tensor:
        model = load(BaseModelSettings(path=str(path), **SETTINGS), torch.float32)
        noisy = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            text = model.encode_prompt(["a cat", "two red cars"])
            return model.predict(noisy, torch.tensor([3, 700]), text, torch.zeros(2, 6))

    torch.testing.assert_close(answer(one_file), answer(tiny_sd2), rtol=1e-5, atol=1e-6)


def test_a_file_that_does_not_say_what_it_predicts_is_trained_as_the_settings_say(tiny_sd2: Path, one_file: Path):
    silent = BaseModelSettings(path=str(one_file), family="sd2")
    assert load(silent, torch.float32).prediction_type == "epsilon"
    with pytest.raises(PlainError, match="says of itself that it predicts v"):
        load(BaseModelSettings(path=str(tiny_sd2), family="sd2"), torch.float32)


@pytest.mark.parametrize("place", ["folder", "file"])
def test_captions_become_kohyas_token_numbers_and_diffusers_text(tiny_sd2: Path, one_file: Path, place: str):
    from diffusers import StableDiffusionPipeline

    path = {"folder": tiny_sd2, "file": one_file}[place]
    recorded = json.loads((Path(__file__).parent.parent / "data" / "token_ids.json").read_text())
    model = load(BaseModelSettings(path=str(path), **SETTINGS), torch.float32)
    # sd-scripts' numbers for SD 2 are those of SDXL's second encoder: the same tokenizer, padded with "!" as well.
    assert model.token_ids(0, recorded["captions"]).tolist() == recorded["sdxl_te2"]["75"]
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_sd2, local_files_only=True)
    theirs, _ = pipeline.encode_prompt("two red cars", "cpu", 1, False)
    with torch.no_grad():
        ours = model.encode_prompt(["two red cars"]).hidden_states
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_configurations_we_ship_are_those_of_the_family():
    configs = {part: json.loads((DATA / "sd2" / part / "config.json").read_text()) for part in PARTS}
    unet, text = configs["unet"], configs["text_encoder"]
    assert (unet["cross_attention_dim"], unet["attention_head_dim"]) == (1024, [5, 10, 20, 20])
    assert unet["use_linear_projection"]
    assert (text["hidden_size"], text["num_attention_heads"], text["num_hidden_layers"]) == (1024, 16, 23)
    assert text["hidden_act"] == "gelu"
    assert configs["vae"]["scaling_factor"] == 0.18215


PARTS = ("unet", "vae", "text_encoder")


def test_a_run_on_a_single_file_makes_a_lora_that_diffusers_reads(tiny_sd2: Path, one_file: Path, tmp_path: Path):
    from diffusers import StableDiffusionPipeline
    from short_runs import short_config

    from engine.run_folder import RunFolder
    from engine.train import train

    changes = {
        "base_model": {"path": str(one_file), **SETTINGS},
        "network": {"rank": 2, "alpha": 2.0, "train_text_encoder": True},
    }
    run = RunFolder.create(short_config(one_file, "sd2", tmp_path / "runs", **changes))
    finished = list(train(run.config(), run))[-1]
    path = run.path / finished.network
    names = set(load_file(path))
    assert "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight" in names
    assert "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight" in names
    assert load_file(path)["lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"].dim() == 2
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_sd2, local_files_only=True)
    noisy, text = torch.ones(1, 4, 8, 8), torch.ones(1, 77, 32)
    with torch.no_grad():
        before = pipeline.unet(noisy, 500, text).sample
        pipeline.load_lora_weights(path)
        assert not torch.equal(pipeline.unet(noisy, 500, text).sample, before)
