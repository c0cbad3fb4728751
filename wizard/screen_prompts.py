"""A page with keys and colours: questionary's list or line, our text above and below it, and our keys added."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import questionary
from prompt_toolkit.application import Application, get_app
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import ANSI
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent, merge_key_bindings
from prompt_toolkit.layout import (
    BufferControl,
    CompletionsMenu,
    Dimension,
    Float,
    FloatContainer,
    FormattedTextControl,
    HSplit,
    Layout,
    VSplit,
    Window,
)
from prompt_toolkit.layout.processors import PasswordProcessor
from questionary import Question
from questionary.prompts.common import InquirerControl
from rich.text import Text

from knowledge.answers import PlainError
from wizard import views
from wizard.prompts import Move, Option, Page, show

if TYPE_CHECKING:
    from rich.console import RenderableType

LONG_LIST = 8
"""A list of more options than this may not fit a small terminal, so the page says how many there are."""


@dataclass
class _Screen:
    """What is on the screen besides the list or the line: text above, text below, and the last error."""

    page: Page
    current: Callable[[], Any]
    rows_asked: int
    error: str = ""
    notes_rows: dict[int, int] = field(default_factory=dict)
    rows_above: int = 0

    def above(self) -> Any:
        """The title and the body, cut to what fits; `?` shows all of it."""
        from prompt_toolkit.formatted_text import ANSI

        width, height = _terminal_size()
        lines, tail = self._above(width), self._tail(width)
        room = max(height - self.rows_asked - len(self._below(width)) - 1, 3)
        if len(lines) + len(tail) > room:
            tail = _closer(tail, max(room - len(lines), room // 3))
            lines = _closer(lines, room - len(tail))
        if len(lines) + len(tail) > room:
            rest = views.ansi_lines(views.indented("[quiet]… the rest does not fit here; ? shows it[/]"), width)
            if tail:
                tail = [*tail[: max(room - len(lines), room // 3) - 2], *rest, ""]
            lines = lines[: room - len(tail)] if tail else [*lines[1 if room < 5 else 0 :][: room - 2], *rest, ""]
        self.rows_above = len(lines) + len(tail)
        return ANSI("\n".join([*lines, *tail]))

    def rows_between(self) -> Any:
        """How high the list may be, so that what is below it keeps its place."""

        width, height = _terminal_size()
        return Dimension(max=max(self.rows_asked, height - self.rows_above - len(self._below(width))))

    def below(self) -> Any:
        from prompt_toolkit.formatted_text import ANSI

        return ANSI("\n".join(self._below(_terminal_size()[0])))

    def _above(self, width: int) -> list[str]:

        page = self.page
        head = views.title_line(page.place, page.progress)
        return [*views.ansi_lines(views.indented(views.page(head, Text(page.title, "strong"), *page.body)), width), ""]

    def _tail(self, width: int) -> list[str]:
        tail = self.page.tail
        return [*views.ansi_lines(views.indented(views.page(*tail)), width), ""] if tail else []

    def _below(self, width: int) -> list[str]:
        lines = [""]
        if self.error:
            lines += [*views.ansi_lines(views.indented(views.problem(self.error)), width), ""]
        note = self._note(width)
        lines += note + [""] * (self._note_height(width) - len(note))
        preview = self.page.preview(self.current())
        if preview is not None:
            lines += [*views.ansi_lines(views.indented(preview), width), ""]
        return [*lines, *views.ansi_lines(views.indented(views.keys(self._keys())), width)]

    def _note(self, width: int, option: Option | None = None) -> list[str]:
        if option is None:
            option = next((o for o in self.page.options if o.value == self.current()), None)
        text = option.note if option else ""
        return [*views.ansi_lines(views.indented(views.escape(text), 4), width), ""] if text else []

    def _note_height(self, width: int) -> int:
        """Lines of the longest note, so that nothing jumps while the cursor moves."""
        if width not in self.notes_rows:
            self.notes_rows[width] = max((len(self._note(width, o)) for o in self.page.options), default=0)
        return self.notes_rows[width]

    def _keys(self) -> list[tuple[str, str]]:
        page = self.page
        more = f"choose, {len(page.options)} in all" if len(page.options) > LONG_LIST else "choose"
        keys = [("↑↓", more), ("Enter", "accept")] if page.options else [("Enter", "accept")]
        if page.is_path:
            keys.append(("Tab", "complete"))
        if page.help:
            keys.append(("?", "explain"))
        if page.more and page.options:
            keys.append(("m", "more"))
        if page.back:
            keys.append(("Esc", page.back))
        return [*keys, ("Ctrl-C", "leave")]


def _closer(lines: list[str], room: int) -> list[str]:
    """The lines with as many of the empty ones taken out, from the end, as it takes to fit; the last one stays."""
    kept = list(lines)
    for index in reversed(range(1, len(kept) - 1)):
        if len(kept) <= room:
            break
        if not kept[index]:
            del kept[index]
    return kept


def _terminal_size() -> tuple[int, int]:
    size = get_app().output.get_size()
    return min(size.columns, views.WIDEST), size.rows


def ask_on_screen(page: Page) -> Any:
    """Asks with questionary's list or line, our text above and below it, and our keys added."""
    error = page.error
    default = page.default
    while True:
        question, screen = _list(page, default) if page.options else _line(page, default)
        screen.error = error
        answer = question.unsafe_ask()
        if isinstance(answer, _Help):
            assert page.help is not None
            default = answer.current
            show(page.help(answer.current))
            continue
        return answer


@dataclass(frozen=True)
class _Help:
    """Somebody asked for the long explanation while `current` was chosen or typed."""

    current: Any


def _list(page: Page, default: Any) -> tuple[Question, _Screen]:
    label_width = min(max(len(option.label) for option in page.options), 34)
    choices = [
        questionary.Choice(
            f"{option.label:<{label_width}}  {option.hint or ('not yet' if option.refusal else '')}".rstrip(),
            value=index,
        )
        for index, option in enumerate(page.options)
    ]
    first = next((index for index, option in enumerate(page.options) if option.value == default), 0)
    question = questionary.select(
        page.title, choices, default=choices[first], pointer="❯", style=_prompt_style(), erase_when_done=True
    )
    control = next(c for c in question.application.layout.find_all_controls() if isinstance(c, InquirerControl))
    control.selected_options = []  # the answer so far is under the cursor; a second mark would only confuse

    def current() -> Any:
        return page.options[control.pointed_at].value

    # A list that scrolls anyway leaves the explanation its room.
    screen = _Screen(page, current, len(choices) if len(choices) <= LONG_LIST else LONG_LIST - 2)
    keys = KeyBindings()

    def accept(event: KeyPressEvent) -> None:
        option = page.options[control.pointed_at]
        if option.refusal:
            screen.error = option.refusal
        else:
            event.app.exit(result=option.value)

    def point_at(event: KeyPressEvent) -> None:
        control.pointed_at = int(event.key_sequence[0].key) - 1

    _on(keys, ["enter"], accept)
    _on(keys, [str(number + 1) for number in range(min(len(choices), 9))], point_at)
    _moves(keys, page, current, ("left", "escape", "c-b"), "?")
    listed = VSplit(
        [Window(width=1), Window(control, height=screen.rows_between, always_hide_cursor=True, dont_extend_height=True)]
    )
    _dress(question, keys, screen, listed)
    return question, screen


def _line(page: Page, default: Any) -> tuple[Question, _Screen]:
    start = "" if default is None else str(default)
    ask_line = questionary.path if page.is_path else questionary.text
    question = ask_line("", default=start, style=_prompt_style())
    buffer = question.application.layout.current_buffer
    assert buffer is not None
    mark = Window(FormattedTextControl([("class:pointer", "  ❯ ")]), width=4, height=1)
    hide = [PasswordProcessor()] if page.secret else None
    typed = Window(BufferControl(buffer, input_processors=hide), height=1)  # type: ignore[arg-type]  # a list of one kind
    screen = _Screen(page, lambda: _or_none(page.check, buffer.text), 1)
    keys = KeyBindings()

    def accept(event: KeyPressEvent) -> None:
        try:
            value = page.check(buffer.text.strip())
        except PlainError as problem:
            screen.error = str(problem)
        else:
            event.app.exit(result=value)

    _on(keys, ["enter"], accept)
    untouched = Condition(lambda: buffer.text in ("", start))
    _moves(keys, page, lambda: buffer.text, ("escape", "c-b"), "?", untouched)
    _dress(question, keys, screen, VSplit([mark, typed]), typed)
    return question, screen


def _or_none(check: Callable[[str], Any], text: str) -> Any:
    """The value of half-typed text, None while it is not one."""
    try:
        return check(text.strip())
    except PlainError:
        return None


def _on(keys: Any, names: Sequence[str], act: Callable[[KeyPressEvent], None], when: Any = True) -> None:
    """Binds every one of these keys, ahead of questionary's own."""
    for name in names:
        keys.add(name, eager=True, filter=when)(act)


def _moves(
    keys: Any, page: Page, current: Callable[[], Any], back: tuple[str, ...], help_key: str, when: Any = True
) -> None:
    """Adds the keys for going back, for the long explanation and for more settings."""
    if page.back:
        _on(keys, back, lambda event: event.app.exit(result=Move.BACK))
    if page.help:
        _on(keys, ["f1"], lambda event: event.app.exit(result=_Help(current())))
        _on(keys, [help_key], lambda event: event.app.exit(result=_Help(current())), when)
    if page.more and page.options:
        _on(keys, ["m"], lambda event: event.app.exit(result=Move.MORE))
    _on(keys, ["c-c"], lambda event: event.app.exit(exception=KeyboardInterrupt))


def _dress(question: Question, keys: Any, screen: _Screen, asked: Any, focus: Any = None) -> None:
    """Puts our text around questionary's own control and our keys before its own."""
    application = question.application
    above, below = _still(screen.above), _still(screen.below)
    menu = Float(CompletionsMenu(max_height=6), xcursor=True, ycursor=True)
    application.layout = Layout(FloatContainer(HSplit([above, asked, below]), [menu]), focused_element=focus)
    bindings = [application.key_bindings, keys] if application.key_bindings else [keys]
    application.key_bindings = merge_key_bindings(bindings)
    application.erase_when_done = True
    application.ttimeoutlen = 0.05  # else Esc waits half a second for the rest of an arrow key
    application.timeoutlen = 0.05


def _still(text: Callable[[], Any]) -> Window:
    return Window(FormattedTextControl(text), dont_extend_height=True, always_hide_cursor=True)


def _prompt_style() -> Any:
    return questionary.Style(list(views.PROMPT_STYLES.items()))


def read_on_screen(renderable: RenderableType) -> None:
    """A page of text that fills the screen and scrolls."""
    top = 0
    keys = KeyBindings()

    def lines() -> list[str]:
        return ["", *views.ansi_lines(views.indented(renderable), _terminal_size()[0]), ""]

    def room() -> int:
        return max(_terminal_size()[1] - 2, 1)

    def move(by: int) -> None:
        nonlocal top
        top = min(max(top + by, 0), max(len(lines()) - room(), 0))

    def text() -> Any:
        move(0)
        all_lines = lines()
        shown = all_lines[top : top + room()]
        rest = len(all_lines) - top - len(shown)
        hints = [("↑↓", f"read on, {rest} more lines")] if rest else [("↑↓", "scroll")] if top else []
        foot = views.ansi_lines(views.indented(views.keys([*hints, ("Enter", "close")])), _terminal_size()[0])
        return ANSI("\n".join([*shown, *[""] * (room() - len(shown)), "", *foot]))

    steps = {"down": 1, "j": 1, "up": -1, "k": -1, "home": -(10**6), "end": 10**6}
    for key, by in steps.items():
        keys.add(key, eager=True)(lambda event, by=by: move(by))
    for key, direction in {"pagedown": 1, "space": 1, "pageup": -1}.items():
        keys.add(key, eager=True)(lambda event, direction=direction: move(direction * max(room() - 2, 1)))
    for key in ("enter", "escape", "q", "left", "?", "c-b"):
        keys.add(key, eager=True)(lambda event: event.app.exit())
    keys.add("c-c", eager=True)(lambda event: event.app.exit(exception=KeyboardInterrupt))
    window = Window(FormattedTextControl(text), always_hide_cursor=True)
    reader: Application[None] = Application(Layout(window), key_bindings=keys, full_screen=True, erase_when_done=True)
    reader.ttimeoutlen = 0.05
    reader.timeoutlen = 0.05
    reader.run()
