"""Pages asked with real keystrokes through a pipe, and with numbered lines where the terminal is plain."""

from __future__ import annotations

import io
import sys

import pytest
from prompt_toolkit.input import PipeInput

from knowledge.answers import PlainError
from wizard.prompts import Move, Option, Page, ask
from wizard.screen_prompts import ask_on_screen

pytestmark = pytest.mark.usefixtures("own_home")
LEFT, DOWN, ENTER, ESCAPE, CTRL_B, CTRL_C = "\x1b[D", "\x1b[B", "\r", "\x1b", "\x02", "\x03"
FRUIT = (
    Option("apple", "Apple", "recommended"),
    Option("pear", "Pear", note="Juicy."),
    Option("fig", "Fig", refusal="No figs today."),
)


def whole_number(text: str) -> int:
    if not text.isdecimal():
        raise PlainError(f'"{text}" is not a number.')
    return int(text)


def a_list(**around) -> Page:
    return Page(place="Fruit", title="Which fruit?", options=FRUIT, help=lambda _: "All about fruit.", **around)


def a_line(**around) -> Page:
    return Page(place="Number", title="How many?", check=whole_number, help=lambda _: "All about numbers.", **around)


def test_enter_takes_what_the_cursor_is_on(keyboard: PipeInput):
    keyboard.send_text(DOWN + ENTER)
    assert ask_on_screen(a_list()) == "pear"


def test_the_cursor_begins_on_the_default(keyboard: PipeInput):
    keyboard.send_text(ENTER)
    assert ask_on_screen(a_list(default="pear")) == "pear"


def test_a_number_moves_the_cursor_there(keyboard: PipeInput):
    keyboard.send_text("2" + ENTER)
    assert ask_on_screen(a_list()) == "pear"


@pytest.mark.parametrize("key", [LEFT, ESCAPE, CTRL_B])
def test_a_list_goes_back_on(keyboard: PipeInput, key: str):
    keyboard.send_text(key)
    assert ask_on_screen(a_list()) is Move.BACK


def test_there_is_no_back_on_the_first_page(keyboard: PipeInput):
    keyboard.send_text(LEFT + ENTER)
    assert ask_on_screen(a_list(back="")) == "apple"


def test_a_question_mark_explains_and_returns_to_where_the_cursor_was(keyboard: PipeInput):
    keyboard.send_text(DOWN + "?" + "q" + ENTER)
    assert ask_on_screen(a_list()) == "pear"


def test_m_asks_for_more_settings(keyboard: PipeInput):
    keyboard.send_text("m")
    assert ask_on_screen(a_list(more=True)) is Move.MORE


def test_a_closed_option_does_not_answer(keyboard: PipeInput):
    keyboard.send_text("3" + ENTER + "1" + ENTER)
    assert ask_on_screen(a_list()) == "apple"


def test_ctrl_c_is_an_interrupt_and_not_an_answer(keyboard: PipeInput):
    keyboard.send_text(CTRL_C)
    with pytest.raises(KeyboardInterrupt):
        ask_on_screen(a_list())


def test_a_line_hands_over_the_value_and_not_the_text(keyboard: PipeInput):
    keyboard.send_text("12" + ENTER)
    assert ask_on_screen(a_line(default="")) == 12


def test_a_refused_line_stays_to_be_corrected(keyboard: PipeInput):
    keyboard.send_text("12x" + ENTER + "\x7f" + ENTER)
    assert ask_on_screen(a_line(default="")) == 12


def test_a_default_line_can_be_kept_or_extended(keyboard: PipeInput):
    keyboard.send_text(ENTER)
    assert ask_on_screen(a_line(default="7")) == 7
    keyboard.send_text("5" + ENTER)
    assert ask_on_screen(a_line(default="7")) == 75


@pytest.mark.parametrize("key", [ESCAPE, CTRL_B])
def test_a_line_goes_back_on(keyboard: PipeInput, key: str):
    keyboard.send_text(key)
    assert ask_on_screen(a_line(default="")) is Move.BACK


def test_the_left_arrow_moves_inside_a_line(keyboard: PipeInput):
    keyboard.send_text("12" + LEFT + "5" + ENTER)
    assert ask_on_screen(a_line(default="")) == 152


def test_a_question_mark_explains_on_an_untouched_line_only(keyboard: PipeInput):
    keyboard.send_text("?" + "q" + "3" + ENTER)
    assert ask_on_screen(a_line(default="")) == 3
    keyboard.send_text("why?" + ENTER)
    assert ask_on_screen(Page(place="Words", title="What?", help=lambda _: "Help.", default="")) == "why?"


# The same pages where nothing may move


@pytest.fixture
def type_lines(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NO_COLOR", "1")

    def type_them(*lines: str) -> None:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))

    return type_them


def test_a_plain_list_is_answered_by_number(type_lines, capsys: pytest.CaptureFixture[str]):
    type_lines("2")
    assert ask(a_list()) == "pear"
    shown = capsys.readouterr().out
    assert "  1  Apple  (recommended)" in shown
    assert "\x1b" not in shown


def test_a_plain_list_takes_the_default_on_enter(type_lines):
    type_lines("")
    assert ask(a_list(default="pear")) == "pear"


def test_a_plain_page_explains_goes_back_and_opens_more(type_lines, capsys: pytest.CaptureFixture[str]):
    type_lines("?", "<")
    assert ask(a_list()) is Move.BACK
    assert "All about fruit." in capsys.readouterr().out
    type_lines("m")
    assert ask(a_list(more=True)) is Move.MORE


def test_a_plain_page_refuses_and_asks_again(type_lines, capsys: pytest.CaptureFixture[str]):
    type_lines("9", "3", "1")
    assert ask(a_list()) == "apple"
    shown = capsys.readouterr().out
    assert "type a number from 1 to 3" in shown
    assert "No figs today." in shown


def test_the_end_of_the_input_is_an_interrupt(type_lines):
    type_lines()
    with pytest.raises(KeyboardInterrupt):
        ask(a_line())


def test_a_dumb_terminal_is_a_plain_one(type_lines, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    type_lines("8")
    monkeypatch.setenv("TERM", "dumb")
    assert ask(a_line()) == 8
