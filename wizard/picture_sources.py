"""The pictures' question where it is more than a folder: bringing pictures in, and working on them, without leaving.

What these pages collect becomes a command of ours that runs in this terminal; it shows and asks what it always does.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from knowledge.answers import PlainError
from wizard import views
from wizard.paths import quoted, typed_path
from wizard.prompts import Move, Option, Page, show, wait_for_enter

if TYPE_CHECKING:
    from wizard.session import Session

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Fetch:
    """A command that brings pictures, the folder in which they are afterwards, and what Gelbooru is asked for.

    A search goes on in the folder of an earlier one; everything else wants a new folder.
    """

    command: tuple[str, ...]
    folder: Path
    tags: str = ""

    @property
    def words(self) -> tuple[str, ...]:
        return (*self.command, "--to", str(self.folder), *(("--", self.tags) if self.tags else ()))


# --- bringing pictures in ---------------------------------------------------------------------------------------------


def fetch_in(text: str) -> Fetch | None:
    """The import that typed text means: archives, picture files, a dataset on Hugging Face; None for anything else."""
    import shlex

    from engine.dataset.folders import PICTURE_EXTENSIONS
    from wizard.dataset_import import PLACE, hub_address

    one = typed_path(text)
    try:
        several = [one] if Path(one).expanduser().exists() else shlex.split(text)
    except ValueError:
        several = [one]
    paths = [Path(path).expanduser() for path in several]
    loose = [path.suffix.lower() in {".zip", *PICTURE_EXTENSIONS} and path.is_file() for path in paths]
    if paths and (any(loose) or len(paths) > 1) and all(path.exists() for path in paths):
        name = paths[0].stem if paths[0].suffix.lower() == ".zip" else paths[0].resolve().parent.name
        folder = free(PLACE / (name or "pictures"))
        return Fetch(("dataset", "import", *map(str, paths)), folder)
    if len(several) == 1 and "://" in one and (address := hub_address(several)) is not None:
        folder = free(PLACE / (address.path or address.repository).rpartition("/")[2])
        return Fetch(("dataset", "import", one), folder)
    return None


def free(folder: Path) -> Path:
    """The folder, or with a number behind its name where it is there already."""
    number, candidate = 1, folder
    while candidate.exists():
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate


def elsewhere(session: Session, around: Values) -> Fetch | Move:
    """Asks how the pictures shall come, and for what that takes."""
    while True:
        way: Any = session.ask(
            Page(
                title="How shall the pictures come?",
                options=(
                    Option("files", "From a ZIP archive or picture files", "copied, not moved"),
                    Option("hub", "From a dataset on Hugging Face", "by the address of its page"),
                    Option("gelbooru", "From Gelbooru", "by tags"),
                ),
                **around,
            )
        )
        if way is Move.BACK:
            return Move.BACK
        answer: Fetch | Move = WAYS[way](session, around)
        if not isinstance(answer, Move):
            return answer


def into(session: Session, fetch: Fetch, around: Values) -> Fetch | Move:
    """The same with the folder that somebody chooses for the pictures."""

    def folder(text: str) -> Path:
        path = Path(typed_path(text) or fetch.folder).expanduser()
        if path.exists() and not path.is_dir():
            raise PlainError(f"{path} is a file. Name a folder.", 2)
        if path.is_dir() and any(path.iterdir()) and not fetch.tags:
            raise PlainError(f"{path} is there already. Name a new folder.", 2)
        return path

    answer = session.ask(
        Page(
            title="Into which folder shall they go?" if fetch.tags else "Into which new folder shall they go?",
            body=(
                "What came there from an earlier search is not fetched again."
                if fetch.tags
                else "They are copied there; where they come from, everything stays as it is.",
            ),
            default=str(fetch.folder),
            check=folder,
            is_path=True,
            **around,
        )
    )
    return answer if isinstance(answer, Move) else replace(fetch, folder=answer)


def _files(session: Session, around: Values) -> Any:
    return session.ask(
        Page(
            title="Which archive or files?",
            body=("Type or drop their paths, a blank space between two of them. The originals stay as they are.",),
            default="",
            check=_an_import,
            is_path=True,
            **around,
        )
    )


def _hub(session: Session, around: Values) -> Any:
    return session.ask(
        Page(
            title="Which dataset?",
            body=(
                "The address of its page, as in [strong]https://huggingface.co/datasets/diffusers/dog-example[/].",
                "[quiet]For a private one you are asked for a token.[/]",
            ),
            default="",
            check=_an_import,
            **around,
        )
    )


def _an_import(text: str) -> Fetch:
    found = fetch_in(text)
    if found is None:
        raise PlainError("That is neither a ZIP archive nor a picture that is here, nor a page on Hugging Face.", 2)
    return found


def _gelbooru(session: Session, around: Values) -> Any:
    """A search in three answers; the command itself says how many would come, and asks."""
    from wizard.scraping import RATINGS, default_folder

    tags = session.ask(
        Page(
            title="Which tags?",
            body=(
                "As they are typed on Gelbooru: [strong]1girl solo -comic[/]. All of them must fit; a minus keeps out.",
                "[quiet]Pictures belong to who made them. Ask before you train on an artist's work.[/]",
            ),
            default="",
            check=_some_words,
            **around,
        )
    )
    if isinstance(tags, Move):
        return tags
    rating = session.ask(
        Page(
            title="Which ratings may come?",
            options=(*(Option(rating, rating) for rating in RATINGS), Option("any", "any of them")),
            default="general",
            **around,
        )
    )
    if isinstance(rating, Move):
        return rating
    limit = session.ask(Page(title="How many pictures at most?", default="40", check=_a_limit, **around))
    if isinstance(limit, Move):
        return limit
    folder = default_folder(tags)  # the same folder for the same tags, so that a second time goes on
    return Fetch(("dataset", "scrape", "--limit", str(limit), "--rating", rating), folder, tags)


def _some_words(text: str) -> str:
    if not text:
        raise PlainError("Name one tag at least.", 2)
    return text


def _a_limit(text: str) -> int:
    from wizard.scraping import MOST

    if not text.isdecimal() or not 1 <= int(text) <= MOST:
        raise PlainError(f"A whole number from 1 to {MOST:,}, please.", 2)
    return int(text)


WAYS: dict[str, Callable[[Session, Values], Any]] = {"files": _files, "hub": _hub, "gelbooru": _gelbooru}


# --- working on pictures ----------------------------------------------------------------------------------------------


def work_on(session: Session, chosen: Values, around: Values, captions: Callable[[], None]) -> None:
    """Looking closely, tagging and writing captions, until somebody goes back."""
    around = {**around, "more": False, "back": "back"}
    at: Any = None
    while True:
        dataset = session.bench.situation(chosen).config.dataset
        at = session.ask(
            Page(
                title="What shall be done with them?",
                options=(
                    Option("inspect", "Look closely", "broken, blurred, twice, …"),
                    Option("tag", "Write captions by a model", "tags or sentences"),
                    Option("edit", "Write captions yourself", "one by one"),
                    Option("change", "Change all captions at once", "replace, remove, sort, …"),
                    Option("read", "Read every caption", "as the model will"),
                ),
                default=at,
                **around,
            )
        )
        if isinstance(at, Move):
            return
        folders = list(dict.fromkeys(folder.path for folder in dataset.folders))
        if at == "inspect":
            _inspect(session, dataset)
        elif at == "read":
            captions()
        elif at == "edit":
            from wizard.caption_editor import edit_captions

            for folder in folders:
                edit_captions(Path(folder), dataset.caption_extension)
        elif at == "change":
            from wizard.caption_changes import change_all

            change_all(session, [Path(folder) for folder in folders], dataset.caption_extension, around)
        else:
            words = _tagging(session, around)
            if not isinstance(words, Move):
                for folder in folders:
                    run(("dataset", "tag", folder, *words, "--caption-extension", dataset.caption_extension))
        session.bench.forget_pictures()


def _inspect(session: Session, dataset: Any) -> None:
    from engine.dataset.inspect import inspect_dataset
    from wizard.dataset import pages

    found = session.waiting("Looking at the pictures …", lambda: inspect_dataset(dataset))
    show(views.page(*pages(found)))


def _tagging(session: Session, around: Values) -> Any:
    """The words of the command that tags, from four answers."""
    from engine.captioning import CAPTIONERS
    from engine.tagging import TAGGERS

    tagger = session.ask(
        Page(
            title="Which model shall write them?",
            body=("WD taggers know the tags of drawings and anime. BLIP writes a sentence, for photographs.",),
            options=(
                *(Option(name, name, "tags", f"{source}, downloaded once.") for name, source in TAGGERS.items()),
                *(
                    Option(name, name, "a sentence", f"{source}, downloaded once.")
                    for name, source in CAPTIONERS.items()
                ),
                Option("", "one in a folder …", "model.onnx and selected_tags.csv"),
            ),
            **around,
        )
    )
    if tagger == "":
        tagger = session.ask(Page(title="In which folder?", default="", check=_a_folder, is_path=True, **around))
    if isinstance(tagger, Move):
        return tagger
    words = ["--tagger", tagger]
    if tagger not in CAPTIONERS:
        threshold = session.ask(
            Page(
                title="How sure must it be of a tag?",
                body=("From 0.1, which brings many tags and some wrong ones, to 0.9, which brings few.",),
                default="0.35",
                check=_a_threshold,
                **around,
            )
        )
        if isinstance(threshold, Move):
            return threshold
        unwanted = session.ask(
            Page(
                title="Which tags shall it never write?",
                body=("Separated by commas; none is an answer too.",),
                default="",
                **around,
            )
        )
        if isinstance(unwanted, Move):
            return unwanted
        words += ["--threshold", threshold, "--blacklist", unwanted]
    existing = session.ask(
        Page(
            title="And where there is a caption already?",
            options=(
                Option("--skip", "Leave it as it is"),
                Option("--append", "Add to it"),
                Option("--replace", "Put the new one in its place", "can be taken back"),
            ),
            **around,
        )
    )
    return existing if isinstance(existing, Move) else (*words, existing)


def _a_folder(text: str) -> str:
    path = Path(typed_path(text)).expanduser()
    if not text or not path.is_dir():
        raise PlainError(f"There is no folder {text}.", 2)
    return str(path.resolve())


def _a_threshold(text: str) -> str:
    try:
        right = 0.01 <= float(text) <= 1
    except ValueError:
        right = False
    if not right:
        raise PlainError("A number between 0.01 and 1, please.", 2)
    return text


# --- the commands -----------------------------------------------------------------------------------------------------


def run(words: Sequence[str]) -> int:
    """The exit code of a command of ours, which has the terminal to itself meanwhile; Ctrl-C is for it alone."""
    console = views.console()
    console.print(f"\n[quiet]$ lora-wizard {views.escape(' '.join(quoted(word) for word in words))}[/]")
    with subprocess.Popen([sys.executable, "-m", "wizard.cli", *words]) as program:
        while True:
            try:
                code = program.wait()
                break
            except KeyboardInterrupt:
                continue
    wait_for_enter()
    return code
