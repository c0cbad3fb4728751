"""A whole dataset looked at before training: what it holds and what is wrong with it, first what to mend first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from calculator.steps import batches, views
from engine.dataset.caption_findings import caption_findings, table_findings
from engine.dataset.captions import mentions, tags
from engine.dataset.examine import Examined, duplicates, examine_all
from engine.dataset.findings import SEVERITIES, DatasetFinding
from engine.dataset.folders import Listing, folder_listing
from engine.dataset.framing import framings
from engine.dataset.picture_findings import duplicate_findings, folder_findings, picture_findings
from engine.dataset.tokens import count_tokens
from knowledge.config import DatasetSettings
from knowledge.facts import DatasetFacts, FolderFacts, Picture


@dataclass(frozen=True)
class BucketRow:
    width: int
    height: int
    views: int
    batches: int


@dataclass(frozen=True)
class Inspection:
    """All that was found.

    tag_frequency: in how many captions each tag stands, the most frequent first. framing: how many captions say each
    framing, from near to far; under "" those that say none.
    """

    pictures: tuple[Examined, ...]
    findings: tuple[DatasetFinding, ...]
    buckets: tuple[BucketRow, ...]
    tag_frequency: dict[str, int]
    captions: int
    trigger_word: str
    trigger_captions: int
    most_tokens: int
    framing: dict[str, int]
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
            "framing": self.framing,
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

    found = [*picture_findings(examined, settings), *duplicate_findings(same, alike)]
    found += caption_findings(examined, tokens, settings)
    found += folder_findings(listings)
    found += table_findings(listings, examined)
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
        framing=framings(text or "" for text in captions.values()),
        resolution=settings.resolution,
        by_picture={path: tuple(several) for path, several in by_picture.items()},
    )


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
