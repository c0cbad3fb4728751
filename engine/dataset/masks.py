"""Masks: which parts of a picture are to be learned. White is learned, black is not, grey in between."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from engine.dataset.batches import Batch, Item
from engine.dataset.folders import mask_files
from engine.dataset.images import AS_IT_IS, TURNS, UNREADABLE, Look, eight_bits, opened, orientation, placed
from knowledge.answers import PlainError
from knowledge.config import DatasetSettings


class Masks:
    """The masks of a dataset: from mask folders by file name, else from the pictures' own transparency.

    A picture without a mask counts whole.
    """

    def __init__(self, settings: DatasetSettings) -> None:
        """Raises PlainError for a mask folder that is missing or holds no mask for any picture of its folder."""
        self._alpha = settings.alpha_masks
        self._files: dict[Path, Path] = {}
        self._still: dict[tuple[int, int, int], Tensor] = {}
        for folder in settings.folders:
            self._files |= mask_files(folder)

    def fill(self, items: Iterable[Item], latent_factor: int) -> Iterator[tuple[int, int]]:
        """Reads the masks before they are needed; yields how many are done, and of how many.

        So that they belong to the pictures as these are encoded, and none can break any more, but where every view is
        cut anew. Raises PlainError that names every mask that cannot be read.
        """

        def problem(item: Item) -> str | None:
            width, height = item.placement.bucket
            try:
                self._mask(item, AS_IT_IS, height // latent_factor, width // latent_factor)
            except PlainError as error:
                return str(error)
            return None

        shown, problems = list(items), []
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for done, told in enumerate(pool.map(problem, shown), start=1):
                problems += [told] if told else []
                yield done, len(shown)
        if problems:
            raise PlainError("\n".join(dict.fromkeys(problems)))

    def of(self, batch: Batch, height: int, width: int) -> Tensor:
        """The batch's masks [batch, 1, height, width] at the size of its latents, 0 to 1."""
        views = zip(batch.items, batch.looks, strict=True)
        return torch.stack([self._mask(item, look, height, width) for item, look in views])

    def _mask(self, item: Item, look: Look, height: int, width: int) -> Tensor:
        if look.cut is not None:  # a random cut never comes again
            return self._shown(item, look, height, width)
        key = (item.index, height, width)
        if key not in self._still:
            self._still[key] = self._shown(item, AS_IT_IS, height, width)
        return self._still[key].flip(-1) if look.flip else self._still[key]

    def _shown(self, item: Item, look: Look, height: int, width: int) -> Tensor:
        mask = self._image(Path(item.picture.path))
        if mask is None:
            return torch.ones(1, height, width)
        size = (item.picture.width, item.picture.height)
        if mask.size != size:  # a mask may be kept smaller than its picture
            mask = mask.resize(size, Image.Resampling.BILINEAR)
        shown = placed(mask.convert("RGB"), item.placement, look)
        pixels = torch.from_numpy(np.array(shown.getchannel("R"))).float().div(255)
        return F.interpolate(pixels[None, None], size=(height, width), mode="area")[0]

    def _image(self, picture: Path) -> Image.Image | None:
        """The mask in grey, upright; None where the picture has none."""
        file = self._files.get(picture)
        if file is None and not self._alpha:
            return None
        try:
            with opened(file or picture) as image:
                turn = TURNS.get(orientation(image))
                if file is not None:
                    mask = eight_bits(image).convert("L")
                elif image.has_transparency_data:
                    mask = image.convert("RGBA").getchannel("A")
                else:
                    return None
        except UNREADABLE as error:
            raise PlainError(f"The mask {file or picture} cannot be read ({error}). Replace it.") from None
        return mask.transpose(turn) if turn is not None else mask


def create_masks(settings: DatasetSettings) -> Masks | None:
    """The dataset's masks; None where it has none and every picture counts whole."""
    return Masks(settings) if settings.alpha_masks or any(folder.masks for folder in settings.folders) else None
