"""A program in a real pseudo-terminal: what is typed into it, and what is to be seen in it."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from wizard import computer
from wizard.hardware import graphics_cards

pexpect = pytest.importorskip("pexpect", reason="pseudo-terminals are not for Windows")
pyte = pytest.importorskip("pyte")
if sys.platform == "win32":
    pytest.skip("pseudo-terminals are not for Windows", allow_module_level=True)

ROOT = Path(__file__).parents[1]
UP, DOWN, LEFT, ENTER, ESCAPE, CTRL_C = "\x1b[A", "\x1b[B", "\x1b[D", "\r", "\x1b", "\x03"


def looked_at(home: Path) -> None:
    """As if the wizard had looked at this computer before: asking its libraries takes long, and one test is enough."""
    works = {"float32": "", "bfloat16": "", "float16": ""}
    probes = {
        "torch": {"version": "2", "cuda": None, "rocm": None, "device": "cpu", "architectures": [], "formats": works},
        "libraries": {"imported": []},
        "bitsandbytes": {"version": "0", "device": "cpu", "moved": True},
        "onnxruntime": {"version": "1", "providers": [], "used": ["CPUExecutionProvider"]},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORA_WIZARD_HOME", str(home))
        computer.remember(probes, graphics_cards())


class Terminal:
    """A program in a terminal of 80 × 24, and what is to be seen in it.

    first_start: nobody has looked at this computer yet, so the wizard does.
    """

    def __init__(self, *arguments: str, here: Path, first_start: bool = False, **environment: str) -> None:
        if not first_start:
            looked_at(here / "home")
        self.screen = pyte.Screen(80, 24)
        self._stream = pyte.Stream(self.screen)
        settings = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "HOME": str(here)} | environment
        settings.pop("NO_COLOR", None)
        settings["LORA_WIZARD_HOME"] = str(here / "home")
        self.program = pexpect.spawn(
            sys.executable,
            ["-m", "wizard.cli", *arguments],
            cwd=here,
            env=settings,
            dimensions=(24, 80),
            encoding="utf-8",
            timeout=30,
        )

        self.screen.write_process_input = self.program.send  # where is the cursor? a real terminal answers

    def read(self, seconds: float = 0.2) -> None:
        try:
            self._stream.feed(self.program.read_nonblocking(65536, timeout=seconds))
        except pexpect.TIMEOUT:
            pass
        except pexpect.EOF:
            time.sleep(0.05)

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.screen.display)

    def sees(self, *words: str, within: float = 60.0) -> None:
        """Waits until all of these words are to be seen."""
        end = time.monotonic() + within
        while not all(word in self.text for word in words):
            assert time.monotonic() < end, f"{words} not seen within {within} s on\n{self.text}"
            self.read()

    def sees_no_more(self, words: str, within: float = 60.0) -> None:
        """Waits until these words are gone."""
        end = time.monotonic() + within
        while words in self.text:
            assert time.monotonic() < end, f"{words} still seen after {within} s on\n{self.text}"
            self.read()

    def leaves(self, *words: str, within: float = 60.0) -> None:
        """Waits until none of these words is to be seen: what is typed before the next page is there would be lost."""
        end = time.monotonic() + within
        while any(word in self.text for word in words):
            assert time.monotonic() < end, f"{words} still seen after {within} s on\n{self.text}"
            self.read()
        self.sees("Ctrl-C leave")
        self.settle()

    def settle(self) -> None:
        """Waits until nothing more is drawn."""
        before = ""
        while self.text != before or "❯" not in self.text:
            before = self.text
            self.read(0.3)

    def press(self, *keys: str) -> None:
        for key in keys:
            self.program.send(key)

    def point_at(self, label: str) -> None:
        """Moves the cursor of a list down to the option that holds this label."""
        self.sees(label)
        for _ in range(20):
            pointed = self._pointed()
            if label in pointed:
                return
            self.press(DOWN)
            end = time.monotonic() + 20
            while self._pointed() in (pointed, ""):  # on a busy machine the next page may be long in coming
                assert time.monotonic() < end, f"the cursor stays where it is on\n{self.text}"
                self.read()
            self.settle()
        raise AssertionError(f"the cursor does not reach {label} on\n{self.text}")

    def looks_on_gelbooru(self, tags: str, at_most: str = "") -> None:
        """Goes from the sources of pictures to the last question before Gelbooru's pictures, where they shall go."""
        self.point_at("From Gelbooru")
        self.press(ENTER)
        self.sees("Which tags?")
        self.press(tags, ENTER)
        self.sees("Which ratings may come?")
        self.press(ENTER)
        self.sees("How many pictures at most?")
        self.press(*(("\x15", at_most) if at_most else ()), ENTER)
        self.sees("Into which folder shall they go?")

    def _pointed(self) -> str:
        """The line that the cursor of a list is on."""
        return next((line for line in self.text.splitlines() if "❯" in line), "")

    def ends(self, within: float) -> int:
        end = time.monotonic() + within
        while self.program.isalive():
            assert time.monotonic() < end, f"still running after {within} s:\n{self.text}"
            self.read()
        self.read()
        self.program.close()
        return int(self.program.exitstatus if self.program.exitstatus is not None else -1)
