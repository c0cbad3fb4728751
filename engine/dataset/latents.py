"""Latents, encoded once and kept under the content of picture, placement and VAE."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor, nn

from engine.dataset.batches import Batch, Item
from engine.dataset.images import Look, UnreadablePictureError, load_picture, to_tensor
from engine.dataset.store import Store, digest, file_digest, gone, module_digest
from knowledge.answers import PlainError

VERSION = 1
"""To be raised when the same picture would give other pixels than before."""

Encode = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Mean and standard deviation of the latents of pictures in [-1, 1], before the scaling factor."""


class LatentCache:
    """Mean and standard deviation of every picture's latents.

    sd-scripts caches one draw from that distribution and trains on it for ever; here each step draws anew, as it does
    without a cache, so that the cache changes the speed and nothing else.
    """

    def __init__(self, store: Store, vae: nn.Module) -> None:
        self._store = store
        self._vae = module_digest(vae)
        self._pictures: dict[int, str | None] = {}

    def fill(self, items: Iterable[Item], encode: Encode, *, flipped: bool = False) -> Iterator[tuple[int, int]]:
        """Encodes what is not there yet, also mirrored when asked; yields how many are done, and of how many.

        Pictures are decoded ahead on all cores and encoded one at a time: so the bits do not depend on what was cached
        before, and memory never runs out here first. Raises PlainError that names every picture that cannot be read.
        """
        views = [(item, flip) for item in items for flip in ((False, True) if flipped else (False,))]
        problems = []
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            digests = pool.map(_digest_or_none, dict.fromkeys(item.picture.path for item, _ in views))
            by_path = dict(zip(dict.fromkeys(item.picture.path for item, _ in views), digests, strict=True))
            for item, _ in views:
                self._pictures[item.index] = by_path[item.picture.path]
            missing = [
                view for view in views if not self._pictures[view[0].index] or self._key(*view) not in self._store
            ]
            done = len(views) - len(missing)
            yield done, len(views)
            for (item, flip), pixels in zip(missing, self._ahead(pool, missing), strict=True):
                try:
                    mean, std = _encoded(pixels.result(), item, encode)
                except PlainError as error:
                    problems.append(str(error))
                    continue
                self._store.write(self._key(item, flip), {"mean": mean, "std": std})
                done += 1
                yield done, len(views)
        if problems:
            raise PlainError("\n".join(dict.fromkeys(problems)))

    def latents(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """One draw of the batch's latents [batch, channels, height, width], before the scaling factor."""
        mean, std = self.distribution(batch)
        return mean + std * torch.randn(mean.shape, generator=generator)

    def distribution(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the batch's latents."""
        try:
            found = [
                self._store.read(self._key(i, look.flip)) for i, look in zip(batch.items, batch.looks, strict=True)
            ]
        except KeyError:
            raise gone("latents") from None
        return torch.stack([entry["mean"] for entry in found]), torch.stack([entry["std"] for entry in found])

    def _key(self, item: Item, flip: bool) -> str:
        placement = item.placement
        return digest(VERSION, self._pictures[item.index], placement.resized, placement.bucket, flip, self._vae)

    def _ahead(self, pool: ThreadPoolExecutor, views: Iterable[tuple[Item, bool]]) -> Iterator[Future[Tensor]]:
        """The pictures' pixels, decoded a few ahead of what is asked for."""
        waiting: deque[Future[Tensor]] = deque()
        for item, flip in views:
            waiting.append(pool.submit(_decoded_as_counted, item, Look(flip=flip), self._pictures[item.index]))
            if len(waiting) > 2 * (os.cpu_count() or 1):
                yield waiting.popleft()
        yield from waiting


def pixels(batch: Batch) -> Tensor:
    """The batch's pictures [batch, 3, height, width] in [-1, 1], decoded now."""
    return torch.stack([decoded(item, look) for item, look in zip(batch.items, batch.looks, strict=True)])


def _digest_or_none(path: str) -> str | None:
    try:
        return file_digest(path)
    except OSError:
        return None  # decoding will say it better


def decoded(item: Item, look: Look) -> Tensor:
    """The picture [3, height, width] in [-1, 1], as it is shown this time. Raises UnreadablePictureError."""
    path, counted = item.picture.path, (item.picture.width, item.picture.height)
    picture = load_picture(path)
    if picture.size != counted:  # its place in the bucket would squeeze it
        was, now = (f"{width}x{height}" for width, height in (counted, picture.size))
        raise UnreadablePictureError(
            path, f"was {was} pixels when the dataset was counted and is {now} now.", "Start again."
        )
    return to_tensor(picture, item.placement, look)


def _decoded_as_counted(item: Item, look: Look, content: str | None) -> Tensor:
    """`decoded`, of a file that is what its digest says, so that no picture's latents are kept under another's name."""
    pixels = decoded(item, look)
    if content is None or _digest_or_none(item.picture.path) != content:
        raise UnreadablePictureError(item.picture.path, "was changed while it was being read.", "Start again.")
    return pixels


@torch.no_grad()
def _encoded(pixels: Tensor, item: Item, encode: Encode) -> tuple[Tensor, Tensor]:
    mean, std = (part[0].float().cpu() for part in encode(pixels[None]))
    if not (mean.isfinite().all() and std.isfinite().all()):
        raise PlainError(
            f"The VAE turned {item.picture.path} into values that are not numbers: its precision is too low. "
            "Use a VAE made for fp16, or memory.precision bf16 or fp32."
        )
    return mean, std
