"""What a run needs on this computer beside its pictures: looked for before it begins, at no cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from knowledge.answers import PlainError
from knowledge.config import TrainingConfig
from knowledge.starting_network import start_file


def lacking(config: TrainingConfig) -> Iterator[str]:
    """A sentence for everything that is not there, or is not what the config says of it."""
    from engine.dataset.folders import mask_files
    from engine.models.detect import detect_as
    from engine.trackers import require_tracker

    yield from _problem(partial(detect_as, config.base_model))
    vae = config.base_model.vae
    if vae and not Path(vae).expanduser().exists():
        yield f"base_model.vae is {vae}, and nothing is there. Give a file or a folder, or none for the model's own."
    if config.network.start_from:
        yield from _problem(partial(start_file, config.network))
    for folder in config.dataset.folders:
        if Path(folder.path).expanduser().is_dir():  # pictures that are elsewhere are told of by themselves
            yield from _problem(partial(mask_files, folder))
    yield from _problem(partial(require_tracker, config.logging.tracker))


def require_all(config: TrainingConfig) -> None:
    """Raises PlainError that names all that a run of this config would lack."""
    if sentences := "\n".join(lacking(config)):
        raise PlainError(sentences)


def _problem(look: Callable[[], object]) -> Iterator[str]:
    try:
        look()
    except PlainError as problem:
        yield str(problem)
