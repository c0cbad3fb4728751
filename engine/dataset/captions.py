"""Captions: read from their files, and the text that one view of a picture is trained with."""

from __future__ import annotations

import codecs
import re
from pathlib import Path
from random import Random

from knowledge.config import DatasetSettings

SEPARATOR = ","
"""What stands between two tags of a caption."""

_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


def read_caption(path: Path) -> str:
    """The text of a caption file without its outer blank space and with plain newlines.

    Raises UnicodeDecodeError for a file that is neither UTF-8 nor marked as UTF-16: a guess would train on wrong words.
    """
    content = path.read_bytes()
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    return content.decode(encoding).replace("\r\n", "\n").replace("\r", "\n").strip()


def tags(caption: str) -> list[str]:
    """The tags of a caption's first line, in order, without blank space and without empty ones."""
    return [tag for part in caption.split("\n")[0].split(SEPARATOR) if (tag := part.strip())]


def mentions(caption: str, trigger_word: str) -> bool:
    """Whether the trigger word stands in the caption as a word of its own, in any case."""
    return bool(re.search(rf"(?<!\w){re.escape(trigger_word)}(?!\w)", caption, re.IGNORECASE))


def with_trigger_word(caption: str, trigger_word: str) -> str:
    """The caption with the trigger word put first in every line that does not mention it."""
    trigger_word = trigger_word.strip()
    if not trigger_word:
        return caption
    return "\n".join(
        line if mentions(line, trigger_word) else f"{trigger_word}{SEPARATOR} {line}" if line.strip() else trigger_word
        for line in caption.split("\n")
    )


def trained_caption(
    caption: str | None, settings: DatasetSettings, random: Random, epoch: int, *, regularisation: bool = False
) -> str:
    """The text that one view of a picture is trained with in this epoch, counted from 1.

    The order of the changes and of the draws from `random` is sd-scripts', so the same state gives the same text. The
    trigger word is ours: it goes first where a caption lacks it, never moves and is never dropped as a tag; pictures
    for regularisation show the class without it.
    """
    trigger_word = "" if regularisation else settings.trigger_word.strip()
    caption = with_trigger_word(caption or "", trigger_word)
    if settings.caption_dropout_rate > 0 and random.random() < settings.caption_dropout_rate:
        return ""
    caption = caption.split("\n")[0]
    if settings.shuffle_tags:
        fixed, flexible = _split_tags(caption, settings.keep_tokens, trigger_word)
        random.shuffle(flexible)
        caption = f"{SEPARATOR} ".join(fixed + flexible)
    return caption


def _split_tags(caption: str, keep_tokens: int, trigger_word: str) -> tuple[list[str], list[str]]:
    """The tags that stay in front and those that may move."""
    # sd-scripts keeps empty tags here, and they take part in the shuffle; we match it.
    parts = [part.strip() for part in caption.strip().split(SEPARATOR)]
    if trigger_word and mentions(parts[0], trigger_word):
        keep_tokens = max(keep_tokens, 1)
    return parts[:keep_tokens], parts[keep_tokens:]
