"""A run as it stands and how it is shown: a live view in a terminal, plain lines anywhere else, or the raw events.

`Progress` only adds up what the events say; the views draw it. It makes no difference whether the run is our own or one
that is watched from another terminal.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from engine.events import (
    CheckpointSaved,
    Event,
    Failed,
    Phase,
    PhaseProgress,
    PhaseStarted,
    RunFinished,
    RunStarted,
    StepFinished,
)
from engine.trouble import PHASE_WORDS
from wizard import views
from wizard.narrator import Sentence
from wizard.words import duration, number

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

SPARKS = "▁▂▃▄▅▆▇█"
SPARKLINE_WIDTH = 24
COURSE_LOOKS = 200
"""A sparkline reads all losses, so it is drawn anew only after a two-hundredth more of them."""
SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
MARKS = {"plain": ("·", "quiet"), "good": ("✓", "good"), "warning": ("!", "warning"), "bad": ("✗", "error")}
PLAIN_LINE_SECONDS = 60.0
PLAIN_LINES = 10
SILENCE_SECONDS = 30.0


@dataclass
class Progress:
    """Where a run stands, added up from its events in order."""

    run: str = ""
    device: str = ""
    total_steps: int = 0
    epochs: int = 0
    step: int = 0
    epoch: int = 0
    losses: list[float] = field(default_factory=list)
    learning_rate: float = 0.0
    vram_bytes: int = 0
    ram_bytes: int = 0
    phase: Phase | None = None
    phase_detail: str = ""
    phase_done: int = 0
    phase_total: int = 0
    phase_since: float = 0.0
    saved: CheckpointSaved | None = None
    stopping: bool = False
    ended: Failed | RunFinished | None = None
    first_step: int = 1
    stepping_since: float = 0.0
    last_step_at: float = 0.0
    heard_at: float = 0.0
    course: str = ""
    course_step: int = 0

    def begin_again(self) -> None:
        """Forget how the run ended before, because it is being gone on with."""
        self.phase, self.ended = None, None
        self.stepping_since = self.last_step_at = 0.0

    def hear(self, event: Event) -> None:
        self.heard_at = event.at
        match event:
            case RunStarted():
                self.run, self.device = event.run, event.device
                self.total_steps, self.epochs = event.total_steps, event.epochs
                self.first_step = event.first_step
                self.step = event.first_step - 1
                del self.losses[self.step :]  # steps after the last state are done again
                self.stepping_since = self.last_step_at = 0.0
                self.ended = None
            case PhaseStarted():
                self.phase, self.phase_detail, self.phase_since = event.phase, event.detail, event.at
                self.phase_done = self.phase_total = 0
            case PhaseProgress():
                self.phase, self.phase_done, self.phase_total = event.phase, event.done, event.total
            case StepFinished():
                self._step(event)
            case CheckpointSaved() if event.kind == "network":
                self.saved = event
            case Failed() | RunFinished():
                self.ended = event

    def _step(self, event: StepFinished) -> None:
        self.step, self.epoch = event.step, event.epoch
        self.losses.append(event.loss)
        self.learning_rate = max(event.learning_rate.values(), default=0.0)
        self.vram_bytes, self.ram_bytes = event.vram_bytes, event.ram_bytes
        if not self.stepping_since:
            self.stepping_since, self.first_step = event.at, event.step  # the first step also warms up
        self.last_step_at = event.at
        if self.phase != "training":
            self.phase, self.phase_detail, self.phase_since = "training", "", event.at
        if event.step >= self.course_step + len(self.losses) // COURSE_LOOKS or event.step < self.course_step:
            self.course, self.course_step = sparkline(self.losses), event.step

    @property
    def share(self) -> float:
        """How much of the run is done, 0 to 1."""
        return self.step / self.total_steps if self.total_steps else 0.0

    @property
    def seconds_per_step(self) -> float | None:
        """By the wall clock since the first step, pauses for samples and saving included; None before the third."""
        steps = self.step - self.first_step
        return (self.last_step_at - self.stepping_since) / steps if steps >= 2 else None

    @property
    def seconds_left(self) -> float | None:
        """What the remaining steps take if they go on like those so far; None while there is nothing to go by."""
        per_step = self.seconds_per_step
        return None if per_step is None else per_step * (self.total_steps - self.step)

    @property
    def window(self) -> int:
        """How many of the last losses are averaged: a fifth of all, at least 10 and at most 100."""
        return min(len(self.losses), max(10, min(100, len(self.losses) // 5)))

    @property
    def smoothed_loss(self) -> float | None:
        recent = [loss for loss in self.losses[-self.window :] if math.isfinite(loss)] if self.losses else []
        return sum(recent) / len(recent) if recent else None

    @property
    def trained(self) -> bool:
        """Whether there is anything to save: a step of this session is done."""
        return self.last_step_at > 0

    def doing(self) -> str:
        """The current phase in words: "drawing sample pictures, 2 of 4"."""
        if self.phase is None:
            return "starting"
        if self.stopping:
            return "finishing this step, then saving"
        words = PHASE_WORDS[self.phase]
        return f"{words}, {self.phase_done} of {self.phase_total}" if self.phase_total else words


def sparkline(losses: Sequence[float], width: int = SPARKLINE_WIDTH) -> str:
    """The course of the loss in a few characters, each the average of as many steps; empty below 20 steps.

    The height of the line is at least ten standard errors of such an average, so that noise alone looks flat.
    """
    finite = [loss for loss in losses if math.isfinite(loss)]
    if len(finite) < 20:
        return ""
    width = min(width, len(finite) // 5)
    cuts = [round(index * len(finite) / width) for index in range(width + 1)]
    blocks = [finite[start:end] for start, end in pairwise(cuts)]
    means = [sum(block) / len(block) for block in blocks]
    within = sum((loss - mean) ** 2 for block, mean in zip(blocks, means, strict=True) for loss in block)
    error = math.sqrt(within / max(1, len(finite) - width) / (len(finite) / width))
    middle, span = (max(means) + min(means)) / 2, max(max(means) - min(means), 10 * error) or 1.0
    heights = ((mean - middle) / span + 0.5 for mean in means)
    return "".join(SPARKS[min(len(SPARKS) - 1, int(height * len(SPARKS)))] for height in heights)


class View(Protocol):
    """What shows a run. `tell` gets each new event with its line as written; `say` a sentence about it."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def tell(self, event: Event, line: str) -> None: ...
    def say(self, sentence: Sentence) -> None: ...


class JsonView:
    """The events as they were written, a line each, and nothing else."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def tell(self, event: Event, line: str) -> None:
        print(line, flush=True)

    def say(self, sentence: Sentence) -> None:
        pass


class PlainView:
    """Sentences as lines, and a line of numbers every tenth of the run or every minute: for logs, pipes and readers."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.shown = 0
        self.shown_at = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def tell(self, event: Event, line: str) -> None:
        progress, now = self.progress, time.monotonic()
        if not isinstance(event, StepFinished):
            return
        due = progress.step * PLAIN_LINES // max(1, progress.total_steps)
        if due == self.shown and now < self.shown_at + PLAIN_LINE_SECONDS:
            return
        self.shown, self.shown_at = due, now
        print(plain_line(progress), flush=True)

    def say(self, sentence: Sentence) -> None:
        where = f"step {sentence.step}: " if sentence.step else ""
        print(where + sentence.text, flush=True)


def plain_line(progress: Progress) -> str:
    """Where the run stands, on one line."""
    parts = [f"step {progress.step} of {progress.total_steps} ({progress.share:.0%})"]
    if progress.epochs:
        parts.append(f"epoch {progress.epoch} of {progress.epochs}")
    if progress.smoothed_loss is not None:
        parts.append(f"loss {number(progress.smoothed_loss)}")
    if progress.seconds_left is not None and progress.step < progress.total_steps:
        parts.append(f"{duration(progress.seconds_left)} to go")
    return " · ".join(parts)


class LiveView:
    """The run at the foot of the terminal, its sentences above it."""

    def __init__(self, progress: Progress, footer: str, vram_bytes: int = 0, ram_bytes: int = 0) -> None:
        from rich.live import Live

        self.progress = progress
        self.footer = footer
        self.vram_bytes, self.ram_bytes = vram_bytes, ram_bytes
        self.console = views.console()
        self.live: Live = Live(
            console=self.console, get_renderable=self.draw, refresh_per_second=4, transient=True, redirect_stderr=False
        )

    def __enter__(self) -> Self:
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def tell(self, event: Event, line: str) -> None:
        pass  # the live view redraws itself from the progress

    def say(self, sentence: Sentence) -> None:
        self.console.print(spoken(sentence))

    def draw(self) -> RenderableType:
        return panel(self.progress, time.time(), self.footer, self.vram_bytes, self.ram_bytes)


def spoken(sentence: Sentence) -> RenderableType:
    """A sentence on the screen: the step it was said at, a mark for its tone, the text."""
    from rich.table import Table
    from rich.text import Text

    mark, style = MARKS[sentence.tone]
    grid = Table.grid(padding=(0, 1))
    grid.add_column(style="quiet", justify="right", no_wrap=True, min_width=9)
    grid.add_column(no_wrap=True)
    grid.add_column()
    grid.add_row(f"step {sentence.step:,}" if sentence.step else "", Text(mark, style=style), Text(sentence.text))
    return grid


def panel(progress: Progress, now: float, footer: str = "", vram_bytes: int = 0, ram_bytes: int = 0) -> RenderableType:
    """The live view at the moment `now` (seconds since 1970): at most nine lines, 80 columns are enough."""
    from rich.console import Group
    from rich.text import Text

    counts = f"step {progress.step:,} of {progress.total_steps:,}" if progress.total_steps else "getting ready"
    if progress.epoch:
        counts += f" · epoch {progress.epoch:,} of {progress.epochs:,}"
    lines: list[tuple[str, RenderableType]] = []
    if progress.smoothed_loss is not None:
        lines.append(
            (
                "loss",
                Text.assemble(
                    (number(progress.smoothed_loss), "strong"),
                    (f"  average of the last {progress.window} steps  ", "quiet"),
                    (progress.course, "accent"),
                ),
            )
        )
    if progress.seconds_left is not None and progress.seconds_per_step is not None:
        lines.append(
            (
                "time",
                Text.assemble(
                    (duration(progress.seconds_left), "strong"),
                    " to go",
                    (f"  {duration(progress.seconds_per_step)} a step", "quiet"),
                ),
            )
        )
    if progress.ram_bytes or progress.vram_bytes:
        lines.append(("memory", memory_line(progress, vram_bytes, ram_bytes)))
    spinner = SPINNER[int(now * 4) % len(SPINNER)]
    since = f"  {waiting(progress, now)}"
    lines.append(("now", Text.assemble((spinner + " ", "accent"), progress.doing(), (since, "quiet"))))
    parts: list[RenderableType] = [
        "",
        views.heading(progress.run or "lora-wizard", counts),
        Text.assemble(views.bar(progress.share, 60), (f"  {progress.share:4.0%}", "strong")),
        views.rows(lines, label_width=6),
    ]
    if footer:
        parts.append(Text(footer, style="quiet"))
    return views.indented(Group(*parts))


def waiting(progress: Progress, now: float) -> str:
    """How long the current phase has lasted; while training, only when a step takes far longer than the others."""
    if progress.phase is None:
        return ""
    if progress.phase != "training":
        return duration(now - progress.phase_since) if progress.phase_since else ""
    silent = now - progress.heard_at
    return (
        f"no news for {duration(silent)}" if silent > max(SILENCE_SECONDS, 5 * (progress.seconds_per_step or 0)) else ""
    )


def memory_line(progress: Progress, vram_bytes: int, ram_bytes: int) -> RenderableType:
    """VRAM, where there is any, and RAM: used by the run, of what the computer has."""
    from rich.text import Text

    parts = []
    for name, used, there in (("VRAM", progress.vram_bytes, vram_bytes), ("RAM", progress.ram_bytes, ram_bytes)):
        if used:
            parts.append(f"{views.memory(used)} {name}" + (f" of {views.memory(there)}" if there else ""))
    return Text(" · ".join(parts))


def choose_view(progress: Progress, *, as_json: bool, footer: str, vram_bytes: int = 0, ram_bytes: int = 0) -> View:
    """The live view in a terminal that can draw one, the raw events when asked for, plain lines otherwise."""
    if as_json:
        return JsonView()
    if sys.stdout.isatty() and not views.plain_terminal():
        return LiveView(progress, footer, vram_bytes, ram_bytes)
    return PlainView(progress)
