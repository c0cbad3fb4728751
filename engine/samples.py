"""Samples: a prompt with its own settings, drawn by the model as it is now. One seed always starts from one noise."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from engine.run_folder import whole_file
from engine.samplers import model_input, stepped
from knowledge.answers import PlainError
from knowledge.config import Sampler, SamplingSettings

OPTIONS = {
    "n": ("negative_prompt", str),
    "w": ("width", int),
    "h": ("height", int),
    "d": ("seed", int),
    "l": ("guidance_scale", float),
    "s": ("steps", int),
}
"""What may follow a prompt, as in kohya's sample prompts: `a cat --n blurry --w 512 --d 7`."""


class Painter(Protocol):
    """What a loaded model offers to draw with; every family of engine/models has it."""

    latent_factor: int
    latent_channels: int

    @property
    def device(self) -> torch.device: ...
    def sampling_scheduler(self, sampler: Sampler) -> Any: ...
    def encode_prompt(self, captions: Sequence[str]) -> Any: ...
    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Any, sizes: Tensor) -> Tensor: ...
    def decode_latents(self, latents: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class SamplePrompt:
    """One picture to draw: sizes in pixels."""

    prompt: str
    negative_prompt: str
    width: int
    height: int
    seed: int
    guidance_scale: float
    steps: int


def sample_prompts(settings: SamplingSettings, resolution: int) -> tuple[SamplePrompt, ...]:
    """The pictures that sampling.prompts ask for; what a line does not say comes from the settings.

    The seed grows by one from prompt to prompt. Raises PlainError that tells the problems of all lines together.
    """
    prompts, problems = [], []
    for index, line in enumerate(settings.prompts):
        usual = SamplePrompt(
            prompt="",
            negative_prompt=settings.negative_prompt,
            width=settings.width or resolution,
            height=settings.height or resolution,
            seed=settings.seed + index,
            guidance_scale=settings.guidance_scale,
            steps=settings.steps,
        )
        try:
            prompts.append(_read(line, usual))
        except ValueError as error:
            problems.append(f'sampling.prompts, line {index + 1} ("{line}"): {error}')
    if problems:
        raise PlainError("\n".join(problems), 2)
    return tuple(prompts)


def _read(line: str, usual: SamplePrompt) -> SamplePrompt:
    """The line's prompt with its options. Raises ValueError that says what is wrong."""
    text, *options = re.split(r"(?:^|\s)--(?=[A-Za-z]+(?:\s|$))", line.strip())
    values: dict[str, Any] = {"prompt": text.strip()}
    for option in options:
        name, _, value = option.partition(" ")
        if name not in OPTIONS:
            known = ", ".join(f"--{known}" for known in OPTIONS)
            raise ValueError(f"--{name} is not an option of a prompt; there are {known}.")
        field, kind = OPTIONS[name]
        try:
            values[field] = kind(value.strip())
        except ValueError:
            raise ValueError(f'--{name} ({field}) needs a number, not "{value.strip()}".') from None
    prompt = replace(usual, **values)
    for name in ("width", "height"):
        size = getattr(prompt, name)
        if not 16 <= size <= 4096 or size % 8:
            raise ValueError(f"the {name} is {size}; it must be a multiple of 8 from 16 to 4096.")
    if not 1 <= prompt.steps <= 1000:
        raise ValueError(f"--s is {prompt.steps} steps; from 1 to 1000 are possible.")
    if not 1 <= prompt.guidance_scale <= 100:
        raise ValueError(f"--l is {prompt.guidance_scale:g}; a guidance scale lies between 1 and 100.")
    if not 0 <= prompt.seed < 2**63:
        raise ValueError(f"--d is {prompt.seed}; a seed is a whole number that is not negative.")
    return prompt


def draw(model: Painter, prompt: SamplePrompt, sampler: Sampler) -> Image.Image:
    """The picture that the model draws for the prompt. The model must be in eval mode."""
    return picture(model, denoised(model, prompt, sampler, model.encode_prompt))


@torch.no_grad()
def denoised(model: Painter, prompt: SamplePrompt, sampler: Sampler, encode: Callable[[Sequence[str]], Any]) -> Tensor:
    """Scaled latents for the prompt, [1, channels, height, width], with classifier-free guidance (Ho & Salimans 2022,
    arXiv:2207.12598) in the form that Stable Diffusion's tools use: scale 1 follows the prompt alone.

    `encode` gives what the text encoders make of negative prompt and prompt. All randomness comes from the prompt's
    seed, drawn on the CPU, so that every device begins with the same noise.
    """
    steps = model.sampling_scheduler(sampler)
    steps.set_timesteps(prompt.steps, device=model.device)
    generator = torch.Generator("cpu").manual_seed(prompt.seed)
    shape = (1, model.latent_channels, prompt.height // model.latent_factor, prompt.width // model.latent_factor)
    latents: Tensor = torch.randn(shape, generator=generator).to(model.device)
    latents = latents * getattr(steps, "init_noise_sigma", 1.0)  # flow-matching schedulers start from plain noise

    guided = prompt.guidance_scale > 1
    captions = [prompt.negative_prompt, prompt.prompt] if guided else [prompt.prompt]
    conditioning = encode(captions)
    size = (prompt.height, prompt.width, 0, 0, prompt.height, prompt.width)
    sizes = torch.tensor([size] * len(captions), dtype=torch.float32, device=model.device)
    for timestep in steps.timesteps:
        noisy = model_input(steps, latents, timestep).expand(len(captions), -1, -1, -1)
        prediction = model.predict(noisy, timestep.expand(len(captions)), conditioning, sizes).float()
        if guided:
            without, with_prompt = prediction.chunk(2)
            prediction = without + prompt.guidance_scale * (with_prompt - without)
        latents = stepped(steps, prediction, timestep, latents, generator)
    return latents


@torch.no_grad()
def picture(model: Painter, latents: Tensor) -> Image.Image:
    """The picture that scaled latents [1, channels, height, width] stand for."""
    pixels = model.decode_latents(latents)[0]
    return Image.fromarray(((pixels + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy())


def write_picture(drawn: Image.Image, prompt: SamplePrompt, sampler: Sampler, folder: Path, name: str) -> Path:
    """Writes the picture as NAME.png; it carries prompt and settings as A1111 writes them, for applications to read."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    information = PngInfo()
    information.add_itxt("parameters", _parameters(prompt, sampler))
    with whole_file(path) as partial:
        drawn.save(partial, "PNG", pnginfo=information)
    return path


def _parameters(prompt: SamplePrompt, sampler: Sampler) -> str:
    negative = f"Negative prompt: {prompt.negative_prompt}\n" if prompt.negative_prompt else ""
    return (
        f"{prompt.prompt}\n{negative}Steps: {prompt.steps}, Sampler: {sampler}, CFG scale: {prompt.guidance_scale:g}, "
        f"Seed: {prompt.seed}, Size: {prompt.width}x{prompt.height}"
    )
