"""Tags for pictures from the WD14 taggers, which know the words of anime boards. No torch: ONNX runs them."""

from __future__ import annotations

import csv
import os
import re
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engine.acquire.picture_models import PictureModel
from engine.dataset.images import load_picture
from knowledge.answers import PlainError, did_you_mean

Category = Literal["rating", "general", "character"]
CATEGORIES: dict[str, Category] = {"9": "rating", "0": "general", "4": "character"}
"""What the numbers in selected_tags.csv mean."""

TAGGERS = {
    "wd-vit-v3": "SmilingWolf/wd-vit-tagger-v3",
    "wd-swinv2-v3": "SmilingWolf/wd-swinv2-tagger-v3",
    "wd-convnext-v3": "SmilingWolf/wd-convnext-tagger-v3",
    "wd-vit-large-v3": "SmilingWolf/wd-vit-large-tagger-v3",
    "wd-eva02-large-v3": "SmilingWolf/wd-eva02-large-tagger-v3",
    "wd-vit-v2": "SmilingWolf/wd-v1-4-vit-tagger-v2",
    "wd-swinv2-v2": "SmilingWolf/wd-v1-4-swinv2-tagger-v2",
    "wd-convnext-v2": "SmilingWolf/wd-v1-4-convnext-tagger-v2",
    "wd-convnextv2-v2": "SmilingWolf/wd-v1-4-convnextv2-tagger-v2",
    "wd-moat-v2": "SmilingWolf/wd-v1-4-moat-tagger-v2",
}
"""The taggers by name, with their repositories on the Hugging Face hub. A newer one is a row."""

FILES = ("model.onnx", "selected_tags.csv")

FACES = frozenset(
    [
        "0_0",
        "(o)_(o)",
        "+_+",
        "+_-",
        "._.",
        "<o>_<o>",
        "<|>_<|>",
        "=_=",
        ">_<",
        "3_3",
        "6_9",
        ">_o",
        "@_@",
        "^_^",
        "o_o",
        "u_u",
        "x_x",
        "|_|",
        "||_||",
    ]
)
"""Tags in which the underscore is a nose or a mouth."""


@dataclass(frozen=True)
class Tag:
    """A tag of one picture, with how sure the tagger is, 0 to 1."""

    name: str
    category: Category
    probability: float


class Tagger:
    """A loaded tagger: its session, its words and the size of the pictures that it sees."""

    def __init__(self, folder: Path) -> None:
        """Raises PlainError for a folder that does not hold the two files of a tagger, or where ONNX cannot run."""
        missing = [name for name in FILES if not (folder / name).is_file()]
        if missing:
            raise PlainError(f"{folder} is not a tagger: {' and '.join(missing)} is missing.", 2)
        self.names, self.categories = _words(folder / FILES[1])
        self._session = _session(folder / FILES[0])
        (entry,) = self._session.get_inputs()
        batch, height, width, channels = entry.shape
        if channels != 3 or height != width or not isinstance(height, int):
            raise PlainError(f"{folder / FILES[0]} does not take square colour pictures, but {entry.shape}.")
        self._input, self.side = entry.name, height
        self._fixed_batch = batch if isinstance(batch, int) else None
        self.device = "GPU" if "CUDAExecutionProvider" in self._session.get_providers() else "CPU"

    def probabilities(self, pictures: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """How sure it is of each word for each picture, [pictures, words]. pictures: what `prepared` made of them."""
        size = self._fixed_batch or len(pictures)
        rows: list[NDArray[np.float32]] = []
        for start in range(0, len(pictures), size):
            batch = np.stack(pictures[start : start + size])
            filled = np.concatenate([batch, np.zeros((size - len(batch), *batch.shape[1:]), np.float32)])
            (found,) = self._session.run(None, {self._input: filled})
            rows.append(found[: len(batch)])
        result: NDArray[np.float32] = np.concatenate(rows)
        if result.shape[1] != len(self.names):
            raise PlainError(
                f"The tagger's two files do not belong together: it knows {result.shape[1]:,} words and the list has "
                f"{len(self.names):,}. Download both again."
            )
        return result

    def tags(
        self,
        probabilities: NDArray[np.float32],
        general: float = 0.35,
        character: float = 0.85,
        *,
        rating: bool = False,
        own_gap: bool = False,
    ) -> list[Tag]:
        """The tags of one picture at or above these thresholds: characters first, then the surest; rating last.

        With `own_gap` the largest gap among the picture's own general tags decides in place of their threshold.
        """
        if own_gap:
            general = largest_gap(probabilities[[category == "general" for category in self.categories]])
        thresholds: dict[Category, float] = {"general": general, "character": character, "rating": 2.0}
        found = [
            Tag(name, category, float(probability))
            for name, category, probability in zip(self.names, self.categories, probabilities, strict=True)
            if probability >= thresholds[category]
        ]
        found.sort(key=lambda tag: (tag.category != "character", -tag.probability))
        ratings = [i for i, category in enumerate(self.categories) if category == "rating"]
        if rating and ratings:
            surest = max(ratings, key=lambda index: probabilities[index])
            found.append(Tag(self.names[surest], "rating", float(probabilities[surest])))
        return found


def largest_gap(probabilities: NDArray[np.float32]) -> float:
    """The middle of the largest gap between neighbours, 0 counted among them: MCut (Largeron et al. 2012)."""
    falling = np.append(np.sort(probabilities)[::-1], np.float32(0))
    place = int(np.argmax(falling[:-1] - falling[1:]))
    return float(falling[place] + falling[place + 1]) / 2


def spoken(name: str) -> str:
    """The tag as captions write it: spaces for underscores, but not in faces."""
    return name if name in FACES else name.replace("_", " ")


def prepared(picture: Image.Image, side: int) -> NDArray[np.float32]:
    """The picture as the taggers were taught: on a white square, blue first, values from 0 to 255."""
    longest = max(picture.size)
    square = Image.new("RGB", (longest, longest), "white")
    square.paste(picture, ((longest - picture.width) // 2, (longest - picture.height) // 2))
    resized = square.resize((side, side), Image.Resampling.BICUBIC) if longest != side else square
    return np.ascontiguousarray(np.asarray(resized, np.float32)[:, :, ::-1])


def tag_pictures(
    tagger: Tagger, pictures: Sequence[Path], batch_size: int = 4
) -> Iterator[tuple[Path, NDArray[np.float32] | PlainError]]:
    """What the tagger says of each picture, in their order; the error for one that cannot be read.

    Pictures are decoded ahead on all cores.
    """
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        waiting: deque[tuple[Path, Future[NDArray[np.float32]]]] = deque()
        coming = iter(pictures)
        while True:
            while len(waiting) < 2 * batch_size and (path := next(coming, None)) is not None:
                waiting.append((path, pool.submit(_prepared_file, path, tagger.side)))
            if not waiting:
                return
            group = [waiting.popleft() for _ in range(min(batch_size, len(waiting)))]
            ready: list[tuple[Path, NDArray[np.float32]]] = []
            broken: dict[Path, PlainError] = {}
            for path, future in group:
                try:
                    ready.append((path, future.result()))
                except PlainError as error:
                    broken[path] = error
            probabilities = tagger.probabilities([pixels for _, pixels in ready]) if ready else ()
            found = {path: row for (path, _), row in zip(ready, probabilities, strict=True)}
            for path, _ in group:
                yield path, broken[path] if path in broken else found[path]


def _prepared_file(path: Path, side: int) -> NDArray[np.float32]:
    return prepared(load_picture(path), side)


def tagger(name: str) -> PictureModel:
    """The tagger of this name, as this program or others call it. Raises PlainError where there is none."""
    known = re.sub(r"^wd14-", "wd-", name)
    if known not in TAGGERS:
        raise PlainError(
            f'There is no tagger "{name}".{did_you_mean(known, TAGGERS)} There are {", ".join(TAGGERS)}; or name a '
            "folder that holds model.onnx and selected_tags.csv.",
            2,
        )
    return PictureModel(known, TAGGERS[known], tuple((file,) for file in FILES))


def _words(path: Path) -> tuple[list[str], list[Category]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        return [row["name"] for row in rows], [CATEGORIES[row["category"]] for row in rows]
    except (KeyError, UnicodeDecodeError, csv.Error) as error:
        raise PlainError(f"{path} is not a tagger's list of tags ({error!r}).") from None


def _session(path: Path) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise PlainError("Tagging needs onnxruntime, and it is not installed: pip install onnxruntime") from None
    onnxruntime.set_default_logger_severity(4)
    wanted = [
        p for p in ("CUDAExecutionProvider", "CPUExecutionProvider") if p in onnxruntime.get_available_providers()
    ]
    try:
        return onnxruntime.InferenceSession(str(path), providers=wanted)
    except Exception as error:  # onnxruntime raises classes of its own for every kind of bad file
        raise PlainError(f"{path} cannot be loaded as an ONNX model: {str(error).splitlines()[0]}") from None
