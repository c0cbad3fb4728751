"""`lora-wizard tools` as it is typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from engine.pocket import MODEL_FOLDER
from knowledge.answers import PlainError
from wizard.tools import tools

KOHYA = Path(__file__).parent.parent / "data" / "network_fp16.safetensors"


def run(*arguments: object) -> str:
    """What the command prints; errors are raised as they reach the program's own handler."""
    outcome = CliRunner().invoke(tools, [str(argument) for argument in arguments], standalone_mode=False)
    if outcome.exception is not None:
        raise outcome.exception
    return outcome.stdout


def test_every_command_explains_itself_with_an_example():
    for name in tools.commands:
        outcome = CliRunner().invoke(tools, [name, "--help"])
        assert outcome.exit_code == 0
        assert f"lora-wizard tools {name}" in outcome.stdout


def test_inspect_tells_what_a_file_is():
    text = run("inspect", KOHYA)
    for piece in ("LoRA", "SD 1.5", "fp16", "UNet middle", "ComfyUI", "AutoV3", "sks toy 6", "192 layers"):
        assert piece in text


def test_a_file_for_the_pocket_model_is_read_by_no_other_program_and_that_model_goes_by_its_name(tmp_path):
    layer = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    base = load_file(MODEL_FOLDER / "unet" / "diffusion_pytorch_model.safetensors")
    weight = base["mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"]
    save_file(
        {
            f"{layer}.lora_down.weight": torch.ones(1, weight.shape[1]),
            f"{layer}.lora_up.weight": torch.zeros(weight.shape[0], 1),
            f"{layer}.alpha": torch.tensor(1.0),
            f"{layer}.dora_scale": weight.norm(dim=1, keepdim=True) * 2,
        },
        tmp_path / "pocket.safetensors",
        metadata={"lora_wizard.config": '{"base_model": {"family": "pocket"}}'},
    )
    told = json.loads(run("inspect", tmp_path / "pocket.safetensors", "--base", "pocket", "--json"))
    assert told["families"] == ["pocket"]
    text = run("inspect", tmp_path / "pocket.safetensors", "--base", "pocket")
    assert "lora-wizard alone: no other program" in text
    assert f"{weight.norm():.3g}" in text  # twice as long as it was: the change is the weight itself


def test_inspect_tells_the_recipe_in_words_and_what_was_not_done_not_at_all():
    from wizard.inspection import recipe

    told = dict(
        recipe(
            {
                "ss_optimizer": "torch.optim.adamw.AdamW(weight_decay=0.1)",
                "ss_unet_lr": "0.0001",
                "ss_learning_rate": "0.5",
                "ss_lr_warmup_steps": "0",
                "ss_noise_offset": "None",
                "ss_steps": "1200",
                "ss_shuffle_caption": "True",
                "ss_keep_tokens": "1",
                "ss_flip_aug": "False",
            }
        )
    )
    assert told == {
        "trained for": "1200 steps",
        "with": "AdamW · UNet 0.0001",
        "captions": "shuffled · the first 1 kept in place",
    }


def test_trigger_words_are_those_that_all_captions_of_a_folder_share():
    from engine.tools.metadata import trigger_words

    folders = {"10_toy": {"n_repeats": 10, "img_count": 2}, "1_style": {"n_repeats": 1, "img_count": 3}}
    tags = {"10_toy": {"sks toy": 2, "red": 1}, "1_style": {"flat style": 3, "red": 2}}
    metadata = {"ss_dataset_dirs": json.dumps(folders), "ss_tag_frequency": json.dumps(tags)}
    assert trigger_words(metadata) == ["sks toy", "flat style"]
    assert trigger_words(metadata | {"modelspec.trigger_phrase": "zwx"}) == ["zwx"]


def test_a_whole_checkpoint_in_a_pickle_becomes_safetensors_and_results_have_no_other_name(tmp_path):
    from safetensors.torch import load_file

    weights = {"model.diffusion_model.out.2.weight": torch.ones(4, 4), "v_pred": torch.ones(1).long()}
    torch.save({"state_dict": weights}, tmp_path / "old.ckpt")
    text = run("convert", tmp_path / "old.ckpt", "--precision", "fp16", "-o", tmp_path / "new.safetensors")
    assert "every weight kept its value" in text
    written = load_file(tmp_path / "new.safetensors")
    assert {name: tensor.dtype for name, tensor in written.items()} == {
        "model.diffusion_model.out.2.weight": torch.float16,
        "v_pred": torch.int64,
    }
    for command in (("resize", KOHYA, "--rank", 1), ("convert", KOHYA), ("merge", KOHYA), ("metadata", KOHYA)):
        with pytest.raises(PlainError, match=r"must end in \.safetensors"):
            run(*command, "-o", tmp_path / "x.ckpt")


def test_what_cannot_be_meant_with_a_base_to_merge_into_is_refused(tmp_path):
    for option in (("--rank", 4), ("--precision", "fp16"), ("--base", KOHYA)):
        with pytest.raises(PlainError, match="do not go with it"):
            run("merge", KOHYA, "--into", KOHYA, *option, "-o", tmp_path / "x.safetensors")


def test_no_empty_chart_is_drawn_where_the_base_model_decides(tmp_path):
    layer = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    save_file({f"{layer}.oft_blocks": torch.rand(2, 4, 8, 8)}, tmp_path / "boft.safetensors")
    with pytest.raises(PlainError, match=r"how strongly BOFT changes a layer cannot be told .* --base"):
        run("inspect", tmp_path / "boft.safetensors", "--chart", tmp_path / "chart.png")
    assert not (tmp_path / "chart.png").exists()


def test_inspect_as_json_is_one_document_with_everything(tmp_path):
    document = json.loads(run("inspect", KOHYA, "--chart", tmp_path / "chart.png", "--json"))
    assert len(document["layers"]) == 192
    assert sum(block["layers"] for block in document["blocks"]) == 192
    assert document["readings"][0] | {"remarks": []} == {
        "application": "ComfyUI",
        "read": 192,
        "layers": 192,
        "remarks": [],
        "verdict": "yes",
    }
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


def test_resize_writes_a_smaller_file_and_says_what_was_lost(tmp_path):
    text = run("resize", KOHYA, "--rank", 2, "-o", tmp_path / "small.safetensors")
    assert "rank 2" in text
    assert "error" in text
    assert (tmp_path / "small.safetensors").stat().st_size < KOHYA.stat().st_size
    report = json.loads(run("inspect", tmp_path / "small.safetensors", "--json"))
    assert {layer["rank"] for layer in report["layers"]} == {2}
    assert report["metadata"]["ss_network_dim"] == "2"
    assert report["hash_as_stated"] is True


def test_nothing_is_overwritten_unasked(tmp_path):
    target = tmp_path / "x.safetensors"
    target.write_bytes(b"mine")
    with pytest.raises(PlainError, match="--overwrite") as caught:
        run("resize", KOHYA, "--rank", 2, "-o", target)
    assert caught.value.exit_code == 2
    assert target.read_bytes() == b"mine"
    run("resize", KOHYA, "--rank", 2, "-o", target, "--overwrite")
    assert target.read_bytes() != b"mine"


def test_resize_without_a_limit_names_the_flags(tmp_path):
    with pytest.raises(PlainError, match="--rank"):
        run("resize", KOHYA, "-o", tmp_path / "x.safetensors")


def test_convert_there_and_back(tmp_path):
    run("convert", KOHYA, "--names", "peft", "-o", tmp_path / "peft.safetensors")
    run("convert", tmp_path / "peft.safetensors", "--names", "sd-scripts", "-o", tmp_path / "back.safetensors")
    from safetensors.torch import load_file

    before, after = load_file(KOHYA), load_file(tmp_path / "back.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_convert_makes_a_pickle_a_safetensors_file_in_another_precision(tmp_path):
    from safetensors.torch import load_file

    torch.save(load_file(KOHYA), tmp_path / "old.pt")
    run("convert", tmp_path / "old.pt", "--precision", "fp32", "-o", tmp_path / "new.safetensors")
    tensors = load_file(tmp_path / "new.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_merge_of_two_and_of_one_into_a_base(tiny_sd15, tmp_path):
    text = run("merge", KOHYA, KOHYA, "-w", 0.5, "-w", 0.5, "-o", tmp_path / "both.safetensors")
    assert "rank 8; nothing lost" in text
    said = json.loads(run("metadata", tmp_path / "both.safetensors", "--json"))
    assert said["modelspec.merged_from"] == f"{KOHYA.name} × 0.5; {KOHYA.name} × 0.5"
    with pytest.raises(PlainError, match="another"):
        run("merge", KOHYA, "--into", tiny_sd15, "-o", tmp_path / "merged")
    with pytest.raises(PlainError, match="once for each file"):
        run("merge", KOHYA, KOHYA, "-w", 1, "-o", tmp_path / "x.safetensors")


def test_extract_without_a_difference_says_so(tiny_sd15, tmp_path):
    with pytest.raises(PlainError, match="nothing to extract"):
        run("extract", tiny_sd15, tiny_sd15, "--rank", 4, "-o", tmp_path / "x.safetensors")


def test_metadata_is_shown_edited_and_stripped_with_the_hash_unchanged(tmp_path):
    from engine.tools.headers import body_hash

    assert "ss_optimizer" in run("metadata", KOHYA)
    edited = tmp_path / "edited.safetensors"
    run("metadata", KOHYA, "--set", "trigger=sks toy", "--set", "my.key=a=b", "--remove", "ss_seed", "-o", edited)
    said = json.loads(run("metadata", edited, "--json"))
    assert (said["modelspec.trigger_phrase"], said["my.key"], "ss_seed" in said) == ("sks toy", "a=b", False)
    public, private = tmp_path / "public.safetensors", tmp_path / "private.json"
    run("metadata", edited, "--strip", "--private-copy", private, "-o", public)
    assert set(json.loads(run("metadata", public, "--json"))) == {
        "ss_v2",
        "ss_base_model_version",
        "ss_network_module",
        "ss_network_dim",
        "ss_network_alpha",
        "sshs_model_hash",
        "sshs_legacy_hash",
    }
    assert json.loads(private.read_text(encoding="utf-8")) == said
    run("metadata", public, "--strip", "--everything")
    assert set(json.loads(run("metadata", public, "--json"))) == {"sshs_model_hash", "sshs_legacy_hash"}
    assert body_hash(public) == body_hash(KOHYA)
    with pytest.raises(PlainError, match="no metadata"):
        run("metadata", public, "--remove", "nothing")


def test_a_thumbnail_travels_inside_the_file(tmp_path):
    from PIL import Image

    Image.new("RGB", (1000, 600), "red").save(tmp_path / "x.png")
    target = tmp_path / "x.safetensors"
    run("metadata", KOHYA, "--thumbnail", tmp_path / "x.png", "-o", target)
    url = json.loads(run("metadata", target, "--json"))["modelspec.thumbnail"]
    assert url.startswith("data:image/jpeg;base64,")
