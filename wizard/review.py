"""The review: what the answers lead to, what is risky about them, and what can be done about it on the spot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from knowledge.config import POCKET_MODEL, TrainingConfig, value_of
from knowledge.parameters import parameters
from knowledge.rules import Finding
from wizard import pictures, questions, settings, views, words
from wizard.prompts import Move, Option, Page, show
from wizard.situation import Situation

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from wizard.session import Session

SHOWN = 3
"""Findings that the review tells in full; the rest are a key away."""


def review(session: Session, around: dict[str, Any]) -> str | Move:
    """Shows the review until somebody decides: "train", "save", or back to the questions."""
    at: Any = "train"
    while True:
        situation = session.situation()
        answer: Any = session.ask(
            Page(
                title="This is what will happen",
                body=(summary(situation),),
                tail=tuple(told(situation.findings)),
                options=_options(situation),
                default=at,
                help=partial(whole_plan, situation),
                **around,
            )
        )
        at = "train"
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
        elif answer == "fix all":
            fix_all(session)
        elif str(answer).startswith("change "):
            settings.change(session, answer.removeprefix("change "), around)
        else:
            session.answer(situation.findings[answer].fix)
            session.notice = f"{fix_words(situation.config, situation.findings[answer].fix)}"


def fix_all(session: Session, most: int = 20) -> None:
    """Accepts every offered fix, gravest first, looking again after each, since one may settle another."""
    done: set[str] = set()
    for _ in range(most):
        open_findings = [f for f in session.situation().findings if f.fix and f.rule not in done]
        if not open_findings:
            return
        done.add(open_findings[0].rule)
        session.answer(open_findings[0].fix)


def fix_words(config: TrainingConfig, fix: Mapping[str, Any]) -> str:
    """A fix as "Epochs 40 → 10, Rank 64 → 16"."""
    changes = []
    for name, value in fix.items():
        entry = parameters()[name]
        before = questions.display(entry, value_of(config, name))
        changes.append(f"{entry.title} {before} → {questions.display(entry, value)}")
    return ", ".join(changes)


def _options(situation: Situation) -> tuple[Option, ...]:
    blocking = [finding for finding in situation.findings if finding.severity == "blocks"]
    refusal = situation.problem
    if blocking:
        refusal = "This cannot start as it is: " + blocking[0].message
    fixable = [index for index, finding in enumerate(situation.findings) if finding.fix]
    start = [Option("train", "Save and start training", refusal=refusal)]
    fixes = [
        Option(index, f"Fix: {fix_words(situation.config, situation.findings[index].fix)}"[:70], note="")
        for index in fixable[:SHOWN]
    ]
    if len(fixable) > 1:
        fixes.append(Option("fix all", f"Fix all {len(fixable)}"))
    changes = [
        Option(f"change {finding.parameters[0]}", f"Change: {parameters()[finding.parameters[0]].title}")
        for finding in situation.findings[:SHOWN]
        if not finding.fix and finding.parameters
    ]
    rest = [
        *changes,
        Option("settings", "Change a setting"),
        Option("plan", "See the whole plan"),
        Option("save", "Save the answers, train later"),
    ]
    return (*fixes, *start, *rest) if blocking else (*start, *fixes, *rest)


def told(findings: Sequence[Finding], limit: int | None = SHOWN) -> Iterator[RenderableType]:
    """The gravest findings in full, and how many more there are."""
    for finding in findings[:limit]:
        yield views.finding(finding.severity, finding.message)
    if limit is not None and len(findings) > limit:
        more = words.count(len(findings) - limit, "more remark")
        yield f"[quiet]{more} in the whole plan.[/]"


def summary(situation: Situation) -> RenderableType:
    """The answers and what they cost, as labelled lines."""
    return views.rows(list(_summary(situation)), 9)


def _summary(situation: Situation) -> Iterator[tuple[str, RenderableType]]:
    from rich.text import Text

    config, plan = situation.config, situation.plan
    known = parameters()
    goal = known["dataset.goal"].choices[config.dataset.goal].title
    trigger = config.dataset.trigger_word
    taught = Text.assemble((goal, "strong"))
    taught.append(f", called up by “{trigger}”" if trigger else ", without a trigger word")
    if situation.dataset is not None:
        taught.append(f", from {words.count(situation.dataset.images, 'picture')}")
    yield "Teaches", taught
    family = known["base_model.family"].choices[config.base_model.family].title
    base = Text(family)
    if config.base_model.path != POCKET_MODEL:
        base.append(f"  {pictures.short(config.base_model.path)}", "quiet")
    base.append(f", pictures at {config.dataset.resolution} pixels")
    yield "Builds on", base
    network = known["network.algorithm"].choices[config.network.algorithm].title
    size = f", a file of {words.size(plan.file_bytes)}" if plan else ""
    yield "Network", Text(f"{network}, rank {config.network.rank}{size}")
    if plan is None:
        return
    optimizer = known["optimizer.name"].choices[config.optimizer.name].title
    rate = views.value(config.optimizer.learning_rate)
    yield "Learning", Text(f"{optimizer} at rate {rate}, {words.count(config.schedule.batch_size, 'picture')} a step")
    yield (
        "Length",
        Text.assemble(
            (words.count(plan.total_steps, "step"), "strong"),
            f" in {words.count(plan.epochs, 'epoch')}; each picture is seen {plan.views_per_image:,.0f} times",
        ),
    )
    yield "Time", time_words(situation)
    yield "Memory", memory_words(situation)
    drawn = words.count(len(config.sampling.prompts), "picture")
    if config.sampling.prompts:
        yield "Samples", Text(f"{drawn} {_how_often(config)}, to watch it learn")
    yield "Result", Text(f"{config.output.name}.safetensors")


def _how_often(config: TrainingConfig) -> str:
    every = config.sampling.every_epochs
    if config.sampling.every_steps:
        return f"every {words.count(config.sampling.every_steps, 'step')}"
    if every is None:
        return "at the end"
    return "after each epoch" if every == 1 else f"every {every} epochs"


def time_words(situation: Situation) -> Text:
    from rich.text import Text

    assert situation.plan is not None
    time = situation.plan.duration
    low, likely, high = (words.duration(s) for s in (time.low_seconds, time.likely_seconds, time.high_seconds))
    where = situation.hardware.name if situation.hardware.vram_bytes else "this computer's processor"
    return Text.assemble(("about ", ""), (likely, "strong"), (f"  on {where}; {low} to {high}", "quiet"))


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


def whole_plan(situation: Situation) -> RenderableType:
    """Everything that is known about the run before it starts."""
    from rich.text import Text

    parts: list[RenderableType] = [views.heading("The whole plan"), summary(situation)]
    plan = situation.plan
    if plan is not None:
        shapes = views.table(
            ("Shape", "Pictures", "Batches"),
            [(f"{b.width} × {b.height}", f"{b.images:,}", f"{b.batches:,}") for b in plan.buckets],
            right=("Pictures", "Batches"),
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
        parts += [views.heading("Time"), time_words(situation), Text(plan.duration.basis, "quiet")]
        files = f"{words.count(plan.saved_files, 'file')} of {words.size(plan.file_bytes)}"
        parts += [views.heading("Disk"), Text(f"{files}, {words.size(plan.disk_bytes)} in all")]
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
