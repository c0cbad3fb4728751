"""Buckets: the picture shapes that a run trains on, and how each picture is brought into one. As kohya's sd-scripts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from knowledge.config import DatasetSettings

Size = tuple[int, int]


@dataclass(frozen=True)
class Placement:
    """How a picture becomes training data; all sizes are (width, height) in pixels.

    The picture is resized to `resized`, and `bucket` is cut out of its middle. `crop` (left, top, right, bottom) is the
    picture's place inside the bucket as sd-scripts tells it to SDXL; it may have fractions and is not the pixels cut.
    """

    bucket: Size
    resized: Size
    crop: tuple[float, float, float, float]


def place(width: int, height: int, settings: DatasetSettings) -> Placement:
    """The placement of a picture of this size. Every picture has one, however small or thin it is."""
    square = (settings.resolution, settings.resolution)
    if not settings.buckets:
        return place_in((square,), width, height)
    if settings.bucket_no_upscale:
        return place_without_enlarging(width, height, square, settings.bucket_step)
    return place_in(bucket_sizes(settings), width, height)


def bucket_sizes(settings: DatasetSettings) -> tuple[Size, ...]:
    """All shapes that pictures may be brought into, sorted; without buckets the square alone.

    With dataset.bucket_no_upscale every picture brings its own shape and this list is not used.
    """
    square = (settings.resolution, settings.resolution)
    if not settings.buckets:
        return (square,)
    return predefined_sizes(square, settings.bucket_minimum_side, settings.bucket_maximum_side, settings.bucket_step)


@lru_cache(maxsize=64)
def predefined_sizes(resolution: Size, minimum: int, maximum: int, step: int) -> tuple[Size, ...]:
    """Shapes whose sides are multiples of `step` between the limits and whose area is at most the resolution's."""
    area = resolution[0] * resolution[1]
    # Limits between two multiples are widened to the next ones, as sd-scripts does.
    first, last = max(step, minimum - minimum % step), -(-maximum // step) * step
    square = max(step, math.isqrt(area) // step * step)
    sizes = {(square, square)}
    for long_side in range(first, last + 1, step):
        short_side = min(last, area // long_side // step * step)
        if short_side >= first:
            sizes |= {(long_side, short_side), (short_side, long_side)}
    return tuple(sorted(sizes))


def place_in(sizes: tuple[Size, ...], width: int, height: int) -> Placement:
    """The placement in one of these shapes: the picture's own if it is among them, else the nearest aspect ratio."""
    ratio = width / height
    own = (width, height)
    bucket = own if own in sizes else min(sizes, key=lambda size: abs(size[0] / size[1] - ratio))
    scale = bucket[1] / height if ratio > bucket[0] / bucket[1] else bucket[0] / width
    return _placement(bucket, (_rounded(width * scale), _rounded(height * scale)), own)


def place_without_enlarging(width: int, height: int, resolution: Size, step: int) -> Placement:
    """The placement in a shape of the picture's own: only ever made smaller, sides cut down to multiples of `step`."""
    resized = _shrunk(width, height, resolution[0] * resolution[1], step)
    bucket = (resized[0] // step * step, resized[1] // step * step)
    if 0 in bucket:
        # sd-scripts fails on a picture that is thinner than one step; we enlarge it until it covers one.
        bucket = (max(bucket[0], step), max(bucket[1], step))
        scale = max(bucket[0] / resized[0], bucket[1] / resized[1])
        resized = (max(bucket[0], _rounded(resized[0] * scale)), max(bucket[1], _rounded(resized[1] * scale)))
    return _placement(bucket, resized, (width, height))


def _shrunk(width: int, height: int, area: int, step: int) -> Size:
    """The picture's size once it covers at most `area`, with the side rounded that keeps its shape better."""
    if width * height <= area:
        return (width, height)
    ratio = width / height
    ideal_width = math.sqrt(area * ratio)
    by_width = _down(ideal_width, step)
    by_height = _down(area / ideal_width, step)
    height_of_it, width_of_it = _down(by_width / ratio, step), _down(by_height * ratio, step)
    error_by_width = abs(by_width / height_of_it - ratio) if height_of_it else math.inf
    error_by_height = abs(width_of_it / by_height - ratio) if by_height else math.inf
    if error_by_width < error_by_height:
        return (by_width, _rounded(by_width / ratio))
    if by_height:
        return (max(1, _rounded(by_height * ratio)), by_height)
    return (max(1, _rounded(ideal_width)), max(1, _rounded(area / ideal_width)))


def _placement(bucket: Size, resized: Size, picture: Size) -> Placement:
    ratio = picture[0] / picture[1]
    wide = bucket[0] / bucket[1] > ratio
    inside = (bucket[1] * ratio, float(bucket[1])) if wide else (float(bucket[0]), bucket[0] / ratio)
    left, top = (bucket[0] - inside[0]) // 2, (bucket[1] - inside[1]) // 2
    return Placement(bucket, resized, (left, top, left + inside[0], top + inside[1]))


def _rounded(value: float) -> int:
    """The nearest integer, halves up; Python's own round() would take halves to even numbers."""
    return int(value + 0.5)


def _down(value: float, step: int) -> int:
    return _rounded(value) // step * step
