"""What `lora-wizard calc` shows: the sum in words, the figures, what they are worth, and what was supposed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from calculator.plan import Plan
from calculator.validation import trained_on
from knowledge.assessment import Assessment
from knowledge.config import with_values
from knowledge.starting_network import rank_in_words

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from calculator import fit
    from knowledge.rules import Finding
    from wizard.calc import Case, Cost


MEMORY_SPAN = (
    "low is what is allocated, likely adds what is lost between the pieces, high adds working space of the card's code"
)
"""What the three figures of memory assume."""


def page(
    case: Case, found: Plan, judged: Sequence[Assessment], findings: Sequence[Finding], cost: Cost | None, curve: bool
) -> RenderableType:
    """The answer: the sum in words, the figures, their worth, the shapes, what to look at, what was supposed."""
    from rich.text import Text

    from wizard import views
    from wizard.worth import worth

    parts: list[RenderableType] = [sentence(case, found), views.rows(list(_figures(case, found, cost)))]
    parts += [_phases(case, found)] if len(found.vram.phases) > 1 else []
    parts.append(worth(judged))
    if len(found.buckets) > 1:
        parts.append(_shapes(found))
    if curve:
        parts.append(_curve(found))
    if findings:
        from rich.console import Group

        parts.append(Group(*(views.finding(finding.severity, finding.message) for finding in findings)))
    if case.supposed:
        parts.append(Text("Supposed, since you did not say: " + _supposed(case.supposed), "quiet"))
    return views.page(*parts)


def sentence(case: Case, found: Plan) -> Text:
    """How the steps come about: "24 pictures × 10 repeats in 5 shapes make 63 batches …"."""
    from rich.text import Text

    from wizard.words import count

    schedule, trained = case.config.schedule, trained_on(case.dataset, case.config)
    apart = case.dataset.images - trained.images
    repeats = {folder.repeats for folder in trained.folders if folder.pictures and not folder.regularisation}
    text = Text(count(case.dataset.images, "picture"))
    if apart:
        text.append(f", {apart} of them only to measure by. The other {trained.images:,}")
    if len(repeats) > 1:
        text.append(f", with their repeats {count(trained.views_per_epoch, 'view')},")
    elif repeats != {1}:
        text.append(f" × {count(max(repeats, default=1), 'repeat')}")
    if extra := found.views_per_epoch - trained.views_per_epoch:
        text.append(f" and {count(extra, 'view')} of regularisation pictures")
    alone = trained.images == 1 and not extra
    text.append(f" in {count(len(found.buckets), 'shape')} {'makes' if alone else 'make'} ")
    text.append(count(found.batches_per_epoch, "batch", "batches"), "strong")
    text.append(f" of {schedule.batch_size}" if schedule.batch_size > 1 else "")
    text.append(" an epoch")
    if found.partial_batches:
        which = f"{found.partial_batches:,} of them " if found.batches_per_epoch > 1 else ""
        text.append(f", {which}part-filled")
    together = schedule.gradient_accumulation_steps * found.processes
    if together > 1:
        each = f" ({schedule.gradient_accumulation_steps} on each card)" if found.processes > 1 else ""
        text.append(f", {together} to a step{each}: ")
        text.append(f"{count(found.updates_per_epoch, 'step')} an epoch", "strong")
    text.append(f". {count(found.epochs, 'epoch').capitalize()} {'are' if found.epochs != 1 else 'is'} ")
    text.append(count(found.total_steps, "step"), "accent")
    whole = found.total_steps == found.epochs * found.updates_per_epoch
    if not whole:
        text.append(", where the step limit ends the run")
    alike = whole and len(repeats) < 2
    text.append(f"; {'each' if alike else 'a'} picture is seen {found.times_seen}{'' if alike else ' on average'}.")
    if found.naive_total_steps != found.total_steps and schedule.maximum_steps is None:
        forgotten = _forgotten(found, extra, together)
        text.append(f" The usual sum says {found.naive_total_steps:,}: it forgets {forgotten}.", "quiet")
    return text


def _forgotten(found: Plan, extra: int, together: int) -> str:
    """What images × repeats × epochs ÷ batch size does not count, of what there is in this run."""
    forgotten = [
        ("regularisation pictures", extra),
        ("part-filled batches", found.partial_batches),
        ("part-filled steps", found.batches_per_epoch % together),
        ("that several cards share the batches", found.processes > 1),
    ]
    *others, last = [what for what, there in forgotten if there] or ["rounding"]
    return f"{', '.join(others)} and {last}" if others else last


def _figures(case: Case, found: Plan, cost: Cost | None) -> Iterator[tuple[str, RenderableType]]:
    from rich.text import Text

    from wizard import estimate, views
    from wizard.words import count, duration, size

    hardware, time, memory = case.hardware, found.duration, found.vram
    on = (
        f"on {count(found.processes, hardware.name) if found.processes > 1 else hardware.name}"
        if hardware.vram_bytes
        else "on this processor, without a graphics card"
    )
    low, likely, high = (estimate.roughly(s) for s in (time.low_seconds, time.likely_seconds, time.high_seconds))
    span = "" if low == high else f"; {low} to {high}"
    yield "Time", Text.assemble((f"about {likely}", "strong"), (f"  {on}{span}", "quiet"))
    yield "", Text(" · ".join(f"{name} {duration(part)}" for name, part in time.parts.items() if part), "quiet")
    if cost is not None:
        yield (
            "Cost",
            Text.assemble((f"{cost.money:,.2f} {cost.currency}".strip(), "strong"), (f"  {cost.basis}", "quiet")),
        )
    room = hardware.vram_bytes or hardware.ram_bytes
    text = Text.assemble((views.memory(memory.likely_bytes), "strong"))
    if room:
        kind = "VRAM" if hardware.vram_bytes else "main memory"
        text.append(f" of {views.memory(room)} {kind}  ").append(views.bar(memory.likely_bytes / room, 24))
    text.append(
        f"  {views.memory(memory.low_bytes)} to {views.memory(memory.high_bytes)}, most while {memory.phase}", "quiet"
    )
    yield "Memory", text
    yield "", Text(" · ".join(f"{name} {views.memory(part)}" for name, part in memory.parts.items() if part), "quiet")
    if found.cached_in_memory_bytes and hardware.vram_bytes:
        kept = f"  of main memory for encoded pictures and captions{', in each process' if found.processes > 1 else ''}"
        yield "", Text.assemble(views.memory(found.cached_in_memory_bytes), (kept, "quiet"))
    yield (
        "File",
        Text.assemble(
            (size(found.file_bytes), "strong"),
            (f"  {count(found.trainable_parameters, 'trained weight')} in {case.config.saving.precision}", "quiet"),
        ),
    )
    disk = Text.assemble((size(found.disk_bytes), "strong"), (f"  {count(found.saved_files, 'file')}", "quiet"))
    if found.sample_pictures:
        disk.append(f", {count(found.sample_pictures, 'sample')}", "quiet")
    yield "Disk", disk
    yield "Files", Text(f"after {_listed(found.saving_steps)}", "quiet")
    if found.sampling_steps:
        yield "Samples", Text(f"after {_listed(found.sampling_steps)}", "quiet")
    slower = f"; low and high are {time.high_seconds / time.likely_seconds:.2g} times faster and slower"
    yield "Basis", Text("steps and file size are exact", "quiet")
    yield "", Text(f"time: {time.basis}{slower}", "quiet")
    yield "", Text(f"memory: {memory.basis}; {MEMORY_SPAN}", "quiet")


def _listed(steps: Sequence[int]) -> str:
    """Steps as one says them: "step 63, 126 … 630", 0 being the start."""
    told = ["the start" if step == 0 else f"{step:,}" for step in steps]
    shown = told if len(told) < 5 else [*told[:3], "…", told[-1]]
    words = ", ".join(shown).replace(", …, ", " … ")
    return words if told[0] == "the start" else f"step {words}"


def _phases(case: Case, found: Plan) -> RenderableType:
    """The memory of every phase as a bar, against the card or against the largest of them."""
    from wizard import views

    room = case.hardware.vram_bytes or case.hardware.ram_bytes
    needs = {name: sum(parts.values()) for name, parts in found.vram.phases.items()}
    whole = room or max(needs.values())
    return views.table(
        ("Memory while", "", ""),
        [(name, views.memory(need), views.bar(need / whole, 40)) for name, need in needs.items()],
        right=("",),
    )


def _shapes(found: Plan) -> RenderableType:
    from wizard import views

    most = max(bucket.batches for bucket in found.buckets)
    return views.table(
        ("Shape", "Views", "Batches", ""),
        [
            (f"{b.width} × {b.height}", f"{b.images:,}", f"{b.batches:,}", views.bar(b.batches / most, 24))
            for b in found.buckets
        ],
        right=("Views", "Batches"),
    )


def _curve(found: Plan) -> RenderableType:
    """The learning rate over the run in eight rows of blocks."""
    from rich.text import Text

    from wizard.words import number

    rates = found.learning_rates()
    columns = min(60, len(rates))
    picked = [rates[index * len(rates) // columns] for index in range(columns)]
    highest = max(picked, default=0.0) or 1.0
    rows, eighths = 6, " ▁▂▃▄▅▆▇█"
    lines = []
    for row in reversed(range(rows)):
        filled = (min(max(rate / highest * rows - row, 0.0), 1.0) for rate in picked)
        label = number(highest) if row == rows - 1 else "0" if row == 0 else ""
        lines.append(
            Text.assemble((f"{label:>9} ", "quiet"), ("".join(eighths[round(8 * f)] for f in filled), "accent"))
        )
    foot = f"{'':>10}step 1{f'step {len(rates):,}':>{max(columns - 6, 0)}}"
    return Text("\n").join([Text("Learning rate", "quiet"), *lines, Text(foot, "quiet")])


def _supposed(supposed: Mapping[str, Any]) -> str:
    from wizard import views

    return ", ".join(f"{_called(name)} {views.value(value)}" for name, value in supposed.items())


def _called(name: str) -> str:
    """A setting as one says it: "optimizer" for optimizer.name, "rank" for network.rank."""
    section, _, last = name.rpartition(".")
    return section if last == "name" else last.replace("_", " ")


def proposed(case: Case, proposal: fit.Proposal) -> RenderableType:
    """What would reach the goal: every change with what it does to result, memory and time, and the figures after."""
    from rich.text import Text

    from wizard import views
    from wizard.estimate import roughly
    from wizard.solvers import told_move

    if not proposal.moves:
        words = "Nothing has to change." if proposal.reached else "No change would reach that."
        return Text(words, "good" if proposal.reached else "high")
    title = "What to change" if proposal.reached else "Out of reach; as near as it comes"
    before, after = proposal.before, proposal.after
    figures = [
        ("Memory", _change(views.memory(before.vram.likely_bytes), views.memory(after.vram.likely_bytes))),
        ("Time", _change(roughly(before.duration.likely_seconds), roughly(after.duration.likely_seconds))),
        ("Steps", _change(f"{before.total_steps:,}", f"{after.total_steps:,}")),
    ]
    moves, config = [], case.config
    for move in proposal.moves:
        moves.append(told_move(config, move))
        config = with_values(config, move.changes)
    changes = " ".join(f"--set {name}={_written(value)}" for name, value in proposal.changes.items())
    return views.page(views.heading(title), *moves, views.rows(figures), Text(changes, "quiet"))


def _change(before: str, after: str) -> Text:
    from rich.text import Text

    return Text(before) if before == after else Text.assemble((f"{before} → ", "quiet"), (after, "accent"))


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else str(value)


def allowances(case: Case, room: int, found: Sequence[fit.Allowance]) -> RenderableType:
    """What a card of this size would allow: the largest batch and the largest rank, by resolution."""
    from wizard import views

    def most(number: int) -> str:
        return f"{number}" if number else "–"

    columns = ("Pixels", "Checkpointing", "Largest batch", "Largest rank")
    lines = [
        (str(one.resolution), views.value(one.gradient_checkpointing), most(one.batch_size), most(one.rank))
        for one in found
    ]
    title = views.heading(
        f"What {views.memory(room)} would allow",
        f"batch at {rank_in_words(case.config.network)}, rank at batch 1; – is nothing",
    )
    return views.page(title, views.table(columns, lines, right=columns[2:]))


def grid(case: Case, cells: list[fit.Cell]) -> RenderableType:
    """Memory and time by resolution, batch size and checkpointing; what does not fit the card is marked."""
    from rich.text import Text

    from wizard import views
    from wizard.words import duration

    room = case.hardware.vram_bytes

    def memory(cell: fit.Cell) -> Text:
        return Text(views.memory(cell.vram_bytes), "blocks" if room and cell.vram_bytes > room else "")

    lines = [
        (
            str(plain.resolution),
            str(plain.batch_size),
            memory(plain),
            Text(duration(plain.duration_seconds), "quiet"),
            memory(checkpointed),
            Text(duration(checkpointed.duration_seconds), "quiet"),
        )
        for plain, checkpointed in zip(cells[::2], cells[1::2], strict=True)
    ]
    columns = ("Pixels", "Batch", "Memory", "Time", "checkpointed", "takes")
    return views.table(columns, lines, right=columns)
