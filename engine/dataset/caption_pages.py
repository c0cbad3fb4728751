"""Captions one by one: which picture is shown, what is being written for it, and how it is kept. No screen in here.

What is typed is on the disk with every key; leaving a picture turns it into an edit of the journal, which can be taken
back like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from engine.dataset import caption_edits as edits
from engine.dataset.images import UNREADABLE, picture_size
from knowledge.answers import PlainError


@dataclass
class CaptionPages:
    """The pictures of a folder and the caption that is open. Raises PlainError for a folder without pictures.

    text: the words as they stand on the page; saved: as they stand in the file, None where there is none. notice: what
    there is to tell once. problem: why the caption that is open cannot be changed.
    """

    folder: Path
    extension: str
    pictures: Sequence[Path] = ()
    index: int = 0
    text: str = ""
    saved: str | None = None
    notice: str = ""
    problem: str = ""
    changed: int = field(default=0)

    def __post_init__(self) -> None:
        self._files = edits.caption_files(self.folder, self.extension)
        self.pictures = tuple(self._files)
        if not self.pictures:
            raise PlainError(f"There are no pictures in {self.folder}.", 2)
        draft = edits.draft_of(self.folder)
        files = list(self._files.values())
        if draft is None or draft[0] not in files:
            self.index = next((i for i, file in enumerate(files) if not file.exists()), 0)
            self._open()
            if draft is not None:
                self.notice = f'Unfinished words for {draft[0].name}, whose picture is gone: "{draft[1]}"'
            return
        self.index = files.index(draft[0])
        self._open()
        if draft[1] != self.text and not self.problem:
            self.text = draft[1]
            self.notice = "What you were writing when it was interrupted is here again."

    @property
    def picture(self) -> Path:
        return self.pictures[self.index]

    @property
    def file(self) -> Path:
        return self._files[self.picture]

    @property
    def touched(self) -> bool:
        """Whether what stands on the page is not what stands in the file."""
        return self.text.strip() != (self.saved or "")

    def size(self) -> tuple[int, int] | None:
        """(width, height) of the picture in pixels; None when it cannot be read."""
        try:
            return picture_size(self.picture)
        except UNREADABLE:
            return None

    def write(self, text: str) -> None:
        """The words on the page are these now, and on the disk as well. Raises PlainError where they cannot be."""
        self.text, self.notice = text, ""
        if self.touched:
            edits.keep_draft(self.folder, self.file, text)
        else:
            edits.forget_draft(self.folder)

    def keep(self) -> None:
        """Write the caption file, through the journal. Raises PlainError, and then nothing is lost."""
        if self.touched and not self.problem:
            before, after = edits.caption_text(self.file), self.text.strip()
            if before != self.saved:
                self.notice = f"{self.file.name} was changed elsewhere meanwhile; Ctrl-Z brings those words back."
            edits.apply(self.folder, [edits.Change(self.file, before, after)], f"{self.file.name} by hand")
            self.saved, self.changed = after, self.changed + 1
        edits.forget_draft(self.folder)

    def go(self, by: int) -> bool:
        """Keep this caption and open another one; False at the end and at the beginning, where none comes."""
        self.notice = ""
        self.keep()
        to = self.index + by
        if not 0 <= to < len(self.pictures):
            return False
        notice, self.index = self.notice, to
        self._open()
        self.notice = notice
        return True

    def as_it_was(self) -> None:
        """What the file says, in place of what was written since."""
        edits.forget_draft(self.folder)
        self._open()

    def take_back(self) -> bool:
        """Take back the last caption that was kept here, and open it; False where none is left."""
        if not self.changed:
            return False
        _, restored, left = edits.undo(self.folder)
        self.changed -= 1
        file = restored[0].file if restored else left[0]
        self.index = list(self._files.values()).index(file)
        self._open()
        self.notice = f"{file.name} is as it was before." if restored else f"{file.name} was changed since; it stays."
        return True

    def _open(self) -> None:
        self.problem = self.notice = ""
        try:
            self.saved = edits.caption_text(self.file)
        except PlainError as error:
            self.saved, self.problem = None, str(error)
        self.text = self.saved or ""
