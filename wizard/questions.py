"""From a Parameter to the page that asks for it: explanation, recommendation, choices; the field itself judges."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, get_args

from pydantic import ValidationError

from knowledge.answers import PlainError, plain_problems
from knowledge.config import DatasetFolder, TrainingConfig, choices, fields, sections, value_of
from knowledge.optimizer_arguments import from_line, to_line
from knowledge.parameters import Choice, Parameter, Recommendation, parameters
from wizard import estimate, pictures, views
from wizard.prompts import Option, Page
from wizard.situation import Workbench

if TYPE_CHECKING:
    from rich.console import RenderableType

TABLE = "optimizer.arguments"
"""The one setting that is a table of names and values, typed as one line of name=value."""
OTHER = object()
"""The answer that asks for a line to type another value into."""

PATTERNS = {
    "output.name": "use letters, digits, dots, dashes and underscores, beginning with a letter or a digit",
    "dataset.caption_extension": "it must be a dot and letters or digits, as in .txt",
}
"""What the schema's patterns mean, for the two names that have one."""


# --- what somebody typed ----------------------------------------------------------------------------------------------


def parse(name: str, text: str) -> Any:
    """The value that typed text means for this parameter. Raises PlainError in words when it is not allowed."""
    field = fields()[name]
    kinds = set(get_args(field.annotation)) or {field.annotation}
    text = text.strip()
    if name == TABLE:
        return allowed(name, _arguments(text))
    if type(None) in kinds and text.lower() in {"", "none", "not set", "off"}:
        return None
    if bool in kinds:
        return allowed(name, _yes_or_no(name, text))
    if int in kinds or float in kinds:
        return allowed(name, _number(name, text, whole=int in kinds))
    return allowed(name, text)


def allowed(name: str, value: Any) -> Any:
    """The value if its field accepts it. Raises PlainError that says what the field would accept."""
    section, _, key = name.rpartition(".")
    try:
        if section == "dataset.folders":
            DatasetFolder.model_validate({"path": ".", key: value})
        elif section in sections():
            sections()[section].model_validate({key: value})
        else:
            TrainingConfig.model_validate({name: value})
    except ValidationError as error:
        if name in PATTERNS and value:
            raise PlainError(f'"{value}" cannot be used: {PATTERNS[name]}.', 2) from None
        title = parameters()[name].title
        problems = [title + problem.removeprefix(key) for problem in plain_problems(error)]
        raise PlainError("\n".join(problems), 2) from None
    return value


def _yes_or_no(name: str, text: str) -> bool:
    words = {"yes": True, "y": True, "true": True, "on": True, "no": False, "n": False, "false": False, "off": False}
    if text.lower() not in words:
        raise PlainError(f'"{text}" is neither yes nor no.', 2)
    return words[text.lower()]


def _number(name: str, text: str, *, whole: bool) -> int | float:
    title = parameters()[name].title
    compact = text.replace(" ", "").replace("_", "")
    try:
        if whole:
            return int(compact.replace(",", ""))
        return float(compact if "." in compact or "e" in compact.lower() else compact.replace(",", "."))
    except ValueError:
        kind = "a whole number" if whole else "a number, as in 0.5 or 1e-4"
        raise PlainError(f'{title} must be {kind}; "{text}" is not.', 2) from None


def _arguments(text: str) -> dict[str, Any]:
    try:
        return from_line("" if text.lower() == "none" else text)
    except ValueError as problem:
        raise PlainError(str(problem), 2) from None


# --- the page ---------------------------------------------------------------------------------------------------------


def page(
    bench: Workbench,
    chosen: Mapping[str, Any],
    name: str,
    *,
    ask: str = "",
    offers: bool = False,
    typed: bool = False,
    error: str = "",
    **around: Any,
) -> Page:
    """The page that asks for one parameter; `around` are the Page's place, progress, back and more.

    `offers` shows a few values to choose from instead of a line to type in; `typed` insists on the line.
    """
    entry = parameters()[name]
    situation = bench.situation(chosen)
    advice = bench.advice(chosen, name)
    current = value_of(situation.config, name)
    options: tuple[Option, ...] = ()
    if not typed:
        options = _choices(entry, advice) or (_offers(entry, advice, current) if offers else ())
    return Page(
        title=ask or entry.title,
        body=explanation(entry, advice, named=bool(ask)),
        options=options,
        default=current if options else _as_typed(current),
        help=lambda value: long_explanation(entry, advice, value),
        check=lambda text: parse(name, text),
        preview=preview(bench, chosen, name),
        error=error,
        **around,
    )


def plain_page(entry: Parameter, current: Any, around: Mapping[str, Any]) -> Page:
    """The page that asks for a value on which no estimate hangs: a column of a picture folder."""
    options = _choices(entry, None)
    return Page(
        title=entry.title,
        body=explanation(entry, None),
        options=options,
        default=current if options else _as_typed(current),
        help=lambda value: long_explanation(entry, None, value),
        check=lambda text: parse(entry.name, text),
        **around,
    )


def explanation(entry: Parameter, advice: Recommendation | None, *, named: bool = False) -> tuple[RenderableType, ...]:
    """The short explanation: what it is, what too little and too much do, and what is recommended and why.

    `named` puts the setting's name before it, for pages that ask in words of their own.
    """
    from rich.text import Text

    lines: list[tuple[str, RenderableType]] = []
    if advice is not None:
        lines.append(("Recommended", Text.assemble((display(entry, advice.value), "accent"), f" – {advice.because}")))
    for label, text in (("Too low", entry.too_low), ("Too high", entry.too_high)):
        if text:
            lines.append((label, views.prose(text)))
    meaning: RenderableType = views.prose(entry.meaning)
    if named:
        meaning = Text.assemble((entry.title, "accent"), " – ", views.prose(entry.meaning))
    return (meaning, views.rows(lines, 11)) if lines else (meaning,)


def long_explanation(entry: Parameter, advice: Recommendation | None, value: Any = None) -> RenderableType:
    """All that the knowledge base says of a parameter, and first of the choice that is under the cursor."""
    from rich.text import Text

    from wizard import explain

    parts: list[RenderableType] = []
    if isinstance(value, str) and value in entry.choices:
        parts += [explain.page(entry.choices[value]), ""]
    parts.append(explain.page(entry))
    if advice is not None:
        reason = Text.assemble((display(entry, advice.value), "accent"), f" – {advice.because}")
        parts.append(views.rows([("For you", reason)], 12))
    return views.page(*parts)


def display(entry: Parameter, value: Any) -> str:
    """A value as the pages show it: a choice by its title, a number with its unit."""
    if isinstance(value, str) and value in entry.choices:
        return entry.choices[value].title
    text = views.value(value)
    if not entry.unit or isinstance(value, bool) or not isinstance(value, int | float):
        return text
    unit = entry.unit.removesuffix("s") if value == 1 and " " not in entry.unit else entry.unit
    return f"{text} {unit}"


def change(entry: Parameter, before: Any, after: Any) -> tuple[str, str]:
    """A value and what becomes of it, as "10 epochs → 4" would say twice: the unit stands once, or in the title."""
    told = display(entry, before), display(entry, after)
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (before, after))
    if not numbers:
        return told
    if entry.unit and entry.unit in entry.title.lower():
        return views.value(before), views.value(after)
    return views.value(before), told[1]


def change_words(entry: Parameter, before: Any, after: Any) -> str:
    """A change of a setting in words: "Epochs 10 → 4", "Resolution 1024 → 768 pixels"."""
    was, new = change(entry, before, after)
    return f"{entry.title} {was} → {new}"


def _choices(entry: Parameter, advice: Recommendation | None) -> tuple[Option, ...]:
    """The fixed list of a parameter that has one, and yes and no."""
    mark = advice.value if advice is not None else None

    def hint(value: Any) -> str:
        return "recommended" if mark is not None and value == mark else ""

    if choices(entry.field):
        return tuple(
            Option(value, choice.title, hint(value), _when_to_choose(choice)) for value, choice in entry.choices.items()
        )
    if entry.field.annotation is bool:
        return tuple(Option(value, views.value(value), hint(value)) for value in (True, False))
    return ()


def _when_to_choose(choice: Choice) -> str:
    """What a choice is, and on a line of its own when it is the right one."""
    return f"{choice.meaning}\nChoose it: {choice.choose}" if choice.choose else choice.meaning


def _offers(entry: Parameter, advice: Recommendation | None, current: Any) -> tuple[Option, ...]:
    """A few values around the recommended one, and the way to any other."""
    mark = advice.value if advice is not None else None
    values = {value for value in (*entry.compare, mark, current) if value is not None}
    if len(values) < 3:
        centre = mark or current or 1
        whole = isinstance(centre, int)
        around = [centre * factor for factor in (0.25, 0.5, 1, 2, 4)]
        values |= {round(value) if whole else value for value in around}
    possible = sorted(value for value in values if _accepted(entry.name, value))
    offered = [Option(v, display(entry, v), "recommended" if v == mark else "") for v in possible]
    if type(None) in get_args(entry.field.annotation):
        hint = "recommended" if advice is not None and mark is None else ""
        offered.append(Option(None, "only at the end" if "every" in entry.name else "not set", hint))
    return (*offered, Option(OTHER, "another value …"))


def _accepted(name: str, value: Any) -> bool:
    try:
        allowed(name, value)
    except PlainError:
        return False
    return True


def _as_typed(value: Any) -> str:
    if isinstance(value, Mapping):
        return to_line(value)
    return "" if value is None else value if isinstance(value, str) else views.value(value)


def preview(bench: Workbench, chosen: Mapping[str, Any], name: str) -> Callable[[Any], RenderableType | None]:
    """What tells how a value would change the estimate; silent while the pictures are unknown."""
    now = bench.situation(chosen)
    if name == "dataset.trigger_word":
        return lambda value: pictures.first_caption(now.dataset, now.config.dataset, value)

    def tell(value: Any) -> RenderableType | None:
        if now.plan is None:
            return None
        if value is None or value is OTHER or value == value_of(now.config, name):
            return estimate.line(now.plan, now.hardware)
        try:
            then = bench.situation({**chosen, name: value})
        except ValidationError:
            return estimate.line(now.plan, now.hardware)
        return estimate.line(now.plan, now.hardware, then.plan)

    return tell


def conflict(error: ValidationError) -> str:
    """Why values that are each allowed do not go together, in words."""
    return "\n".join(plain_problems(error))
