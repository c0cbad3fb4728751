"""Pictures from Gelbooru, through the interface that it documents for programs (page=dapi, JSON).

Asked slowly and one after the other. The user's key goes to Gelbooru alone: it stands in the address of a search, as
their interface wants it, and in nothing that is kept or told. What is found comes through booru_folder.py.
"""

from __future__ import annotations

import html
import os
import re
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal, get_args
from urllib.parse import parse_qs, urlencode, urlsplit

from engine.acquire import network
from engine.acquire.network import Notice, RefusalError, Source, silent
from engine.dataset.folders import PICTURE_EXTENSIONS
from knowledge.answers import PlainError

Rating = Literal["general", "sensitive", "questionable", "explicit"]
RATINGS: tuple[Rating, ...] = get_args(Rating)

PAGE_POSTS = 100
"""Posts in one answer; more are not given (howto:api in Gelbooru's wiki)."""
MOST_POSTS = 20_000
"""How deep a search may be paged."""
PAUSE_SECONDS = 0.5
"""Between two requests. Gelbooru's own limit is higher; nobody who waits for a training needs it."""


@dataclass(frozen=True)
class Credentials:
    """What Gelbooru calls API access credentials."""

    api_key: str = field(default="", repr=False)
    user_id: str = field(default="", repr=False)

    def __bool__(self) -> bool:
        return bool(self.api_key and self.user_id)


@dataclass(frozen=True)
class Search:
    """What to look for. `tags` as they are typed on Gelbooru; `ratings` that may come, none meaning any."""

    tags: str
    limit: int
    ratings: tuple[Rating, ...] = ("general",)


@dataclass(frozen=True)
class Post:
    """One picture there. `md5` of the file, empty where it is not told; width and height in pixels."""

    id: int
    url: str
    md5: str
    tags: tuple[str, ...]
    rating: str
    width: int
    height: int
    source: str


@dataclass(frozen=True)
class Found:
    """What a search found: the posts that can be fetched, how many there are in all, and what was left out and why."""

    search: Search
    posts: tuple[Post, ...]
    total: int
    left_out: Mapping[str, int]


def endpoint() -> str:
    """Gelbooru's address, or that of a server that speaks like it in GELBOORU_ENDPOINT."""
    return (os.environ.get("GELBOORU_ENDPOINT") or "https://gelbooru.com").rstrip("/")


def credentials(text: str = "", user_id: str = "") -> Credentials:
    """The user's key and number: given, or from GELBOORU_API_KEY and GELBOORU_USER_ID; empty without.

    Gelbooru shows both in one line, `&api_key=…&user_id=…`; that line will do as the key. Raises PlainError for half.
    """
    api_key = text or os.environ.get("GELBOORU_API_KEY") or ""
    user_id = user_id or os.environ.get("GELBOORU_USER_ID") or ""
    line = parse_qs(api_key.strip().lstrip("&?"))
    if "api_key" in line:
        api_key, user_id = line["api_key"][0], line.get("user_id", [user_id])[0]
    api_key, user_id = api_key.strip(), user_id.strip()
    if bool(api_key) != bool(user_id):
        missing = "GELBOORU_USER_ID" if api_key else "GELBOORU_API_KEY"
        raise PlainError(f"Gelbooru wants an API key and a user id together; {missing} is missing. {WHERE_KEYS_ARE}", 2)
    return Credentials(api_key, user_id)


WHERE_KEYS_ARE = (
    "Both stand at the bottom of your account's options on Gelbooru, under API Access Credentials; set "
    "GELBOORU_API_KEY and GELBOORU_USER_ID."
)


# --- searching --------------------------------------------------------------------------------------------------------


def search(wanted: Search, keys: Credentials, pause_seconds: float = PAUSE_SECONDS, notice: Notice = silent) -> Found:
    """The first posts that match and can be trained on, `wanted.limit` at most. Raises PlainError for none."""
    pace = Pace(pause_seconds)
    posts: dict[int, Post] = {}
    left_out: Counter[str] = Counter()
    seen: set[int] = set()
    total = 0
    for page in range(MOST_POSTS // PAGE_POSTS):
        rows, total = _page(wanted, keys, page, pace, notice)
        for row in rows:
            number, post = _number(row.get("id")), _post(row, wanted)
            if number in seen:  # a new post moves the others down, onto the next page
                continue
            seen.add(number)
            if isinstance(post, str):
                left_out[post] += 1
            else:
                posts[post.id] = post
            if len(posts) == wanted.limit:
                return Found(wanted, tuple(posts.values()), total, dict(left_out))
        if len(rows) < PAGE_POSTS:
            break
    if not posts:
        raise PlainError(_nothing(wanted, left_out))
    return Found(wanted, tuple(posts.values()), total, dict(left_out))


def query(wanted: Search) -> str:
    """The tags as they are sent: with the ratings that are not wanted taken away, unless the tags say it themselves."""
    tags = " ".join(wanted.tags.split())
    if not wanted.ratings or "rating:" in tags.lower():
        return tags
    if len(wanted.ratings) == 1:
        return f"{tags} rating:{wanted.ratings[0]}"
    return " ".join([tags, *(f"-rating:{rating}" for rating in RATINGS if rating not in wanted.ratings)])


def _page(
    wanted: Search, keys: Credentials, page: int, pace: Pace, notice: Notice
) -> tuple[list[Mapping[str, Any]], int]:
    """The posts of one page, counted from 0, and how many there are in all."""
    parameters = {"page": "dapi", "s": "post", "q": "index", "json": "1", "limit": str(PAGE_POSTS)}
    address = f"{endpoint()}/index.php?{urlencode(parameters | {'pid': str(page), 'tags': query(wanted)})}"
    secrets = {"api_key": keys.api_key, "user_id": keys.user_id} if keys else {}
    pace.wait()
    try:
        answer = network.json_document(Source(address, secrets=secrets), notice=notice)
    except RefusalError as refused:
        raise _refused(refused, keys) from None
    if isinstance(answer, dict) and answer.get("success") in (False, "false"):
        raise PlainError(
            f"Gelbooru cannot search at the moment: {str(answer.get('message') or 'no reason given')[:200]}"
        )
    rows = answer.get("post", []) if isinstance(answer, dict) else answer
    rows = [rows] if isinstance(rows, dict) else rows
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise PlainError(f"{urlsplit(endpoint()).hostname} answered with something that is no list of pictures.")
    told = answer.get("@attributes", {}) if isinstance(answer, dict) else {}
    return rows, _number(told.get("count")) or page * PAGE_POSTS + len(rows)


def _post(row: Mapping[str, Any], wanted: Search) -> Post | str:
    """The post, or why it is left out, in words that follow a number."""
    url = str(row.get("file_url") or "")
    parts = urlsplit(url)
    if not url or not _number(row.get("id")):
        return "without a file"
    if parts.scheme != "https" and parts.scheme != urlsplit(endpoint()).scheme:
        return "without a safe address"
    ending = PurePosixPath(parts.path).suffix.lower()
    if ending not in PICTURE_EXTENSIONS:
        return f"of a kind that is not trained ({ending or 'no ending'})"
    rating = str(row.get("rating") or "")
    if wanted.ratings and "rating:" not in wanted.tags.lower() and rating not in wanted.ratings:
        return f"rated {rating or 'not at all'}"
    md5 = str(row.get("md5") or "").lower()
    return Post(
        id=_number(row["id"]),
        url=url,
        md5=md5 if re.fullmatch(r"[0-9a-f]{32}", md5) else "",
        tags=tuple(html.unescape(str(row.get("tags") or "")).split()),
        rating=rating,
        width=_number(row.get("width")),
        height=_number(row.get("height")),
        source=str(row.get("source") or "")[:500],
    )


def _number(value: object) -> int:
    return int(value) if isinstance(value, int) or (isinstance(value, str) and value.isdecimal()) else 0


def _refused(refused: RefusalError, keys: Credentials) -> PlainError:
    if refused.status in (401, 403):
        if keys:
            return PlainError(f"Gelbooru does not accept this API key with this user id. {WHERE_KEYS_ARE}", 2)
        return PlainError(f"Gelbooru wants to know who asks. {WHERE_KEYS_ARE}", 2)
    return PlainError(f"{refused}. Try again later.")


def _nothing(wanted: Search, left_out: Mapping[str, int]) -> str:
    if left_out:
        why = ", ".join(f"{number} {reason}" for reason, number in left_out.items())
        return f'"{wanted.tags}" finds no picture that can be used: {why}.'
    several = ", a blank space between two of them" if " " in wanted.tags.strip() else ""
    ratings = f" with the rating {' or '.join(wanted.ratings)}" if wanted.ratings else ""
    return (
        f'Gelbooru has no picture for "{wanted.tags}"{ratings}. Tags are written with underscores, as in '
        f"long_hair{several}; all of them must fit."
    )


def page_of(post: Post) -> str:
    """The page of a post that a person opens."""
    return f"{endpoint()}/index.php?page=post&s=view&id={post.id}"


@dataclass
class Pace:
    """Never two requests within `seconds`."""

    seconds: float
    last: float = float("-inf")

    def wait(self) -> None:
        time.sleep(max(0.0, self.last + self.seconds - time.monotonic()))
        self.last = time.monotonic()
