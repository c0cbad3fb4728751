"""A booru's pictures in a folder, each whole and checked, with captions of their tags.

A folder remembers what came into it, so that a later call fetches only what is new, and nothing again that was thrown
away by hand.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from engine.acquire import transfer
from engine.acquire.booru import PAUSE_SECONDS, Found, Pace, Post, endpoint, page_of
from engine.acquire.network import NetworkError, Notice, RefusalError, Source, silent
from engine.acquire.transfer import DiskError
from engine.dataset.caption_edits import join, remove_tags, trigger_first
from engine.dataset.images import UNREADABLE, opened
from engine.run_folder import whole_file
from engine.tagging import spoken
from knowledge.answers import PlainError

MOST_FAILURES = 3
"""Pictures in a row for which the network fails before it is left in peace."""
MOST_BYTES = 100 * 10**6
"""No picture for training is larger."""

MANIFEST = Path(".lora-wizard") / "gelbooru.jsonl"
"""Where a folder remembers what came into it: one line for each picture."""
INCOMING = Path(".lora-wizard") / "incoming"

ENDINGS = {"PNG": ".png", "JPEG": ".jpg", "MPO": ".jpg", "WEBP": ".webp", "BMP": ".bmp", "AVIF": ".avif"}
"""The ending that a picture gets, by what is in it; the name that it had there may be wrong."""

ABOUT_THE_FILE = (
    "highres",
    "absurdres",
    "incredibly_absurdres",
    "lowres",
    "commentary",
    "commentary_request",
    "partial_commentary",
    "translated",
    "translation_request",
    "partially_translated",
    "check_translation",
    "bad_id",
    "bad_link",
    "bad_source",
    "md5_mismatch",
    "tagme",
    "revision",
    "duplicate",
)
"""Tags that say something about a file or its page there, and nothing that can be seen."""


@dataclass
class Scraped:
    """What came. `failed`: post and why it is not there. `interrupted`: why it ended before all was tried."""

    folder: Path
    pictures: int = 0
    captions: int = 0
    failed: dict[int, str] = field(default_factory=dict)
    interrupted: str = ""


def remembered(folder: Path) -> dict[int, str]:
    """What came into this folder before: file name by post; a name whose file is gone was thrown away since."""
    known: dict[int, str] = {}
    try:
        lines = (folder / MANIFEST).read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        return known
    except (OSError, UnicodeDecodeError) as error:
        raise PlainError(
            f"{folder / MANIFEST} cannot be read ({error}), so nobody knows what is here already."
        ) from None
    for line in lines:
        try:
            entry = json.loads(line)
            known[int(entry["id"])] = str(entry["file"])
        except (ValueError, KeyError, TypeError):
            continue  # a line that was cut: its picture comes once more, under the same name
    return known


def still_to_come(found: Found, folder: Path) -> list[Post]:
    """The posts that did not come into this folder before."""
    known = remembered(folder)
    return [post for post in found.posts if post.id not in known]


@dataclass(frozen=True)
class CaptionWish:
    """How a post's tags become a caption: without these, the trigger word first."""

    blacklist: tuple[str, ...] = ()
    trigger_word: str = ""


def caption_of(post: Post, wish: CaptionWish) -> str:
    """The caption of a post: its tags with spaces for underscores, without those that are about the file."""
    tags = join(spoken(tag).replace(",", " ") for tag in post.tags if tag not in ABOUT_THE_FILE)
    tags = remove_tags(wish.blacklist)(tags)
    return trigger_first(wish.trigger_word)(tags) if wish.trigger_word else tags


def fetch(
    posts: Sequence[Post],
    folder: Path,
    captions: CaptionWish | None = None,
    *,
    pause_seconds: float = PAUSE_SECONDS,
    progress: Callable[[int, int], None] = lambda done, total: None,
    notice: Notice = silent,
) -> Scraped:
    """The pictures in the folder, each checked and whole, with captions made of their tags where these are wished for.

    A picture that cannot be had is told and the next one is tried. It ends where the disk is at fault, where the
    server asks for a long wait, and where the network fails for several pictures in a row; a later call goes on.
    Captions that are there already stay as they are.
    """
    scraped, pace = Scraped(folder), Pace(pause_seconds)
    _prepare(folder)
    in_a_row = 0
    for number, post in enumerate(posts, start=1):
        try:
            picture = _picture(post, folder, pace, notice)
        except (DiskError, NetworkError) as problem:
            in_a_row += 1
            if not isinstance(problem, NetworkError) or problem.asked_to_wait or in_a_row == MOST_FAILURES:
                scraped.interrupted = str(problem)
                return scraped
            scraped.failed[post.id] = str(problem)
        except PlainError as problem:
            scraped.failed[post.id] = str(problem)
        else:
            in_a_row = 0
            scraped.pictures += 1
            scraped.captions += captions is not None and _write_caption(picture, caption_of(post, captions))
            _remember(folder, post, picture)
        progress(number, len(posts))
    _tidy(folder)
    return scraped


def _prepare(folder: Path) -> None:
    try:
        (folder / INCOMING).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PlainError(f"The folder {folder} cannot be made: {error.strerror or error}.") from None


def _tidy(folder: Path) -> None:
    """Takes the folder for incoming files away where nothing is left in it."""
    if not any((folder / INCOMING).iterdir()):
        (folder / INCOMING).rmdir()


def _picture(post: Post, folder: Path, pace: Pace, notice: Notice) -> Path:
    """The picture of a post under its name. Raises PlainError where it cannot be had."""
    incoming = folder / INCOMING / str(post.id)
    headers = {"Referer": f"{endpoint()}/"}  # without it, its picture hosts answer with a page
    source = Source(post.url, md5=post.md5, headers=headers, most_bytes=MOST_BYTES)
    pace.wait()
    try:
        transfer.download(source, incoming, notice=notice)
    except RefusalError as refused:
        raise PlainError(f"{refused.host} does not give the file (status {refused.status}).") from None
    try:
        with opened(incoming) as image:
            ending = ENDINGS.get(image.format or "")
            image.load()
    except UNREADABLE:
        ending = None
    if ending is None:
        incoming.unlink()
        raise PlainError("What came is no whole picture. It was thrown away.")
    picture = folder / f"gelbooru-{post.id}{ending}"
    try:
        incoming.replace(picture)
    except OSError as error:
        raise DiskError(f"{picture} cannot be written: {error.strerror or error}.") from None
    return picture


def _write_caption(picture: Path, text: str) -> bool:
    file = picture.with_suffix(".txt")
    if file.exists() or not text:
        return False
    with whole_file(file) as partial:
        partial.write_text(text + "\n", encoding="utf-8", newline="\n")
    return True


def _remember(folder: Path, post: Post, picture: Path) -> None:
    """One line for the picture, on the disk before the next one comes."""
    entry = {"file": picture.name, "page": page_of(post), "at": time.time()} | asdict(post)
    try:
        with (folder / MANIFEST).open("ab") as file:
            file.write(b"\n" + json.dumps(entry, ensure_ascii=False).encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise DiskError(f"{folder / MANIFEST} cannot be written: {error.strerror or error}.") from None
