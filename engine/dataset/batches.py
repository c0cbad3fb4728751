"""What an epoch shows, batch by batch. All of it follows from the arguments, so a resumed run needs no memory of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from calculator.buckets import Placement, Size, place
from calculator.steps import views_of_pictures
from engine.dataset.captions import trained_caption
from engine.dataset.images import Look
from knowledge.config import CAPTION_CHANGES, DatasetSettings
from knowledge.facts import DatasetFacts, Picture

COLOUR_SHARE, HUE_DEGREES, GAMMA_SHIFT = 0.33, 16.0, 0.05
"""Colour augmentation as sd-scripts has it: the share of views it changes, and how far hue or brightness may go."""


@dataclass(frozen=True)
class Item:
    """A picture as its bucket shows it; `index` is its number in the run and names it in caches."""

    picture: Picture
    placement: Placement
    regularisation: bool
    index: int


@dataclass(frozen=True)
class Batch:
    """Pictures of one shape, with the caption and the look that each has this time; sizes in pixels."""

    items: tuple[Item, ...]
    captions: tuple[str, ...]
    looks: tuple[Look, ...]
    width: int
    height: int

    def only(self, places: Sequence[int]) -> Batch:
        """The batch of the pictures at these places in it."""
        items, captions, looks = (
            tuple(part[place] for place in places) for part in (self.items, self.captions, self.looks)
        )
        return Batch(items, captions, looks, self.width, self.height)  # type: ignore[arg-type]

    @property
    def sizes(self) -> list[tuple[int, int, int, int, int, int]]:
        """What SDXL is told of each picture: original height, width, crop top, left, bucket height, width."""
        return [self._size(item, look.flip) for item, look in zip(self.items, self.looks, strict=True)]

    def _size(self, item: Item, flip: bool) -> tuple[int, int, int, int, int, int]:
        left, top, right, _ = item.placement.crop
        if flip:  # what was on the right is now on the left
            left = self.width - right
        return (item.picture.height, item.picture.width, int(top), int(left), self.height, self.width)


def dataset_items(dataset: DatasetFacts, settings: DatasetSettings) -> tuple[Item, ...]:
    """Every picture that a run shows, once. Regularisation pictures that balancing leaves out are not among them."""
    return tuple(_items(dataset, settings))


def epoch_batches(
    dataset: DatasetFacts, settings: DatasetSettings, batch_size: int, seed: int, epoch: int
) -> list[Batch]:
    """The batches of this epoch, counted from 1, in the order in which they are trained.

    As many in each bucket as calculator.steps.batches says. A picture's caption and mirroring come from its own
    random numbers, so that changing one setting leaves what the others draw as it was.
    """
    by_bucket: dict[Size, list[tuple[Item, int]]] = {}
    for item, times in _items(dataset, settings).items():
        by_bucket.setdefault(item.placement.bucket, []).extend((item, view) for view in range(times))
    order = Random(f"{seed} order {epoch}")
    groups = []
    for _, views in sorted(by_bucket.items()):
        order.shuffle(views)
        groups += [views[start : start + batch_size] for start in range(0, len(views), batch_size)]
    order.shuffle(groups)
    return [_batch(views, settings, seed, epoch) for views in groups]


def still_batches(pictures: Sequence[Picture], settings: DatasetSettings, first_index: int) -> list[Batch]:
    """These pictures one by one, as they are: whole captions, nothing mirrored, cut or recoloured.

    Of a caption with wildcards one reading is drawn, always the same. They are numbered from `first_index`, which no
    other picture of the run may have.
    """
    usual = DatasetSettings()
    changes = [name for name in CAPTION_CHANGES if name != "wildcards"]
    still = settings.model_copy(update={name: getattr(usual, name) for name in changes})
    found = []
    for index, picture in enumerate(pictures, first_index):
        item = Item(picture, place(picture.width, picture.height, settings), False, index)
        caption = trained_caption(picture.caption, still, Random(index), epoch=1)
        found.append(Batch((item,), (caption,), (Look(False, None, 0.0, 1.0),), *item.placement.bucket))
    return found


def _items(dataset: DatasetFacts, settings: DatasetSettings) -> dict[Item, int]:
    """Every picture that is shown, with the number of times in an epoch."""
    shown = {}
    for index, ((folder, picture), times) in enumerate(views_of_pictures(dataset).items()):
        facts = dataset.folders[folder]
        found = facts.pictures[picture]
        placement = place(found.width, found.height, settings)
        shown[Item(found, placement, facts.regularisation, index)] = times
    return shown


def _batch(views: list[tuple[Item, int]], settings: DatasetSettings, seed: int, epoch: int) -> Batch:
    captions, looks = [], []
    for item, view in views:
        place_in_run = f"{seed} {epoch} {item.index} {view}"
        words = Random(f"{place_in_run} caption")
        caption = trained_caption(item.picture.caption, settings, words, epoch, regularisation=item.regularisation)
        captions.append(caption)
        looks.append(_look(item.placement, settings, place_in_run))
    width, height = views[0][0].placement.bucket
    return Batch(tuple(item for item, _ in views), tuple(captions), tuple(looks), width, height)


def _look(placement: Placement, settings: DatasetSettings, place_in_run: str) -> Look:
    flip = settings.flip and Random(f"{place_in_run} flip").random() < 0.5
    cut, hue, gamma = None, 0.0, 1.0
    if settings.random_crop:
        random = Random(f"{place_in_run} crop")
        (width, height), (bucket_width, bucket_height) = placement.resized, placement.bucket
        cut = (random.randint(0, width - bucket_width), random.randint(0, height - bucket_height))
    if settings.colour_augmentation:
        random = Random(f"{place_in_run} colour")
        if random.random() < COLOUR_SHARE:
            if random.random() < 0.5:
                hue = random.uniform(-HUE_DEGREES, HUE_DEGREES)
            else:
                gamma = random.uniform(1 - GAMMA_SHIFT, 1 + GAMMA_SHIFT)
    return Look(flip, cut, hue, gamma)
