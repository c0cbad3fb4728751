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
    text = content.decode(encoding)
    if "\0" in text:  # UTF-16 without its mark, of plain letters, passes for UTF-8
        raise UnicodeDecodeError(encoding, content, content.find(b"\0"), content.find(b"\0") + 1, "a zero byte")
    return text.replace("\r\n", "\n").replace("\r", "\n").strip()


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
    caption = " ".join(part for part in (settings.caption_prefix, caption, settings.caption_suffix) if part)
    if settings.caption_dropout_rate > 0 and random.random() < settings.caption_dropout_rate:
        return ""
    if settings.caption_dropout_every_epochs and epoch % settings.caption_dropout_every_epochs == 0:
        return ""
    caption = _chosen(caption, random) if settings.wildcards else caption.split("\n")[0]
    mark = settings.keep_tokens_separator
    marked = bool(mark) and mark in caption
    if not (settings.shuffle_tags or settings.tag_dropout_rate > 0 or marked):
        return caption
    first, flexible, last = (
        _split_at_marks(caption, mark) if marked else _split(caption, settings.keep_tokens, trigger_word)
    )
    if settings.shuffle_tags:
        random.shuffle(flexible)
    if settings.tag_dropout_rate > 0:
        flexible = [tag for tag in flexible if random.random() >= settings.tag_dropout_rate]
    return f"{SEPARATOR} ".join(first + flexible + last)


def _chosen(caption: str, random: Random) -> str:
    """One line of the caption, with one of each {red|green|blue} chosen; {{ and }} become braces."""
    lines = caption.split("\n")
    line = random.choice(lines) if len(lines) > 1 else caption
    opening, closing = "\0(", "\0)"  # a caption file holds no zero bytes
    line = line.replace("{{", opening).replace("}}", closing)
    line = re.sub(r"\{([^}]+)\}", lambda match: random.choice(match[1].split("|")), line)
    return line.replace(opening, "{").replace(closing, "}")


def _split(caption: str, keep_tokens: int, trigger_word: str) -> tuple[list[str], list[str], list[str]]:
    """The tags that stay in front, those that may change, and those that stay at the end: none."""
    # sd-scripts keeps empty tags here, and they take part in the shuffle; we match it.
    parts = [part.strip() for part in caption.strip().split(SEPARATOR)]
    if trigger_word and mentions(parts[0], trigger_word):
        keep_tokens = max(keep_tokens, 1)
    return parts[:keep_tokens], parts[keep_tokens:], []


def _split_at_marks(caption: str, mark: str) -> tuple[list[str], list[str], list[str]]:
    """The tags before the first mark, up to the second, and after it."""
    first, _, rest = caption.partition(mark)
    flexible, _, last = rest.partition(mark)
    return tags(first), tags(flexible), tags(last)
