from __future__ import annotations

from dataclasses import replace
from inspect import signature
from typing import get_args

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from engine.models.load import load
from engine.samplers import SAMPLERS
from engine.samples import SamplePrompt, draw, sample_prompts, write_picture
from knowledge.answers import PlainError
from knowledge.config import ZERO_SNR_SAMPLERS, BaseModelSettings, Sampler, SamplingSettings

PROMPT = SamplePrompt("a red circle", "blurry", 64, 48, seed=7, guidance_scale=5.0, steps=6)


@pytest.fixture(scope="module")
def model(tiny_sd15):
    return load(BaseModelSettings(path=str(tiny_sd15), family="sd15"), torch.float32)


def prompts(*lines: str, **values) -> tuple[SamplePrompt, ...]:
    return sample_prompts(SamplingSettings(prompts=lines, **values), resolution=512)


def test_a_prompt_takes_what_it_does_not_say_from_the_settings():
    usual = {"negative_prompt": "blurry", "seed": 5, "steps": 9, "guidance_scale": 3.5}
    first, second = prompts("a cat", "a dog", width=64, height=48, **usual)
    assert first == SamplePrompt("a cat", "blurry", 64, 48, 5, 3.5, 9)
    assert (second.prompt, second.seed) == ("a dog", 6)
    assert {(p.width, p.height) for p in prompts("a cat", **usual)} == {(512, 512)}


def test_a_prompt_may_bring_its_own_settings_as_kohya_writes_them():
    (prompt,) = prompts("a cat, well--groomed --n low quality, bad hands --w 640 --h 384 --d 1 --l 4.5 --s 28")
    assert prompt == SamplePrompt("a cat, well--groomed", "low quality, bad hands", 640, 384, 1, 4.5, 28)


def test_a_negative_prompt_may_be_empty():
    assert prompts("a cat --n", negative_prompt="blurry")[0].negative_prompt == ""


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("a cat --x 3", "--x is not an option of a prompt; there are --n, --w"),
        ("a cat --w wide", r'--w \(width\) needs a number, not "wide"'),
        ("a cat --w 500", "the width is 500; it must be a multiple of 8"),
        ("a cat --h 0", "the height is 0"),
        ("a cat --s 0", "0 steps"),
        ("a cat --l 0.5", "a guidance scale lies between 1 and 100"),
        ("a cat --d -1", "a seed is a whole number"),
    ],
)
def test_a_prompt_that_cannot_be_drawn_is_named(line, complaint):
    with pytest.raises(PlainError, match=complaint) as error:
        prompts("fine", line)
    assert str(error.value).startswith(f'sampling.prompts, line 2 ("{line}")')


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_picture_is_the_one_that_diffusers_draws(model, sampler):
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline(
        unet=model.unet,
        vae=model.vae,
        text_encoder=model.text_encoders["text_encoder"],
        tokenizer=model.tokenizers[0],
        scheduler=model.sampling_scheduler(sampler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(PROMPT.seed)
    (theirs,) = pipeline(
        PROMPT.prompt,
        negative_prompt=PROMPT.negative_prompt,
        width=PROMPT.width,
        height=PROMPT.height,
        num_inference_steps=PROMPT.steps,
        guidance_scale=PROMPT.guidance_scale,
        eta=0.3 if sampler == "tcd" else 0.0,  # the share of fresh noise that TCD's own step takes
        generator=generator,
    ).images
    ours = draw(model, PROMPT, sampler)
    assert ours.size == (64, 48)
    assert np.abs(np.asarray(ours, int) - np.asarray(theirs, int)).max() <= 1


def test_every_sampler_draws_another_picture(model):
    drawn = {sampler: draw(model, PROMPT, sampler).tobytes() for sampler in SAMPLERS}
    assert len(set(drawn.values())) == len(SAMPLERS) == len(get_args(Sampler))


def test_samplers_that_begin_at_pure_noise_are_those_whose_schedule_can_be_made_to():
    able = {
        name
        for name, (kind, _) in SAMPLERS.items()
        if "rescale_betas_zero_snr" in signature(getattr(diffusers, kind)).parameters
    }
    assert able == ZERO_SNR_SAMPLERS


@pytest.mark.parametrize("sampler", sorted(ZERO_SNR_SAMPLERS))
def test_zero_terminal_snr_and_velocity_can_be_drawn(tiny_sd15, sampler):
    model = load(BaseModelSettings(path=str(tiny_sd15), family="sd15", prediction_type="v_prediction"), torch.float32)
    model.zero_terminal_snr = True
    picture = np.asarray(draw(model, PROMPT, sampler))
    assert picture.std() > 0
    assert model.sampling_scheduler(sampler).config.timestep_spacing == "trailing"


def test_the_schedule_is_that_of_stable_diffusion(model):
    from diffusers import DDIMScheduler

    known = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").alphas_cumprod
    assert torch.allclose(model.sampling_scheduler("ddim").alphas_cumprod, known, rtol=1e-4)


def test_the_seed_decides_and_the_prompt_matters(model):
    first, again = draw(model, PROMPT, "ddim"), draw(model, PROMPT, "ddim")
    assert first.tobytes() == again.tobytes()
    for change in ({"seed": 8}, {"prompt": "a blue house"}, {"negative_prompt": ""}, {"guidance_scale": 1.0}):
        assert draw(model, replace(PROMPT, **change), "ddim").tobytes() != first.tobytes(), change


def test_drawing_leaves_the_training_random_numbers_alone(model):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    draw(model, PROMPT, "euler_ancestral")
    assert torch.equal(torch.rand(1), expected)


def test_samples_become_files_that_tell_how_they_were_made(model, tmp_path):
    drawn = draw(model, PROMPT, "euler")
    path = write_picture(drawn, PROMPT, "euler", tmp_path / "samples", "step-000012_00")
    assert [file.name for file in (tmp_path / "samples").iterdir()] == [path.name] == ["step-000012_00.png"]
    with Image.open(path) as picture:
        assert picture.size == (64, 48)
        assert picture.text["parameters"] == (
            "a red circle\nNegative prompt: blurry\nSteps: 6, Sampler: euler, CFG scale: 5, Seed: 7, Size: 64x48"
        )
