"""The family is a seam: one that is nothing like Stable Diffusion is a module, a folder of data and a row.

tests/small_flow.py and tests/data/families/small_flow are what its author would write; nothing else knows of it.
"""

import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import save_pipeline, tiny_tokenizer
from safetensors.torch import load_file
from short_runs import of_kind, run_to_end, same, short_config, stopped_at, weights

from calculator.caches import cached_bytes, text_output_bytes
from calculator.network_size import file_bytes, network_layers, trainable_parameters
from calculator.plan import plan
from engine.checkpoints import network_tensors
from engine.dataset.folders import scan
from engine.events import CheckpointSaved, Event, RunFinished, RunStarted, SampleSaved, StepFinished, Validated
from engine.models.detect import Header, detect, detect_header
from engine.models.family import BaseModel
from engine.models.load import FAMILIES, load
from engine.networks import attached, create_network
from engine.run_folder import RunFolder
from engine.samples import draw, sample_prompts
from engine.tools.adapters import adapters
from engine.tools.convert import convert
from engine.tools.files import LoadedTensors, open_tensors
from engine.tools.inspect import family_of
from knowledge import families
from knowledge.answers import PlainError, read_answers
from knowledge.architectures import architecture, read_architecture
from knowledge.config import BaseModelSettings, NetworkSettings, NoiseSettings, SamplingSettings, TrainingConfig
from knowledge.facts import Hardware

DATA = Path(__file__).parent.parent / "data" / "families"
PROMPT = "a toy on the shelf"


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    """What a shipped family has in knowledge/data/architectures and in the table of engine.models.load."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(families, "FOLDERS", [*families.FOLDERS, DATA])
        patch.setitem(FAMILIES, "small_flow", "small_flow:SmallFlow")
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the family as diffusers saves it, built from the family's usual configs."""
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

    torch.manual_seed(4)
    parts: dict[str, Any] = {}
    for part, inside in families.family_facts("small_flow").folders.items():
        library, _, name = import_module("small_flow").SmallFlow.kinds[part].partition(":")
        kind, config = getattr(import_module(library), name), json.loads((config_of(inside)).read_text())
        parts[inside] = kind.from_config(config) if library == "diffusers" else kind(kind.config_class(**config))
    pipeline = StableDiffusion3Pipeline(
        **parts,
        text_encoder_3=None,
        tokenizer=tiny_tokenizer(),
        tokenizer_2=tiny_tokenizer(pad_token="!"),
        tokenizer_3=None,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    return save_pipeline(pipeline, tmp_path_factory.mktemp("tiny") / "small_flow")


def in_diffusers(folder: Path) -> Any:
    from diffusers import StableDiffusion3Pipeline

    return StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None)


def config_of(part: str) -> Path:
    return DATA / "small_flow" / part / "config.json"


@pytest.fixture(scope="module")
def model(folder: Path) -> BaseModel:
    return load(settings(folder), torch.float32)


def settings(folder: Path, **values: Any) -> BaseModelSettings:
    return BaseModelSettings(path=str(folder), family="small_flow", **values)


def config(folder: Path, runs: Path, **changes: Any) -> TrainingConfig:
    pictures = {"resolution": 64, "bucket_step": 16, "bucket_minimum_side": 32, "bucket_maximum_side": 96}
    return short_config(folder, "small_flow", runs, **{"dataset": pictures} | changes)


def test_a_folder_and_a_single_file_of_it_are_recognised(folder: Path):
    found = detect(folder)
    assert (found.family, found.layout, found.prediction_type) == ("small_flow", "folder", "epsilon")
    (mark,) = families.family_facts("small_flow").marks
    header = Header({f"model.diffusion_model.{mark}": (8,)}, {})
    assert detect_header(header, Path("x.safetensors"), "x").family == "small_flow"


def test_what_it_lacks_is_refused_in_a_sentence(folder: Path, tmp_path: Path):
    said = r"loss\.minimum_snr_gamma is 5, but small flow has no noise schedule to weigh by\. Leave it empty\."
    with pytest.raises(ValueError, match=said):
        config(folder, tmp_path, loss={"minimum_snr_gamma": 5.0})
    with pytest.raises(
        ValueError, match=r"network\.block_ranks is '1,2', but the blocks of small_flow have no numbers"
    ):
        config(folder, tmp_path, network={"block_ranks": "1,2"})


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "text_encoder_2"])
def test_its_layers_have_the_weights_of_the_real_ones(folder: Path, model: BaseModel, part: str):
    real: dict[str, int] = {}
    for name, weight in (model.parts() | {"vae": model.vae})[part].named_parameters():
        path = name.rsplit(".", 1)[0].removeprefix("text_model.")
        real[path] = real.get(path, 0) + weight.numel()
    known = read_architecture(folder, "small_flow")
    assert {layer.path: layer.weights for layer in known.layers[part]} == real
    assert known.weights == architecture("small_flow").weights


@pytest.mark.parametrize("algorithm", ["lora", "lokr", "full"])
def test_the_calculator_knows_the_network_that_the_engine_makes(model: BaseModel, algorithm: Any):
    network = NetworkSettings(algorithm=algorithm, rank=3, train_text_encoder=True)
    real = create_network(model, network, seed=0)
    known = architecture("small_flow")
    ours = {
        f"{each.name}.{end}": shape for each in network_layers(known, network) for end, shape in each.tensors.items()
    }
    assert ours == {name: tuple(tensor.shape) for name, tensor in real.saved_tensors().items()}
    assert trainable_parameters(known, network) == sum(weight.numel() for weight in real.parameters())
    assert file_bytes(known, network, "fp16") > sum(2 * t.numel() for t in network_tensors(real, "fp16").values())


def test_captions_and_pictures_are_encoded_and_drawn_as_diffusers_does(folder: Path, model: BaseModel, tmp_path: Path):
    pipeline = in_diffusers(folder)
    pipeline.set_progress_bar_config(disable=True)
    with torch.no_grad():
        ours = model.encode_prompt([PROMPT])
        theirs, _, pooled, _ = pipeline.encode_prompt(PROMPT, PROMPT, PROMPT, do_classifier_free_guidance=False)
    torch.testing.assert_close(ours.hidden_states, theirs)
    torch.testing.assert_close(ours.pooled, pooled)
    tokens, width, summary = architecture("small_flow").text_outputs(77)
    assert ours.hidden_states.shape == (1, tokens, width)
    assert ours.pooled is not None
    assert ours.pooled.shape == (1, summary)
    caching = config(
        folder, tmp_path, memory={"cache_text_encoder_outputs": True}, network={"train_text_encoder": False}
    )
    assert text_output_bytes(caching, architecture("small_flow")) == 4 * (
        ours.hidden_states.numel() + ours.pooled.numel()
    )
    assert cached_bytes(caching, architecture("small_flow"), 2) > 2 * 4 * 16 * 8 * 8

    latents = torch.randn(1, 16, 4, 4)
    torch.testing.assert_close(model.scaled(latents), (latents - 0.0609) * 1.5305)

    (prompt,) = sample_prompts(SamplingSettings(prompts=(f"{PROMPT} --s 3 --l 4 --n blurry",)), 64)
    drawn = np.asarray(draw(model, prompt, "ddim"), dtype=int)
    latents = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(prompt.seed))
    expected = pipeline(
        PROMPT, negative_prompt="blurry", latents=latents, height=64, width=64, num_inference_steps=3, guidance_scale=4
    )
    assert np.abs(drawn - np.asarray(expected.images[0], dtype=int)).max() <= 1
    assert drawn.std() > 1


def test_its_own_noise_levels_are_drawn_and_those_of_the_settings_honoured(model: BaseModel):
    generator = torch.Generator().manual_seed(0)
    plain = model.draw_timesteps(4000, NoiseSettings(), generator)
    assert 640 < plain.median() < 860  # 3 · 0.5 / (1 + 2 · 0.5) = 0.75
    late = model.draw_timesteps(100, NoiseSettings(minimum_timestep=500), generator)
    assert late.min() >= 750


@pytest.fixture(scope="module")
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, list[Event]]:
    wanted = config(
        folder,
        tmp_path_factory.mktemp("runs"),
        network={"rank": 4, "alpha": 4.0},
        optimizer={"learning_rate": 5e-2},
        schedule={"epochs": 16, "gradient_accumulation_steps": 1},
        sampling={"prompts": [f"{PROMPT} --s 2"], "at_start": True, "every_epochs": 16},
        validation={"share": 0.2, "every_epochs": None},
        memory={"gradient_checkpointing": True},
    )
    return run_to_end(wanted)


def test_it_learns_and_draws_through_the_loop_as_it_is(trained: tuple[RunFolder, list[Event]]):
    run, events = trained
    losses = [event.loss for event in of_kind(events, StepFinished)]
    assert sum(losses[-6:]) < 0.95 * sum(losses[:6])
    before, after = (event.loss for event in of_kind(events, Validated))
    assert after < 0.95 * before
    first, last = (run.path / event.path for event in of_kind(events, SampleSaved))
    assert first.read_bytes() != last.read_bytes()
    assert of_kind(events, RunFinished)[0].reason == "completed"
    assert of_kind(events, CheckpointSaved)[-1].applications == {}  # none is known to read it


def test_its_plan_is_what_the_run_did(trained: tuple[RunFolder, list[Event]], folder: Path):
    run, events = trained
    asked = read_answers(run.path / "config.toml")
    expected = plan(asked, scan(asked.dataset), Hardware("CPU", cores=2), read_architecture(folder, "small_flow"))
    (started,) = of_kind(events, RunStarted)
    assert expected.total_steps == started.total_steps
    assert expected.trainable_parameters == started.trainable_parameters
    weights_alone = (run.checkpoints / "toy.safetensors").stat().st_size
    assert expected.file_bytes <= weights_alone < expected.file_bytes + 20_000  # and the metadata
    assert expected.vram.parts["base model"] > 4 * architecture("small_flow").weights["unet"]


def test_its_file_acts_in_diffusers_as_it_does_here(
    trained: tuple[RunFolder, list[Event]], folder: Path, model: BaseModel
):
    run, _ = trained
    path = run.checkpoints / "toy.safetensors"
    tensors = load_file(path)
    assert {name.partition("_layers_0_mlp_fc1")[0] for name in tensors if "layers_0_mlp_fc1" in name} == {
        "lora_te1_text_model_encoder",
        "lora_te2_text_model_encoder",
    }
    assert "lora_transformer_transformer_blocks_0_attn_to_q.lora_down.weight" in tensors
    opened = open_tensors(path)
    found = adapters(opened)
    assert family_of(opened, found) == "small_flow"

    network = create_network(model, NetworkSettings(rank=4, alpha=4.0, train_text_encoder=True), seed=0)
    network.take(tensors)
    pipeline = in_diffusers(folder)
    converted = convert(found, opened.metadata, "peft", "small_flow")
    assert converted.unknown == ()
    back = convert(adapters(LoadedTensors(converted.tensors, converted.metadata)), {}, "sd-scripts", "small_flow")
    assert set(back.tensors) == set(tensors)

    noisy, timesteps = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([500.0])
    with torch.no_grad():
        plain = model.predict(noisy, timesteps, model.encode_prompt([PROMPT]), torch.zeros(1, 6))
        with attached(network.eval()):
            ours = model.predict(noisy, timesteps, model.encode_prompt([PROMPT]), torch.zeros(1, 6))
        pipeline.load_lora_weights(dict(converted.tensors))
        read, _, pooled, _ = pipeline.encode_prompt(PROMPT, PROMPT, PROMPT, do_classifier_free_guidance=False)
        theirs = pipeline.transformer(noisy, read, pooled, timesteps, return_dict=False)[0]
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)
    assert (ours - plain).abs().max() > 0.1 * plain.abs().max()


def test_stopped_and_resumed_it_is_straight_through_bit_for_bit(folder: Path, tmp_path: Path):
    caches = {"cache_latents": True, "cache_text_encoder_outputs": True}
    wanted = config(folder, tmp_path, network={"train_text_encoder": False}, memory=caches)
    straight, _ = run_to_end(wanted)
    assert same(weights(stopped_at(wanted, [1, 3])), weights(straight))


def test_a_model_of_a_family_that_is_not_there_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(families, "FOLDERS", [families.DATA])
    with pytest.raises(
        PlainError, match=r"holds a StableDiffusion3Pipeline\. This program trains SD 1.5, SD 2 and SDXL"
    ):
        detect(folder)
    with pytest.raises(ValueError, match="Input should be 'pocket', 'sd15', 'sd2' or 'sdxl'"):
        settings(folder)
