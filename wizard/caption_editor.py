"""The page on which captions are written one by one: the picture in blocks of colour, its caption beside it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from knowledge.answers import PlainError
from wizard import views
from wizard.words import count

if TYPE_CHECKING:
    from prompt_toolkit.key_binding import KeyPressEvent

    from engine.dataset.caption_pages import CaptionPages

PICTURE_COLUMNS, PICTURE_ROWS = 30, 15
"""The picture's place in a terminal; one letter shows two points, one above the other."""

KEYS = (
    ("Enter", "keep, next"),
    ("PgUp/PgDn", "turn"),
    ("Ctrl-Z", "undo"),
    ("Ctrl-R", "as it was"),
    ("Esc", "done"),
)


def edit_captions(folder: Path, extension: str) -> int:
    """Shows the pictures of a folder one after the other, to write their captions; how many were changed.

    Raises KeyboardInterrupt on Ctrl-C; what was written is kept by then.
    """
    from engine.dataset.caption_pages import CaptionPages

    pages = CaptionPages(folder, extension)
    if views.plain_terminal():
        _edit_plainly(pages)
    else:
        _Editor(pages).run()
    return pages.changed


def facts(pages: CaptionPages, tokens: int | None) -> str:
    """What is known of the picture and its caption, in a line."""
    from engine.dataset.captions import tags
    from engine.dataset.tokens import TOKENS_READ

    size = pages.size()
    parts = [f"{size[0]} × {size[1]} pixels" if size else "the picture cannot be read"]
    parts.append(count(len(tags(pages.text)), "tag") if pages.text.strip() else "no caption yet")
    if tokens is not None:
        over = f", only {TOKENS_READ} are read" if tokens > TOKENS_READ else f" of {TOKENS_READ}"
        parts.append(f"{count(tokens, 'token')}{over}")
    return " · ".join(parts)


class _Editor:
    """The screen around the pages."""

    def __init__(self, pages: CaptionPages) -> None:
        from prompt_toolkit.application import Application
        from prompt_toolkit.buffer import Buffer
        from prompt_toolkit.filters import Condition
        from prompt_toolkit.layout import BufferControl, FormattedTextControl, HSplit, Layout, VSplit, Window

        self.pages = pages
        self.counts_tokens = False
        self._blocks: tuple[Path, list[tuple[str, str]]] | None = None
        self.buffer = Buffer(
            multiline=True, read_only=Condition(lambda: bool(pages.problem)), on_text_changed=self._typed
        )
        picture = Window(FormattedTextControl(self._picture), width=PICTURE_COLUMNS, height=PICTURE_ROWS)
        caption = Window(BufferControl(self.buffer), wrap_lines=True)
        above = Window(FormattedTextControl(self._above), height=5)
        below = Window(FormattedTextControl(self._below), height=4, wrap_lines=True)
        beside = VSplit([Window(width=2), picture, Window(width=2), caption, Window(width=2)], height=PICTURE_ROWS)
        self.application: Application[None] = Application(
            Layout(HSplit([above, beside, below]), focused_element=caption),
            key_bindings=self._keys(),
            full_screen=True,
            erase_when_done=True,
        )
        self.application.ttimeoutlen = 0.05  # else Esc waits half a second for the rest of an arrow key
        self.application.timeoutlen = 0.05
        self._show()

    def run(self) -> None:
        threading.Thread(target=self._load_tokenizer, daemon=True).start()
        self.application.run()

    def _load_tokenizer(self) -> None:
        """Learns to count tokens beside the typing; it takes a second."""
        from engine.dataset.tokens import count_tokens

        count_tokens(["a"])
        self.counts_tokens = True
        self.application.invalidate()

    # --- what is to be seen

    def _above(self) -> Any:
        from prompt_toolkit.formatted_text import ANSI
        from rich.text import Text

        pages = self.pages
        place = f"Captions  {pages.index + 1} of {len(pages.pictures)}"
        about = Text.assemble((pages.picture.name, "strong"), (f"  {pages.picture.parent}", "quiet"))
        tokens = None
        if self.counts_tokens:
            from engine.dataset.tokens import count_tokens

            tokens = count_tokens([pages.text])[0]
        lines = (views.title_line(place), None, about, Text(facts(pages, tokens), "quiet"))
        width = self._width()
        return ANSI("\n".join(views.ansi_lines(views.indented(part), width)[0] if part else "" for part in lines))

    def _picture(self) -> Any:
        picture = self.pages.picture
        if self._blocks is None or self._blocks[0] != picture:
            self._blocks = (picture, blocks(picture))
        return self._blocks[1]

    def _below(self) -> Any:
        from prompt_toolkit.formatted_text import ANSI
        from rich.text import Text

        pages, width = self.pages, self._width()
        said = Text(pages.problem, "error") if pages.problem else Text(pages.notice, "good")
        lines = views.ansi_lines(views.indented(said), width)[:2]
        lines = ["", *lines, *[""] * (2 - len(lines)), *views.ansi_lines(views.indented(views.keys(KEYS)), width)[:1]]
        return ANSI("\n".join(lines))

    def _width(self) -> int:
        return min(self.application.output.get_size().columns, views.WIDEST)

    # --- what is done

    def _show(self) -> None:
        """Puts the words of the page that is open under the cursor."""
        from prompt_toolkit.document import Document

        words, notice = self.pages.text, self.pages.notice
        self.buffer.reset(Document(words, len(words)))
        self.pages.notice = notice

    def _typed(self, _: object) -> None:
        if self.buffer.text != self.pages.text:
            self._try(lambda: self.pages.write(self.buffer.text))

    def _try(self, act: Any) -> Any:
        """What it returns; its trouble becomes the notice of the page."""
        try:
            return act()
        except PlainError as error:
            self.pages.notice = str(error)
            return None

    def _keys(self) -> Any:
        from prompt_toolkit.key_binding import KeyBindings

        keys = KeyBindings()

        def on(*names: str) -> Any:
            return lambda act: keys.add(*names, eager=len(names) == 1)(act)

        def turn(by: int) -> None:
            moved = self._try(lambda: self.pages.go(by))
            if moved:
                self._show()
            elif moved is False and not self.pages.notice:
                self.pages.notice = "That was the last picture." if by > 0 else "This is the first picture."

        for names, by in ((("enter",), 1), (("pagedown",), 1), (("c-n",), 1), (("pageup",), -1), (("c-p",), -1)):
            on(*names)(lambda event, by=by: turn(by))

        def new_line(event: KeyPressEvent) -> None:
            self.buffer.insert_text("\n")

        def undo(event: KeyPressEvent) -> None:
            if self.pages.touched:
                self.buffer.undo()
            elif self._try(self.pages.take_back):
                self._show()

        def as_it_was(event: KeyPressEvent) -> None:
            self.pages.as_it_was()
            self._show()

        def leave(event: KeyPressEvent) -> None:
            self._try(self.pages.keep)
            if not self.pages.touched:
                event.app.exit()

        def interrupt(event: KeyPressEvent) -> None:
            self._try(self.pages.keep)
            event.app.exit(exception=KeyboardInterrupt)

        keys.add("escape", "enter")(new_line)
        on("c-z")(undo)
        on("c-r")(as_it_was)
        keys.add("escape")(leave)
        on("c-c")(interrupt)
        return keys


def blocks(path: Path, columns: int = PICTURE_COLUMNS, rows: int = PICTURE_ROWS) -> list[tuple[str, str]]:
    """A picture as coloured half blocks, for a terminal; a sentence where it cannot be read."""
    from engine.dataset.images import load_picture

    try:
        picture = load_picture(path)
    except PlainError:
        return [("", "\n\n  cannot be shown")]
    scale = min(columns / picture.width, 2 * rows / picture.height)
    width, height = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    small = picture.resize((width, height + height % 2), reducing_gap=2.0)
    colours = ["#{:02x}{:02x}{:02x}".format(*small.getpixel((x, y))) for y in range(small.height) for x in range(width)]  # type: ignore[misc]
    fragments = []
    for row in range(0, small.height, 2):
        top, bottom = colours[row * width : (row + 1) * width], colours[(row + 1) * width : (row + 2) * width]
        fragments += [(f"fg:{upper} bg:{lower}", "▀") for upper, lower in zip(top, bottom, strict=True)]
        fragments.append(("", "\n"))
    return fragments


def _edit_plainly(pages: CaptionPages) -> None:
    """Asks line by line, for NO_COLOR, TERM=dumb and screen readers."""
    console = views.console()
    while True:
        console.print(f"\n{pages.index + 1} of {len(pages.pictures)}  {pages.picture.name}", markup=False)
        console.print(facts(pages, None), markup=False)
        console.print(pages.problem or f"Caption: {pages.text or '(none)'}", markup=False)
        if pages.notice:
            console.print(pages.notice, markup=False)
        try:
            typed = input("New caption, nothing to keep it, < = back, undo = take the last back, q = done: ").strip()
        except EOFError:
            typed = "q"
        if typed == "q":
            pages.keep()
            return
        if typed == "undo":
            pages.take_back()
            continue
        if typed and typed != "<" and not pages.problem:
            pages.write(typed)
        if not pages.go(-1 if typed == "<" else 1) and typed != "<":
            return
