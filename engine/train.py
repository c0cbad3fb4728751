"""One training run, from the base model to the finished file: a generator of events that reads top to bottom."""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import psutil
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor

from calculator.schedule import learning_rate_multiplier
from calculator.steps import run_length, sampling_steps, saving_steps, state_steps, text_encoder_steps
from calculator.validation import DRAWS, held_out, trained_on, validation_steps
from engine.averages import create_average
from engine.bench import Bench, Caches, seeded
from engine.checkpoints import DTYPES, load_state, network_tensors, save_network, save_state, start_from
from engine.dataset.batches import Batch, dataset_items, epoch_batches, still_batches
from engine.dataset.folders import scan
from engine.dataset.latents import LatentCache
from engine.dataset.masks import create_masks
from engine.dataset.text_outputs import TextCache
from engine.events import (
    CheckpointSaved,
    Event,
    PhaseProgress,
    PhaseStarted,
    RunFinished,
    RunStarted,
    SampleSaved,
    StepFinished,
    Validated,
    Warned,
)
from engine.fused_backward import FusedBackward
from engine.held_weights import hold_weights
from engine.loss_watch import TrainingBrokeError
from engine.memory import device_name, leave, peak_ram_bytes, peak_vram_bytes, vram_bytes
from engine.metadata import network_metadata
from engine.models.family import BaseModel
from engine.models.load import load
from engine.models.sd import Conditioning
from engine.networks import create_network, limit_norms
from engine.noise import draw_noise, perturbed
from engine.optimizers import check_optimizer, create_optimizer
from engine.processes import add_up_gradients, anyone, create_accelerator, mean_and_norm, met_by_all, own
from engine.recovery import Marks, drop_spoilt_states, marks
from engine.run_folder import RunFolder
from engine.sample_grid import GRID, samples_over_time, samples_until
from engine.samples import SamplePrompt, denoised, picture, sample_prompts, write_picture
from engine.trouble import out_of_memory
from engine.verification import verify
from knowledge.answers import PlainError
from knowledge.config import LossSettings, NoiseSettings, TrainingConfig
from knowledge.facts import DatasetFacts

LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "lycoris-lora")


def train(
    config: TrainingConfig,
    run: RunFolder,
    *,
    resume: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Event]:
    """Train what the config asks for in this run folder, telling everything as events.

    The same config gives the same weights, in one go or stopped and resumed: all chance in a batch comes from the seed
    and the batch's place in the run. Raises PlainError, TrainingBrokeError, torch.OutOfMemoryError;
    `engine.trouble` turns any exception into a Failed event.
    """
    started_at = time.time()
    schedule = config.schedule

    # What it builds on: a frozen base model, whose parts are on the device only when they have work there.
    yield PhaseStarted(phase="loading", detail="base model")
    accelerator = create_accelerator(config.memory.precision)
    if config.memory.fused_backward and accelerator.num_processes > 1:
        raise PlainError(
            "memory.fused_backward updates each weight as soon as its gradient is known, but several processes have to "
            "add up their gradients first. Turn it off, or train on one card."
        )
    check_optimizer(config.optimizer, schedule)
    everything = scan(config.dataset)
    dataset = trained_on(everything, config)
    prompts = sample_prompts(config.sampling, config.dataset.resolution)
    model = load(config.base_model, DTYPES[config.memory.precision], unet_later=True)
    model.weighted_captions = config.dataset.weighted_captions

    # What it learns from: pictures as latents, captions as text or as what the encoders make of them.
    first_epoch = epoch_batches(dataset, config.dataset, schedule.batch_size, config.seed, epoch=1)
    apart = still_batches(held_out(everything, config), config.dataset, everything.pictures_shown)
    caches = Caches(
        LatentCache(run.cache, model.vae) if config.memory.cache_latents else None,
        TextCache(
            run.cache,
            model.text_encoders.values(),
            config.base_model.clip_skip,
            config.base_model.maximum_tokens,
            config.dataset.weighted_captions,
            config.memory.precision,
        )
        if config.memory.cache_text_encoder_outputs
        else None,
        create_masks(config.dataset),
    )
    yield from fill(caches, accelerator, model, config, dataset, [*first_epoch, *apart], prompts)
    hold_weights(model, config.memory.base_weights, config.memory.offload_blocks, accelerator.device)
    model.to(accelerator.device, but=caches.replaced(model))

    # What is trained: a network on the base model.
    if config.memory.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    network = create_network(model, config.network, config.seed).to(accelerator.device)
    if config.memory.full_half:
        network.halve()
    if config.network.start_from:
        start_from(network, Path(config.network.start_from).expanduser())
    groups = network.trained_parameters(up_apart=config.optimizer.lora_plus_ratio > 1)
    optimizer: AcceleratedOptimizer | FusedBackward
    if config.memory.fused_backward:
        optimizer = FusedBackward(groups, config.optimizer, schedule)
    else:
        optimizer = accelerator.prepare(create_optimizer(groups, config.optimizer, schedule))
    average = create_average(list(network.parameters()), config.ema)
    full_rates = {group["name"]: group["lr"] for group in optimizer.param_groups}

    # How long, and what happens when; the same functions made the plan.
    length = run_length(len(first_epoch), schedule, accelerator.num_processes)
    save_after = set(saving_steps(config.saving, length.updates_per_epoch, length.total_steps))
    save_state_after = set(state_steps(config.saving, length.updates_per_epoch, length.total_steps))
    sample_after = set(sampling_steps(config.sampling, length.updates_per_epoch, length.total_steps))
    text_encoders_until = text_encoder_steps(length.total_steps, config.network.text_encoder_share)
    validate_after = set(validation_steps(config.validation, length.updates_per_epoch, length.total_steps))

    bench = Bench(
        config,
        run,
        accelerator,
        model,
        network,
        optimizer,
        caches,
        dataset,
        length,
        prompts,
        apart,
        started_at,
        average,
    )
    step = load_newest_state(bench) if resume else 0
    bench.drawn.extend(samples_until(run.events(), step))
    yield run_started(bench, first_epoch, step)
    network.attach()
    network.train()
    if hasattr(optimizer.optimizer, "train"):  # of a schedule-free optimizer
        optimizer.optimizer.train()
    if step == 0 and 0 in validate_after:
        yield from validate(bench, step)
    if step == 0 and 0 in sample_after:
        yield from draw_samples(bench, step)

    yield PhaseStarted(phase="training")
    stopping = False
    while step < length.total_steps and not stopping:
        epoch = step // length.updates_per_epoch + 1
        batches = epoch_batches(dataset, config.dataset, schedule.batch_size, config.seed, epoch)
        per_update = schedule.gradient_accumulation_steps * accelerator.num_processes
        updates = in_groups(list(enumerate(batches)), per_update)[step % length.updates_per_epoch :]
        if caches.latents is None:
            caches.ahead.expect(batch for update in updates for _, batch in own(update, accelerator))
        for update in updates:
            update_begun = time.perf_counter()
            multiplier = learning_rate_multiplier(schedule, step, length.total_steps)
            rates = {group: rate * multiplier for group, rate in full_rates.items()}
            if step >= text_encoders_until:
                network.freeze_text_encoders()
                rates = {group: rate if group.startswith("unet") else 0.0 for group, rate in rates.items()}
            for group in optimizer.param_groups:
                group["lr"] = rates[group["name"]]
            before = marks(network, optimizer)

            losses, broken = [], []
            for number, batch in own(update, accelerator):
                readable, problems = caches.readable(batch)
                broken += problems
                if not readable.items:
                    continue
                with state_kept_when_memory_ends(bench, step, before):
                    loss = loss_per_image(bench, readable, epoch, number).mean()
                    # kohya divides by the full count even where an epoch ends with fewer batches; we match it.
                    accelerator.backward(loss / per_update)
                losses.append(loss.detach())
            if caches.latents is None:  # what is cached cannot break any more
                yield from bench.skipped.tell(met_by_all(accelerator, broken), step)
            with state_kept_when_memory_ends(bench, step, before):
                if isinstance(optimizer, FusedBackward):  # which took its steps while the gradients came in
                    norm = optimizer.gradient_norm(accelerator.device)
                else:
                    add_up_gradients(accelerator, network)
                    most = config.optimizer.maximum_gradient_norm or math.inf
                    norm = accelerator.clip_grad_norm_(network.parameters(), most)
            loss_value, norm_value = mean_and_norm(accelerator, losses, norm)  # waits for the GPU, once per update
            try:
                bench.watch.check(loss_value, norm_value, norm_may_overflow=bool(accelerator.scaler))
            except TrainingBrokeError:
                yield from return_to_good_state(bench, step)
                raise
            with state_kept_when_memory_ends(bench, step, before):
                optimizer.step()
                optimizer.zero_grad()
                if config.network.maximum_norm is not None:
                    limit_norms(network, config.network.maximum_norm)
            step += 1
            if average is not None:
                average.take_in(step)
            yield StepFinished(
                step=step,
                epoch=epoch,
                loss=loss_value,
                learning_rate=rates,
                gradient_norm=norm_value,
                seconds=time.perf_counter() - update_begun,
                images=sum(len(batch.items) for _, batch in update),
                vram_bytes=vram_bytes(accelerator.device),
                ram_bytes=psutil.Process().memory_info().rss,
            )

            stopping = anyone(accelerator, should_stop()) and step < length.total_steps
            asked = run.requested("save")
            with state_kept_when_memory_ends(bench, step):
                if step in validate_after:
                    yield from validate(bench, step)
                if step in sample_after:
                    yield from draw_samples(bench, step)
            if step in save_after or stopping or asked:
                yield from save(bench, step)
            if step in save_state_after or stopping or asked:
                yield from keep_state(bench, step)
            if asked:
                run.answer("save")
            if step in validate_after | sample_after | save_after | save_state_after or asked:
                yield PhaseStarted(phase="training")
            if stopping or step == length.total_steps:
                break

    network.detach()
    yield RunFinished(
        reason="stopped" if stopping else "completed",
        step=step,
        total_steps=length.total_steps,
        seconds=time.time() - started_at,
        network=network_file(bench, step).relative_to(run.path).as_posix(),
        peak_vram_bytes=peak_vram_bytes(accelerator.device),
        peak_ram_bytes=peak_ram_bytes(),
    )


# -- one batch --------------------------------------------------------------------------------------------------------


def loss_per_image(bench: Bench, batch: Batch, epoch: int, number: int) -> Tensor:
    """The weighted loss of every picture of batch `number` of this epoch, [batch].

    All chance comes from the seed, the epoch and the number, drawn on the CPU: every device, number of devices and
    resumed run sees the same latents, noise and timesteps.
    """
    config, model, device = bench.config, bench.model, bench.accelerator.device
    generator = torch.Generator().manual_seed(seeded(config.seed, "batch", epoch, number))
    torch.manual_seed(seeded(config.seed, "dropout", epoch, number))
    latents = model.scaled(clean_latents(bench, batch, generator))
    sizes = random.Random(seeded(config.seed, "multires", epoch, number))
    noise = draw_noise(latents, config.noise, sizes, generator)
    timesteps = model.draw_timesteps(len(latents), config.noise, generator)
    mixed_in = perturbed(noise, config.noise.input_perturbation, generator)
    latents, noise, mixed_in, timesteps = (part.to(device) for part in (latents, noise, mixed_in, timesteps))
    return loss_of_draw(bench, batch, latents, noise, model.add_noise(latents, mixed_in, timesteps), timesteps)


def loss_of_draw(
    bench: Bench,
    batch: Batch,
    latents: Tensor,
    noise: Tensor,
    noisy: Tensor,
    timesteps: Tensor,
    loss: LossSettings | None = None,
) -> Tensor:
    """The weighted loss of every picture, [batch], for this noise at these timesteps; latents are scaled.

    `loss` takes the place of the config's, where it is given.
    """
    model, device = bench.model, bench.accelerator.device
    masks = bench.caches.masks
    sizes = torch.tensor(batch.sizes, dtype=torch.float32, device=device)
    with bench.accelerator.autocast():
        prediction = model.predict(noisy, timesteps, conditioning(bench, batch.captions), sizes)
    return model.loss_per_image(
        prediction,
        model.target(latents, noise, timesteps),
        timesteps,
        torch.tensor([item.regularisation for item in batch.items], device=device),
        loss or bench.config.loss,
        None if masks is None else masks.of(batch, *latents.shape[2:]).to(device),
    )


def clean_latents(bench: Bench, batch: Batch, generator: torch.Generator) -> Tensor:
    """One draw of the pictures' latents on the CPU, before the scaling factor."""
    if bench.caches.latents is not None:
        return bench.caches.latents.latents(batch, generator)
    with torch.no_grad():
        mean, std = (part.cpu() for part in bench.model.encode_pictures(bench.caches.ahead.pixels(batch)))
    return mean + std * torch.randn(mean.shape, generator=generator)


def conditioning(bench: Bench, captions: Sequence[str]) -> Conditioning:
    """What the captions say to the UNet: from the cache, or from the encoders, which may be learning."""
    if bench.caches.texts is not None:
        return bench.caches.texts.conditioning(captions).to(bench.accelerator.device)
    with torch.set_grad_enabled(torch.is_grad_enabled() and bench.config.network.train_text_encoder):
        return bench.model.encode_prompt(captions)


# -- what happens between updates -------------------------------------------------------------------------------------


def fill(
    caches: Caches,
    accelerator: Accelerator,
    model: BaseModel,
    config: TrainingConfig,
    dataset: DatasetFacts,
    batches: Sequence[Batch],
    prompts: Sequence[SamplePrompt],
) -> Iterator[Event]:
    """Encode what the caches lack; one part of the base model after the other is on the device for it."""
    if caches.latents is not None:
        yield PhaseStarted(phase="caching", detail="pictures")
        items = dict.fromkeys(
            (*dataset_items(dataset, config.dataset), *(item for batch in batches for item in batch.items))
        )
        model.vae.to(accelerator.device)
        for done, total in caches.latents.fill(items, model.encode_pictures, flipped=config.dataset.flip):
            yield PhaseProgress(phase="caching", done=done, total=total)
        leave(model.vae, for_good=not prompts)
    if caches.texts is not None:
        yield PhaseStarted(phase="caching", detail="captions")
        for encoder in model.text_encoders.values():
            encoder.to(accelerator.device)

        def encode(captions: Sequence[str]) -> Conditioning:
            with accelerator.autocast():
                return model.encode_prompt(captions)

        captions = [caption for batch in batches for caption in batch.captions]
        captions += [text for prompt in prompts for text in (prompt.negative_prompt, prompt.prompt)]
        for done, total in caches.texts.fill(captions, encode):
            yield PhaseProgress(phase="caching", done=done, total=total)
        leave(*model.text_encoders.values(), for_good=True)
    yield PhaseStarted(phase="loading", detail="UNet")  # which comes when the others have left


def validate(bench: Bench, step: int) -> Iterator[Event]:
    """The loss on held-out pictures: the same noise at the same timesteps every time, so that only learning shows."""
    if not bench.accelerator.is_main_process:
        return
    yield PhaseStarted(phase="validating")
    model, device, begun = bench.model, bench.accelerator.device, time.perf_counter()
    losses = []
    with bench.at_rest(), torch.no_grad():
        for number, batch in enumerate(bench.held_out):
            generator = torch.Generator().manual_seed(seeded(bench.config.seed, "validation", number))
            latents = model.scaled(clean_latents(bench, batch, generator))
            for _ in range(DRAWS):
                noise = torch.randn(latents.shape, generator=generator)
                timesteps = model.draw_timesteps(len(latents), NoiseSettings(), generator)
                drawn = [part.to(device) for part in (latents, noise, timesteps)]
                noisy = model.add_noise(*drawn)
                losses.append(loss_of_draw(bench, batch, drawn[0], drawn[1], noisy, drawn[2], LossSettings()).mean())
    yield Validated(
        step=step,
        epoch=bench.epoch_of(step),
        loss=torch.stack(losses).mean().item(),
        images=len(bench.held_out),
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


def save(bench: Bench, step: int) -> Iterator[Event]:
    """The network as a file that applications load; where an average is kept, the plain weights beside it on wish."""
    if not bench.accelerator.is_main_process:
        return
    yield PhaseStarted(phase="saving")
    path = network_file(bench, step)
    yield from write_network(bench, step, path, "network")
    if bench.average is not None and bench.config.ema.saved == "both":
        yield from write_network(bench, step, path.parent / "plain" / path.name, "plain")


def write_network(bench: Bench, step: int, path: Path, kind: Literal["network", "plain"]) -> Iterator[Event]:
    """One network file, checked before it is written; older ones go when only the last few are kept."""
    config = bench.config
    with bench.at_rest(averaged=kind == "network"):
        tensors = network_tensors(bench.network, config.saving.precision)
    metadata = network_metadata(
        config,
        bench.dataset,
        bench.length,
        tensors,
        step=step,
        epoch=bench.epoch_of(step),
        started_at=bench.started_at,
    )
    verified = verify(tensors, bench.network.base_shapes(), config.base_model.family)
    size = save_network(tensors, path, metadata)
    yield CheckpointSaved(
        step=step,
        epoch=bench.epoch_of(step),
        kind=kind,
        path=path.relative_to(bench.run.path).as_posix(),
        bytes=size,
        final=step == bench.length.total_steps,
        applications=verified.applications,
    )
    if len(verified.silent) == verified.layers:
        yield Warned(
            message=f"The network saved after step {step} changes nothing: what its layers multiply is still zero, or "
            "was rounded to zero. Pictures drawn with it look like the base model's.",
            parameters=("optimizer.learning_rate", "saving.precision"),
        )
    if config.saving.keep_last is not None:
        for old in sorted(path.parent.glob(f"{config.output.name}-step*.safetensors"))[: -config.saving.keep_last]:
            old.unlink()


def keep_state(bench: Bench, step: int) -> Iterator[Event]:
    """All that the next update depends on, so that a resumed run goes on as if it had never stopped."""
    if not bench.accelerator.is_main_process:
        return
    yield PhaseStarted(phase="saving", detail="state")
    with bench.run.new_state(step) as folder:
        size = save_state(folder, step, bench.network, bench.remembering())
    name = bench.run.states()[0].relative_to(bench.run.path).as_posix()
    yield CheckpointSaved(step=step, epoch=bench.epoch_of(step), kind="state", path=name, bytes=size)


@contextmanager
def state_kept_when_memory_ends(bench: Bench, step: int, before: Marks | None = None) -> Iterator[None]:
    """Where memory runs out meanwhile, the state after `step` is kept, so that the run can go on from the same step.

    Not where a part of the weights was updated already, as the marks of `before` tell: such a state is of no step, and
    the run goes on from the one that was kept last.
    """
    try:
        yield
    except Exception as problem:
        whole = before is None or marks(bench.network, bench.optimizer) == before
        if step and whole and out_of_memory(problem):
            bench.optimizer.zero_grad()
            list(keep_state(bench, step))
        raise


def return_to_good_state(bench: Bench, step: int) -> Iterator[Event]:
    """Take over the last state from before the trouble and save its network, for a run that broke down after `step`."""
    good = drop_spoilt_states(bench.run, step)
    if good is not None:
        good_step = load_state(good, bench.network, bench.remembering())
        yield from save(bench, good_step)


def load_newest_state(bench: Bench) -> int:
    """Take over the newest state that can be read; the number of updates that it has behind it, 0 without one.

    Raises PlainError when the run is finished, or when none of its states can be read.
    """
    if network_file(bench, bench.length.total_steps).exists():
        if any(isinstance(event, RunFinished) and event.reason == "completed" for event in bench.run.events()):
            raise PlainError(f"{bench.run.name} is finished; there is nothing left to train. Start a new run instead.")
        return bench.length.total_steps  # it was cut after its last file, before it could say so
    states = bench.run.states()
    for older in [*states[1:], None]:
        try:
            return load_state(states[0], bench.network, bench.remembering()) if states else 0
        except PlainError:
            if older is None:
                raise
            bench.run.remove_state(states.pop(0))
    return 0


def network_file(bench: Bench, step: int) -> Path:
    """Where the network after this step is saved."""
    suffix = "" if step == bench.length.total_steps else f"-step{step:06d}"
    return bench.run.checkpoints / f"{bench.config.output.name}{suffix}.safetensors"


def run_started(bench: Bench, first_epoch: Sequence[Batch], step: int) -> RunStarted:
    pictures = {item.index for batch in first_epoch for item in batch.items if not item.regularisation}
    return RunStarted(
        run=bench.run.name,
        device=device_name(bench.accelerator.device),
        precision=bench.config.memory.precision,
        first_step=step + 1,
        total_steps=bench.length.total_steps,
        epochs=bench.length.epochs,
        updates_per_epoch=bench.length.updates_per_epoch,
        batches_by_bucket=dict(Counter(f"{batch.width}x{batch.height}" for batch in first_epoch)),
        images=len(pictures),
        trainable_parameters=sum(parameter.numel() for parameter in bench.network.parameters()),
        versions={name: version(name) for name in LIBRARIES},
    )


def in_groups(batches: list[tuple[int, Batch]], size: int) -> list[list[tuple[int, Batch]]]:
    """The batches of an epoch by update; the last update may have fewer."""
    return [batches[start : start + size] for start in range(0, len(batches), size)]
