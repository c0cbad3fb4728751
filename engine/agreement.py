"""What processes that train together must have alike, and a sentence that names it where they do not."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from engine.bench import Bench
from engine.dataset.store import digest
from engine.together import Together
from knowledge.answers import PlainError
from knowledge.facts import DatasetFacts

NAMED = 3
"""How many pictures of each kind are named."""
VALUES = 8
"""Numbers of every tensor that are compared: two base models differ in nearly all of theirs."""

Seen = Mapping[str, tuple[object, ...]]


def check_same_pictures(together: Together, dataset: DatasetFacts) -> None:
    """Raises PlainError that names what differs where a process sees other pictures or captions than the first."""
    if together.size == 1:
        return
    seen = {
        picture.path: (picture.caption, picture.width, picture.height, Path(picture.path).stat().st_size)
        for folder in dataset.folders
        for picture in folder.pictures
    }
    if len(set(together.gathered(digest(sorted(seen.items()))))) == 1:
        return
    (_, first), *others = together.gathered((together.name, seen))
    name, other = next((name, other) for name, other in others if other != first)
    raise PlainError(
        f"Every process must have the same pictures and captions. {name.capitalize()} {_unlike(first, other)}"
    )


def _unlike(first: Seen, other: Seen) -> str:
    """What somebody who sees `other` has that whoever sees `first` has not, as the end of a sentence."""
    both = first.keys() & other.keys()
    kinds = {
        "lacks": first.keys() - other.keys(),
        "alone has": other.keys() - first.keys(),
        "has another caption for": {path for path in both if first[path][0] != other[path][0]},
        "has another picture as": {path for path in both if first[path][1:] != other[path][1:]},
    }
    told = []
    for words, paths in kinds.items():
        names = sorted(paths)
        if names:
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            told.append(f"{words} {', '.join(names[:NAMED])}{more}")
    return f"{'; it '.join(told)}. Copy the folders of pictures from one computer to the others."


def check_same_weights(bench: Bench) -> None:
    """Raises PlainError where a process would begin with another base model or network than the first."""
    if bench.together.size == 1:
        return
    found = {"base model": _marks(bench.model.unet.state_dict()), "network": _marks(bench.network.exact_tensors())}
    marks = bench.together.gathered((bench.together.name, found))
    (_, first), *others = marks
    for (name, other), what in ((pair, what) for pair in others for what in first):
        if other[what] != first[what]:
            raise PlainError(
                f"Every process must begin with the same {what}, and {name} has another one than the first. "
                "Copy its files, and those of the run where its folder is not one and the same, to that computer."
            )


def _marks(tensors: Mapping[str, Tensor]) -> str:
    """A digest of the first few values of every tensor."""
    total = hashlib.sha256()
    for name, tensor in tensors.items():
        values = tensor.detach().reshape(-1)[:VALUES].float().cpu()
        total.update(f"{name} {tuple(tensor.shape)}".encode() + values.numpy().tobytes())
    return total.hexdigest()
