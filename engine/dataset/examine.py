"""One picture file looked at closely: decoded to the last byte, measured, fingerprinted. No torch."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engine.dataset.captions import read_caption
from engine.dataset.images import TURNS, UNREADABLE, opened, orientation, require_file

FORMATS = {
    ".png": {"PNG"},
    ".jpg": {"JPEG", "MPO"},
    ".jpeg": {"JPEG", "MPO"},
    ".webp": {"WEBP"},
    ".bmp": {"BMP", "DIB"},
    ".avif": {"AVIF"},
}
"""What Pillow calls the content of a file that has this ending."""

MEASURED_SIDE = 512
"""Sharpness is measured at about the size at which pictures are trained."""
THUMBNAIL_SIDE = 32

State = Literal["fine", "damaged", "unreadable"]


@dataclass(frozen=True)
class Examined:
    """What is known of a picture file. Width and height as the picture is seen, 0 when it is unreadable.

    state: "unreadable" is no picture at all, "damaged" has a header and not all of its content. sharpness: see
    `sharpness`; None where there is nothing to see. caption: None without a file; caption_readable: it is UTF-8.
    """

    path: Path
    file_bytes: int = 0
    digest: str = ""
    state: State = "fine"
    error: str = ""
    format: str = ""
    mode: str = ""
    width: int = 0
    height: int = 0
    frames: int = 1
    turned: bool = False
    transparent: bool = False
    sharpness: float | None = None
    fingerprint: int = 0
    thumbnail: bytes = b""
    caption: str | None = None
    caption_readable: bool = True

    @property
    def mislabelled(self) -> bool:
        """The content is of another format than the ending says."""
        return self.state != "unreadable" and self.format not in FORMATS.get(self.path.suffix.lower(), {self.format})


def examine_all(
    pictures: Sequence[tuple[Path, Path | None]], progress: Callable[[int, int], None] = lambda done, total: None
) -> list[Examined]:
    """Every picture with its caption file, on all cores, in their order."""
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        examined = []
        for result in pool.map(lambda pair: examine(*pair), pictures):
            examined.append(result)
            progress(len(examined), len(pictures))
    return examined


def examine(path: Path, caption_file: Path | None = None) -> Examined:
    """What is known of this picture. Nothing about a file is an exception here: it is a finding."""
    known: dict[str, object] = {"path": path}
    if caption_file is not None:
        try:
            known["caption"] = read_caption(caption_file)
        except (OSError, UnicodeDecodeError):
            known["caption_readable"] = False
    state: State = "unreadable"
    try:
        require_file(path)
        content = path.read_bytes()
        known |= {"file_bytes": len(content), "digest": hashlib.sha256(content).hexdigest()}
        with opened(io.BytesIO(content)) as image:
            state = "damaged"
            known |= _header(image)
            image.load()
            known |= _content(image)
    except UNREADABLE as error:
        return Examined(**known, state=state, error=_reason(error))  # type: ignore[arg-type]
    return Examined(**known)  # type: ignore[arg-type]


def _header(image: Image.Image) -> dict[str, object]:
    turn = orientation(image)
    width, height = image.size
    # the second picture in an MPO file is the other eye's, or a thumbnail: no animation
    frames = getattr(image, "n_frames", 1) if image.format != "MPO" else 1
    return {
        "format": image.format or "",
        "mode": image.mode,
        "frames": frames,
        "turned": turn in TURNS,
        "width": height if turn >= 5 else width,
        "height": width if turn >= 5 else height,
    }


def _content(image: Image.Image) -> dict[str, object]:
    transparent = image.has_transparency_data and _lowest(image.convert("RGBA").getchannel("A")) < 255
    grey = image.convert("L")
    return {
        "transparent": transparent,
        "sharpness": sharpness(grey),
        "fingerprint": fingerprint(grey),
        "thumbnail": grey.resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BOX).tobytes(),
    }


def _lowest(channel: Image.Image) -> int:
    low, _ = channel.getextrema()
    assert isinstance(low, int)
    return low


def sharpness(grey: Image.Image, tile: int = 32) -> float | None:
    """How quickly brightness changes from pixel to pixel, against how much it changes at all; None where it does not.

    The squared Laplacian over the variance, in the sharper tiles of those that show something, at training size. By
    trial on a photograph and drawings: 0.2 to 3 when sharp, 0.01 to 0.12 after a blur of 2 pixels or more. Smooth
    grounds do not count, so that a sharp subject before a soft background is sharp.
    """
    scale = MEASURED_SIDE / (grey.width * grey.height) ** 0.5
    if scale < 1:
        grey = grey.resize(
            (max(1, round(grey.width * scale)), max(1, round(grey.height * scale))), Image.Resampling.BOX
        )
    pixels = np.asarray(grey, np.float32)
    if min(pixels.shape) < tile + 2:
        return None
    inner = pixels[1:-1, 1:-1]
    laplacian = 4 * inner - pixels[:-2, 1:-1] - pixels[2:, 1:-1] - pixels[1:-1, :-2] - pixels[1:-1, 2:]
    changes, variance = (_tiles(laplacian, tile) ** 2).mean(axis=(1, 3)), _tiles(inner, tile).var(axis=(1, 3))
    shows = variance > 25  # five levels of 255: less is a plain ground, or noise
    return float(np.percentile(changes[shows] / variance[shows], 90)) if shows.any() else None


def _tiles(pixels: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    rows, columns = pixels.shape[0] // side, pixels.shape[1] // side
    return pixels[: rows * side, : columns * side].reshape(rows, side, columns, side)


def fingerprint(grey: Image.Image) -> int:
    """128 bits that stay nearly the same under resizing and recompression: does brightness rise to the right, and
    downwards, at 8×8 places (the difference hash of N. Krawetz, in both directions)."""
    across = np.asarray(grey.resize((9, 8), Image.Resampling.BOX), np.int16)
    down = np.asarray(grey.resize((8, 9), Image.Resampling.BOX), np.int16)
    bits = np.concatenate([(np.diff(across, axis=1) > 0).ravel(), (np.diff(down, axis=0) > 0).ravel()])
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def duplicates(pictures: Sequence[Examined]) -> tuple[list[list[Examined]], list[list[Examined]]]:
    """Groups of files with the same content, and groups that look the same without being it."""
    readable = [picture for picture in pictures if picture.state == "fine"]
    by_content: dict[str, list[Examined]] = {}
    for picture in readable:
        by_content.setdefault(picture.digest, []).append(picture)
    same = [group for group in by_content.values() if len(group) > 1]
    different = [group[0] for group in by_content.values()]
    return same, _connected(different, _alike(different))


def _alike(pictures: Sequence[Examined], bits: int = 16, levels: float = 6.0) -> Iterator[tuple[int, int]]:
    """Pairs whose fingerprints differ in few bits and whose thumbnails differ little on average.

    The second test is for pictures with plain grounds, whose fingerprints say little.
    """
    prints = np.array([list(picture.fingerprint.to_bytes(16, "big")) for picture in pictures], np.uint8)
    thumbnails = [np.frombuffer(picture.thumbnail, np.uint8).astype(np.int16) for picture in pictures]
    shapes = [picture.width / picture.height for picture in pictures]
    for first in range(len(pictures) - 1):
        distances = np.bitwise_count(prints[first + 1 :] ^ prints[first]).sum(axis=1)
        for second in (np.flatnonzero(distances <= bits) + first + 1).tolist():
            near = np.abs(thumbnails[first] - thumbnails[second]).mean() <= levels
            if near and abs(shapes[first] / shapes[second] - 1) < 0.1:
                yield first, second


def _connected(pictures: Sequence[Examined], pairs: Iterator[tuple[int, int]]) -> list[list[Examined]]:
    group = list(range(len(pictures)))

    def root(index: int) -> int:
        while group[index] != index:
            index = group[index]
        return index

    for first, second in pairs:
        group[max(root(first), root(second))] = min(root(first), root(second))
    members: dict[int, list[Examined]] = {}
    for index, picture in enumerate(pictures):
        members.setdefault(root(index), []).append(picture)
    return [found for found in members.values() if len(found) > 1]


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).split("<_io")[0].rstrip()
    return text or type(error).__name__
