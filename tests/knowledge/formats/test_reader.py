"""Which trainer wrote a file, and files that none wrote."""

from __future__ import annotations

import pytest
from foreign import read

from knowledge.answers import PlainError
from knowledge.formats.reader import is_foreign, read_foreign
from knowledge.formats.vocabulary import facts_of


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.json", "{"),
        ("x.json", "[1]"),
        ("x.json", "{}"),
        ("x.toml", "= 3"),
        ("x.toml", "schema_version = 1"),
        ("x.yaml", "a: [1"),
        ("x.yaml", "a: 1"),
        ("x.sh", "echo hello"),
        ("x.safetensors", "nothing"),
    ],
)
def test_what_is_no_config_gets_one_sentence(name, content, tmp_path):
    with pytest.raises(PlainError, match=name.replace(".", r"\.")):
        read(tmp_path, name, content)


def test_answers_of_ours_are_not_foreign(tmp_path):
    ours, theirs = tmp_path / "a.toml", tmp_path / "b.toml"
    ours.write_text("schema_version = 1\n", encoding="utf-8")
    theirs.write_text("network_dim = 4\n", encoding="utf-8")
    assert (is_foreign(ours), is_foreign(theirs), is_foreign(tmp_path / "c.json")) == (False, True, True)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (
            "flux.json",
            '{"__version": 6, "training_method": "LORA", "model_type": "FLUX_DEV_1", "base_model_name": "a/b"}',
        ),
        ("flux.yaml", "config: {process: [{train: {lr: 1e-4}, model: {name_or_path: a/b, is_flux: true}}]}"),
        ("qwen.yaml", "config: {process: [{train: {lr: 1e-4}, model: {name_or_path: a/b, arch: qwen_image}}]}"),
        ("gui.json", '{"LoRA_type": "Flux1", "pretrained_model_name_or_path": "a/b", "flux1_checkbox": true}'),
        ("run.sh", "python flux_train_network.py --pretrained_model_name_or_path a/b --network_dim 8"),
    ],
)
def test_a_recipe_for_another_kind_of_model_says_so_first_and_brings_no_base_model(name, content, tmp_path):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    imported = read_foreign(path)
    assert "which this program does not" in imported.warnings[0]
    assert imported.config is not None
    assert imported.config.base_model.path == imported.values["base_model.path"] == "base-model"
    assert any(note.value == "a/b" and note.outcome == "unsupported" for note in imported.notes)


def test_a_model_config_of_the_hub_is_no_recipe(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"model_type": "qwen3", "hidden_size": 1024}', encoding="utf-8")
    with pytest.raises(PlainError, match="no training config of a trainer"):
        read_foreign(path)


def test_toml_of_no_trainer_is_not_taken_for_answers_of_ours(tmp_path):
    path = tmp_path / "prompts.toml"
    path.write_text('[[prompts]]\ntarget = "cat"\n', encoding="utf-8")
    with pytest.raises(PlainError, match="no training config of a trainer"):
        read_foreign(path)


UNRELATED = {
    "pyproject.toml": ('[build-system]\nrequires = ["x"]\n[tool.x]\nresolution = "a"\nseed = 1\n', "Python project"),
    "ruff.toml": ('[tool.ruff]\nline-length = 120\noutput_dir = "x"\n', "Python tools"),
    "Cargo.toml": ('[package]\nname = "x"\n[dependencies]\nresume = "1"\n', "Rust"),
    "package.json": ('{"name": "x", "version": "1", "scripts": {"train": "x"}, "optimizer_args": 1}', "JavaScript"),
    "tsconfig.json": ('{"compilerOptions": {"strict": true,},}', "TypeScript"),
    "docker-compose.yml": ("services:\n  web: {image: x}\n", "Docker Compose"),
    "ci.yml": ("on: push\njobs: {build: {}}\n", "GitHub Actions"),
    "workflow.json": ('{"nodes": [], "links": [], "version": 0.4}', "ComfyUI"),
    "api.json": ('{"3": {"class_type": "KSampler", "inputs": {}}, "4": {"class_type": "VAEDecode"}}', "ComfyUI"),
    "config.json": ('{"samples_save": true, "sd_model_checkpoint": "x"}', "web UI"),
    "ui-config.json": ('{"txt2img/Prompt/value": ""}', "web UI"),
    "model_index.json": ('{"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "x"]}', "diffusers"),
    "text_encoder.json": ('{"architectures": ["CLIPTextModel"], "model_type": "CLIP"}', "transformers"),
    "adapter_config.json": ('{"peft_type": "LORA", "base_model_name_or_path": "x", "lora_alpha": 4}', "PEFT"),
    "inference.yaml": ("model: {target: ldm.models.LatentDiffusion}\n", "model's parts"),
    "accelerate.yaml": ("compute_environment: LOCAL_MACHINE\nmixed_precision: fp16\n", "accelerate"),
    "simpletuner.json": ('{"--model_family": "sdxl", "--lora_rank": 16}', "SimpleTuner"),
    "pipe.toml": ("[model]\ntype = 'sdxl'\n[adapter]\nrank = 8\n", "diffusion-pipe"),
    "train.ipynb.json": ('{"cells": [], "nbformat": 4}', "notebook"),
}


@pytest.mark.parametrize("name", UNRELATED)
def test_files_handed_over_by_mistake_are_called_by_their_name(name, tmp_path):
    text, what = UNRELATED[name]
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert is_foreign(tmp_path / name) or name.endswith(".toml")
    with pytest.raises(PlainError, match=f"is no training config: it is .*{what}") as refused:
        read_foreign(tmp_path / name)
    assert refused.value.exit_code == 2


def test_every_kind_of_unrelated_file_has_an_example():
    kinds = {kind["what"] for kind in facts_of("unrelated")["kinds"]}
    told = {what for what in kinds if any(example in what for _, example in UNRELATED.values())}
    assert kinds - told == {
        "a list of misspellings (typos)",
        "the description of a tokenizer",
    }
