"""One training run, from the base model to the finished file: a generator of events that reads top to bottom."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version

import psutil
from accelerate.optimizer import AcceleratedOptimizer

from calculator.schedule import learning_rate_multiplier
from calculator.steps import run_length, sampling_steps, saving_steps, state_steps, text_encoder_steps
from calculator.validation import trained_on, validation_steps
from engine.agreement import check_same_pictures, check_same_weights
from engine.averages import create_average
from engine.batch_loss import loss_per_image
from engine.bench import Bench, Caches
from engine.caching import fill
from engine.checkpoints import DTYPES, start_from
from engine.dataset.batches import Batch, epoch_batches
from engine.dataset.folders import scan
from engine.dataset.latents import LatentCache
from engine.dataset.masks import create_masks
from engine.dataset.store import STORES, vocabulary_digest
from engine.dataset.text_outputs import TextCache
from engine.events import (
    Event,
    PhaseStarted,
    RunFinished,
    RunStarted,
    StepFinished,
)
from engine.fused_backward import FusedBackward
from engine.held_weights import check_form, hold_weights
from engine.keeping import (
    back_where_training_broke,
    keep_state,
    load_newest_state,
    network_file,
    save,
    state_kept_when_memory_ends,
)
from engine.memory import device_name, peak_ram_bytes, peak_vram_bytes, vram_bytes
from engine.models.load import load
from engine.networks import create_network, of_unet
from engine.optimizers import check_optimizer, create_optimizer
from engine.processes import add_up_gradients, create_accelerator, mean_and_norm, met_by_all, own
from engine.recovery import marks
from engine.run_folder import RunFolder
from engine.sample_grid import samples_until
from engine.samples import sample_prompts
from engine.together import ALONE, Together
from engine.watching import draw_samples, held_out_batches, validate
from knowledge.config import TrainingConfig
from knowledge.starting_network import start_file

LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "lycoris-lora")


def train(
    config: TrainingConfig,
    run: RunFolder,
    *,
    resume: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
    together: Together = ALONE,
) -> Iterator[Event]:
    """Train what the config asks for in this run folder, telling everything as events.

    The same config gives the same weights, in one go or stopped and resumed: all chance in a batch comes from the seed
    and the batch's place in the run. Of several processes each calls this. Raises PlainError, TrainingBrokeError,
    torch.OutOfMemoryError, ElsewhereError; `engine.trouble` turns any exception into a Failed event.
    """
    started_at = time.time()
    schedule = config.schedule

    # What it builds on: a frozen base model, whose parts are on the device only when they have work there.
    yield PhaseStarted(phase="loading", detail="base model")
    accelerator = create_accelerator(config.memory.precision, fused_backward=config.memory.fused_backward)
    check_optimizer(config.optimizer, schedule)
    check_form(config.memory.base_weights)
    everything = scan(config.dataset)
    check_same_pictures(together, everything)
    dataset, apart = trained_on(everything, config), held_out_batches(everything, config)
    prompts = sample_prompts(config.sampling, config.dataset.resolution)
    model = load(config.base_model, DTYPES[config.memory.precision], unet_later=True)
    model.weighted_captions = config.dataset.weighted_captions

    # What it learns from: pictures as latents, captions as text or as what the encoders make of them.
    first_epoch = epoch_batches(dataset, config.dataset, schedule.batch_size, config.seed, epoch=1)
    store = STORES[config.memory.cache_location]
    caches = Caches(
        LatentCache(store(run.cache / "latents"), model.vae) if config.memory.cache_latents else None,
        TextCache(
            store(run.cache / "text"),
            model.text_encoders.values(),
            config.base_model.clip_skip,
            config.base_model.maximum_tokens,
            config.dataset.weighted_captions,
            config.memory.precision,
            *map(vocabulary_digest, model.tokenizers),
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
    elif config.memory.selective_checkpointing:  # computes less again, and has nothing to add to the other
        model.enable_selective_checkpointing()
    network = create_network(model, config.network, config.seed).to(accelerator.device)
    if config.memory.full_half:
        network.halve()
    if config.network.start_from:
        start_from(network, start_file(config.network))
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
        together,
    )
    step = load_newest_state(bench) if resume else 0
    check_same_weights(bench)
    bench.drawn.extend(samples_until(run.events(), step))
    yield run_started(bench, first_epoch, step)
    network.attach()
    network.train()
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
                rates = {group: rate if of_unet(group) else 0.0 for group, rate in rates.items()}
            for group in optimizer.param_groups:
                group["lr"] = rates[group["name"]]
            before = marks(network, optimizer)

            losses, broken = [], []
            with state_kept_when_memory_ends(bench, step, before):
                for number, batch in own(update, accelerator):
                    readable, problems = caches.readable(batch)
                    broken += problems
                    if not readable.items:
                        continue
                    loss = network.reached_by(loss_per_image(bench, readable, epoch, number).mean())
                    # kohya divides by the full count even where an epoch ends with fewer batches; we match it.
                    accelerator.backward(loss / per_update)
                    losses.append(loss.detach())
                unreadable = met_by_all(together, broken, len(losses))
            yield from bench.skipped.tell(unreadable, step)
            with together.exchange(), state_kept_when_memory_ends(bench, step, before):
                if isinstance(optimizer, FusedBackward):  # which took its steps while the gradients came in
                    norm = optimizer.gradient_norm(accelerator.device)
                else:
                    add_up_gradients(accelerator, network)
                    most = config.optimizer.maximum_gradient_norm or math.inf
                    norm = accelerator.clip_grad_norm_(network.parameters(), most)
                loss_value, norm_value = mean_and_norm(accelerator, losses, norm)  # waits for the GPU, once per update
            yield from back_where_training_broke(bench, step, loss_value, norm_value)
            with state_kept_when_memory_ends(bench, step, before):
                optimizer.step()
                optimizer.zero_grad()
                bench.limit_norms()
            step += 1
            bench.watch.take_in(loss_value)
            bench.take_in_average(step)
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

            with state_kept_when_memory_ends(bench, step):
                stop, asked = together.wished(should_stop(), together.leads and run.requested("save"))
                stopping = stop and step < length.total_steps
                if step in validate_after:
                    yield from validate(bench, step)
                if step in sample_after:
                    yield from draw_samples(bench, step)
                if step in save_after or stopping or asked:
                    yield from save(bench, step)
            if step in save_state_after or stopping or asked:
                yield from keep_state(bench, step)
            if asked and together.leads:
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
