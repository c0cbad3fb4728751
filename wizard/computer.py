"""The path's first step: is this computer ready? Looked at once, and again when something in it has changed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from knowledge.answers import PlainError, write_whole
from wizard import doctor, views
from wizard.checks import examine, in_the_way
from wizard.drafts import user_folder
from wizard.hardware import GraphicsCard, graphics_cards
from wizard.library_checks import version
from wizard.mending import install, installs
from wizard.patient import Line, find_out
from wizard.probes import ask_all
from wizard.prompts import Option, Page, show, wait_for_enter
from wizard.words import count

if TYPE_CHECKING:
    from rich.console import RenderableType

    from wizard.session import Session

LIBRARIES = ("torch", "torchvision", "diffusers", "transformers", "lycoris-lora", "bitsandbytes", "onnxruntime-gpu")
"""Those whose exchange makes what they said of themselves old."""

ALWAYS_SHOWN = ("graphics card", "PyTorch", "memory", "disk")


def first_look(session: Session) -> None:
    """Shows what the doctor finds, where nobody has seen it yet or something is in the way."""
    probes = remembered(graphics_cards())
    seen = probes is not None
    while True:
        if probes is None:
            message = "Looking at this computer, once; some libraries take a while to answer …"
            probes = session.waiting(message, ask_all)
        lines = list(examine(find_out(probes=probes, network=False)))
        if not in_the_way(lines):
            remember(probes, graphics_cards())
            if seen:
                return
        answer = session.ask(_page(lines))
        if answer == "all":
            show(views.page(*doctor.page(lines)))
            seen = False
        elif answer == "install":
            install(installs(lines))
            wait_for_enter()
            probes = None
        elif answer == "again":
            probes = None
        else:
            return


def _page(lines: Sequence[Line]) -> Page:
    problems = in_the_way(lines)
    title = f"{count(len(problems), 'thing is', 'things are')} in the way of training" if problems else "It is ready"
    options = [Option("on", "Go on", "training would not start like this" if problems else "")]
    options.append(Option("all", "Show everything that was looked at"))
    if commands := installs(lines):
        options.append(Option("install", "Install what is missing", f"{count(len(commands), 'command')} with pip"))
    if problems:
        options.append(Option("again", "Look again", "after it was mended"))
    return Page(
        place="This computer",
        title=title,
        body=tuple(_shown(lines)),
        options=tuple(options),
        default="on",
        help=lambda _: views.page(*doctor.page(lines)),
        back="",
    )


def _shown(lines: Sequence[Line]) -> Iterator[RenderableType]:
    """What is in the way and what is worth a thought with all that is said of it, then the rest that everybody asks."""
    pressing = [line for line in lines if line.state in ("problem", "warning")]
    if pressing:
        yield doctor.grid(pressing)
    rest = [line for line in lines if line not in pressing and line.name in ALWAYS_SHOWN]
    if rest:
        yield doctor.grid(rest, briefly=bool(pressing))
    if not in_the_way(lines):
        yield "[quiet]To look again at any time: lora-wizard doctor[/]"


# --- what the libraries said the last time ---------------------------------------------------------------------------


def _file() -> Path:
    return user_folder() / "computer.json"


def _fingerprint(cards: Sequence[GraphicsCard]) -> dict[str, Any]:
    """What must be the same for the libraries to say the same again."""
    return {
        "python": sys.executable,
        "libraries": {name: version(name) for name in LIBRARIES},
        "cards": [[card.name, card.driver] for card in cards],
        "visible": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
    }


def remembered(cards: Sequence[GraphicsCard]) -> Mapping[str, Mapping[str, Any]] | None:
    """What the libraries said the last time, where nothing has changed since; None otherwise."""
    try:
        document = json.loads(_file().read_text(encoding="utf-8"))
        same = document["fingerprint"] == _fingerprint(cards)
        return dict(document["probes"]) if same else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remember(probes: Mapping[str, Mapping[str, Any]], cards: Sequence[GraphicsCard]) -> None:
    """Keeps what the libraries said. Where it cannot be kept, it is asked again the next time."""
    document = {"fingerprint": _fingerprint(cards), "probes": dict(probes)}
    try:
        write_whole(_file(), json.dumps(document, ensure_ascii=False) + "\n")
    except PlainError:
        return
