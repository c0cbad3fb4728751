"""A whole dataset looked at before training: what it holds and what is wrong with it, first what to mend first."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from calculator.buckets import Size, place
from calculator.steps import batches, views
from engine.dataset.caption_tables import caption_in, tables_beside
from engine.dataset.captions import mentions, tags
from engine.dataset.examine import Examined, duplicates, examine_all
from engine.dataset.folders import PICTURE_EXTENSIONS, Listing, folder_listing, no_pictures
from engine.dataset.tokens import TOKENS_READ, count_tokens
from knowledge.config import DatasetSettings
from knowledge.facts import DatasetFacts, FolderFacts, Picture

Severity = Literal["blocks", "high", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("blocks", "high", "warning", "note")

BLURRED_BELOW = 0.08
"""See engine.dataset.examine.sharpness: what a blur of about 2 pixels leaves of a sharp picture."""
ENLARGED_ABOVE = 1.5
"""Times a side may be enlarged before the picture is called too small."""
CUT_ABOVE = 0.15
"""Share of a picture that may be cut away to fit its bucket before it is worth telling."""


@dataclass(frozen=True)
class DatasetFinding:
    """One thing to know about the dataset; `files` are the names of those it is about, to be shown."""

    kind: str
    severity: Severity
    message: str
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class BucketRow:
    width: int
    height: int
    views: int
    batches: int


@dataclass(frozen=True)
class Inspection:
    """All that was found. tag_frequency: in how many captions each tag stands, the most frequent first."""

    pictures: tuple[Examined, ...]
    findings: tuple[DatasetFinding, ...]
    buckets: tuple[BucketRow, ...]
    tag_frequency: dict[str, int]
    captions: int
    trigger_word: str
    trigger_captions: int
    most_tokens: int
    resolution: int
    by_picture: dict[Path, tuple[DatasetFinding, ...]] = field(default_factory=dict, repr=False)

    @property
    def usable(self) -> int:
        return sum(picture.state == "fine" for picture in self.pictures)

    def formats(self) -> dict[str, int]:
        return dict(Counter(picture.format for picture in self.pictures if picture.format).most_common())

    def shapes(self) -> dict[str, int]:
        """How many pictures are tall, square (within a tenth) and wide."""
        readable = [picture for picture in self.pictures if picture.width]
        names = ("tall", "square", "wide")
        counts = Counter(names[(p.width > 1.1 * p.height) - (p.height > 1.1 * p.width) + 1] for p in readable)
        return {name: counts[name] for name in names}

    def as_dict(self) -> dict[str, Any]:
        """The document that --json prints."""
        return {
            "pictures": len(self.pictures),
            "usable": self.usable,
            "formats": self.formats(),
            "shapes": self.shapes(),
            "captions": self.captions,
            "most_tokens": self.most_tokens,
            "trigger_word": self.trigger_word,
            "trigger_captions": self.trigger_captions,
            "tag_frequency": self.tag_frequency,
            "resolution": self.resolution,
            "buckets": [asdict(row) for row in self.buckets],
            "findings": [asdict(finding) for finding in self.findings],
        }


def inspect_dataset(
    settings: DatasetSettings,
    batch_size: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Inspection:
    """The pictures and captions of dataset.folders, examined. Raises PlainError for folders that cannot be listed."""
    listings = [folder_listing(Path(f.path).expanduser(), settings.caption_extension) for f in settings.folders]
    pairs = [(path, found.captions.get(path.stem)) for found in listings for path in found.pictures]
    examined = examine_all(pairs, progress)
    same, alike = duplicates(examined)
    captions = {p.path: p.caption for p in examined if p.caption is not None and p.caption.strip()}
    tokens = dict(zip(captions, count_tokens([caption or "" for caption in captions.values()]), strict=True))

    found = [*_picture_findings(examined, settings), *_duplicate_findings(same, alike)]
    found += _caption_findings(examined, tokens, settings)
    found += _folder_findings(listings)
    found += _table_findings(listings, examined)
    found.sort(key=lambda pair: SEVERITIES.index(pair[0].severity))
    by_picture: dict[Path, list[DatasetFinding]] = {}
    for finding, paths in found:
        for path in paths:
            by_picture.setdefault(path, []).append(finding)

    frequency = Counter(tag for caption in captions.values() for tag in dict.fromkeys(tags(caption or "")))
    trigger_word = settings.trigger_word.strip()
    return Inspection(
        pictures=tuple(examined),
        findings=tuple(finding for finding, _ in found),
        buckets=tuple(_buckets(examined, settings, listings, batch_size)),
        tag_frequency=dict(frequency.most_common()),
        captions=len(captions),
        trigger_word=trigger_word,
        trigger_captions=sum(mentions(text or "", trigger_word) for text in captions.values()) if trigger_word else 0,
        most_tokens=max(tokens.values(), default=0),
        resolution=settings.resolution,
        by_picture={path: tuple(several) for path, several in by_picture.items()},
    )


Found = tuple[DatasetFinding, Sequence[Path]]


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


def _picture_findings(pictures: Sequence[Examined], settings: DatasetSettings) -> Iterator[Found]:
    for check in PICTURE_CHECKS:
        hit = [picture for picture in pictures if check.applies(picture, settings)]
        if hit:
            message = check.one if len(hit) == 1 else check.many.format(n=len(hit))
            yield _finding(check.kind, check.severity, message, [picture.path for picture in hit])


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


def _duplicate_findings(same: list[list[Examined]], alike: list[list[Examined]]) -> Iterator[Found]:
    for kind, groups, one, many in (
        ("duplicate", same, "is the very same file as another", "are the very same files as others"),
        ("near-duplicate", alike, "looks nearly the same as another", "look nearly the same as others"),
    ):
        if groups:
            extra = sum(len(group) - 1 for group in groups)
            message = (
                f"{_count(extra, 'picture')} {one if extra == 1 else many}. What is there several times is learned too "
                "hard: keep the best of each. To stress a picture on purpose, give it a folder with more repeats."
            )
            severity: Severity = "high" if kind == "duplicate" else "warning"
            yield _finding(kind, severity, message, [p.path for group in groups for p in group])


def _caption_findings(
    pictures: Sequence[Examined], tokens: dict[Path, int], settings: DatasetSettings
) -> Iterator[Found]:
    garbled = [p.path for p in pictures if not p.caption_readable]
    if garbled:
        yield _finding(
            "caption-encoding",
            "blocks",
            f"{_count(len(garbled), 'caption')} cannot be read as UTF-8 text. Save as UTF-8 in a text editor.",
            garbled,
        )
    missing = [p.path for p in pictures if p.caption_readable and not (p.caption or "").strip()]
    if missing and len(missing) == len(pictures):
        yield _finding("captions-missing", "warning", "No picture has a caption; all are trained on the same words.")
    elif missing:
        yield _finding(
            "captions-missing",
            "warning",
            f"{_count(len(missing), 'picture')} of {len(pictures)} {_have(missing)} no caption; everything in "
            f"{'it' if len(missing) == 1 else 'them'} sticks to the trigger word.",
            missing,
        )
    thin = [p.path for p in pictures if (p.caption or "").strip() and not _says_something(p.caption or "", settings)]
    if thin:
        yield _finding(
            "captions-thin",
            "note",
            f"{_count(len(thin), 'caption')} {'says' if len(thin) == 1 else 'say'} hardly anything beside the trigger "
            "word. Name what should not belong to it: place, clothes, light.",
            thin,
        )
    long = [path for path, count in tokens.items() if count > TOKENS_READ]
    if long:
        yield _finding(
            "captions-long",
            "warning",
            f"{_count(len(long), 'caption')} {'is' if len(long) == 1 else 'are'} longer than the {TOKENS_READ} tokens "
            "that the model reads; what comes after is not seen. Put what matters first, or shorten.",
            long,
        )
    texts = Counter((p.caption or "").strip() for p in pictures if (p.caption or "").strip())
    if texts and len(texts) == 1 and sum(texts.values()) > 2:
        yield _finding("captions-equal", "note", "All captions are the same words; they tell nothing apart.")
    yield from _trigger_findings(pictures, settings)
    yield from _tag_findings(pictures)


def _trigger_findings(pictures: Sequence[Examined], settings: DatasetSettings) -> Iterator[Found]:
    word = settings.trigger_word.strip()
    captioned = [p for p in pictures if (p.caption or "").strip()]
    without = [p.path for p in captioned if not mentions(p.caption or "", word)] if word else []
    if without:
        some = f"{len(without)} of {len(captioned)}" if len(without) < len(captioned) else "None"
        message = (
            f"{some} captions lack the trigger word; it is put in front of them for training."
            if len(without) < len(captioned)
            else "No caption holds the trigger word; it is put in front of all of them for training."
        )
        yield _finding("trigger-missing", "note", message, without)


def _tag_findings(pictures: Sequence[Examined]) -> Iterator[Found]:
    """Tags that mean one thing and are written in two ways."""
    written: dict[str, Counter[str]] = {}
    for picture in pictures:
        for tag in dict.fromkeys(tags(picture.caption or "")):
            written.setdefault(re.sub(r"[\s_]+", " ", tag).lower(), Counter())[tag] += 1
    several = {name: forms for name, forms in written.items() if len(forms) > 1}
    if several:
        shown = [" and ".join(f'"{form}"' for form in forms) for forms in list(several.values())[:3]]
        more = f" and {len(several) - 3} more" if len(several) > 3 else ""
        message = f"{_count(len(several), 'tag')} {'is' if len(several) == 1 else 'are'} written in several ways: "
        yield _finding("tags-spelled-differently", "note", f"{message}{', '.join(shown)}{more}. Choose one.")
    doubled = [p.path for p in pictures if len(tags(p.caption or "")) != len(set(tags(p.caption or "")))]
    if doubled:
        message = f"{_count(len(doubled), 'caption')} {'says' if len(doubled) == 1 else 'say'} the same tag twice."
        yield _finding("tags-doubled", "note", message, doubled)


def _folder_findings(listings: Sequence[Listing]) -> Iterator[Found]:
    orphans = [
        path
        for found in listings
        for stem, path in found.captions.items()
        if stem not in {picture.stem for picture in found.pictures}
    ]
    if orphans:
        yield _finding(
            "caption-without-picture",
            "warning",
            f"{_count(len(orphans), 'caption file')} {_have(orphans)} no picture of the same name: renamed, or "
            "deleted?",
            orphans,
        )
    twins = [
        picture
        for found in listings
        for stem, count in Counter(picture.stem for picture in found.pictures).items()
        if count > 1
        for picture in found.pictures
        if picture.stem == stem
    ]
    if twins:
        message = f"{len(twins)} pictures share their name with another but for the ending, and so share its caption."
        yield _finding("same-name", "warning", message, twins)
    others = [path for found in listings for path in found.unread_pictures]
    if others:
        kinds = ", ".join(sorted({path.suffix.lower() for path in others}))
        message = (
            f"{_count(len(others), 'file')} of a kind that is not trained ({kinds}) {_have(others)} been left out."
        )
        yield _finding("other-formats", "warning", message, others)
    folders = [path for found in listings for path in found.subfolders if path.suffix.lower() in PICTURE_EXTENSIONS]
    if folders:
        message = f"{_count(len(folders), 'folder')} {_have(folders)} the name of a picture; what is in it is left out."
        yield _finding("folder-as-picture", "warning", message, folders)
    for found in listings:
        if not found.pictures:
            yield _finding("no-pictures", "blocks", no_pictures(found))


def _table_findings(listings: Sequence[Listing], pictures: Sequence[Examined]) -> Iterator[Found]:
    """Captions that stand in a table beside the pictures, where nobody reads them."""
    bare = {p.path for p in pictures if p.caption_readable and not (p.caption or "").strip()}
    for found in listings:
        tables, problems = tables_beside(found.folder)
        for problem in problems:
            yield _finding("caption-table", "warning", problem)
        waiting: dict[str, list[Path]] = {}
        for path in found.pictures:
            if path in bare and (name := caption_in(tables, PurePosixPath(path.name))[1]):
                waiting.setdefault(name, []).append(path)
        for name, paths in waiting.items():
            message = (
                f"{name} holds captions for {_count(len(paths), 'picture')} without one. Training reads caption files "
                "beside the pictures; make them: lora-wizard dataset captions FOLDER --from-tables"
            )
            yield _finding("caption-table", "warning", message, paths)


def _says_something(caption: str, settings: DatasetSettings) -> bool:
    rest = (
        re.sub(re.escape(settings.trigger_word.strip()), "", caption, flags=re.I) if settings.trigger_word else caption
    )
    return len(re.findall(r"\w+", rest)) >= 2


def _buckets(
    pictures: Sequence[Examined], settings: DatasetSettings, listings: Sequence[Listing], batch_size: int
) -> Iterator[BucketRow]:
    known = {p.path: Picture(str(p.path), p.width, p.height, p.caption) for p in pictures if p.state == "fine"}
    folders = tuple(
        FolderFacts(
            tuple(known[path] for path in found.pictures if path in known), folder.repeats, folder.regularisation
        )
        for folder, found in zip(settings.folders, listings, strict=True)
    )
    shown = views(DatasetFacts(folders), settings)
    for (width, height), count in batches(shown, batch_size).items():
        yield BucketRow(width, height, shown[width, height], count)


def _finding(kind: str, severity: Severity, message: str, paths: Sequence[Path] = ()) -> Found:
    names = tuple(str(path).encode(errors="replace").decode() for path in paths)  # a name may be no text at all
    return DatasetFinding(kind, severity, message, names), paths


def _count(number: int, one: str) -> str:
    return f"{number:,} {one if number == 1 else one + 's'}"


def _have(things: Sequence[object]) -> str:
    return "has" if len(things) == 1 else "have"
