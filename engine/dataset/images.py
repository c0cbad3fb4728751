"""Pictures: opened safely, turned as their EXIF says, brought to their bucket. Torch is needed by to_tensor alone."""

from __future__ import annotations

import math
import stat
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from knowledge.answers import PlainError

if TYPE_CHECKING:
    from torch import Tensor

    from calculator.buckets import Placement

ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns a picture of each EXIF orientation upright."""
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError)
"""What Pillow raises for a file that is not a picture, or not a whole one."""


class UnreadablePictureError(PlainError):
    """A picture that is gone, or no picture any more; `reason` says which, `path` where."""

    def __init__(self, path: Path | str, reason: str, remedy: str) -> None:
        super().__init__(f"The picture {path} {reason} {remedy}")
        self.path, self.reason = str(path), reason


@contextmanager
def opened(path: Path | str | BinaryIO) -> Iterator[Image.Image]:
    """The picture with its header read. Raises one of UNREADABLE; a large picture is no reason to warn."""
    if isinstance(path, Path | str):
        require_file(Path(path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        warnings.simplefilter("ignore", UserWarning)  # Pillow's remarks about damaged EXIF data
        with Image.open(path) as image:
            yield image


def require_file(path: Path) -> None:
    """Raises OSError for what is no ordinary file: a pipe would keep its reader waiting for ever."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(f"{path.name} is no file")


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8, as far as the header tells; 1 where there is none."""
    content = image.info.get("exif")
    if not content:  # Image.getexif() would decode a whole PNG to look for a late chunk
        return 1
    exif = Image.Exif()
    try:
        exif.load(content)
        value = exif.get(ORIENTATION, 1)
    except UNREADABLE:  # a damaged EXIF block is no reason to lose the picture
        return 1
    return value if value in TURNS else 1


def picture_size(path: Path | str) -> tuple[int, int]:
    """(width, height) in pixels as the picture is seen, from its header. Raises one of UNREADABLE."""
    with opened(path) as image:
        width, height = image.size
        return (height, width) if orientation(image) >= 5 else (width, height)


def load_picture(path: Path | str) -> Image.Image:
    """The decoded picture: upright, RGB, transparent parts over white. Raises UnreadablePictureError."""
    try:
        with opened(path) as image:
            turn = TURNS.get(orientation(image))
            image.load()
            picture = as_rgb(image)
    except FileNotFoundError:
        raise UnreadablePictureError(
            path, "is gone since the dataset was counted.", "Put it back or start again."
        ) from None
    except UNREADABLE as error:
        raise UnreadablePictureError(
            path, f"cannot be read ({error}).", "It is damaged or incomplete: replace it or take it away."
        ) from None
    return picture.transpose(turn) if turn is not None else picture


def as_rgb(image: Image.Image) -> Image.Image:
    """The picture in RGB with transparent parts over white, 16-bit greys brought to 8 bits."""
    if image.has_transparency_data:
        # sd-scripts drops the alpha channel, so that colours the artist never saw would be learnt; we differ
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return eight_bits(image).convert("RGB")


def eight_bits(image: Image.Image) -> Image.Image:
    """The picture, 16-bit greys brought to 8 bits: Pillow's own conversion cuts everything above 255 off."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image


def resized(picture: Image.Image, width: int, height: int) -> Image.Image:
    """The picture at this size: the mean over the covered area when it shrinks, Lanczos when a side grows.

    As sd-scripts, whose cv2.INTER_AREA is worked out here to the byte; Pillow's BOX counts each pixel wholly or not.
    """
    if picture.size == (width, height):
        return picture
    if picture.width >= width and picture.height >= height:
        return Image.fromarray(area_mean(np.asarray(picture), width, height))
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def area_mean(pixels: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """Pixels [height, width, channels] shrunk so that each new pixel is the mean of the area it covers."""
    old_height, old_width, _ = pixels.shape
    if (old_width, old_height) == (2 * width, 2 * height):  # here OpenCV rounds a half up, elsewhere to even
        pairs: NDArray[np.uint16] = pixels[::2].astype(np.uint16) + pixels[1::2]
        fours: NDArray[np.uint16] = pairs[:, ::2] + pairs[:, 1::2]
        return ((fours + 2) >> 2).astype(np.uint8)
    columns, column_shares = _coverage(old_width, width)
    rows, row_shares = _coverage(old_height, height)
    # the axis that shrinks comes first each time: picking whole rows is several times faster than picking pixels
    lines = _mean_of_rows(np.ascontiguousarray(pixels.swapaxes(0, 1)), columns, column_shares)
    shrunk = _mean_of_rows(np.ascontiguousarray(lines.swapaxes(0, 1)), rows, row_shares)
    return np.rint(shrunk).clip(0, 255).astype(np.uint8)


def _mean_of_rows(pixels: NDArray[Any], rows: NDArray[np.intp], shares: NDArray[np.float32]) -> NDArray[np.float32]:
    mean = np.zeros((len(rows), *pixels.shape[1:]), np.float32)
    for i in range(rows.shape[1]):
        mean += pixels[rows[:, i]] * shares[:, i, None, None]
    return mean


def _coverage(old: int, new: int) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """For each new pixel of a line the old pixels that it covers and their shares, both [new, most covered]."""
    scale = old / new
    starts = np.arange(new)[:, None] * scale
    pixels = np.floor(starts).astype(np.intp) + np.arange(math.ceil(scale) + 1)
    covered = np.minimum(pixels + 1, starts + scale) - np.maximum(pixels, starts)
    covered[covered < 1e-3] = 0  # OpenCV's threshold
    return pixels.clip(max=old - 1), (covered / np.minimum(scale, old - starts)).astype(np.float32)


@dataclass(frozen=True)
class Look:
    """What is different about a picture one time it is shown.

    `cut` is (left, top) of the bucket in the resized picture, None for the middle; hue in degrees around the colour
    circle; gamma is the power of brightness between 0 and 1.
    """

    flip: bool = False
    cut: tuple[int, int] | None = None
    hue: float = 0.0
    gamma: float = 1.0


AS_IT_IS = Look()


def placed(picture: Image.Image, placement: Placement, look: Look = AS_IT_IS) -> Image.Image:
    """The picture resized and cut for its bucket, mirrored left to right where the look says so."""
    (width, height), (bucket_width, bucket_height) = placement.resized, placement.bucket
    left, top = look.cut or ((width - bucket_width) // 2, (height - bucket_height) // 2)
    picture = resized(picture, width, height).crop((left, top, left + bucket_width, top + bucket_height))
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if look.flip else picture


def recoloured(picture: Image.Image, hue: float, gamma: float) -> Image.Image:
    """The picture with all hues turned by these degrees, and its brightness to this power."""
    if hue:
        hues, saturation, value = picture.convert("HSV").split()
        hues = hues.point([round(old + hue / 360 * 256) % 256 for old in range(256)])
        picture = Image.merge("HSV", (hues, saturation, value)).convert("RGB")
    if gamma != 1:
        picture = picture.point([round(255 * (old / 255) ** gamma) for old in range(256)] * 3)
    return picture


def to_tensor(picture: Image.Image, placement: Placement, look: Look = AS_IT_IS) -> Tensor:
    """The picture as its bucket shows it: [3, height, width] in [-1, 1], float32."""
    import torch

    pixels = torch.from_numpy(np.array(recoloured(placed(picture, placement, look), look.hue, look.gamma)))
    return pixels.permute(2, 0, 1).float().div(127.5).sub(1.0).contiguous()
