"""What may be wrong with the captions of a dataset."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from engine.dataset.caption_tables import caption_in, tables_beside
from engine.dataset.captions import mentions, tags
from engine.dataset.examine import Examined
from engine.dataset.findings import Found, finding, have
from engine.dataset.folders import Listing
from engine.dataset.framing import framing_of, framings, one_sided
from engine.dataset.tokens import TOKENS_READ
from knowledge.config import DatasetSettings
from knowledge.words import agreeing, count


def caption_findings(
    pictures: Sequence[Examined], tokens: dict[Path, int], settings: DatasetSettings
) -> Iterator[Found]:
    garbled = [p.path for p in pictures if not p.caption_readable]
    if garbled:
        yield finding(
            "caption-encoding",
            "blocks",
            f"{count(len(garbled), 'caption')} cannot be read as UTF-8 text. Save as UTF-8 in a text editor.",
            garbled,
        )
    missing = [p.path for p in pictures if p.caption_readable and not (p.caption or "").strip()]
    if missing and len(missing) == len(pictures):
        yield finding("captions-missing", "warning", "No picture has a caption; all are trained on the same words.")
    elif missing:
        yield finding(
            "captions-missing",
            "warning",
            f"{count(len(missing), 'picture')} of {len(pictures)} {have(missing)} no caption; everything in "
            f"{'it' if len(missing) == 1 else 'them'} sticks to the trigger word.",
            missing,
        )
    thin = [p.path for p in pictures if (p.caption or "").strip() and not _says_something(p.caption or "", settings)]
    if thin:
        yield finding(
            "captions-thin",
            "note",
            f"{count(len(thin), 'caption')} {agreeing(len(thin), 'says', 'say')} hardly anything beside the trigger "
            "word. Name what should not belong to it: place, clothes, light.",
            thin,
        )
    long = [path for path, length in tokens.items() if length > TOKENS_READ]
    if long:
        yield finding(
            "captions-long",
            "warning",
            f"{count(len(long), 'caption')} {agreeing(len(long), 'is', 'are')} longer than the {TOKENS_READ} tokens "
            "that the model reads; what comes after is not seen. Put what matters first, or shorten.",
            long,
        )
    texts = Counter((p.caption or "").strip() for p in pictures if (p.caption or "").strip())
    if texts and len(texts) == 1 and sum(texts.values()) > 2:
        yield finding("captions-equal", "note", "All captions are the same words; they tell nothing apart.")
    yield from _trigger_findings(pictures, settings)
    yield from _framing_findings(pictures)
    yield from _tag_findings(pictures)


def _trigger_findings(pictures: Sequence[Examined], settings: DatasetSettings) -> Iterator[Found]:
    word = settings.trigger_word.strip()
    captioned = [p for p in pictures if (p.caption or "").strip()]
    without = [p.path for p in captioned if not mentions(p.caption or "", word)] if word else []
    if without:
        lack = agreeing(len(without), "lacks", "lack")
        message = (
            f"{len(without)} of {count(len(captioned), 'caption')} {lack} the trigger word; training puts it in front."
            if len(without) < len(captioned)
            else "No caption holds the trigger word; it is put in front of all of them for training."
        )
        yield finding("trigger-missing", "note", message, without)


def _framing_findings(pictures: Sequence[Examined]) -> Iterator[Found]:
    """Pictures that are all taken from as near, by what their captions say."""
    captioned = [p for p in pictures if (p.caption or "").strip()]
    said = framings(p.caption or "" for p in captioned)
    framing = one_sided(said)
    if framing:
        total = sum(number for each, number in said.items() if each)
        yield finding(
            "framing-one-sided",
            "note",
            f"{said[framing]} of {total} captions that say how near the picture is taken say {framing}. What is always "
            "seen from as near is hard to draw from elsewhere: add pictures from nearer and from farther.",
            [p.path for p in captioned if framing_of(p.caption or "") == framing],
        )


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
        message = f"{count(len(several), 'tag')} {agreeing(len(several), 'is', 'are')} written in several ways: "
        yield finding("tags-spelled-differently", "note", f"{message}{', '.join(shown)}{more}. Choose one.")
    doubled = [p.path for p in pictures if len(tags(p.caption or "")) != len(set(tags(p.caption or "")))]
    if doubled:
        message = f"{count(len(doubled), 'caption')} {agreeing(len(doubled), 'says', 'say')} the same tag twice."
        yield finding("tags-doubled", "note", message, doubled)


def table_findings(listings: Sequence[Listing], pictures: Sequence[Examined]) -> Iterator[Found]:
    """Captions that stand in a table beside the pictures, where nobody reads them."""
    bare = {p.path for p in pictures if p.caption_readable and not (p.caption or "").strip()}
    for found in listings:
        tables, problems = tables_beside(found.folder)
        for problem in problems:
            yield finding("caption-table", "warning", problem)
        waiting: dict[str, list[Path]] = {}
        for path in found.pictures:
            if path in bare and (name := caption_in(tables, PurePosixPath(path.name))[1]):
                waiting.setdefault(name, []).append(path)
        for name, paths in waiting.items():
            message = (
                f"{name} holds captions for {count(len(paths), 'picture')} without one. Training reads caption files "
                "beside the pictures; make them: lora-wizard dataset captions FOLDER --from-tables"
            )
            yield finding("caption-table", "warning", message, paths)


def _says_something(caption: str, settings: DatasetSettings) -> bool:
    rest = (
        re.sub(re.escape(settings.trigger_word.strip()), "", caption, flags=re.I) if settings.trigger_word else caption
    )
    return len(re.findall(r"\w+", rest)) >= 2
