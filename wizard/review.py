"""The review: what the answers lead to, what is risky about them, and what can be done about it on the spot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from knowledge.assessment import assess
from knowledge.config import POCKET_MODEL, NetworkSettings, TrainingConfig, value_of
from knowledge.parameters import parameters
from knowledge.rules import Finding
from knowledge.starting_network import rank_in_words
from wizard import estimate, pictures, questions, settings, solvers, views, words
from wizard.prompts import Move, Option, Page, show
from wizard.situation import Situation
from wizard.worth import worth

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from calculator.duration import DurationEstimate
    from wizard.session import Session

SHOWN = 3
"""Findings that the review tells in full; the rest are a key away."""


def review(session: Session, around: dict[str, Any]) -> str | Move:
    """Shows the review until somebody decides: "train", "save", or back to the questions."""
    at: Any = None
    while True:
        situation = session.situation()
        options = _options(situation)
        answer: Any = session.ask(
            Page(
                title="This is what will happen",
                body=(summary(situation),),
                tail=tuple(told(situation.findings)),
                options=options,
                default=at,
                help=partial(_whole_plan, situation),
                **around,
            )
        )
        at = None
        if isinstance(answer, Move):
            return answer
        if answer in ("train", "save"):
            return str(answer)
        if answer == "plan":
            show(whole_plan(situation))
            at = "plan"
        elif answer == "settings":
            settings.browse(session, around)
            at = "settings"
        elif answer == "goals":
            solvers.solve(session, around)
            at = "goals"
        elif answer == "remarks":
            remarks(session, around)
        elif answer == "fix all":
            fix_all(session)
        else:
            take_fix(session, next(finding for finding in situation.findings if finding.fix))


def fix_all(session: Session, most: int = 20) -> None:
    """Accepts every offered fix, gravest first, looking again after each, since one may settle another."""
    before = session.situation().config
    done: set[str] = set()
    for _ in range(most):
        open_findings = [f for f in session.situation().findings if f.fix and f.rule not in done]
        if not open_findings:
            break
        done.add(open_findings[0].rule)
        session.answer(open_findings[0].fix)
    session.tell_changes(before)


def fix_words(config: TrainingConfig, fix: Mapping[str, Any]) -> str:
    """A fix as "Epochs 40 → 10, Rank 64 → 16"."""
    known = parameters()
    return ", ".join(questions.change_words(known[name], value_of(config, name), value) for name, value in fix.items())


def _options(situation: Situation) -> tuple[Option, ...]:
    findings = situation.findings
    refusal = situation.problem or ("Settle what is marked ✗ first." if situation.blocked else "")
    start = Option("train", "Save and start training", refusal=refusal)
    settle: list[Option] = []
    fixable = [finding for finding in findings if finding.fix]
    if fixable:
        settle.append(Option("fix", _shortened(f"Fix: {fix_words(situation.config, fixable[0].fix)}")))
    if len(fixable) > 1:
        settle.append(Option("fix all", f"Fix all {len(fixable)}"))
    if findings:
        settle.append(
            Option("remarks", f"Go through {'all ' if len(findings) > 1 else ''}{words.count(len(findings), 'remark')}")
        )
    rest = [
        *([Option("goals", "Make it fit a card, a time or a number of steps")] if situation.plan else []),
        Option("settings", "Change a setting"),
        Option("plan", "See the whole plan"),
        Option("save", "Save the answers, train later"),
    ]
    return (*settle, start, *rest) if situation.blocked else (start, *settle, *rest)


def remarks(session: Session, around: dict[str, Any]) -> None:
    """Goes through the findings one by one: each can be fixed, or its setting changed."""
    at: Any = 0
    while session.situation().findings:
        situation = session.situation()
        options = [
            Option(index, _remark(situation, finding), note=finding.message)
            for index, finding in enumerate(situation.findings)
        ]
        at = session.ask(
            Page(
                title="What stands out, gravest first",
                options=tuple(options),
                default=min(at, len(options) - 1),
                preview=lambda value: session.estimate(),
                **{**around, "back": "back to the review"},
            )
        )
        if isinstance(at, Move):
            return
        finding = situation.findings[at]
        if finding.fix:
            take_fix(session, finding)
        elif finding.parameters:
            settings.change(session, finding.parameters[0], around)


def _remark(situation: Situation, finding: Finding) -> str:
    """A finding in one line: its mark, and what choosing it does."""
    mark = views.SEVERITY_MARKS[finding.severity]
    if finding.fix:
        return _shortened(f"{mark} Fix: {fix_words(situation.config, finding.fix)}")
    if finding.parameters:
        return f"{mark} Change: {parameters()[finding.parameters[0]].title}"
    return f"{mark} {finding.rule.replace('-', ' ').capitalize()}"


def take_fix(session: Session, finding: Finding) -> None:
    before = session.situation().config
    session.answer(finding.fix)
    session.tell_changes(before)


def _shortened(text: str, longest: int = 70) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


def told(findings: Sequence[Finding], limit: int | None = SHOWN) -> Iterator[RenderableType]:
    """The gravest findings in full, and how many more there are."""
    for finding in findings[:limit]:
        yield views.finding(finding.severity, finding.message)
    if limit is not None and len(findings) > limit:
        more = words.count(len(findings) - limit, "more remark")
        yield f"[quiet]{more} in the whole plan.[/]"


def rank_and_alpha(network: NetworkSettings) -> str:
    """As one says it: "rank 16 and alpha 8", or "the ranks of first.safetensors", whose alphas come along."""
    words = rank_in_words(network)
    return words if network.ranks_in_start else f"{words} and alpha {network.alpha:g}"


def summary(situation: Situation) -> RenderableType:
    """The answers and what they cost, as labelled lines."""
    return views.rows(list(_summary(situation)), 9)


def _summary(situation: Situation) -> Iterator[tuple[str, RenderableType]]:
    from rich.text import Text

    config, plan = situation.config, situation.plan
    known = parameters()

    def chosen(name: str) -> str:
        return questions.display(known[name], value_of(config, name))

    taught = Text.assemble((chosen("dataset.goal"), "strong"))
    if config.dataset.trigger_word:
        taught.append(f", “{config.dataset.trigger_word}”")
    if situation.dataset is not None:
        taught.append(f", from {words.count(situation.dataset.images, 'picture')}")
    yield "Teaches", taught
    own = config.base_model.path != POCKET_MODEL
    place = f"  {pictures.short(config.base_model.path, 36)}" if own else ""
    yield (
        "Builds on",
        Text.assemble(chosen("base_model.family"), (place, "quiet"), f", at {config.dataset.resolution} pixels"),
    )
    rate = views.value(config.optimizer.learning_rate)
    network = (
        f"{chosen('network.algorithm')} of {rank_and_alpha(config.network)}, "
        f"learned by {chosen('optimizer.name')} at {rate}"
    )
    yield "Network", Text(network)
    if plan is None:
        return
    yield (
        "Length",
        Text.assemble(
            (words.count(plan.total_steps, "step"), "strong"),
            f" in {words.count(plan.epochs, 'epoch')}; each picture is seen {plan.times_seen}",
        ),
    )
    yield "Time", time_words(situation)
    yield "Memory", memory_words(situation)
    result = Text.assemble((f"{config.output.name}.safetensors", "strong"), f", {words.size(plan.file_bytes)}")
    if config.sampling.prompts:
        result.append(f"; {words.count(len(config.sampling.prompts), 'sample')} {_how_often(config)}")
    yield "Result", result


def _how_often(config: TrainingConfig) -> str:
    every = config.sampling.every_epochs
    if config.sampling.every_steps:
        return f"every {words.count(config.sampling.every_steps, 'step')}"
    if every is None:
        return "at the end"
    return "after each epoch" if every == 1 else f"every {every} epochs"


def time_words(situation: Situation) -> Text:
    assert situation.plan is not None
    hardware = situation.hardware
    return about(situation.plan.duration, hardware.name if hardware.vram_bytes else "the processor")


def about(time: DurationEstimate, where: str) -> Text:
    """The likely time, and the span it lies in where that says more."""
    from rich.text import Text

    low, likely, high = (estimate.roughly(s) for s in (time.low_seconds, time.likely_seconds, time.high_seconds))
    span = "" if low == high else f", between {low} and {high}"
    return Text.assemble("about ", (likely, "strong"), (f" on {where}{span}", "quiet"))


def memory_words(situation: Situation) -> Text:
    from rich.text import Text

    assert situation.plan is not None
    need, hardware = situation.plan.vram, situation.hardware
    room = hardware.vram_bytes or hardware.ram_bytes
    text = Text.assemble((views.memory(need.likely_bytes), "strong"))
    if room:
        kind = "VRAM" if hardware.vram_bytes else "main memory"
        text.append(f" of {views.memory(room)} {kind}  ").append(views.bar(need.likely_bytes / room, 16))
    return text


def _whole_plan(situation: Situation, _: Any) -> RenderableType:
    return whole_plan(situation)


def whole_plan(situation: Situation) -> RenderableType:
    """Everything that is known about the run before it starts."""
    from rich.text import Text

    parts: list[RenderableType] = [views.heading("The whole plan"), summary(situation)]
    plan = situation.plan
    if plan is not None:
        shapes = views.table(
            ("Shape", "Views", "Batches"),
            [(f"{b.width} × {b.height}", f"{b.images:,}", f"{b.batches:,}") for b in plan.buckets],
            right=("Views", "Batches"),
        )
        parts += [views.heading("One epoch", f"{words.count(plan.updates_per_epoch, 'step')}"), shapes]
        largest = max(plan.vram.parts.values(), default=1) or 1
        memory = views.table(
            ("Part", "Memory", ""),
            [
                (name.replace("_", " "), views.memory(size), views.bar(size / largest, 24))
                for name, size in plan.vram.parts.items()
                if size
            ],
            right=("Memory",),
        )
        span = (
            f"{views.memory(plan.vram.low_bytes)} to {views.memory(plan.vram.high_bytes)}, most while {plan.vram.phase}"
        )
        parts += [views.heading("Memory", span), memory, Text(plan.vram.basis, "quiet")]
        if plan.cached_in_memory_bytes and situation.hardware.vram_bytes:
            kept = f"{views.memory(plan.cached_in_memory_bytes)} of main memory hold encoded pictures and captions."
            parts.append(Text(kept, "quiet"))
        parts += [views.heading("Time"), time_words(situation), Text(plan.duration.basis, "quiet")]
        files = f"{words.count(plan.saved_files, 'file')} of {words.size(plan.file_bytes)}"
        parts += [views.heading("Disk"), Text(f"{files}, {words.size(plan.disk_bytes)} in all")]
        parts += [views.heading("What these figures are worth"), worth(assess(situation.facts))]
    if situation.findings:
        parts.append(views.heading("Remarks", words.count(len(situation.findings), "finding")))
        for finding in situation.findings:
            remedy = fix_words(situation.config, finding.fix) if finding.fix else ""
            parts.append(views.finding(finding.severity, finding.message, remedy))
    return views.page(*parts)


def answers_path(config: TrainingConfig, folder: Path) -> Path:
    """A file name for the answers that does not exist yet: my-lora.toml, my-lora-2.toml and so on."""
    path = folder / f"{config.output.name}.toml"
    number = 2
    while path.exists():
        path = folder / f"{config.output.name}-{number}.toml"
        number += 1
    return path
