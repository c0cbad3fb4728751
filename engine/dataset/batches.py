"""What an epoch shows, batch by batch. All of it follows from the arguments, so a resumed run needs no memory of it."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from calculator.buckets import Placement, Size, place
from calculator.steps import views_of_pictures
from engine.dataset.captions import trained_caption
from knowledge.config import DatasetSettings
from knowledge.facts import DatasetFacts, Picture


@dataclass(frozen=True)
class Item:
    """A picture as its bucket shows it; `index` is its number in the run and names it in caches."""

    picture: Picture
    placement: Placement
    regularisation: bool
    index: int


@dataclass(frozen=True)
class Batch:
    """Pictures of one shape, with the caption and the mirroring that each has this time; sizes in pixels."""

    items: tuple[Item, ...]
    captions: tuple[str, ...]
    flips: tuple[bool, ...]
    width: int
    height: int

    @property
    def sizes(self) -> list[tuple[int, int, int, int, int, int]]:
        """What SDXL is told of each picture: original height, width, crop top, left, bucket height, width."""
        return [self._size(item, flip) for item, flip in zip(self.items, self.flips, strict=True)]

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
    captions, flips = [], []
    for item, view in views:
        random = Random(f"{seed} caption {epoch} {item.index} {view}")
        caption = trained_caption(item.picture.caption, settings, random, epoch, regularisation=item.regularisation)
        captions.append(caption)
        flips.append(settings.flip and Random(f"{seed} flip {epoch} {item.index} {view}").random() < 0.5)
    width, height = views[0][0].placement.bucket
    return Batch(tuple(item for item, _ in views), tuple(captions), tuple(flips), width, height)
