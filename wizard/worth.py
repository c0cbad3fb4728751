"""What a plan's figures are worth, as `calc` and the review show it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from knowledge.assessment import Assessment

if TYPE_CHECKING:
    from rich.console import RenderableType

MARKS = {"right": ("✓", "good"), "too low": ("▽", "warning"), "too high": ("△", "warning")}
VERDICTS = {("memory", "too low"): "room to spare", ("memory", "too high"): "too little"}
NAMES = {"steps": "Steps", "views": "Views per picture", "time": "Time", "memory": "Memory"}


def worth(judged: Sequence[Assessment]) -> RenderableType:
    """What the figures are worth: each with its reason, and with what to change where it is not right."""
    from rich.text import Text

    from wizard import views

    def words(one: Assessment) -> Text:
        mark, style = MARKS[one.verdict]
        verdict = VERDICTS.get((one.measure, one.verdict), one.verdict)
        return Text.assemble(
            (f"{mark} {verdict}", style), (f": {one.why}.", "quiet"), f" {one.change}" if one.change else ""
        )

    return views.rows([(NAMES[one.measure], words(one)) for one in judged])
