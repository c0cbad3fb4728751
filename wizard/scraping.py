"""`lora-wizard dataset scrape`: pictures from Gelbooru by their tags, after saying how many and where."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wizard import views, words
from wizard.paths import quoted

if TYPE_CHECKING:
    from rich.console import RenderableType

    from engine.acquire.booru import Credentials, Found, Post, Search
    from engine.acquire.booru_folder import CaptionWish, Scraped

RATINGS = ("general", "sensitive", "questionable", "explicit")
FAILURES_SHOWN = 5
MOST = 20_000
"""How deep Gelbooru lets a search be paged."""


@click.command()
@click.argument("tags")
@click.option("--limit", type=click.IntRange(1, MOST), default=40, show_default=True, help="How many pictures at most.")
@click.option("--to", "to", type=click.Path(path_type=Path), help="The folder.  [datasets/TAGS]")
@click.option(
    "--rating",
    "ratings",
    multiple=True,
    type=click.Choice([*RATINGS, "any"]),
    help="Which ratings may come; several times for several.  [general]",
)
@click.option("--captions/--no-captions", default=True, show_default=True, help="Make captions of the tags there.")
@click.option("--trigger", default="", metavar="WORD", help="Put the trigger word first in the captions.")
@click.option("--blacklist", default="", metavar="TAGS", help="Never write these tags, separated by commas.")
@click.option("--user-id", default="", metavar="NUMBER", help="Your number on Gelbooru.  [GELBOORU_USER_ID]")
@click.option("--dry-run", is_flag=True, help="Say how many would come, and stop.")
@click.option("--yes", is_flag=True, help="Download without asking.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document; needs --yes or --dry-run.")
@click.pass_context
def scrape(
    context: click.Context,
    tags: str,
    limit: int,
    to: Path | None,
    ratings: tuple[str, ...],
    captions: bool,
    trigger: str,
    blacklist: str,
    user_id: str,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Fetch pictures from Gelbooru that have all of these TAGS.

    TAGS as they are typed there, with a blank space between two of them and a minus before what is not wanted. It says
    how many pictures would come and where, and asks. The same command again goes on where it stopped: what is there is
    not fetched again, nor what you have thrown away. Gelbooru wants to know who asks: set GELBOORU_API_KEY and
    GELBOORU_USER_ID, or be asked for them; they are sent to Gelbooru and kept nowhere.

    Pictures belong to who made them. Ask before you train on an artist's work.

    \b
    Example: lora-wizard dataset scrape "1girl solo -comic" --limit 60 --to datasets/zorb
    """
    from engine.acquire import booru, booru_folder
    from engine.dataset.caption_edits import split

    if not (dry_run or yes) and (as_json or not views.interactive()):
        raise click.UsageError("Without a terminal to ask in, say --yes to download or --dry-run to look.")
    chosen = () if "any" in ratings else tuple(dict.fromkeys(ratings)) or ("general",)
    wanted = booru.Search(tags, limit, chosen)  # type: ignore[arg-type]
    folder = to or default_folder(tags)
    keys = booru.credentials(user_id=user_id) if not _must_ask(user_id, as_json) else _ask_for_keys(user_id)
    found = look(wanted, keys)
    coming = booru_folder.still_to_come(found, folder)
    if not as_json:
        views.console().print(views.indented(views.page("", *offered(found, coming, folder, captions), "")))
    wish = booru_folder.CaptionWish(tuple(split(blacklist)), trigger) if captions else None
    agreed = bool(coming) and not dry_run and (yes or click.confirm(question(coming, folder), default=None))
    done = bring(coming, folder, wish, quiet=as_json) if agreed else None
    if as_json:
        print(json.dumps(_document(found, coming, folder, done), ensure_ascii=False))
    elif done is not None:
        views.console().print(views.indented(views.page("", *told(done), "")))
    if done is not None and (done.interrupted or done.failed):
        context.exit(1)


WHO_ASKS = (
    "Gelbooru wants to know who asks. At the bottom of your account's options there stand API Access Credentials; "
    "paste that line, or the key alone. It is not shown, and kept nowhere.",
)


def default_folder(tags: str) -> Path:
    """datasets/ and the tags that are wanted, in a form that every system allows."""
    wanted = [tag for tag in tags.split() if not tag.startswith("-") and ":" not in tag]
    name = re.sub(r"(?:[^\w-]|_)+", "_", "-".join(wanted)).strip("_")[:60]
    return Path("datasets") / (name or "gelbooru")


def _must_ask(user_id: str, quiet: bool) -> bool:
    """Whether neither the environment nor the command says who asks, and there is somebody to ask."""
    given = os.environ.get("GELBOORU_API_KEY") and (user_id or os.environ.get("GELBOORU_USER_ID"))
    line = "api_key=" in os.environ.get("GELBOORU_API_KEY", "")
    return not (given or line) and not quiet and views.interactive()


def _ask_for_keys(user_id: str) -> Credentials:
    from engine.acquire.booru import credentials

    views.console().print(views.indented(views.page("", *WHO_ASKS, "")))
    key = click.prompt("API key", hide_input=True, default="", show_default=False)
    if key and "user_id=" not in key and not user_id:
        user_id = click.prompt("User id")
    return credentials(key, user_id)


# --- what the command and the wizard's page share ---------------------------------------------------------------------


def look(wanted: Search, keys: Credentials) -> Found:
    """What the search finds, while somebody waits."""
    from engine.acquire import booru
    from wizard.download import waiting

    with waiting(f"Looking for {wanted.tags}") as notice:
        return booru.search(wanted, keys, notice=notice)


def offered(found: Found, coming: Sequence[Post], folder: Path, captions: bool) -> list[RenderableType]:
    """What would come, where from and where to."""
    wanted = found.search
    here = len(found.posts) - len(coming)
    what = f"{words.count(len(coming), 'picture')}{' with captions' if captions else ' without captions'}"
    lines: list[tuple[str, RenderableType]] = [
        ("Tags", views.escape(wanted.tags)),
        ("Rating", ", ".join(wanted.ratings) or "any"),
        ("Found", f"{found.total:,} in all; the first {len(found.posts):,} that can be trained"),
    ]
    if here:
        lines.append(("Here", f"{here:,} of them came into this folder before and are left alone"))
    for reason, number in found.left_out.items():
        lines.append(("Left out", views.escape(f"{number:,} {reason}")))
    lines += [("Download", f"[strong]{what}[/]"), ("To", views.escape(str(folder)))]
    return [views.heading("Gelbooru"), views.rows(lines, 9)]


def question(coming: Sequence[Post], folder: Path) -> str:
    """The confirmation, which names how many files and where."""
    return f"Download {words.count(len(coming), 'picture')} into {folder}?"


def bring(coming: Sequence[Post], folder: Path, captions: CaptionWish | None, *, quiet: bool = False) -> Scraped:
    """The pictures in the folder, with a bar for somebody who watches."""
    from engine.acquire import booru_folder
    from wizard.file_commands import watched

    notices = views.console(sys.stderr)
    with watched("Pictures", quiet) as tell:
        return booru_folder.fetch(
            coming,
            folder,
            captions,
            progress=tell,
            notice=lambda sentence: None if quiet else notices.print(f"[quiet]{views.escape(sentence)}[/]"),
        )


def told(done: Scraped) -> list[RenderableType]:
    """What came, and what did not and why."""
    lines: list[RenderableType] = [
        f"[good]{words.count(done.pictures, 'picture')} and {words.count(done.captions, 'caption')}[/] came into "
        f"{views.escape(str(done.folder))}."
    ]
    for post, why in list(done.failed.items())[:FAILURES_SHOWN]:
        lines.append(f"[warning]Post {post}:[/] {views.escape(why)}")
    if len(done.failed) > FAILURES_SHOWN:
        lines.append(f"[warning]and {len(done.failed) - FAILURES_SHOWN} more that could not be had.[/]")
    if done.interrupted:
        lines.append(f"[warning]{views.escape(done.interrupted)} The same command goes on from here.[/]")
    lines.append(f"[quiet]Look at them: lora-wizard dataset inspect {views.escape(quoted(done.folder))}[/]")
    return lines


def _document(found: Found, coming: Sequence[Post], folder: Path, done: Scraped | None) -> dict[str, Any]:
    return {
        "folder": str(folder),
        "found": found.total,
        "here": len(found.posts) - len(coming),
        "to_come": len(coming),
        "left_out": dict(found.left_out),
        "downloaded": done is not None,
        "pictures": done.pictures if done else 0,
        "captions": done.captions if done else 0,
        "failed": {str(post): why for post, why in done.failed.items()} if done else {},
        "interrupted": done.interrupted if done else "",
    }
