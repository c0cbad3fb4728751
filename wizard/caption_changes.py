"""Captions changed all at once: the kinds of edit there are, and the pages on which one is chosen, seen and written.

The command and the wizard make the same edits. One edit in several folders is taken back in all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group

from engine.dataset import caption_edits as edits
from engine.dataset.caption_tables import is_table
from knowledge.answers import PlainError
from wizard import views
from wizard.captions import FROM_TABLES, changes_shown
from wizard.prompts import Move, Option, Page
from wizard.words import agreeing, count

if TYPE_CHECKING:
    from wizard.session import Session

Values = Mapping[str, Any]
UNDO, TABLES = "undo", "tables"
CHANGES_ON_A_PAGE = 5
"""Changes that a small terminal shows above the question; `?` shows all of them."""


@dataclass(frozen=True)
class Asked:
    """What is asked for an edit: the question, a word on the answer, and what makes a value of typed text."""

    title: str
    body: str = ""
    check: Callable[[str], Any] = str
    default: str = ""


@dataclass(frozen=True)
class Kind:
    """A kind of edit: how it is called, what has to be asked for it, its name in the journal, and how it is made.

    words: a format of the answers, in their order. creates: whether it has something for pictures without a caption.
    """

    label: str
    hint: str
    words: str
    make: Callable[..., edits.Edit]
    asked: tuple[Asked, ...] = ()
    creates: bool = False

    def made(self, *answers: Any) -> tuple[str, edits.Edit]:
        """The edit with its name. Raises PlainError for answers that make none."""
        return self.words.format(*answers), self.make(*answers)


def _text(text: str) -> str:
    """What was typed; within quotes, blank spaces at its ends count."""
    quoted = len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'"
    return text[1:-1] if quoted else text


def _something(text: str) -> str:
    if not text:
        raise PlainError("Type something, or go back.", 2)
    return _text(text)


def _a_pattern(text: str) -> str:
    edits.find_and_replace(_something(text), "", regex=True)
    return _text(text)


def _a_number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise PlainError("A whole number from 1, please.", 2)
    return int(text)


REPLACEMENT = Asked("What shall stand in its place?", "Nothing is an answer too: then it is taken away.", _text)
SPACES_COUNT = "Within quotes, blank spaces at the ends count: "

KINDS: dict[str, Kind] = {
    "find": Kind(
        "Find and replace",
        "text",
        '"{0}" replaced by "{1}"',
        edits.find_and_replace,
        (
            Asked(
                "Which text shall be found?",
                f'Capital and small letters are told apart. {SPACES_COUNT}[strong]" cat"[/].',
                _something,
            ),
            REPLACEMENT,
        ),
    ),
    "regex": Kind(
        "Find and replace by a pattern",
        "a regular expression",
        'pattern "{0}" replaced by "{1}"',
        partial(edits.find_and_replace, regex=True),
        (
            Asked(
                "Which pattern shall be found?",
                "A regular expression as in Python: [strong]\\d+ years?[/] finds “12 years” and “1 year”.",
                _a_pattern,
            ),
            replace(
                REPLACEMENT, body="\\1 stands for what the first pair of brackets has found. Nothing takes it away."
            ),
        ),
    ),
    "remove": Kind(
        "Remove tags",
        "from all captions",
        "removed: {0}",
        lambda names: edits.remove_tags(edits.split(names)),
        (Asked("Which tags shall go?", "Separated by commas, as in [strong]blurry, text[/].", _something),),
    ),
    "spaces": Kind(
        "Underscores into spaces",
        "long_hair → long hair",
        "underscores turned into spaces",
        lambda: edits.spaces_for_underscores,
    ),
    "unique": Kind("Each tag once", "the first one stays", "each tag once", lambda: edits.without_doubles),
    "sort": Kind("Sort the tags", "alphabetically", "sorted", lambda: edits.sorted_tags),
    "keep_first": Kind(
        "Keep the first tags",
        "and drop the rest",
        "cut after tag {0}",
        edits.keep_first,
        (Asked("How many tags shall stay?", "The rest of every caption is dropped.", _a_number),),
    ),
    "trigger": Kind(
        "Trigger word first",
        "in every caption",
        '"{0}" put first',
        edits.trigger_first,
        (Asked("Which trigger word?", "It comes first, and stands nowhere else as a tag of its own.", _something),),
        creates=True,
    ),
    "prefix": Kind(
        "Put text before",
        "every caption",
        '"{0}" put before',
        edits.prefix,
        (Asked("Which text shall stand before?", f'{SPACES_COUNT}[strong]"a photo of "[/].', _something),),
        creates=True,
    ),
    "suffix": Kind(
        "Put text after",
        "every caption",
        '"{0}" put after',
        edits.suffix,
        (Asked("Which text shall stand after?", f'{SPACES_COUNT}[strong]", film grain"[/].', _something),),
        creates=True,
    ),
}
"""The edits by name, in the order in which several are made."""


# --- the pages --------------------------------------------------------------------------------------------------------


def change_all(session: Session, folders: Sequence[Path], extension: str, around: Values) -> None:
    """Chooses an edit, shows what it would change, writes it or takes one back, until somebody goes back."""
    at: Any = None
    error = ""
    while True:
        last = last_edit(folders)
        back = (Option(UNDO, "Take the last change back", last.words),) if last else ()
        tables = [file.name for folder in folders for file in sorted(folder.iterdir()) if is_table(file.name)]
        taken = (Option(TABLES, "Take missing ones from a table", tables[0]),) if tables else ()
        at = session.ask(
            Page(
                title="What shall change in all captions?",
                options=(*taken, *(Option(name, kind.label, kind.hint) for name, kind in KINDS.items()), *back),
                default=at,
                **{**around, "error": error},
            )
        )
        if isinstance(at, Move):
            return
        error = ""
        try:
            if at == UNDO:
                assert last is not None
                session.notice = take_back(last)
            elif at == TABLES:
                _write(
                    session, {folder: edits.from_tables(folder, extension) for folder in folders}, FROM_TABLES, around
                )
            else:
                _change(session, KINDS[at], folders, extension, around)
        except PlainError as problem:
            error = str(problem)


def _change(session: Session, kind: Kind, folders: Sequence[Path], extension: str, around: Values) -> None:
    """Asks what the edit needs, shows what it would do, and does it on a yes. Raises PlainError where it cannot."""
    answers: list[Any] = []
    while len(answers) < len(kind.asked):
        asked = kind.asked[len(answers)]
        answer = session.ask(Page(title=asked.title, body=(asked.body,), default="", check=asked.check, **around))
        if isinstance(answer, Move):
            if not answers:
                return
            answers.pop()
        else:
            answers.append(answer)
    words, edit = kind.made(*answers)
    create = _without_captions(session, folders, extension, around) if kind.creates else False
    if isinstance(create, Move):
        return
    planned = {folder: edits.changes(folder, extension, [edit], create=create) for folder in folders}
    _write(session, planned, words, around)


def _write(session: Session, planned: Mapping[Path, Sequence[edits.Change]], words: str, around: Values) -> None:
    """Shows what would change in these folders, and writes it on a yes."""
    every = [change for several in planned.values() for change in several]
    if not every:
        session.notice = f"No caption would change ({words})."
        return
    if _agreed(session, every, words, around):
        at = time.time()
        for folder, several in planned.items():
            if several:
                edits.apply(folder, several, words, at)
        session.notice = f"{count(len(every), 'caption')} changed: {words}."


def _without_captions(session: Session, folders: Sequence[Path], extension: str, around: Values) -> bool | Move:
    """Whether pictures that have no caption get one; asked where there are such."""
    files = [file for folder in folders for file in edits.caption_files(folder, extension).values()]
    missing = sum(not file.exists() for file in files)
    if not missing:
        return False
    answer: bool | Move = session.ask(
        Page(
            title="And the pictures without a caption?",
            body=(f"{missing} of {count(len(files), 'picture')} {agreeing(missing, 'has', 'have')} none.",),
            options=(
                Option(False, "Leave them without"),
                Option(True, "Make one for each", "with these words alone"),
            ),
            **around,
        )
    )
    return answer


def _agreed(session: Session, planned: Sequence[edits.Change], words: str, around: Values) -> bool:
    """Whether somebody who has seen the changes wants them."""
    answer = session.ask(
        Page(
            title=f"Change {count(len(planned), 'caption')}?",
            body=(views.heading("What would change", words), Group(*changes_shown(planned, CHANGES_ON_A_PAGE))),
            options=(Option(True, "Write the changes", "they can be taken back"), Option(False, "Change nothing")),
            help=lambda _: Group(*changes_shown(planned, None)),
            **around,
        )
    )
    return answer is True


@dataclass(frozen=True)
class LastEdit:
    """The newest edit of these folders, and those of them in which it was made."""

    words: str
    folders: tuple[Path, ...]


def last_edit(folders: Sequence[Path]) -> LastEdit | None:
    """The newest edit that has not been taken back; None where there is none."""
    last = {folder: done[-1] for folder in folders if (done := list(edits.history(folder)))}
    if not last:
        return None
    at = max(entry["at"] for entry in last.values())
    newest = tuple(folder for folder, entry in last.items() if entry["at"] == at)
    return LastEdit(str(last[newest[0]]["edit"]), newest)


def take_back(last: LastEdit) -> str:
    """What was taken back, in a sentence, and what was left alone because it was changed since."""
    restored, kept = 0, []
    for folder in last.folders:
        _, back, left = edits.undo(folder)
        restored += len(back)
        kept += [path.name for path in left]
    alone = f" Left alone, because changed since: {', '.join(kept[:4])}." if kept else ""
    return f"Taken back in {count(restored, 'caption')}: {last.words}.{alone}"
