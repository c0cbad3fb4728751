"""Masks: which parts of a picture are to be learned. White is learned, black is not, grey in between."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from engine.dataset.batches import Batch, Item
from engine.dataset.folders import mask_files
from engine.dataset.images import TURNS, UNREADABLE, Look, opened, orientation, placed
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
        self._read: dict[tuple[int, Look, int, int], Tensor] = {}
        for folder in settings.folders:
            self._files |= mask_files(folder)

    def of(self, batch: Batch, height: int, width: int) -> Tensor:
        """The batch's masks [batch, 1, height, width] at the size of its latents, 0 to 1."""
        views = zip(batch.items, batch.looks, strict=True)
        return torch.stack([self._mask(item, look, height, width) for item, look in views])

    def _mask(self, item: Item, look: Look, height: int, width: int) -> Tensor:
        key = (item.index, look, height, width)
        if key in self._read:
            return self._read[key]
        mask = self._image(Path(item.picture.path))
        if mask is None:
            tensor = torch.ones(1, height, width)
        else:
            size = (item.picture.width, item.picture.height)
            if mask.size != size:  # a mask may be kept smaller than its picture
                mask = mask.resize(size, Image.Resampling.BILINEAR)
            shown = placed(mask.convert("RGB"), item.placement, look)
            pixels = torch.from_numpy(np.array(shown.getchannel("R"))).float().div(255)
            tensor = F.interpolate(pixels[None, None], size=(height, width), mode="area")[0]
        if look.cut is None:  # a random cut never comes again
            self._read[key] = tensor
        return tensor

    def _image(self, picture: Path) -> Image.Image | None:
        """The mask in grey, upright; None where the picture has none."""
        file = self._files.get(picture)
        if file is None and not self._alpha:
            return None
        try:
            with opened(file or picture) as image:
                turn = TURNS.get(orientation(image))
                if file is not None:
                    mask = image.convert("L")
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
