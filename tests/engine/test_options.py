"""What every option does to a run: which change the weights, and which must not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from short_runs import PICTURES, Configure, Values, of_kind, run_to_end, same, stopped_at, weights

from engine.events import (
    SampleSaved,
    StepFinished,
)
from engine.models.load import load
from engine.run_folder import RunFolder
from engine.train import train

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
    "no captions in the second epoch": {"dataset": {"caption_dropout_every_epochs": 2}},
    "tag dropout": {"dataset": {"tag_dropout_rate": 0.5}},
    "a prefix": {"dataset": {"caption_prefix": "photo of"}},
    "a suffix": {"dataset": {"caption_suffix": "at night"}},
    "weighted words": {"dataset": {"weighted_captions": True}},
    "a mark for fixed tags": {"dataset": {"keep_tokens_separator": "red"}},
    "one line of several": {"dataset": {"wildcards": True}},
    "random crops": {"dataset": {"random_crop": True}},
    "varied colours": {"dataset": {"colour_augmentation": True}},
    "transparency as mask": {"dataset": {"alpha_masks": True}},
    "half the weight outside the mask": {"loss": {"unmasked_weight": 0.5}},
    "attention alone": {"network": {"attention_only": True}},
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
    "clipped gradients": {"optimizer": {"maximum_gradient_norm": 1e-3}},
    "another batch size": {"schedule": {"batch_size": 1}},
    "no accumulation": {"schedule": {"gradient_accumulation_steps": 1}},
    "a schedule": {"schedule": {"scheduler": "cosine"}},
    "Adafactor's own rate": {"schedule": {"scheduler": "adafactor"}},
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

ENCODED_IN_EVERY_STEP: Values = {"memory": {"cache_latents": False}}
NEEDS: dict[str, Values] = {
    "no captions in the second epoch": {"schedule": {"epochs": 2}},
    "weighted words": {"dataset": {"caption_suffix": "(at night:1.5)"}},
    "random crops": ENCODED_IN_EVERY_STEP,
    "varied colours": ENCODED_IN_EVERY_STEP,
    "half the weight outside the mask": {"dataset": {"alpha_masks": True}},
    "clipped gradients": {"optimizer": {"name": "adafactor"}},
    "Adafactor's own rate": {"optimizer": {"name": "adafactor"}},
    "fewer steps": {"schedule": {"epochs": 2}},
}
"""What an option shows its effect with. The run without the option has it too, so that nothing else differs."""


@pytest.fixture(scope="module")
def trained() -> dict[str, dict[str, torch.Tensor]]:
    """Weights by what was asked for, so that no run is made twice."""
    return {}


@pytest.mark.parametrize("change", CHANGES)
def test_every_option_changes_the_weights(
    configure: Configure, change: str, trained: dict[str, dict[str, torch.Tensor]]
):
    def with_option(*parts: Values) -> dict[str, torch.Tensor]:
        asked: Values = {"schedule": {"epochs": 1}}
        for part in parts:
            asked |= {section: asked.get(section, {}) | values for section, values in part.items()}
        if str(asked) not in trained:
            trained[str(asked)] = weights(run_to_end(configure(**asked))[0])
        return trained[str(asked)]

    needed = NEEDS.get(change, {})
    assert not same(with_option(needed, CHANGES[change]), with_option(needed))


SAME_WEIGHTS: dict[str, Values] = {
    "latents encoded in every step": {"memory": {"cache_latents": False}},
    "gradient checkpointing": {"memory": {"gradient_checkpointing": True}},
    "selective checkpointing": {"memory": {"selective_checkpointing": True}},
    "samples in between": {"sampling": {"prompts": ["a toy --s 2"], "every_steps": 1}},
    "saves in between": {"saving": {"every_steps": 1, "state_every_epochs": 1}},
}


@pytest.mark.parametrize("change", SAME_WEIGHTS)
def test_what_only_costs_or_saves_changes_nothing(configure: Configure, change: str):
    learning = {"network": {"dropout": 0.2}} if "in between" in change else {}  # which pauses then, and comes back
    straight, _ = run_to_end(configure(**learning))
    other, _ = run_to_end(configure(**learning, **SAME_WEIGHTS[change]))
    for name, tensor in weights(straight).items():
        torch.testing.assert_close(weights(other)[name], tensor, rtol=1e-3, atol=1e-5)


def test_both_ways_of_checkpointing_keep_less_for_the_backward_pass(configure: Configure):
    def kept(**memory: bool) -> int:
        total = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal total
            total += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            run_to_end(configure(memory=memory, schedule={"maximum_steps": 1, "gradient_accumulation_steps": 1}))
        return total

    everything = kept()
    selective = kept(selective_checkpointing=True)
    assert selective < 0.9 * everything
    # where everything is computed again the small layers are too
    again = kept(gradient_checkpointing=True)
    assert again < selective
    assert kept(gradient_checkpointing=True, selective_checkpointing=True) == again


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


def test_a_step_in_which_every_layer_rests_is_a_step(configure: Configure):
    network = {"module_dropout": 0.999, "train_unet": False}
    run, events = run_to_end(configure(network=network, schedule={"maximum_steps": 2}))
    assert [event.gradient_norm for event in of_kind(events, StepFinished)] == [0.0, 0.0]
    assert all(not tensor.any() for name, tensor in weights(run).items() if "lora_up" in name)


def test_regularisation_pictures_weigh_what_prior_weight_says(configure: Configure):
    folders = [{"path": str(PICTURES)}, {"path": str(PICTURES.parent / "reg_1_toy"), "regularisation": True}]
    full, none = (
        run_to_end(configure(dataset={"folders": folders}, loss={"prior_weight": weight}, schedule={"epochs": 1}))[0]
        for weight in (1.0, 0.0)
    )
    assert not same(weights(full), weights(none))


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
    assert same(weights(stopped_at(config, [2, 3])), weights(run))
    # What does not learn any more takes no part in the norm to which gradients are clipped either.
    _, learning = run_to_end(configure(network={"dropout": 0.2}, optimizer={"weight_decay": 0.5}))
    norms, all_norms = ([e.gradient_norm for e in of_kind(each, StepFinished)] for each in (events, learning))
    assert norms[:2] == all_norms[:2]
    assert norms[2] < all_norms[2]
