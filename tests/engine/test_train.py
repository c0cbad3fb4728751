"""What a run gives: weights, files, events, and what is measured on the way."""

import math
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file
from short_runs import PICTURES, RESTLESS, Configure, Values, of_kind, run_to_end, same, stopped_at, weights

from calculator.plan import plan
from calculator.schedule import learning_rate_multiplier
from calculator.validation import held_out, trained_on
from engine.dataset.folders import scan
from engine.events import (
    CheckpointSaved,
    PhaseStarted,
    RunFinished,
    RunStarted,
    SampleSaved,
    StepFinished,
    Validated,
    Warned,
)
from engine.keeping import by_step
from engine.models.load import load
from engine.processes import create_accelerator
from engine.run_folder import RunFolder
from engine.train import train
from knowledge.answers import PlainError
from knowledge.config import Precision
from knowledge.facts import Hardware


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_the_same_answers_and_seed_give_the_same_weights(configure: Configure, family: str):
    first, again, other = (run_to_end(configure(family, seed=seed))[0] for seed in (1, 1, 2))
    assert same(weights(first), weights(again))
    assert not same(weights(first), weights(other))
    # Four updates move a weight by less than a tenth: those that begin at random began elsewhere.
    down, others = ({n: t for n, t in weights(run).items() if "lora_down" in n} for run in (first, other))
    assert all((tensor - others[name]).abs().max() > 0.1 for name, tensor in down.items())


def test_a_run_starts_from_a_finished_file_that_fits(configure: Configure, tmp_path: Path):
    first, _ = run_to_end(configure())
    file = tmp_path / "first.safetensors"
    shutil.copy(first.checkpoints / "toy.safetensors", file)
    # A rate of almost nothing leaves the weights as they came.
    second, _ = run_to_end(configure(network={"start_from": str(file)}, optimizer={"learning_rate": 1e-12}))
    for name, tensor in weights(second).items():
        torch.testing.assert_close(tensor, load_file(file)[name], rtol=0, atol=1e-9)
    for changed, words in (
        ({"rank": 3}, r"is \[2, \d+\] there and \[3, \d+\] here"),
        ({"alpha": 1.0}, "alpha is 2 there and 1 here"),
        ({"train_text_encoder": False}, "has more than this network"),
        ({"algorithm": "loha"}, "lacks"),
        ({"start_from": str(tmp_path / "gone")}, "no such file"),
    ):
        with pytest.raises(PlainError, match=words):
            run_to_end(configure(network={"start_from": str(file)} | changed))


def test_sdxls_second_text_encoder_may_learn_at_a_rate_of_its_own(configure: Configure):
    rates = {"learning_rate": 1e-3, "text_encoder_learning_rate": 1e-4, "text_encoder_2_learning_rate": 1e-5}
    run, events = run_to_end(configure("sdxl", optimizer=rates))
    used = of_kind(events, StepFinished)[0].learning_rate
    assert used == {"text_encoder": 1e-4, "text_encoder_2": 1e-5, "unet": 1e-3}
    same_rate, _ = run_to_end(configure("sdxl", optimizer=rates | {"text_encoder_2_learning_rate": None}))
    assert not same(weights(run), weights(same_rate))


def test_every_saved_network_says_who_reads_it_and_one_without_effect_is_told(configure: Configure):
    _, events = run_to_end(configure(saving={"every_epochs": 1}))
    saved = of_kind(events, CheckpointSaved)
    assert len(saved) == 2
    assert all(event.applications["ComfyUI"] == "yes" for event in saved)
    assert of_kind(events, Warned) == []
    # A rate of almost nothing moves the weights by less than fp16 can write.
    _, events = run_to_end(configure(optimizer={"learning_rate": 1e-12}, saving={"precision": "fp16"}))
    assert "changes nothing" in of_kind(events, Warned)[0].message


def test_the_plan_is_the_run(configure: Configure):
    config = configure(
        schedule={"epochs": 3, "batch_size": 1, "gradient_accumulation_steps": 2, "scheduler": "cosine", "warmup": 2.0},
        optimizer={"learning_rate": 1e-3, "text_encoder_learning_rate": 5e-4},
        saving={"every_epochs": 1, "state_every_epochs": 2},
        sampling={"prompts": ["a toy --s 1"], "every_epochs": 2, "sampler": "lms"},
    )
    run, events = run_to_end(config)
    started, finished = of_kind(events, RunStarted)[0], of_kind(events, RunFinished)[0]
    steps = of_kind(events, StepFinished)
    # Six pictures, one to a batch, two batches to an update: three updates an epoch.
    assert (started.updates_per_epoch, started.total_steps, started.epochs, started.images) == (3, 9, 3, 6)
    assert sum(started.batches_by_bucket.values()) == 6
    assert [event.step for event in steps] == list(range(1, 10))
    assert [event.epoch for event in steps] == [1] * 3 + [2] * 3 + [3] * 3
    for index, event in enumerate(steps):
        multiplier = learning_rate_multiplier(config.schedule, index, 9)
        assert event.learning_rate == {"text_encoder": 5e-4 * multiplier, "unet": 1e-3 * multiplier}
    saved = of_kind(events, CheckpointSaved)
    assert [(event.step, event.kind) for event in saved] == [
        (3, "network"),
        (6, "network"),
        (6, "state"),
        (9, "network"),
        (9, "state"),
    ]
    assert [event.final for event in saved] == [False, False, False, True, False]
    assert all((run.path / event.path).exists() for event in saved)
    assert all((run.path / e.path).stat().st_size == e.bytes for e in saved if e.kind == "network")
    drawn = of_kind(events, SampleSaved)
    assert [event.step for event in drawn] == [0, 6, 9]
    with Image.open(run.path / drawn[0].path) as picture:
        assert picture.size == (config.dataset.resolution,) * 2
        assert "Steps: 1, Sampler: lms" in picture.text["parameters"]
    assert finished.reason == "completed"
    assert run.path / finished.network == run.checkpoints / "toy.safetensors"


@pytest.mark.parametrize("name", ["schedule_free_adamw", "prodigy_plus_schedule_free"])
def test_averaged_weights_are_what_is_saved_and_drawn(configure: Configure, name: str):
    drawing = {"prompts": ["a toy --s 2"], "every_epochs": 2, "at_start": False}
    run, events = run_to_end(
        configure(
            optimizer={"name": name} | RESTLESS.get(name, {}),
            saving={"precision": "fp32", "state_every_epochs": 2},
            sampling=drawing,
        )
    )
    state = torch.load(run.states()[0] / "state.pt", weights_only=True)
    learning = list(state["network"].values())
    order = [index for group in state["remembering"]["optimizer"]["param_groups"] for index in group["params"]]
    kept = [state["remembering"]["optimizer"]["state"][index] for index in order]
    averaged = [now.lerp(memory["z"], 1 - 1 / 0.9) for now, memory in zip(learning, kept, strict=True)]
    for name_of, tensor in state["network"].items():
        written = weights(run)[name_of.removeprefix("adapters.")]
        assert any(torch.equal(written, each) for each in averaged if each.shape == written.shape)
        assert not torch.equal(written, tensor)
    # The same picture as from the saved file.
    start = {"start_from": str(run.checkpoints / "toy.safetensors")}
    again, drawn = run_to_end(
        configure(network=start, schedule={"maximum_steps": 1}, sampling=drawing | {"at_start": True})
    )
    first, second = (of_kind(one, SampleSaved)[0].path for one in (events, drawn))
    assert (run.path / first).exists()
    assert Image.open(run.path / first).tobytes() == Image.open(again.path / second).tobytes()


def test_of_one_picture_none_can_be_held_out_and_that_is_said(configure: Configure, tmp_path: Path):
    shutil.copy(PICTURES / "a.png", tmp_path)
    config = configure(dataset={"folders": [{"path": str(tmp_path)}]}, validation={"share": 0.2})
    with pytest.raises(PlainError, match=r"validation\.share is 0\.2, but there is one picture alone"):
        next(event for event in train(config, RunFolder.create(config)) if not isinstance(event, PhaseStarted))


def test_files_are_in_the_order_of_their_steps_beyond_six_digits():
    names = [f"a-step{step}.safetensors" for step in ("000002", "999999", "1000000", "20000000")]
    assert [path.name for path in by_step(Path(name) for name in sorted(names))] == names


def test_keep_last_keeps_the_newest_files_and_the_final_one(configure: Configure):
    run, _ = run_to_end(configure(saving={"every_steps": 1, "keep_last": 1, "precision": "fp16"}))
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["toy-step000003.safetensors", "toy.safetensors"]
    assert {tensor.dtype for tensor in weights(run).values()} == {torch.float16}


def effect_in_engine(folder: str, family: str, tensors: dict[str, torch.Tensor], network: Values) -> torch.Tensor:
    """What the engine's own network computes with these weights: noise as the base model predicts it, changed."""
    from engine.networks import create_network
    from knowledge.config import BaseModelSettings, NetworkSettings

    model = load(BaseModelSettings(path=folder, family=family), torch.float32)
    trained = create_network(model, NetworkSettings(**network), 0)
    for name, parameter in trained.named_parameters():
        parameter.data.copy_(tensors[name.removeprefix("adapters.")])
    trained.attach()
    trained.eval()
    with torch.no_grad():
        return model.predict(*inputs(), model.encode_prompt(["a toy", "a cat"]), torch.full((2, 6), 32.0))


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(5)), torch.tensor([10, 900])


@pytest.mark.parametrize("algorithm", ["lora", "locon"])
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_the_file_does_the_same_in_diffusers(configure: Configure, family: str, algorithm: str):
    pytest.importorskip("peft")
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    config = configure(family, network={"algorithm": algorithm, "rank": 2, "alpha": 1.0, "train_text_encoder": True})
    run, _ = run_to_end(config)
    network = config.network.model_dump()
    trained = effect_in_engine(config.base_model.path, family, weights(run), network)
    pipeline_kind = {"sd15": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}[family]
    pipeline = pipeline_kind.from_pretrained(config.base_model.path, local_files_only=True)

    def predict() -> torch.Tensor:
        more = {}
        if family == "sd15":
            hidden = pipeline.encode_prompt(["a toy", "a cat"], "cpu", 1, False)[0]
        else:
            hidden, _, pooled, _ = pipeline.encode_prompt(
                ["a toy", "a cat"], device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
            )
            more = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": torch.full((2, 6), 32.0)}}
        return pipeline.unet(*inputs(), hidden, **more).sample

    with torch.no_grad():
        base = predict()
        pipeline.load_lora_weights(run.checkpoints / "toy.safetensors")
        diffusers_says = predict()
    assert (trained - base).abs().max() > 1e-3
    torch.testing.assert_close(diffusers_says, trained, rtol=1e-4, atol=1e-5)


def test_held_out_pictures_are_measured_and_never_trained_on(configure: Configure, tmp_path: Path):
    pictures = tmp_path / "pictures"
    shutil.copytree(PICTURES, pictures)
    dataset = {"folders": [{"path": str(pictures)}]}
    config = configure(dataset=dataset, validation={"share": 0.4})
    scanned = scan(config.dataset)
    apart = held_out(scanned, config)
    assert len(apart) == 2  # two of six
    assert trained_on(scanned, config).images == 4
    run, events = run_to_end(config)
    measured = of_kind(events, Validated)
    started = of_kind(events, RunStarted)[0]
    assert started.images == 4
    assert [event.step for event in measured] == [0, started.updates_per_epoch, started.total_steps]
    assert {event.images for event in measured} == {2}
    planned = plan(config, scanned, Hardware("CPU"))
    assert (planned.total_steps, planned.updates_per_epoch) == (started.total_steps, started.updates_per_epoch)

    for picture in apart:  # other content there changes what is measured, and nothing that is learnt
        with Image.open(picture.path) as image:
            image.convert("RGB").point(lambda value: 255 - value).save(picture.path)
    other, other_events = run_to_end(config)
    assert same(weights(run), weights(other))
    assert [event.loss for event in of_kind(other_events, Validated)] != [event.loss for event in measured]


def test_a_caption_is_measured_whole_however_training_changes_it(configure: Configure):
    losses = [
        of_kind(run_to_end(configure(validation={"share": 0.4}, dataset=dataset))[1], Validated)[0].loss
        for dataset in ({}, {"caption_dropout_rate": 1.0, "flip": True, "shuffle_tags": True})
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("scale", [2.0**12, 2.0**126])
def test_a_scaler_skips_what_overflows_changes_nothing_else_and_goes_on_where_it_was(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, scale: float
):
    """What fp16 does on a GPU, with full precision's numbers: gradients are scaled up by a power of two and down."""

    def with_scaler(precision: Precision, **more: bool) -> Accelerator:
        accelerator = create_accelerator(precision, **more)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=2)
        optimizers = accelerator._optimizers
        accelerator.unscale_gradients = lambda: [accelerator.scaler.unscale_(each.optimizer) for each in optimizers]
        return accelerator

    large = {"network": {"alpha": 4096.0}, "optimizer": {"learning_rate": 1e-6}}  # gradients
    config = configure(**large, schedule={"gradient_accumulation_steps": 1, "maximum_steps": 4})
    plain, _ = run_to_end(config)
    monkeypatch.setattr("engine.train.create_accelerator", with_scaler)
    scaled, events = run_to_end(config)
    overflown = [not math.isfinite(event.gradient_norm) for event in of_kind(events, StepFinished)]
    assert any(overflown) == (scale > 2.0**100)
    assert same(weights(scaled), weights(plain)) != any(overflown)
    assert all(torch.isfinite(tensor).all() for tensor in weights(scaled).values())
    assert same(weights(stopped_at(config, [1, 3])), weights(scaled))


def test_fp16_without_a_gpu_is_refused_in_words(configure: Configure):
    if torch.cuda.is_available():
        pytest.skip("this computer has a GPU")
    config = configure(memory={"precision": "fp16"})
    with pytest.raises(PlainError, match=r'memory\.precision is fp16.*"fp32" or "bf16"'):
        list(train(config, RunFolder.create(config)))
