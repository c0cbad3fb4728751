"""Captions changed in bulk: seen before they are written, kept in a journal, taken back one edit at a time."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from engine.dataset.caption_tables import TABLES, caption_in, tables_beside
from engine.dataset.captions import SEPARATOR, read_caption
from engine.dataset.folders import Listing, folder_listing, suggest_folders
from engine.run_folder import whole_file
from knowledge.answers import PlainError
from knowledge.words import agreeing, count

JOURNAL = Path(".lora-wizard") / "captions.jsonl"
"""Where a folder keeps what was done to its captions."""

DRAFT = Path(".lora-wizard") / "caption-being-written.json"
"""Where it keeps the words that somebody is writing, key by key."""

Edit = Callable[[str], str]
"""From a caption to the caption that takes its place."""


@dataclass(frozen=True)
class Change:
    """A caption file's text before and after; None where there is no file."""

    file: Path
    before: str | None
    after: str | None


# -- edits ------------------------------------------------------------------------------------------------------------


def split(caption: str) -> list[str]:
    """The tags of a line; a comma inside brackets, as in `(red, blue:1.2)`, or after a backslash does not divide."""
    parts, depth, current = [], 0, ""
    for position, character in enumerate(caption):
        escaped = position > 0 and caption[position - 1] == "\\"
        if not escaped:
            depth += (character in "([{") - (character in ")]}")
        if character == SEPARATOR and depth <= 0 and not escaped:
            parts.append(current)
            current = ""
        else:
            current += character
    return [tag for part in [*parts, current] if (tag := part.strip())]


def join(parts: Iterable[str]) -> str:
    return f"{SEPARATOR} ".join(parts)


def find_and_replace(find: str, replace: str, *, regex: bool = False) -> Edit:
    """Every occurrence replaced. Raises PlainError for a pattern that is none, or a group that it does not have."""
    if not regex:
        return lambda caption: caption.replace(find, replace)
    try:
        pattern = re.compile(find)
        re.sub(pattern, replace, "")
        pattern.sub(replace, find)
    except re.error as error:
        raise PlainError(
            f'"{find}" with "{replace}" is not a regular expression that can be used: {error}.', 2
        ) from None
    return lambda caption: pattern.sub(replace, caption)


def remove_tags(names: Sequence[str]) -> Edit:
    """Without these tags, whatever their case, underscores or blank spaces."""
    unwanted = {_plain(name) for name in names}
    return lambda caption: join(tag for tag in split(caption) if _plain(tag) not in unwanted)


def without_doubles(caption: str) -> str:
    """Each tag once, where it first stood."""
    seen: dict[str, str] = {}
    for tag in split(caption):
        seen.setdefault(_plain(tag), tag)
    return join(seen.values())


def sorted_tags(caption: str) -> str:
    return join(sorted(split(caption), key=str.casefold))


def spaces_for_underscores(caption: str) -> str:
    """Underscores between letters and digits become spaces; in faces such as ^_^ or o_o they stay."""
    return join(tag if len(tag) <= 3 else re.sub(r"(?<=\w)_(?=\w)", " ", tag) for tag in split(caption))


def keep_first(count: int) -> Edit:
    return lambda caption: join(split(caption)[:count])


def trigger_first(word: str) -> Edit:
    """The trigger word as the first tag, and nowhere else as a tag of its own."""
    return lambda caption: join([word, *(tag for tag in split(caption) if _plain(tag) != _plain(word))])


def prefix(text: str) -> Edit:
    """With this text in front; where there is nothing, the text alone without what would divide it from the rest."""
    return lambda caption: (
        (caption if caption.startswith(text) else f"{text}{caption}") if caption.strip() else _alone(text)
    )


def suffix(text: str) -> Edit:
    """With this text behind, as `prefix`."""
    return lambda caption: (
        (caption if caption.endswith(text) else f"{caption}{text}") if caption.strip() else _alone(text)
    )


def _alone(text: str) -> str:
    return text.strip(f"{SEPARATOR} ")


def _plain(tag: str) -> str:
    return re.sub(r"[\s_]+", " ", tag).strip().casefold()


# -- what they would do, and doing it ---------------------------------------------------------------------------------


def listings(folder: Path, extension: str) -> list[Listing]:
    """What lies in the folder, and in kohya's `10_name` folders below it. Raises PlainError where no pictures are."""
    return [folder_listing(Path(found.path), extension) for found in suggest_folders(folder)]


def caption_files(folder: Path, extension: str) -> dict[Path, Path]:
    """The caption file of every picture in the folder, whether it is there or not."""
    return {
        picture: found.captions.get(picture.stem, picture.with_suffix(extension))
        for found in listings(folder, extension)
        for picture in found.pictures
    }


def changes(folder: Path, extension: str, edits: Sequence[Edit], *, create: bool = False) -> list[Change]:
    """What the edits, one after the other, would change in this folder; line by line where a caption has several.

    Pictures without a caption file get one only when `create` is set. Raises PlainError for captions that are not
    UTF-8 text.
    """
    files = {file for found in listings(folder, extension) for file in found.captions.values()}
    if create:
        files |= set(caption_files(folder, extension).values())
    garbled, planned = [], []
    for file in sorted(files):
        try:
            before = _text(file)
        except UnicodeDecodeError:
            garbled.append(file.name)
            continue
        after = "\n".join(_edited(line, edits) for line in (before or "").split("\n"))
        if after != (before or ""):
            planned.append(Change(file, before, after))
    if garbled:
        raise PlainError(f"Nothing was changed: {', '.join(garbled[:5])} cannot be read as UTF-8 text.")
    return planned


def from_tables(folder: Path, extension: str) -> list[Change]:
    """The captions that tables beside the pictures have for those that have none of their own.

    Raises PlainError where there is no table that can be used.
    """
    planned: list[Change] = []
    problems: list[str] = []
    used = 0
    for found in listings(folder, extension):
        tables, broken = tables_beside(found.folder)
        used, problems = used + len(tables), problems + broken
        for picture in found.pictures:
            file = found.captions.get(picture.stem, picture.with_suffix(extension))
            before = caption_text(file)
            caption, _ = caption_in(tables, PurePosixPath(picture.name))
            if caption and not (before or "").strip():
                planned.append(Change(file, before, caption))
    if problems or not used:
        raise PlainError(" ".join(problems) or f"There is no table of captions in {folder}: {', '.join(TABLES)}.", 2)
    return planned


def _edited(line: str, edits: Sequence[Edit]) -> str:
    for edit in edits:
        line = edit(line)
    return line.strip()  # as it is read back


def apply(folder: Path, planned: Sequence[Change], words: str, at: float | None = None) -> None:
    """Write the changes. The journal has them on disk before the first file is touched, so that none is ever lost.

    at: when, in seconds since 1970, where one edit is made in several folders; else now.
    """
    entry = {"at": at or time.time(), "edit": words, "changes": [_as_dict(folder, change) for change in planned]}
    _append(folder, entry)
    for done, change in enumerate(planned):
        try:
            _write(change.file, change.after)
        except PlainError as problem:
            changed = f"{done} of {count(len(planned), 'caption')} {agreeing(done, 'was', 'were')} changed"
            so_far = f" {changed}; undo takes that back." if done else ""
            raise PlainError(f"{problem}{so_far}") from None


def undo(folder: Path) -> tuple[str, list[Change], list[Path]]:
    """Take the last edit back: its words, what was restored, and files left alone because they were changed since.

    Raises PlainError when there is nothing to take back.
    """
    entries = list(history(folder))
    if not entries:
        raise PlainError(f"No edit of the captions in {folder} is left to take back.", 2)
    last = entries[-1]
    restored, kept = [], []
    for row in last["changes"]:
        change = Change(folder / row["file"], row["before"], row["after"])
        now = _text(change.file)
        if now == change.after and now != change.before:
            restored.append(Change(change.file, change.after, change.before))
        elif now != change.before:
            kept.append(change.file)
    for change in restored:
        _write(change.file, change.after)
    _append(folder, {"at": time.time(), "undone": last["at"]})
    return last["edit"], restored, kept


def history(folder: Path) -> Iterator[dict[str, Any]]:
    """The edits that have not been taken back, oldest first."""
    entries: list[dict[str, Any]] = []
    try:
        lines = (folder / JOURNAL).read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        return
    for line in lines:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue  # cut while it was written: nothing had been changed yet
        if "undone" in entry:
            entries = [other for other in entries if other["at"] != entry["undone"]]
        else:
            entries.append(entry)
    yield from entries


# -- words that are being written -------------------------------------------------------------------------------------


def keep_draft(folder: Path, file: Path, text: str) -> None:
    """Keep what is being written for this caption file, until it is applied or forgotten."""
    path = folder / DRAFT
    path.parent.mkdir(exist_ok=True)
    with whole_file(path) as partial:
        draft = {"file": file.relative_to(folder).as_posix(), "text": text}
        partial.write_text(json.dumps(draft, ensure_ascii=False), encoding="utf-8")


def draft_of(folder: Path) -> tuple[Path, str] | None:
    """The caption file that was being written when a program ended before its time, and the words."""
    try:
        said = json.loads((folder / DRAFT).read_text(encoding="utf-8"))
        return folder / str(said["file"]), str(said["text"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def forget_draft(folder: Path) -> None:
    (folder / DRAFT).unlink(missing_ok=True)


def _append(folder: Path, entry: object) -> None:
    """Add a line to the journal and wait until the disk has it."""
    path = folder / JOURNAL
    try:
        path.parent.mkdir(exist_ok=True)
        with path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise PlainError(f"The journal {path} cannot be written ({error.strerror}); nothing was changed.") from None


def _as_dict(folder: Path, change: Change) -> dict[str, str | None]:
    return {"file": change.file.relative_to(folder).as_posix(), "before": change.before, "after": change.after}


def caption_text(file: Path | None) -> str | None:
    """The text of a caption file, None where there is none. Raises PlainError for one that is not UTF-8."""
    try:
        return _text(file) if file is not None else None
    except UnicodeDecodeError:
        raise PlainError(f"{file} is not UTF-8 text. Save it as UTF-8 in a text editor.") from None


def _text(file: Path) -> str | None:
    return read_caption(file) if file.exists() else None


def _write(file: Path, text: str | None) -> None:
    if text is None:
        file.unlink(missing_ok=True)
        return
    with whole_file(file) as partial:
        partial.write_text(text + "\n" if text else "", encoding="utf-8", newline="\n")
