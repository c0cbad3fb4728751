"""Pictures of the coming batches, decoded by worker threads while the GPU computes; for runs without cached latents."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from engine.dataset.batches import Batch
from engine.dataset.images import UnreadablePictureError
from engine.dataset.latents import decoded


class PicturesAhead:
    """Decodes what is expected in its order, at most two pictures to a worker ahead of what was asked for."""

    def __init__(self, workers: int | None = None) -> None:
        self._workers = workers or os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="decode")
        self._coming: deque[Batch] = deque()
        self._decoding: deque[tuple[Batch, list[Future[Tensor]]]] = deque()
        self._decoded: tuple[Batch, Tensor] | None = None

    def expect(self, batches: Iterable[Batch]) -> None:
        """The batches that will be asked for next, in this order; what was expected before is forgotten."""
        for _, pictures in self._decoding:
            for picture in pictures:
                picture.cancel()
        self._decoding.clear()
        self._coming = deque(batches)
        self._top_up()

    def readable(self, batch: Batch) -> tuple[Batch, list[UnreadablePictureError]]:
        """The batch without the pictures that cannot be read, and what is wrong with each of those."""
        if self._decoding and self._decoding[0][0] is batch:
            _, pictures = self._decoding.popleft()
            self._top_up()
        else:  # it was not expected next
            pictures = self._submit(batch)
        whole, problems = {}, []
        for place, picture in enumerate(pictures):
            try:
                whole[place] = picture.result()
            except UnreadablePictureError as problem:
                problems.append(problem)
        left = batch.only(list(whole)) if problems else batch
        self._decoded = (left, torch.stack(list(whole.values()))) if whole else None
        return left, problems

    def pixels(self, batch: Batch) -> Tensor:
        """The batch's pictures [batch, 3, height, width] in [-1, 1]; decoded now unless `readable` gave this batch.

        Raises UnreadablePictureError.
        """
        if self._decoded is None or self._decoded[0] is not batch:
            _, problems = self.readable(batch)
            if problems:
                raise problems[0]
        assert self._decoded is not None
        return self._decoded[1]

    def _top_up(self) -> None:
        while self._coming and sum(len(pictures) for _, pictures in self._decoding) < 2 * self._workers:
            batch = self._coming.popleft()
            self._decoding.append((batch, self._submit(batch)))

    def _submit(self, batch: Batch) -> list[Future[Tensor]]:
        return [self._pool.submit(decoded, item, look) for item, look in zip(batch.items, batch.looks, strict=True)]
