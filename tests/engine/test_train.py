import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from short_runs import PICTURES, ROOT, Configure, Values, of_kind, run_to_end, same, stopped_at, weights

from calculator.plan import plan
from calculator.schedule import learning_rate_multiplier
from calculator.validation import held_out, trained_on
from engine.dataset.folders import scan
from engine.events import (
    CheckpointSaved,
    Failed,
    RunFinished,
    RunStarted,
    SampleSaved,
    StepFinished,
    Validated,
    Warned,
    from_line,
)
from engine.models.load import load
from engine.networks import ALGORITHMS
from engine.optimizers import OPTIMIZERS
from engine.run_folder import RunFolder
from engine.train import train
from knowledge.answers import PlainError
from knowledge.config import CONVOLUTIONS_TOO, Scheduler
from knowledge.facts import Hardware

# -- what a run gives -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_the_same_answers_and_seed_give_the_same_weights(configure: Configure, family: str):
    first, again, other = (run_to_end(configure(family, seed=seed))[0] for seed in (1, 1, 2))
    assert same(weights(first), weights(again))
    assert not same(weights(first), weights(other))


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
        sampling={"prompts": ["a toy --s 1"], "every_epochs": 2},
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
    assert [event.step for event in of_kind(events, SampleSaved)] == [0, 6, 9]
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


def test_keep_last_keeps_the_newest_files_and_the_final_one(configure: Configure):
    run, _ = run_to_end(configure(saving={"every_steps": 1, "keep_last": 1, "precision": "fp16"}))
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["toy-step000003.safetensors", "toy.safetensors"]
    assert {tensor.dtype for tensor in weights(run).values()} == {torch.float16}


def effect_in_engine(folder: str, family: str, tensors: dict[str, torch.Tensor], network: Values) -> torch.Tensor:
    """What the engine's own network computes with these weights: noise as the base model predicts it, changed."""
    from engine.models.load import load
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


# -- what every option does -------------------------------------------------------------------------------------------

CHANGES: dict[str, Values] = {
    "another clip skip": {"base_model": {"clip_skip": 2}},
    "v-prediction": {"base_model": {"prediction_type": "v_prediction"}},
    "zero terminal SNR": {"base_model": {"zero_terminal_snr": True}},
    "longer captions": {"base_model": {"maximum_tokens": 150}},
    "a trigger word": {"dataset": {"trigger_word": "zwx"}},
    "another resolution": {"dataset": {"resolution": 48}},
    "no buckets": {"dataset": {"buckets": False}},
    "flip": {"dataset": {"flip": True}},
    "shuffled tags": {"dataset": {"shuffle_tags": True}},
    "no captions": {"dataset": {"caption_dropout_rate": 1.0}},
    "no captions in this epoch": {"dataset": {"caption_dropout_every_epochs": 1}},
    "tag dropout": {"dataset": {"tag_dropout_rate": 0.5}},
    "a prefix": {"dataset": {"caption_prefix": "photo of"}},
    "a suffix": {"dataset": {"caption_suffix": "at night"}},
    "weighted words": {"dataset": {"weighted_captions": True, "caption_suffix": "(at night:1.5)"}},
    "a mark for fixed tags": {"dataset": {"keep_tokens_separator": "red"}},
    "one line of several": {"dataset": {"wildcards": True}},
    "random crops": {"dataset": {"random_crop": True}, "memory": {"cache_latents": False}},
    "varied colours": {"dataset": {"colour_augmentation": True}, "memory": {"cache_latents": False}},
    "transparency as mask": {"dataset": {"alpha_masks": True}},
    "half the weight outside the mask": {"dataset": {"alpha_masks": True}, "loss": {"unmasked_weight": 0.5}},
    "another algorithm": {"network": {"algorithm": "lokr"}},
    "other rates for some blocks": {"network": {"block_rates": ",".join(["0.5"] * 12 + ["1"] * 13)}},
    "ranks in turn": {"network": {"algorithm": "dylora", "dylora_block_size": 1}},
    "another alpha": {"network": {"alpha": 1.0}},
    "dropout": {"network": {"dropout": 0.5}},
    "rank dropout": {"network": {"rank_dropout": 0.5}},
    "module dropout": {"network": {"module_dropout": 0.5}},
    "a limit on norms": {"network": {"maximum_norm": 0.01}},
    "the UNet alone": {"network": {"train_text_encoder": False}},
    "another rate": {"optimizer": {"learning_rate": 5e-3}},
    "another rate for text": {"optimizer": {"text_encoder_learning_rate": 1e-4}},
    "LoRA+": {"optimizer": {"lora_plus_ratio": 4.0}},
    "weight decay": {"optimizer": {"weight_decay": 0.5}},
    "an argument of the optimizer": {"optimizer": {"arguments": {"betas": [0.5, 0.9]}}},
    "clipped gradients": {"optimizer": {"maximum_gradient_norm": 1e-3, "name": "adafactor"}},
    "another batch size": {"schedule": {"batch_size": 1}},
    "no accumulation": {"schedule": {"gradient_accumulation_steps": 1}},
    "a schedule": {"schedule": {"scheduler": "cosine"}},
    "Adafactor's own rate": {"optimizer": {"name": "adafactor"}, "schedule": {"scheduler": "adafactor"}},
    "fewer steps": {"schedule": {"maximum_steps": 3}},
    "another loss": {"loss": {"function": "huber"}},
    "min-SNR": {"loss": {"minimum_snr_gamma": 0.05}},
    "debiased": {"loss": {"debiased": True}},
    "a v-like loss": {"loss": {"v_prediction_like": 0.5}},
    "noise offset": {"noise": {"offset": 0.1}},
    "input perturbation": {"noise": {"input_perturbation": 0.1}},
    "another choice of timesteps": {"noise": {"timestep_sampling": "logit_normal"}},
    "coarse noise": {"noise": {"multires_iterations": 4}},
    "late timesteps": {"noise": {"minimum_timestep": 500}},
    "early timesteps": {"noise": {"maximum_timestep": 500}},
    "half precision": {"memory": {"precision": "bf16"}},
}


@pytest.fixture(scope="module")
def plain_weights(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    return {}


@pytest.mark.parametrize("change", CHANGES)
def test_every_option_changes_the_weights(configure: Configure, change: str, plain_weights: dict[Any, Any]):
    optimizer = CHANGES[change].get("optimizer", {}).get("name", "adamw")
    if optimizer not in plain_weights:
        config = configure(optimizer={"name": optimizer}, schedule={"epochs": 1})
        plain_weights[optimizer] = weights(run_to_end(config)[0])
    changed = {section: dict(values) for section, values in CHANGES[change].items()}
    changed["schedule"] = {"epochs": 1} | changed.get("schedule", {})
    if change == "fewer steps":
        changed["schedule"] = {"maximum_steps": 3, "epochs": 2}
    assert not same(weights(run_to_end(configure(**changed))[0]), plain_weights[optimizer])


SAME_WEIGHTS: dict[str, Values] = {
    "latents encoded in every step": {"memory": {"cache_latents": False}},
    "gradient checkpointing": {"memory": {"gradient_checkpointing": True}},
    "samples in between": {"sampling": {"prompts": ["a toy --s 2"], "every_steps": 1}},
    "saves in between": {"saving": {"every_steps": 1, "state_every_epochs": 1}},
}


@pytest.mark.parametrize("change", SAME_WEIGHTS)
def test_what_only_costs_or_saves_changes_nothing(configure: Configure, change: str):
    straight, _ = run_to_end(configure())
    other, _ = run_to_end(configure(**SAME_WEIGHTS[change]))
    for name, tensor in weights(straight).items():
        torch.testing.assert_close(weights(other)[name], tensor, rtol=1e-3, atol=1e-5)


def test_cached_text_outputs_change_nothing(configure: Configure):
    network = {"train_text_encoder": False}
    without, _ = run_to_end(configure(network=network))
    cached, _ = run_to_end(configure(network=network, memory={"cache_text_encoder_outputs": True}))
    for name, tensor in weights(without).items():
        torch.testing.assert_close(weights(cached)[name], tensor, rtol=1e-4, atol=1e-6)


def test_one_part_after_the_other_is_on_the_device_and_vae_and_text_encoders_never_with_the_unet(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
):
    moves: list[tuple[str, str]] = []
    texts: list[str] = []
    decoded_under_autocast: list[bool] = []

    def watched(*arguments: Any, **options: Any) -> Any:
        model = load(*arguments, **options)
        for name, part in {**model.parts(), "vae": model.vae}.items():

            def to(device: Any, name: str = name, move: Callable[[Any], Any] = part.to) -> Any:
                # What is in its place after loading has not left the CPU; on this machine all devices are the CPU.
                moves.append((name, "away" if device in ("cpu", "meta") else "in"))
                return move(device)

            monkeypatch.setattr(part, "to", to)
        encode, decode = model.encode_prompt, model.decode_latents
        monkeypatch.setattr(
            model, "encode_prompt", lambda captions, **how: texts.append("encoded") or encode(captions, **how)
        )
        monkeypatch.setattr(
            model,
            "decode_latents",
            lambda latents: decoded_under_autocast.append(torch.is_autocast_enabled("cpu")) or decode(latents),
        )
        return model

    monkeypatch.setattr("engine.train.load", watched)
    config = configure(
        family="sdxl",
        network={"train_text_encoder": False},
        memory={"cache_text_encoder_outputs": True, "precision": "bf16"},
        sampling={"prompts": ["a toy --s 1"], "every_steps": 2},
    )
    for event in train(config, RunFolder.create(config)):
        if isinstance(event, SampleSaved):
            texts.append("drawn")
    encoders = ["text_encoder", "text_encoder_2"]
    assert moves == [
        ("vae", "in"),
        ("vae", "away"),
        *((name, "in") for name in encoders),
        *((name, "away") for name in encoders),
        ("unet", "in"),
    ]
    assert "encoded" not in texts[texts.index("drawn") :]
    assert decoded_under_autocast
    assert not any(decoded_under_autocast)


def test_regularisation_pictures_weigh_what_prior_weight_says(configure: Configure):
    folders = [{"path": str(PICTURES)}, {"path": str(PICTURES.parent / "reg_1_toy"), "regularisation": True}]
    full, none = (
        run_to_end(configure(dataset={"folders": folders}, loss={"prior_weight": weight}, schedule={"epochs": 1}))[0]
        for weight in (1.0, 0.0)
    )
    assert not same(weights(full), weights(none))


# -- held-out pictures -------------------------------------------------------------------------------------------------


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


def test_measuring_more_often_changes_nothing_but_the_measurements(configure: Configure):
    seldom, few = run_to_end(configure(validation={"share": 0.4, "every_epochs": None}))
    often, many = run_to_end(configure(validation={"share": 0.4, "every_steps": 1}))
    assert same(weights(seldom), weights(often))
    of_step = {event.step: event.loss for event in of_kind(many, Validated)}
    assert len(of_step) > 2
    assert {event.step: event.loss for event in of_kind(few, Validated)}.items() <= of_step.items()


def test_a_caption_is_measured_whole_however_training_changes_it(configure: Configure):
    losses = [
        of_kind(run_to_end(configure(validation={"share": 0.4}, dataset=dataset))[1], Validated)[0].loss
        for dataset in ({}, {"caption_dropout_rate": 1.0, "flip": True, "shuffle_tags": True})
    ]
    assert losses[0] == losses[1]


def test_text_encoders_are_trained_for_their_share_of_the_run_and_then_left_alone(configure: Configure):
    settings = {"network": {"text_encoder_share": 0.5, "dropout": 0.2}, "optimizer": {"weight_decay": 0.5}}
    config = configure(**settings, saving={"every_steps": 1})
    run, events = run_to_end(config)
    rates = [event.learning_rate for event in of_kind(events, StepFinished)]
    assert [rate["text_encoder"] for rate in rates] == [1e-2, 1e-2, 0.0, 0.0]
    assert [rate["unet"] for rate in rates] == [1e-2] * 4
    first, second, last = (
        load_file(run.checkpoints / name)
        for name in ("toy-step000001.safetensors", "toy-step000002.safetensors", "toy.safetensors")
    )
    text = [name for name in last if name.startswith("lora_te") and "lora_up" in name]
    assert all(torch.equal(second[name], last[name]) for name in text)
    assert any(not torch.equal(first[name], second[name]) for name in text)
    assert not same({n: t for n, t in second.items() if "unet" in n}, {n: t for n, t in last.items() if "unet" in n})
    # Stopped on either side of the step at which they freeze, it is the same run.
    assert same(weights(stopped_at(config, [1, 2, 3])), weights(run))


# -- stopping and going on --------------------------------------------------------------------------------------------


RESTLESS: dict[str, Values] = {
    "prodigy": {"learning_rate": 1.0, "arguments": {"d0": 1e-3}},
    "prodigy_plus_schedule_free": {
        "learning_rate": 1.0,
        "maximum_gradient_norm": 0.0,
        "arguments": {"d0": 1e-3, "d_limiter": False},
    },
    "dadapt_adam": {"learning_rate": 1.0, "arguments": {"d0": 1e-3}},
}
"""Settings under which an optimizer changes its pace within a few updates, so that all it remembers matters."""


def schedule_with(name: str) -> str:
    """A schedule to try with an optimizer, so that every schedule has its turn; Adafactor gets its own."""
    schedulers = get_args(Scheduler)
    return "adafactor" if name == "adafactor" else schedulers[list(OPTIMIZERS).index(name) % len(schedulers)]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_stopped_and_resumed_is_straight_through_bit_for_bit(configure: Configure, name: str):
    config = configure(
        optimizer={"name": name} | RESTLESS.get(name, {}),
        schedule={"scheduler": schedule_with(name), "warmup": 1.0, "epochs": 3, "cycles": 2, "warmup_init": True},
        ema={"decay": 0.9, "every_steps": 2} if list(OPTIMIZERS).index(name) % 2 else {},
        dataset={"shuffle_tags": True, "flip": True, "caption_dropout_rate": 0.3},
        network={"dropout": 0.2},
    )
    straight, _ = run_to_end(config)
    assert same(weights(stopped_at(config, [1, 2, 5])), weights(straight))


@pytest.mark.parametrize("algorithm", [name for name in ALGORITHMS if name not in ("lora", "locon")])
def test_every_algorithm_is_stopped_and_resumed_bit_for_bit_on_convolutions_too(configure: Configure, algorithm: str):
    rank = {"rank": 12, "conv_rank": 12} if algorithm == "boft" else {}
    config = configure(
        network={
            "algorithm": algorithm,
            "convolutions": algorithm in CONVOLUTIONS_TOO,
            "dylora_block_size": 1,
            "module_dropout": 0.2,
        }
        | rank,
        memory={"gradient_checkpointing": True},
    )
    run, events = run_to_end(config)
    assert same(weights(stopped_at(config, [1, 3])), weights(run))
    saved = of_kind(events, CheckpointSaved)[-1]
    assert saved.applications["A1111"] == "yes"
    assert of_kind(events, Warned) == []


def test_a_stopped_run_leaves_a_network_and_a_state(configure: Configure):
    config = configure()
    run = RunFolder.create(config)
    events = list(train(config, run, should_stop=lambda: True))
    finished = of_kind(events, RunFinished)[0]
    assert (finished.reason, finished.step) == ("stopped", 1)
    assert (run.path / finished.network).is_file()
    assert [path.name for path in run.states()] == ["step-000001"]


def test_a_save_request_saves_and_goes_on(configure: Configure):
    config = configure()
    run = RunFolder.create(config)
    run.request("save")
    events = list(train(config, run))
    assert [(e.step, e.kind) for e in of_kind(events, CheckpointSaved)] == [
        (1, "network"),
        (1, "state"),
        (4, "network"),
    ]
    assert not run.requested("save")


def test_resuming_a_finished_run_says_so(configure: Configure):
    config = configure(schedule={"maximum_steps": 1})
    run, events = run_to_end(config)
    with run.event_log() as log:  # as the engine's process keeps them
        for event in events:
            log.write(event)
    with pytest.raises(PlainError, match="is finished"):
        list(train(config, run, resume=True))


# -- trouble ----------------------------------------------------------------------------------------------------------


def test_fp16_without_a_gpu_is_refused_in_words(configure: Configure):
    if torch.cuda.is_available():
        pytest.skip("this computer has a GPU")
    config = configure(memory={"precision": "fp16"})
    with pytest.raises(PlainError, match=r'memory\.precision is fp16.*"fp32" or "bf16"'):
        list(train(config, RunFolder.create(config)))


# -- as a process -----------------------------------------------------------------------------------------------------


def engine(run: RunFolder, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "engine", str(run.path), *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_process_tells_events_and_nothing_else(configure: Configure):
    run = RunFolder.create(configure())
    process = engine(run)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, (run.path / "engine.log").read_text()
    assert err == ""
    events = [from_line(line) for line in out.splitlines()]
    assert isinstance(events[-1], RunFinished)
    assert [json.loads(line) for line in out.splitlines()] == [
        json.loads(line) for line in (run.path / "events.jsonl").read_text().splitlines()
    ]


def test_ctrl_c_saves_and_ends_with_130_and_resume_finishes(configure: Configure):
    straight, _ = run_to_end(configure(schedule={"epochs": 20}))
    run = RunFolder.create(configure(schedule={"epochs": 20}))
    process = engine(run)
    assert process.stdout is not None
    for line in process.stdout:
        if isinstance(from_line(line), StepFinished):
            process.send_signal(signal.SIGINT)
            break
    rest = [from_line(line) for line in process.stdout]
    assert process.wait(timeout=60) == 130
    assert isinstance(rest[-1], RunFinished)
    assert rest[-1].reason == "stopped"
    process = engine(run, "--resume")
    process.communicate(timeout=120)
    assert process.returncode == 0
    # The process computes on as many threads as the tests do, so that sums are the same to the bit.
    assert same(weights(run), weights(straight))


def test_a_stop_request_ends_the_process_with_0(configure: Configure):
    run = RunFolder.create(configure(schedule={"epochs": 5000}))
    process = engine(run)
    assert process.stdout is not None
    for line in process.stdout:
        if isinstance(from_line(line), StepFinished):
            run.request("stop")
            break
    rest = [from_line(line) for line in process.stdout]
    assert process.wait(timeout=60) == 0
    assert rest[-1].reason == "stopped"  # type: ignore[attr-defined]
    assert not run.requested("stop")


def test_a_failure_is_an_event_with_cause_and_remedy_and_exit_code_1(configure: Configure, tmp_path: Path):
    missing = tmp_path / "gone.safetensors"
    run = RunFolder.create(configure(base_model={"path": str(missing)}))
    process = engine(run)
    out, err = process.communicate(timeout=60)
    last = from_line(out.splitlines()[-1])
    assert process.returncode == 1
    assert err == ""
    assert isinstance(last, Failed)
    assert str(missing) in last.cause
    assert last.remedy


def test_importing_the_engine_and_its_events_does_not_import_torch():
    program = "import engine, engine.events, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0
