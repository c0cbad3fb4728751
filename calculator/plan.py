"""The Plan: what a config will do with these pictures on this computer. What it says is what the engine then does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from calculator.buckets import Size
from calculator.caches import cached_in_memory, cached_on_disk
from calculator.duration import DurationEstimate, estimate_duration
from calculator.measurements import Measurement
from calculator.memory import MemoryEstimate, average_bytes, estimate_memory, optimizer_bytes
from calculator.network_size import file_bytes, trainable_parameters
from calculator.schedule import full_learning_rate, learning_rate_multiplier
from calculator.steps import (
    Run,
    batches,
    naive_total_steps,
    run_length,
    sampling_steps,
    saving_steps,
    state_steps,
    views,
)
from calculator.validation import trained_on, validation_steps
from knowledge.architectures import Architecture
from knowledge.architectures import architecture as usual_architecture
from knowledge.config import ScheduleSettings, TrainingConfig
from knowledge.facts import DatasetFacts, Hardware

STATES_KEPT = 2
PNG_BYTES_PER_PIXEL = 1.6
"""Samples are photographs more than drawings; the pocket model's are smaller."""


@dataclass(frozen=True)
class BucketPlan:
    """One picture shape: its size in pixels, the views it holds in an epoch and the batches they make."""

    width: int
    height: int
    images: int
    batches: int


@dataclass(frozen=True)
class Plan:
    """Everything that the review page shows and that rules read as plan.*.

    `file_bytes` is exact but for the file's metadata, a few thousand bytes that are only known at the end.
    `naive_total_steps` is what the usual sum without buckets gives; `partial_batches` of an epoch are not full.
    `saving_steps` are the updates after which a file is saved, `sampling_steps` those after which samples are drawn (0:
    before the first); `processes` train side by side, each with batches of its own. `cached_in_memory_bytes` of encoded
    pictures and captions are kept in main memory by each of them.
    """

    batches_per_epoch: int
    updates_per_epoch: int
    total_steps: int
    epochs: int
    views_per_image: float
    views_per_epoch: int
    partial_batches: int
    naive_total_steps: int
    buckets: tuple[BucketPlan, ...]
    saving_steps: tuple[int, ...]
    sampling_steps: tuple[int, ...]
    processes: int
    trainable_parameters: int
    file_bytes: int
    saved_files: int
    sample_pictures: int
    disk_bytes: int
    cached_in_memory_bytes: int
    vram: MemoryEstimate
    duration: DurationEstimate
    learning_rate: float
    schedule: ScheduleSettings

    @property
    def smallest_bucket_images(self) -> int:
        """Views an epoch has of the rarest shape."""
        return min((bucket.images for bucket in self.buckets), default=0)

    @property
    def times_seen(self) -> str:
        """How often the run shows each picture, in words: "100 times", "once"."""
        if 0 < self.views_per_image < 0.95:
            return "less than once"
        times = round(self.views_per_image)
        return "once" if times == 1 else f"{times:,} times"

    def learning_rates(self) -> list[float]:
        """The rate that every update uses, text encoders with a rate of their own aside."""
        steps = range(self.total_steps)
        return [self.learning_rate * learning_rate_multiplier(self.schedule, step, self.total_steps) for step in steps]

    def as_dict(self, findings: Iterable[Any] | None = None, *, learning_rate: bool = False) -> dict[str, Any]:
        """The plan as the document that --json prints; findings and the learning-rate curve when they are wanted."""
        document = asdict(self)
        del document["schedule"], document["learning_rate"]
        document |= {name: list(document[name]) for name in ("buckets", "saving_steps", "sampling_steps")}
        document["smallest_bucket_images"] = self.smallest_bucket_images
        if findings is not None:
            document["findings"] = [asdict(finding) for finding in findings]
        if learning_rate:
            document["learning_rate"] = self.learning_rates()
        return document

    def facts(self) -> dict[str, Any]:
        """The plan as rules read it: plan.total_steps, plan.vram_likely_bytes and so on."""
        known: dict[str, Any] = {}
        for name, value in self.as_dict().items():
            if isinstance(value, dict):
                known |= {f"plan.{name}_{inner}": v for inner, v in value.items() if isinstance(v, int | float | str)}
            elif not isinstance(value, list | tuple):
                known[f"plan.{name}"] = value
        known["plan.buckets"] = len(self.buckets)
        return known


def plan(
    config: TrainingConfig,
    dataset: DatasetFacts,
    hardware: Hardware,
    architecture: Architecture | None = None,
    measurements: Sequence[Measurement] = (),
    processes: int = 1,
) -> Plan:
    """The plan of this config. `architecture` is that of the base model where it is not the family's usual one;
    `measurements` are timings that make the forecast of time sharper; `processes` cards share the batches."""
    trained = trained_on(dataset, config)
    apart = dataset.images - trained.images
    counted = views(trained, config.dataset)
    return plan_of_views(
        config, counted, trained, hardware, architecture, measurements, held_out=apart, processes=processes
    )


def plan_of_views(
    config: TrainingConfig,
    views_by_bucket: Mapping[Size, int],
    dataset: DatasetFacts,
    hardware: Hardware,
    architecture: Architecture | None = None,
    measurements: Sequence[Measurement] = (),
    *,
    held_out: int = 0,
    processes: int = 1,
) -> Plan:
    """`plan` for a dataset whose views by bucket are known already; `held_out` pictures are not among them."""
    known = architecture or usual_architecture(config.base_model.family)
    batch_size = config.schedule.batch_size
    by_bucket = batches(views_by_bucket, batch_size)
    run = run_length(sum(by_bucket.values()), config.schedule, processes)
    epochs = run.total_steps / run.updates_per_epoch if run.updates_per_epoch else 0.0
    saves = saving_steps(config.saving, run.updates_per_epoch, run.total_steps)
    sampled = sampling_steps(config.sampling, run.updates_per_epoch, run.total_steps)
    pictures = len(sampled) * len(config.sampling.prompts)
    encoded = dataset.images + dataset.regularisation_images + held_out
    trainable = trainable_parameters(known, config.network)
    size = file_bytes(known, config.network, config.saving.precision)
    in_memory = cached_in_memory(config, known, encoded)
    files = _files_kept(len(saves), config.saving.keep_last) * (2 if _saves_both(config) else 1)
    return Plan(
        batches_per_epoch=run.batches_per_epoch,
        updates_per_epoch=run.updates_per_epoch,
        total_steps=run.total_steps,
        epochs=run.epochs,
        views_per_image=dataset.views_per_epoch / dataset.images * epochs if dataset.images else 0.0,
        views_per_epoch=sum(views_by_bucket.values()),
        partial_batches=sum(count % batch_size > 0 for count in views_by_bucket.values()),
        naive_total_steps=naive_total_steps([(1, dataset.views_per_epoch)], config.schedule),
        buckets=tuple(
            BucketPlan(*bucket, images=count, batches=by_bucket[bucket]) for bucket, count in views_by_bucket.items()
        ),
        saving_steps=tuple(saves),
        sampling_steps=tuple(sampled),
        processes=processes,
        trainable_parameters=trainable,
        file_bytes=size,
        saved_files=files,
        sample_pictures=pictures,
        disk_bytes=_disk_bytes(config, known, encoded, run, files, size, trainable, pictures),
        cached_in_memory_bytes=in_memory,
        vram=estimate_memory(config, known, views_by_bucket, hardware, in_memory),
        duration=estimate_duration(
            config,
            known,
            views_by_bucket,
            by_bucket,
            epochs,
            samples=pictures,
            saves=len(saves),
            pictures=encoded,
            hardware=hardware,
            measurements=measurements,
            held_out=held_out * len(validation_steps(config.validation, run.updates_per_epoch, run.total_steps)),
            processes=processes,
        ),
        learning_rate=full_learning_rate(config.optimizer.learning_rate, config.schedule),
        schedule=config.schedule,
    )


def _saves_both(config: TrainingConfig) -> bool:
    """Whether a file of the plain weights is written beside each of the averaged ones."""
    return config.ema.decay is not None and config.ema.saved == "both"


def _files_kept(saves: int, keep_last: int | None) -> int:
    """Network files on the disk when the run ends; the final one is kept beside the last few."""
    return saves if keep_last is None or not saves else min(saves - 1, keep_last) + 1


def _disk_bytes(
    config: TrainingConfig,
    architecture: Architecture,
    encoded: int,
    run: Run,
    files: int,
    size: int,
    trainable: int,
    pictures: int,
) -> int:
    """What the run writes: network files, states, samples and caches, with one file more while the last is written."""
    states = min(STATES_KEPT, len(state_steps(config.saving, run.updates_per_epoch, run.total_steps)))
    state = 4 * trainable + optimizer_bytes(architecture, config) + average_bytes(architecture, config)
    width, height = (side or config.dataset.resolution for side in (config.sampling.width, config.sampling.height))
    samples = round(PNG_BYTES_PER_PIXEL * width * height * pictures)
    return (files + 1) * size + states * state + samples + cached_on_disk(config, architecture, encoded)
