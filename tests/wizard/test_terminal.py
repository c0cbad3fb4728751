"""The wizard as a person meets it: a real pseudo-terminal, from the first question to a finished training."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from terminal import CTRL_C, ENTER, ESCAPE, LEFT, Terminal

from wizard import steps


@pytest.fixture
def here(tmp_path: Path) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    return folder


def test_from_the_first_question_to_a_finished_training(here: Path, photos: Path):
    """With a long explanation, a way back, an answer that is refused, and a fix taken from the review."""
    terminal = Terminal("new", "--set", "schedule.maximum_steps=4", here=here)  # four steps tell as much as a thousand
    terminal.sees("What do you want to teach?")
    terminal.press("?")
    terminal.sees("dataset.goal", "Enter close")
    terminal.press("q")
    terminal.sees("What do you want to teach?", "Ctrl-C leave")
    terminal.press(ENTER)

    terminal.sees("Where are your pictures?")
    terminal.press("/nowhere/at/all", ENTER)
    terminal.sees("There is no folder /nowhere/at/all")
    terminal.press("\x15", str(photos), ENTER)
    terminal.sees("Are these the right pictures?", "6 pictures", "in place 0")
    terminal.press(LEFT)  # back to the subject
    terminal.sees("What do you want to teach?")
    terminal.point_at("An object")
    terminal.press(ENTER)
    terminal.sees("Are these the right pictures?")
    terminal.press(ENTER)

    terminal.sees("Which word shall call it up?")
    terminal.press("zorb")
    terminal.sees("zorb, in place 0")
    terminal.press(ENTER)

    terminal.sees("Which model do you want to build on?")
    terminal.point_at("The pocket model")
    terminal.press(ENTER)
    terminal.sees("At which size")
    terminal.press(ENTER)
    terminal.sees("Which kind of network")
    terminal.press(ENTER)
    terminal.sees("How much room")
    terminal.press(ENTER)
    terminal.sees("How strongly shall its change be applied?")
    terminal.press(ENTER)
    terminal.sees("Which optimizer")
    terminal.press(ENTER)
    terminal.sees("How big shall each learning step be?")
    terminal.point_at("another value")
    terminal.press(ENTER)
    terminal.leaves("another value")
    terminal.press("\x15", "1.5", ENTER)  # far too high: the review will object
    terminal.sees("How many pictures")
    terminal.press(ENTER)
    terminal.sees("How often shall it go through all pictures?")
    terminal.point_at("another value")
    terminal.press(ENTER)
    terminal.leaves("another value")
    terminal.press("\x15", "1", ENTER)
    terminal.sees("What shall it draw")
    terminal.press(ENTER)
    terminal.sees("How often shall it draw them?")
    terminal.press(ENTER)
    terminal.sees("What shall the finished file be called?")
    terminal.press(ENTER)

    terminal.sees("This is what will happen", "Fix:")
    terminal.point_at("Fix: Learning rate")
    terminal.press(ENTER)
    terminal.sees("✓ Learning rate")
    terminal.point_at("Save and start training")
    terminal.press(ENTER)
    assert terminal.ends(within=400) == 0, terminal.text
    assert (here / "zorb.toml").exists()
    assert list((here / "runs" / "zorb").glob("**/*.safetensors"))
    assert not (here / "home" / "draft.json").exists()


def test_ctrl_c_says_how_to_come_back_and_the_next_start_offers_to(here: Path):
    terminal = Terminal(here=here)
    terminal.sees("What do you want to teach?")
    terminal.point_at("A style")
    terminal.press(ENTER)
    terminal.sees("Where are your pictures?")
    terminal.press(CTRL_C)
    assert terminal.ends(within=60) == 130
    assert "Your answers are kept" in terminal.text

    again = Terminal(here=here)
    again.sees("You left at", "Pictures", "Go on")
    again.press(ENTER)
    again.sees("Where are your pictures?")
    again.press(ESCAPE)
    again.sees("❯ A style")
    again.program.kill(signal.SIGKILL)  # what was answered outlives a crash too

    last = Terminal(here=here)
    last.sees("You left at", "Subject", "Go on")
    last.point_at("Start anew")
    last.press(ENTER)
    last.sees("❯ A character")
    last.press(CTRL_C)
    assert last.ends(within=60) == 130
    assert not (here / "home" / "draft.json").exists()


def test_a_plain_terminal_is_asked_with_numbers_and_nothing_moves(here: Path, photos: Path):
    terminal = Terminal(here=here, TERM="dumb")
    terminal.sees("What do you want to teach?", "Number [1]")
    terminal.press("2\r")
    terminal.sees("Where are your pictures?", "Answer")
    terminal.press(f"{photos}\r")
    terminal.sees("Are these the right pictures?", "6 pictures")
    terminal.press("<\r")
    terminal.sees("What do you want to teach?", "Number [2]")
    terminal.press(CTRL_C)
    assert terminal.ends(within=60) == 130


def test_every_page_of_the_path_fits_a_terminal_of_80_by_24(here: Path, photos: Path):
    """No page is cut, and the line of keys is always to be seen."""
    terminal = Terminal(here=here)
    pages = {question.ask: ENTER for question in steps.questions().values()}
    pages["Where are your pictures?"] = f"{photos}{ENTER}"
    for title, answer in pages.items():
        terminal.sees(title, "Ctrl-C leave")
        assert "does not fit" not in terminal.text, terminal.text
        if title == "Which model do you want to build on?":
            terminal.point_at("The pocket model")
        terminal.press(answer)
        if title == "Where are your pictures?":
            terminal.sees("Are these the right pictures?", "Ctrl-C leave")
            terminal.press(ENTER)
    terminal.sees("This is what will happen", "Ctrl-C leave")
    terminal.press(CTRL_C)
    assert terminal.ends(within=60) == 130


def test_the_first_start_looks_at_the_computer_and_the_next_does_not(here: Path):
    terminal = Terminal("new", here=here, first_start=True)
    terminal.sees("Looking at this computer", within=60)
    terminal.sees("This computer", "It is ready", "PyTorch", "memory", "Go on", within=300)
    terminal.settle()
    terminal.point_at("Show everything")
    terminal.press(ENTER)
    terminal.sees("8 bits")
    terminal.press("q")
    terminal.sees("It is ready")
    terminal.settle()
    terminal.press(ENTER)
    terminal.sees("What do you want to teach?")
    terminal.press(CTRL_C)
    assert terminal.ends(within=30) == 130
    again = Terminal("new", here=here, first_start=True)
    again.sees("What do you want to teach?")
    assert "This computer" not in again.text
    again.press(CTRL_C)
    assert again.ends(within=30) == 130
