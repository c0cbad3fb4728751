"""What is known besides the config: the pictures, the computer; and the flat mapping that rules read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from knowledge.config import CAPTION_CHANGES, PICTURE_CHANGES, TrainingConfig
from knowledge.starting_network import pull

RANKS = ("network.rank", "network.alpha", "network.conv_rank", "network.conv_alpha")
"""What is not read where ranks come from a file, and so is no fact there."""


@dataclass(frozen=True)
class Picture:
    """One training picture: size in pixels after EXIF rotation; caption as its file says, None without a file."""

    path: str
    width: int
    height: int
    caption: str | None = None


@dataclass(frozen=True)
class FolderFacts:
    """The pictures of one dataset folder, with the repeats and the role that the config gives the folder."""

    pictures: tuple[Picture, ...]
    repeats: int = 1
    regularisation: bool = False


@dataclass(frozen=True)
class DatasetFacts:
    """What was counted in the dataset folders; `broken` are files that look like pictures and cannot be read."""

    folders: tuple[FolderFacts, ...] = ()
    broken: tuple[str, ...] = ()

    @property
    def images(self) -> int:
        """Training pictures, each counted once; regularisation pictures are not training pictures."""
        return sum(len(folder.pictures) for folder in self.folders if not folder.regularisation)

    @property
    def pictures_shown(self) -> int:
        """All pictures of all folders."""
        return sum(len(folder.pictures) for folder in self.folders)

    @property
    def regularisation_images(self) -> int:
        return sum(len(folder.pictures) for folder in self.folders if folder.regularisation)

    @property
    def views_per_epoch(self) -> int:
        """Training pictures × repeats: how many pictures an epoch shows."""
        return sum(len(folder.pictures) * folder.repeats for folder in self.folders if not folder.regularisation)

    @property
    def training_pictures(self) -> tuple[Picture, ...]:
        return tuple(p for folder in self.folders if not folder.regularisation for p in folder.pictures)

    @property
    def captions(self) -> tuple[str, ...]:
        """The captions of the training pictures that have one."""
        return tuple(text for p in self.training_pictures if (text := (p.caption or "").strip()))

    @property
    def captions_missing(self) -> int:
        """Training pictures without a caption, or with an empty one."""
        return len(self.training_pictures) - len(self.captions)

    @property
    def captions_different(self) -> int:
        """How many unlike captions there are."""
        return len(set(self.captions))

    @property
    def captions_in_sentences(self) -> int:
        """Captions that are prose rather than tags: ten words or more between one comma and the next."""
        return sum(max(len(part.split()) for part in text.split(",")) >= 10 for text in self.captions)

    @property
    def longest_caption_words(self) -> int:
        return max((len(text.split()) for text in self.captions), default=0)

    @property
    def smallest_area(self) -> int:
        """Pixels of the smallest training picture."""
        return min((p.width * p.height for p in self.training_pictures), default=0)

    @property
    def shapes(self) -> int:
        """How many unlike proportions the training pictures have, to two decimals."""
        return len({round(p.width / p.height, 2) for p in self.training_pictures})


@dataclass(frozen=True)
class Hardware:
    """The computer that will train. `name` is the GPU's name, or "CPU"; capability as (major, minor), None off CUDA."""

    name: str
    vram_bytes: int = 0
    ram_bytes: int = 0
    disk_free_bytes: int = 0
    capability: tuple[int, int] | None = None
    cores: int = 1


def flatten(value: Any, prefix: str) -> dict[str, Any]:
    """Dotted names of the plain values in a pydantic model or dataclass, properties of dataclasses included."""
    if hasattr(value, "model_dump"):
        names = list(type(value).model_fields)
    elif is_dataclass(value):
        names = [field.name for field in fields(value)]
        names += [name for name, member in vars(type(value)).items() if isinstance(member, property)]
    else:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for name in names:
        flat |= flatten(getattr(value, name), f"{prefix}.{name}" if prefix else name)
    return flat


def facts(
    config: TrainingConfig,
    dataset: DatasetFacts | None = None,
    hardware: Hardware | None = None,
    plan: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The mapping that rules and recommendations read: config values by dotted name, dataset.*, hardware.*, plan.*.

    dataset.captions_change and dataset.pictures_change say whether anything changes them from view to view, and
    network.pull is what every change is multiplied by, alpha ÷ rank.
    What is not known is absent, and a rule that needs it does not apply; `plan` comes with its `plan.` prefix.
    """
    known = flatten(config, "")
    known["dataset.captions_change"] = any(getattr(config.dataset, name) for name in CAPTION_CHANGES)
    known["dataset.pictures_change"] = any(getattr(config.dataset, name) for name in PICTURE_CHANGES)
    if config.network.ranks_in_start:
        known = {name: value for name, value in known.items() if name not in RANKS}
    if (factor := pull(config.network)) is not None:
        known["network.pull"] = factor
    if dataset is not None:
        known |= {name: value for name, value in flatten(dataset, "dataset").items() if name not in known}
    if hardware is not None:
        known |= flatten(hardware, "hardware")
    return known | dict(plan or {})
