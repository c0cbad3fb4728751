"""What is encoded once, before the first step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from accelerate import Accelerator

from engine.bench import Caches
from engine.dataset.batches import Batch, dataset_items
from engine.events import Event, PhaseProgress, PhaseStarted
from engine.memory import leave
from engine.models.family import BaseModel, Conditioning
from engine.samples import SamplePrompt
from knowledge.config import TrainingConfig
from knowledge.facts import DatasetFacts


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
    items = dict.fromkeys(
        (*dataset_items(dataset, config.dataset), *(item for batch in batches for item in batch.items))
    )
    if caches.masks is not None:
        yield PhaseStarted(phase="caching", detail="masks")
        for done, total in caches.masks.fill(items, model.latent_factor):
            yield PhaseProgress(phase="caching", done=done, total=total)
    if caches.latents is not None:
        yield PhaseStarted(phase="caching", detail="pictures")
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
