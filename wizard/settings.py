"""Every setting of the schema, by section and level: essentials first, advanced and expert when asked for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from knowledge.answers import PlainError
from knowledge.config import fields, sections, value_of
from knowledge.names import find
from knowledge.parameters import LEVELS, Parameter, parameters, recommended
from wizard import questions, steps, views, words
from wizard.explain import SECTIONS
from wizard.prompts import Move, Option, Page

if TYPE_CHECKING:
    from rich.console import RenderableType

    from wizard.session import Session

GENERAL = "general"
"""The section, for the reader, of parameters that stand in none: the seed."""


FORMS = {"sampling.prompts": "prompts", "base_model.vae": "vae"}
"""How settings beside the path are asked where their type alone does not tell."""


def names_in(section: str) -> tuple[str, ...]:
    """The parameters of a section that can be set, in the order of the schema."""
    if section == GENERAL:
        return tuple(name for name in fields() if "." not in name)
    return tuple(name for name in fields() if name.startswith(f"{section}.") and name.count(".") == 1)


def every_name() -> tuple[str, ...]:
    """Every parameter that can be set, section by section."""
    return tuple(name for section in (GENERAL, *sections()) for name in names_in(section))


def title_of(section: str) -> str:
    return SECTIONS[section]


def browse(session: Session, around: dict[str, Any]) -> None:
    """Lets one go through all sections, or name a setting, until one goes back."""
    around = {**around, "place": "Settings"}
    at: Any = None
    while True:
        everything = [*sections(), GENERAL]
        options = [Option("find", "Find a setting by name …")]
        for section in everything:
            options.append(Option(section, title_of(section), words.count(len(names_in(section)), "setting")))
        at = session.ask(
            Page(
                title="Which part do you want to look at?",
                options=tuple(options),
                default=at,
                preview=lambda value: session.estimate(),
                **{**around, "back": "back to the review", "more": False},
            )
        )
        if isinstance(at, Move):
            return
        if at == "find":
            name = _find(session, around)
            if name:
                change(session, name, around)
        else:
            browse_section(session, at, around)


def browse_section(session: Session, section: str, around: dict[str, Any]) -> None:
    """Lists one section's settings with their values; more levels open when asked for."""
    shown = 1
    at: Any = None
    while True:
        entries = [parameters()[name] for name in names_in(section)]
        if not any(entry.level in LEVELS[:shown] for entry in entries) and shown < len(LEVELS):
            shown += 1
            continue
        options = _section_options(session, entries, shown)
        at = session.ask(
            Page(
                title=title_of(section),
                body=(),
                options=options,
                default=at,
                help=partial(_meanings, entries),
                preview=lambda value: session.estimate(),
                **{**around, "back": "back", "more": False},
            )
        )
        if isinstance(at, Move):
            return
        if at == "more":
            shown += 1
            opened = [entry.name for entry in entries if entry.level == LEVELS[shown - 1]]
            at = opened[0] if opened else None
        else:
            change(session, at, around)


def _meanings(entries: Sequence[Parameter], _: Any) -> RenderableType:
    return views.page(*(views.rows([(entry.title, entry.meaning)], 24) for entry in entries))


def _section_options(session: Session, entries: Sequence[Parameter], shown: int) -> tuple[Option, ...]:
    situation = session.situation()
    options = []
    for level in LEVELS[:shown]:
        for entry in (entry for entry in entries if entry.level == level):
            value = value_of(situation.config, entry.name)
            advice = recommended(entry.name, situation.facts)
            hint = questions.display(entry, value)[:36]
            if advice is not None and advice.value != value:
                hint += f"  (recommended: {questions.display(entry, advice.value)[:20]})"
            options.append(Option(entry.name, entry.title, hint, entry.meaning))
    for level in LEVELS[shown:]:
        hidden = sum(entry.level == level for entry in entries)
        if hidden:
            options.append(Option("more", f"Show me more: {words.count(hidden, f'{level} setting')}"))
            break
    return tuple(options)


def _find(session: Session, around: dict[str, Any]) -> str:
    def look_up(text: str) -> str:
        found = find(text)
        if isinstance(found, Parameter) and found.name in every_name():
            return found.name
        parameter = getattr(found, "parameter", "")
        if parameter:
            return str(parameter)
        raise PlainError(f"{found.title}: {found.meaning} It is not a setting of this program.", 2)

    answer = session.ask(
        Page(
            title="What is it called?",
            body=("Any name will do, also those of other trainers: [strong]network_dim[/], [strong]unet_lr[/] …",),
            default="",
            check=look_up,
            **{**around, "back": "back", "more": False},
        )
    )
    return "" if isinstance(answer, Move) else str(answer)


def change(session: Session, name: str, around: dict[str, Any]) -> bool:
    """Asks for one setting until its value goes together with the others; whether something was answered."""
    question = steps.questions().get(name)
    form = question.form if question else FORMS.get(name, "")
    before = session.situation().config
    if session.settle(name, {**around, "back": "back", "more": False}, session.answer, form=form) is not None:
        return False
    session.tell_changes(before)
    return True
