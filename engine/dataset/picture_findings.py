"""What may be wrong with the pictures of a dataset and the files beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from calculator.buckets import Size, place
from engine.dataset.examine import Examined
from engine.dataset.findings import Found, Severity, finding, have
from engine.dataset.folders import PICTURE_EXTENSIONS, Listing, no_pictures
from knowledge.config import DatasetSettings
from knowledge.words import count

BLURRED_BELOW = 0.08
"""See engine.dataset.examine.sharpness: what a blur of about 2 pixels leaves of a sharp picture."""
ENLARGED_ABOVE = 1.5
"""Times a side may be enlarged before the picture is called too small."""
CUT_ABOVE = 0.15
"""Share of a picture that may be cut away to fit its bucket before it is worth telling."""


@dataclass(frozen=True)
class PictureCheck:
    """One thing that may be wrong with a picture, and what is said when it is: `{n}` counts the pictures."""

    kind: str
    severity: Severity
    applies: Callable[[Examined, DatasetSettings], bool]
    one: str
    many: str


PICTURE_CHECKS = (
    PictureCheck(
        "unreadable",
        "blocks",
        lambda p, _: p.state == "unreadable",
        "One file is no picture at all, whatever its name says. Replace it or take it away.",
        "{n} files are no pictures at all, whatever their names say. Replace them or take them away.",
    ),
    PictureCheck(
        "damaged",
        "blocks",
        lambda p, _: p.state == "damaged",
        "One picture is damaged or was not downloaded to its end. Get it again or take it away.",
        "{n} pictures are damaged or were not downloaded to their end. Get them again or take them away.",
    ),
    PictureCheck(
        "too-small",
        "warning",
        lambda p, s: _enlargement(p, s) > ENLARGED_ABOVE,
        "One picture is too small for this resolution and would be enlarged, which teaches blur. Find a larger one.",
        "{n} pictures are too small for this resolution and would be enlarged, which teaches blur. Find larger ones, "
        "or lower dataset.resolution.",
    ),
    PictureCheck(
        "blurred",
        "warning",
        lambda p, _: p.sharpness is not None and p.sharpness < BLURRED_BELOW,
        "One picture looks blurred. Look at it: what is soft in it will be soft in what you make.",
        "{n} pictures look blurred. Look at them: what is soft in them will be soft in what you make.",
    ),
    PictureCheck(
        "animated",
        "warning",
        lambda p, _: p.frames > 1,
        "One picture is an animation; only its first frame is trained.",
        "{n} pictures are animations; only their first frames are trained.",
    ),
    PictureCheck(
        "transparent",
        "warning",
        lambda p, _: p.transparent,
        "One picture has transparent parts; they are trained as white, and white grounds are learned with the subject.",
        "{n} pictures have transparent parts; they are trained as white, and white grounds are learned with the "
        "subject. Paste them on varied grounds.",
    ),
    PictureCheck(
        "cut",
        "note",
        lambda p, s: _lost(p, s) > CUT_ABOVE,
        "One picture loses much of its area to fit its shape group. Crop it yourself if what matters is at an edge.",
        "{n} pictures lose much of their area to fit their shape groups. Crop them yourself if what matters is at an "
        "edge.",
    ),
    PictureCheck(
        "mislabelled",
        "note",
        lambda p, _: p.mislabelled,
        "One picture is of another format than its name says. It is read all the same; other programs may not.",
        "{n} pictures are of another format than their names say. They are read all the same; other programs may not.",
    ),
    PictureCheck(
        "turned",
        "note",
        lambda p, _: p.turned,
        "One picture is stored turned, as phones do; it is turned upright for training.",
        "{n} pictures are stored turned, as phones do; they are turned upright for training.",
    ),
    PictureCheck(
        "cmyk",
        "note",
        lambda p, _: p.mode == "CMYK",
        "One picture is in print colours (CMYK); its colours may shift a little when read for the screen.",
        "{n} pictures are in print colours (CMYK); their colours may shift a little when read for the screen.",
    ),
)


def picture_findings(pictures: Sequence[Examined], settings: DatasetSettings) -> Iterator[Found]:
    for check in PICTURE_CHECKS:
        hit = [picture for picture in pictures if check.applies(picture, settings)]
        if hit:
            message = check.one if len(hit) == 1 else check.many.format(n=len(hit))
            yield finding(check.kind, check.severity, message, [picture.path for picture in hit])


def _enlargement(picture: Examined, settings: DatasetSettings) -> float:
    if not picture.width:
        return 0.0
    width, height = place(picture.width, picture.height, settings).resized
    return max(width / picture.width, height / picture.height)


def _lost(picture: Examined, settings: DatasetSettings) -> float:
    """The share of the resized picture that its bucket cuts away."""
    if not picture.width:
        return 0.0
    placement = place(picture.width, picture.height, settings)
    return 1 - _area(placement.bucket) / _area(placement.resized)


def _area(size: Size) -> int:
    return size[0] * size[1]


def duplicate_findings(same: list[list[Examined]], alike: list[list[Examined]]) -> Iterator[Found]:
    for kind, groups, one, many in (
        ("duplicate", same, "is the very same file as another", "are the very same files as others"),
        ("near-duplicate", alike, "looks nearly the same as another", "look nearly the same as others"),
    ):
        if groups:
            extra = sum(len(group) - 1 for group in groups)
            message = (
                f"{count(extra, 'picture')} {one if extra == 1 else many}. What is there several times is learned too "
                "hard: keep the best of each. To stress a picture on purpose, give it a folder with more repeats."
            )
            severity: Severity = "high" if kind == "duplicate" else "warning"
            yield finding(kind, severity, message, [p.path for group in groups for p in group])


def folder_findings(listings: Sequence[Listing]) -> Iterator[Found]:
    orphans = [
        path
        for found in listings
        for stem, path in found.captions.items()
        if stem not in {picture.stem for picture in found.pictures}
    ]
    if orphans:
        yield finding(
            "caption-without-picture",
            "warning",
            f"{count(len(orphans), 'caption file')} {have(orphans)} no picture of the same name: renamed, or deleted?",
            orphans,
        )
    twins = [
        picture
        for found in listings
        for stem, sharing in Counter(picture.stem for picture in found.pictures).items()
        if sharing > 1
        for picture in found.pictures
        if picture.stem == stem
    ]
    if twins:
        message = f"{len(twins)} pictures share their name with another but for the ending, and so share its caption."
        yield finding("same-name", "warning", message, twins)
    others = [path for found in listings for path in found.unread_pictures]
    if others:
        kinds = ", ".join(sorted({path.suffix.lower() for path in others}))
        message = f"{count(len(others), 'file')} of a kind that is not trained ({kinds}) {have(others)} been left out."
        yield finding("other-formats", "warning", message, others)
    folders = [path for found in listings for path in found.subfolders if path.suffix.lower() in PICTURE_EXTENSIONS]
    if folders:
        message = f"{count(len(folders), 'folder')} {have(folders)} the name of a picture; what is in it is left out."
        yield finding("folder-as-picture", "warning", message, folders)
    for found in listings:
        if not found.pictures:
            yield finding("no-pictures", "blocks", no_pictures(found))
