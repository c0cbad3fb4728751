"""The handbook: everything the knowledge base says, as one HTML file or as Markdown, generated from the data."""

from __future__ import annotations

import base64
import html as markup
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from knowledge.expressions import in_words
from knowledge.facts import facts
from knowledge.lessons import PICTURES, Lesson, lessons, record
from knowledge.library import guides, sources
from knowledge.parameters import Choice, Entry, Parameter, Term, advice_words, parameters, terms
from knowledge.rules import Finding, check, example, rules
from wizard import views
from wizard.costs import EXAMPLE_WORDS, costs, headings
from wizard.explain import DIALECTS, EVIDENCE, SECTIONS, allowed, measured, section_of

TITLE = "The LoRA handbook"
LAB = "The pocket lab"
LAB_INTRODUCTION = (
    "Experiments on the built-in model: one setting, a few values, the pictures side by side. Losses are measured on "
    "pictures that were not trained on; lower is nearer."
)
INTRODUCTION = (
    "Every setting of lora-wizard: what it does, what to choose and why, what it costs, and where you may have been "
    "told otherwise."
)


# --- one description of an entry, for both formats --------------------------------------------------------------------


def labelled(entry: Parameter | Choice | Term) -> Iterator[tuple[str, str]]:
    """The short facts of an entry, each with its label."""
    if isinstance(entry, Parameter):
        yield "Too low", entry.too_low
        yield "Too high", entry.too_high
        yield "Default", in_words(entry.default) if entry.default not in ("", (), {}) else ""
        yield "Allowed", allowed(entry)
    if isinstance(entry, Choice):
        yield "Choose it", entry.choose
        yield "Avoid it", entry.avoid
        yield "Works in", entry.works_in
    if isinstance(entry, Term):
        yield "Here", entry.here


def warnings(entry: Parameter) -> list[Finding]:
    """What the rules say about this parameter, each in the example that the rule carries."""
    return [finding for finding in _examples() if entry.name in finding.parameters]


@cache
def _examples() -> tuple[Finding, ...]:
    found: list[Finding] = []
    for rule in rules():
        config, others = example(rule.fires)
        found += [finding for finding in check(facts(config) | others) if finding.rule == rule.id]
    return tuple(found)


def other_names(entry: Entry) -> str:
    return "; ".join(f"{DIALECTS[dialect]}: {', '.join(words)}" for dialect, words in entry.names.items())


def basis(entry: Entry) -> str:
    return EVIDENCE[entry.evidence].capitalize()


def in_section(section: str) -> list[Parameter]:
    return [parameter for parameter in parameters().values() if section_of(parameter) == section]


def vocabulary(kind: str) -> list[Term]:
    return sorted((term for term in terms().values() if term.kind == kind), key=lambda term: term.title.lower())


# --- HTML -------------------------------------------------------------------------------------------------------------


def html() -> str:
    """The handbook as one HTML file that needs nothing else: no network, no fonts, no scripts from elsewhere."""
    template = (Path(__file__).parent / "handbook.html").read_text(encoding="utf-8")
    body = "\n".join(_parts())
    contents = "\n".join(f'<li><a href="#{anchor}">{markup.escape(title)}</a></li>' for anchor, title in _contents())
    for mark, text in (("TITLE", TITLE), ("INTRODUCTION", INTRODUCTION), ("CONTENTS", contents), ("BODY", body)):
        template = template.replace(f"<!-- {mark} -->", text)
    return template


def _contents() -> Iterator[tuple[str, str]]:
    if guides():
        yield "guides", "Guides"
    yield "lab", LAB
    yield from SECTIONS.items()
    yield "words", "Words"
    if vocabulary("elsewhere"):
        yield "elsewhere", "In other trainers"
    yield "sources", "Sources"


def _parts() -> Iterator[str]:
    if guides():
        yield _part("guides", "Guides", (_guide(guide.name, guide.text) for guide in guides().values()))
    introduction = f"<p>{markup.escape(LAB_INTRODUCTION)}</p>"
    yield _part("lab", LAB, (introduction, *(_lesson(lesson) for lesson in lessons().values())))
    for section, title in SECTIONS.items():
        yield _part(section, title, (_article(parameter) for parameter in in_section(section)))
    yield _part("words", "Words", (_article(term) for term in vocabulary("term")))
    if vocabulary("elsewhere"):
        yield _part("elsewhere", "In other trainers", (_article(term) for term in vocabulary("elsewhere")))
    cited = "".join(f"<li id='source-{s.id}'>{_link(s.title, s.address)}</li>" for s in sources().values())
    yield f'<section id="sources"><h2>Sources</h2><ul class="sources">{cited}</ul></section>'


def _part(anchor: str, title: str, articles: Iterable[str]) -> str:
    return f'<section id="{anchor}"><h2>{markup.escape(title)}</h2>{"".join(articles)}</section>'


def _guide(name: str, text: str) -> str:
    return f'<article id="{name}" class="guide">{_markdown(text, lower_headings_by=2)}</article>'


def _lesson(lesson: Lesson) -> str:
    """An experiment with its picture, which stands in the file itself."""
    parts = [f"<h3>{markup.escape(lesson.title)}</h3>", f'<p class="meaning">{_inline(lesson.question)}</p>']
    found, picture = record(lesson.name), PICTURES / f"{lesson.name}.png"
    if found:
        parts.append(f"<p>{_inline(lesson.said(found.mean()))}</p>")
    if picture.exists():
        data = base64.b64encode(picture.read_bytes()).decode("ascii")
        alternative = markup.escape(f"Samples of every training side by side. {lesson.look}", quote=True)
        parts.append(f'<img src="data:image/png;base64,{data}" alt="{alternative}">')
    parts.append(f"<p>{_inline(lesson.look)}</p>")
    about = ", ".join(_reference(name) for name in lesson.parameters)
    parts.append(f'<p class="quiet">{_basis_of(lesson)} About: {about}. Try it: lora-wizard lab {lesson.name}</p>')
    return f'<article id="lab-{lesson.name}" class="lesson">{"".join(parts)}</article>'


def _basis_of(lesson: Lesson) -> str:
    found = record(lesson.name)
    if found is None:
        return ""
    seeds = f"mean of {len(found.seeds)} seeds" if len(found.seeds) > 1 else "one seed"
    return f"Measured on the pocket model, {seeds}; the picture shows the first."


def _article(entry: Parameter | Choice | Term) -> str:
    level = entry.level if isinstance(entry, Parameter) else ""
    badge = f'<span class="level {level}">{level}</span>' if level else ""
    name = f"<code>{entry.name}</code>" if isinstance(entry, Parameter) else ""
    parts = [f"<header><h3>{markup.escape(entry.title)}</h3>{name}{badge}</header>"]
    parts.append(f'<p class="meaning">{_inline(entry.meaning)}</p>')
    if entry.explanation:
        parts.append(_markdown(entry.explanation))
    parts.append(_definitions(labelled(entry)))
    if isinstance(entry, Parameter):
        parts += _of_parameter(entry)
    if entry.interactions:
        together = ((_reference(other), _inline(text)) for other, text in entry.interactions.items())
        parts.append(f"<h4>Together with</h4>{_definitions(together, escaped=True)}")
    for myth in entry.myths:
        parts.append(
            f'<div class="myth"><p><b>You may read</b> “{_inline(myth.claim)}”</p><p>{_inline(myth.truth)}</p></div>'
        )
    names = other_names(entry)
    if names:
        parts.append(f'<p class="quiet">Other names. {markup.escape(names)}</p>')
    cited = ", ".join(_link(sources()[s].title, sources()[s].address) for s in entry.sources)
    parts.append(f'<p class="quiet">{basis(entry)}{": " if cited else "."}{cited}</p>')
    inside = "".join(parts)
    return f'<article id="{entry.name}" data-names="{markup.escape(names.lower(), quote=True)}">{inside}</article>'


def _of_parameter(entry: Parameter) -> Iterator[str]:
    if entry.recommendations:
        advised = [advice_words(entry, row) for row in entry.recommendations]
        lines = [(case or "everyone", f"<b>{markup.escape(value)}</b>", why) for case, value, why in advised]
        rows = [(markup.escape(case), value, _inline(why)) for case, value, why in lines]
        yield f"<h4>Recommended</h4>{_table(('For', 'Value', 'Because'), rows)}"
    priced = costs(entry)
    if priced:
        columns = headings(priced)
        figures = [[markup.escape(cost.value), *(cost.words()[column] for column in columns)] for cost in priced]
        table = _table((entry.title, *columns), figures, "numbers")
        yield f"<h4>What it costs <small>{EXAMPLE_WORDS}</small></h4>{table}"
    for lesson, said in measured(entry):
        yield f'<p class="measured"><b>Measured.</b> {_inline(said)} <a href="#lab-{lesson.name}">See it</a></p>'
    own = [choice for choice in entry.choices.values() if choice.parameter == entry.name]
    if own:
        yield "<h4>Choices</h4>" + "".join(map(_choice, own))
    elif entry.choices:
        yield f"<p>The choices are those of {_reference(next(iter(entry.choices.values())).parameter)}.</p>"
    told = warnings(entry)
    if told:
        said = "".join(f'<li class="{f.severity}">{_inline(f.message)}</li>' for f in told)
        count = "1 warning" if len(told) == 1 else f"{len(told)} warnings"
        summary = f"<summary>{count} you may meet, with example numbers</summary>"
        yield f'<details>{summary}<ul class="found">{said}</ul></details>'


def _choice(choice: Choice) -> str:
    home = parameters()[choice.parameter].name
    names = other_names(choice)
    parts = [f"<h5>{markup.escape(choice.title)} <code>{choice.value}</code></h5><p>{_inline(choice.meaning)}</p>"]
    if choice.explanation:
        parts.append(_markdown(choice.explanation))
    parts.append(_definitions(labelled(choice)))
    for myth in choice.myths:
        parts.append(
            f'<div class="myth"><p><b>You may read</b> “{_inline(myth.claim)}”</p><p>{_inline(myth.truth)}</p></div>'
        )
    if names:
        parts.append(f'<p class="quiet">{markup.escape(names)}</p>')
    return f'<div class="choice" id="{home}.{choice.value}">{"".join(parts)}</div>'


def _definitions(pairs: Iterable[tuple[str, str]], *, escaped: bool = False) -> str:
    told = [(label, text) for label, text in pairs if text]
    if not told:
        return ""
    lines = (
        f"<dt>{label}</dt><dd>{text}</dd>" if escaped else f"<dt>{markup.escape(label)}</dt><dd>{_inline(text)}</dd>"
        for label, text in told
    )
    return f"<dl>{''.join(lines)}</dl>"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    head = "".join(f"<th>{markup.escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _reference(name: str) -> str:
    title = parameters()[name].title if name in parameters() else name
    return f'<a href="#{name}">{markup.escape(title)}</a>'


def _link(title: str, address: str) -> str:
    return (
        f'<a href="{markup.escape(address, quote=True)}">{markup.escape(title)}</a>'
        if address
        else markup.escape(title)
    )


@cache
def _renderer() -> Any:
    from markdown_it import MarkdownIt  # rich draws Markdown with it, so it is always there

    return MarkdownIt("commonmark", {"html": False}).enable("table")


def _inline(text: str) -> str:
    return str(_renderer().renderInline(" ".join(text.split())))


def _markdown(text: str, lower_headings_by: int = 0) -> str:
    rendered = str(_renderer().render(text))
    for level in (3, 2, 1) if lower_headings_by else ():
        for tag in ("<h{}>", "</h{}>"):
            rendered = rendered.replace(tag.format(level), tag.format(level + lower_headings_by))
    return rendered


# --- Markdown ---------------------------------------------------------------------------------------------------------


def markdown() -> str:
    """The handbook as Markdown."""
    return "\n\n".join(_paragraphs()) + "\n"


def _paragraphs() -> Iterator[str]:
    yield f"# {TITLE}"
    yield INTRODUCTION
    for guide in guides().values():
        yield "\n".join(f"#{line}" if line.startswith("#") else line for line in guide.text.strip().splitlines())
    yield f"## {LAB}"
    yield LAB_INTRODUCTION
    for lesson in lessons().values():
        found = record(lesson.name)
        yield f"### {lesson.title} `lora-wizard lab {lesson.name}`"
        yield f"**{lesson.question}**"
        if found:
            yield f"{lesson.said(found.mean())} ({_basis_of(lesson)})"
    for section, title in SECTIONS.items():
        yield f"## {title}"
        for parameter in in_section(section):
            yield from _entry_paragraphs(parameter)
    for kind, title in (("term", "Words"), ("elsewhere", "In other trainers")):
        yield f"## {title}"
        for term in vocabulary(kind):
            yield from _entry_paragraphs(term)
    yield "## Sources"
    yield "\n".join(f"- [{s.title}]({s.address})" if s.address else f"- {s.title}" for s in sources().values())


def _entry_paragraphs(entry: Parameter | Choice | Term, depth: int = 3) -> Iterator[str]:
    name = (
        f" `{entry.name}`" if isinstance(entry, Parameter) else f" `{entry.value}`" if isinstance(entry, Choice) else ""
    )
    yield f"{'#' * depth} {entry.title}{name}"
    yield f"**{entry.meaning}**"
    if entry.explanation:
        yield " ".join(entry.explanation.split())
    told = [f"- {label}: {' '.join(text.split())}" for label, text in labelled(entry) if text]
    if told:
        yield "\n".join(told)
    if isinstance(entry, Parameter):
        if entry.recommendations:
            rows = [advice_words(entry, row) for row in entry.recommendations]
            yield _markdown_table(("For", "Value", "Because"), [(case or "everyone", v, why) for case, v, why in rows])
        priced = costs(entry)
        if priced:
            columns = headings(priced)
            yield f"What it costs ({EXAMPLE_WORDS}):"
            lines = [(cost.value, *(cost.words()[column] for column in columns)) for cost in priced]
            yield _markdown_table((entry.title, *columns), lines)
        for choice in (choice for choice in entry.choices.values() if choice.parameter == entry.name):
            yield from _entry_paragraphs(choice, depth + 1)
        told = [f"- {views.SEVERITY_WORDS[f.severity]}: {f.message}" for f in warnings(entry)]
        if told:
            yield "Warnings you may meet, with example numbers:\n\n" + "\n".join(told)
    if entry.interactions:
        yield "\n".join(f"- with `{other}`: {text}" for other, text in entry.interactions.items())
    for myth in entry.myths:
        yield f"> You may read: “{myth.claim}” In truth: {' '.join(myth.truth.split())}"
    names = other_names(entry)
    if names:
        yield f"Other names. {names}"
    yield (
        f"*{basis(entry)}: {'; '.join(sources()[s].title for s in entry.sources)}*"
        if entry.sources
        else f"*{basis(entry)}*"
    )


def _markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(" ".join(str(cell).split()) for cell in line) + " |" for line in lines)
