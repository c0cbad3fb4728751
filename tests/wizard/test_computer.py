"""The path's first step: what it shows, when it is skipped, and when it looks again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from wizard import computer
from wizard.hardware import GraphicsCard, graphics_cards
from wizard.screen_prompts import ask_on_screen
from wizard.session import Session

pytestmark = pytest.mark.usefixtures("own_home")
DOWN, ENTER = "\x1b[B", "\r"
WORKS = {"float32": "", "bfloat16": "", "float16": ""}
TORCH = {"version": "2", "cuda": None, "rocm": None, "device": "cpu", "architectures": [], "formats": WORKS}
PROBES = {
    "torch": TORCH,
    "libraries": {"imported": []},
    "bitsandbytes": {"version": "0", "device": "cpu", "moved": True},
    "onnxruntime": {"version": "1", "providers": [], "used": ["CPUExecutionProvider"]},
}
BROKEN = {**PROBES, "torch": {"error": "No module named torch"}}
CARD = GraphicsCard("NVIDIA GeForce RTX 3060", 12 * 2**30, 11 * 2**30, (8, 6), "560.94")


class Asked(list):
    """What the libraries would say, one answer after the other, and the pages that were shown."""

    def __init__(self, *answers):
        self.answers = list(answers)

    def libraries(self):
        return self.answers.pop(0)

    def page(self, page):
        self.append(page)
        return ask_on_screen(page)


def look(monkeypatch, keyboard, keys, *answers, installed=None):
    """The pages shown for these keys and answers. What would be installed is noted; no test changes this computer."""
    asked = Asked(*answers)
    noted = [] if installed is None else installed
    monkeypatch.setattr(computer, "install", noted.extend)
    monkeypatch.setattr(computer, "wait_for_enter", lambda: None)
    monkeypatch.setattr(computer, "ask_all", asked.libraries)
    keyboard.send_text(keys)
    computer.first_look(Session(asker=asked.page))
    assert asked.answers == []
    assert installed is not None or noted == []
    return asked


def test_a_healthy_computer_is_shown_once(monkeypatch, keyboard):
    (page,) = look(monkeypatch, keyboard, ENTER, PROBES)
    assert (page.place, page.title) == ("This computer", "It is ready")
    assert look(monkeypatch, keyboard, "") == []


def test_what_is_in_the_way_is_shown_until_it_is_mended(monkeypatch, keyboard):
    (page,) = look(monkeypatch, keyboard, ENTER, BROKEN)
    assert page.title == "1 thing is in the way of training"
    assert [option.value for option in page.options] == ["on", "all", "install", "again"]
    first, second = look(monkeypatch, keyboard, DOWN * 3 + ENTER + ENTER, BROKEN, PROBES)
    assert (first.title, second.title) == ("1 thing is in the way of training", "It is ready")
    assert look(monkeypatch, keyboard, "") == []


def test_everything_can_be_read_and_leads_back(monkeypatch, keyboard):
    pages = look(monkeypatch, keyboard, DOWN + ENTER + "q" + ENTER, PROBES)
    assert [page.title for page in pages] == ["It is ready", "It is ready"]


def test_another_card_or_driver_is_looked_at_again():
    computer.remember(PROBES, [CARD])
    assert computer.remembered([CARD]) == PROBES
    assert computer.remembered([replace(CARD, driver="580.65")]) is None
    assert computer.remembered([]) is None


def test_another_library_is_looked_at_again(monkeypatch):
    computer.remember(PROBES, graphics_cards())
    monkeypatch.setattr(computer, "LIBRARIES", (*computer.LIBRARIES, "pytest"))
    assert computer.remembered(graphics_cards()) is None


def test_a_damaged_memory_is_no_memory(own_home):
    computer.remember(PROBES, [])
    (own_home / "computer.json").write_text("{")
    assert computer.remembered([]) is None


def test_what_is_missing_is_installed_from_the_page_and_looked_at_again(monkeypatch, keyboard):
    installed = []
    first, second = look(monkeypatch, keyboard, DOWN * 2 + ENTER + ENTER, BROKEN, PROBES, installed=installed)
    assert [option.value for option in first.options] == ["on", "all", "install", "again"]
    assert "torch" in installed[0]
    assert second.title == "It is ready"
