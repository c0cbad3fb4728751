"""How a run is looked at while it learns: by the loss on held-out pictures, and by samples."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

from calculator.validation import DRAWS, held_out
from engine.batch_loss import clean_latents, loss_of_draw
from engine.bench import Bench, seeded
from engine.dataset.batches import Batch, still_batches
from engine.events import Event, PhaseStarted, SampleSaved, Validated, Warned
from engine.memory import sent
from engine.sample_grid import GRID, samples_over_time
from engine.samples import denoised, picture, write_picture
from knowledge.answers import PlainError
from knowledge.config import LossSettings, NoiseSettings, TrainingConfig
from knowledge.facts import DatasetFacts


def held_out_batches(dataset: DatasetFacts, config: TrainingConfig) -> list[Batch]:
    """The held-out pictures one by one. Raises PlainError where some are asked for and none can be spared."""
    pictures = held_out(dataset, config)
    if config.validation.share and not pictures:
        raise PlainError(
            f"validation.share is {config.validation.share:g}, but there is one picture alone, which is trained on; "
            "nothing is left to measure. Set validation.share to 0, or add pictures."
        )
    return still_batches(pictures, config.dataset, dataset.pictures_shown)


def validate(bench: Bench, step: int) -> Iterator[Event]:
    """The loss on held-out pictures: the same noise at the same timesteps every time, so that only learning shows."""
    if not bench.accelerator.is_main_process:
        return
    yield PhaseStarted(phase="validating")
    model, device, begun = bench.model, bench.accelerator.device, time.perf_counter()
    losses, broken = [], []
    with bench.at_rest(), torch.no_grad():
        for number, batch in enumerate(bench.held_out):
            readable, problems = bench.caches.readable(batch)
            broken += [(problem.path, problem.reason) for problem in problems]
            if not readable.items:
                continue
            generator = torch.Generator().manual_seed(seeded(bench.config.seed, "validation", number))
            latents = model.scaled(clean_latents(bench, batch, generator))
            for _ in range(DRAWS):
                noise = torch.randn(latents.shape, generator=generator)
                timesteps = model.draw_timesteps(len(latents), NoiseSettings(), generator)
                drawn = [sent(part, device) for part in (latents, noise, timesteps)]
                noisy = model.add_noise(*drawn)
                losses.append(loss_of_draw(bench, batch, drawn[0], drawn[1], noisy, drawn[2], LossSettings()).mean())
    yield from bench.skipped.tell(broken, step)
    if losses:
        yield Validated(
            step=step,
            epoch=bench.epoch_of(step),
            loss=torch.stack(losses).mean().item(),
            images=len(losses) // DRAWS,
            seconds=time.perf_counter() - begun,
        )


def draw_samples(bench: Bench, step: int) -> Iterator[Event]:
    """Pictures of the network as it is now."""
    if not bench.accelerator.is_main_process:
        return
    yield PhaseStarted(phase="sampling")
    model, sampler = bench.model, bench.config.sampling.sampler
    with bench.at_rest():
        with bench.accelerator.autocast():
            latents = [denoised(model, prompt, sampler, bench.encoder()) for prompt in bench.prompts]
        if not all(torch.isfinite(finished).all() for finished in latents):
            yield Warned(
                message=f"What was drawn after step {step} is black, since its values are not numbers. "
                "Either the network has run away, or memory.precision has too little range for this base model.",
                parameters=("optimizer.learning_rate", "memory.precision"),
            )
        # Without autocast: in half precision SDXL's VAE draws black.
        with bench.decoder_in_place():
            for index, (prompt, finished) in enumerate(zip(bench.prompts, latents, strict=True)):
                name = f"step-{step:06d}_{index:02d}"
                path = write_picture(picture(model, finished), prompt, sampler, bench.run.samples, name)
                saved = SampleSaved(
                    step=step,
                    epoch=bench.epoch_of(step),
                    index=index,
                    prompt=prompt.prompt,
                    seed=prompt.seed,
                    path=path.relative_to(bench.run.path).as_posix(),
                )
                bench.drawn.append(saved)
                yield saved
    samples_over_time(bench.drawn, bench.run.path, bench.run.path / GRID)
