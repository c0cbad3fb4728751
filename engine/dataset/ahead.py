"""Pictures of the coming batches, decoded by worker threads while the GPU computes; for runs without cached latents."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from engine.dataset.batches import Batch
from engine.dataset.latents import decoded, pixels


class PicturesAhead:
    """Decodes what is expected in its order, at most two pictures to a worker ahead of what was asked for."""

    def __init__(self, workers: int | None = None) -> None:
        self._workers = workers or os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="decode")
        self._coming: deque[Batch] = deque()
        self._decoding: deque[tuple[Batch, list[Future[Tensor]]]] = deque()

    def expect(self, batches: Iterable[Batch]) -> None:
        """The batches that will be asked for next, in this order; what was expected before is forgotten."""
        for _, pictures in self._decoding:
            for picture in pictures:
                picture.cancel()
        self._decoding.clear()
        self._coming = deque(batches)
        self._top_up()

    def pixels(self, batch: Batch) -> Tensor:
        """The batch's pictures [batch, 3, height, width] in [-1, 1]; decoded now when it was not expected next.

        Raises PlainError naming a picture that cannot be read.
        """
        if not self._decoding or self._decoding[0][0] is not batch:
            return pixels(batch)
        _, pictures = self._decoding.popleft()
        self._top_up()
        return torch.stack([picture.result() for picture in pictures])

    def _top_up(self) -> None:
        while self._coming and sum(len(pictures) for _, pictures in self._decoding) < 2 * self._workers:
            batch = self._coming.popleft()
            views = zip(batch.items, batch.looks, strict=True)
            self._decoding.append((batch, [self._pool.submit(decoded, item, look) for item, look in views]))
