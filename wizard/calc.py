"""`lora-wizard calc`: what a run will take, before it runs. Never imports torch; answers at once."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from calculator.measurements import Measurement
from calculator.plan import Plan, plan
from calculator.validation import held_out
from knowledge.answers import PlainError, parse_assignment, plain_problems, read_answers
from knowledge.config import (
    POCKET_MODEL,
    Algorithm,
    DatasetFolder,
    Precision,
    TrainingConfig,
    value_of,
    with_values,
)
from knowledge.facts import DatasetFacts, FolderFacts, Hardware, Picture, facts
from knowledge.families import family_names
from knowledge.optimizers import OPTIMIZERS

if TYPE_CHECKING:
    from calculator import fit
    from knowledge.assessment import Assessment
    from knowledge.rules import Finding

SUPPOSED_IMAGES = 20
SUPPOSED_FAMILY = "sd15"
SUPPOSED_PATH = "your base model"
NOT_ASKED = frozenset({"dataset.trigger_word", "dataset.goal", "sampling.prompts"})
"""What the calculator's options do not speak of; without an answers file, nobody is reminded of it here."""
FLAGS = {
    "family": "base_model.family",
    "resolution": "dataset.resolution",
    "epochs": "schedule.epochs",
    "batch_size": "schedule.batch_size",
    "accumulation": "schedule.gradient_accumulation_steps",
    "algorithm": "network.algorithm",
    "rank": "network.rank",
    "optimizer": "optimizer.name",
    "precision": "memory.precision",
}
"""The options that are nothing but settings with a shorter name."""
IN_THE_SENTENCE = {
    "batch_size": "schedule.batch_size",
    "gradient_accumulation_steps": "schedule.gradient_accumulation_steps",
    "file_precision": "saving.precision",
}
"""Settings that the page's sentences name, and so the document has too."""
STATED = (*FLAGS.values(), "memory.gradient_checkpointing", "memory.cache_text_encoder_outputs", "sampling.prompts")
"""Settings that weigh most; the ones that nobody chose are named, so that no figure rests on a hidden assumption."""


@dataclass(frozen=True)
class Case:
    """One question to the calculator: everything that was given, everything that was supposed."""

    config: TrainingConfig
    dataset: DatasetFacts
    hardware: Hardware
    supposed: Mapping[str, Any]
    answered: bool = False
    measurements: tuple[Measurement, ...] = ()
    processes: int = 1

    @property
    def plan(self) -> Plan:
        return plan(self.config, self.dataset, self.hardware, measurements=self.measurements, processes=self.processes)

    @property
    def to_fit(self) -> fit.Case:
        from calculator import fit

        return fit.Case(
            self.config, self.dataset, self.hardware, measurements=self.measurements, processes=self.processes
        )


@dataclass(frozen=True)
class Cost:
    """What the run costs in money, and how that is known; without a currency it is that of who named the price."""

    money: float
    currency: str
    basis: str


def size_of(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """Width and height out of "1024x768"."""
    if value is None:
        return None
    width, _, height = value.lower().replace("×", "x").partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise click.BadParameter(f'"{value}" is not a size; write it as 1024x768.')
    return int(width), int(height)


def bytes_of(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """Bytes out of "8GB" or "7.5": gigabytes as cards are sold, 1024³."""
    if value is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:gi?b?)?\s*", value.lower())
    if not match or not float(match[1]):
        raise click.BadParameter(f'"{value}" is not an amount of memory; write it as 8GB.')
    return round(float(match[1]) * 2**30)


def seconds_of(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    """Seconds out of "2h", "90min" or "1h30m"."""
    if value is None:
        return None
    match = re.fullmatch(r"\s*(?:(\d+(?:\.\d+)?)\s*h[a-z]*)?\s*(?:(\d+(?:\.\d+)?)\s*m[a-z]*)?\s*", value.lower())
    total = (
        sum(float(part or 0) * factor for part, factor in zip(match.groups(), (3600, 60), strict=True)) if match else 0
    )
    if not total:
        raise click.BadParameter(f'"{value}" is not a length of time; write it as 2h or 90min.')
    return total


def _card_named(context: click.Context, option: click.Parameter, name: str | None) -> str | None:
    """The name that was given; "list" ends the command with the names of all cards instead."""
    if name is not None and name.lower() == "list":
        from knowledge.gpus import gpus

        click.echo("\n".join(card.name for card in gpus()))
        context.exit()
    return name


@click.command(epilog="Example: lora-wizard calc --images 24 --repeats 10 --family sdxl --gpu 'RTX 3060'")
@click.option(
    "--dataset", type=click.Path(path_type=Path), help="A folder of pictures; sizes are read, nothing is decoded."
)
@click.option("--images", type=click.IntRange(1, 1_000_000), help="How many pictures, if there is no folder yet.")
@click.option("--size", callback=size_of, metavar="WxH", help="The pictures' size, with --images; square if not given.")
@click.option("--repeats", type=click.IntRange(1, 10_000), help="How often an epoch shows each picture.")
@click.option("--epochs", type=int, help="Times through all pictures.")
@click.option("--batch-size", type=int, help="Pictures per step.")
@click.option("--accumulation", type=int, help="Batches that are added up to one step.")
@click.option("--family", type=click.Choice(family_names()), help="The kind of base model.")
@click.option("--resolution", type=int, help="Side of the training square in pixels.")
@click.option("--rank", type=int, help="Rank of the network.")
@click.option("--algorithm", type=click.Choice(get_args(Algorithm)), help="Kind of network.")
@click.option("--optimizer", type=click.Choice(tuple(OPTIMIZERS)))
@click.option("--precision", type=click.Choice(get_args(Precision)), help="Numbers to compute in.")
@click.option(
    "--gpu",
    metavar="NAME",
    callback=_card_named,
    help="Another computer's card, as RTX 3060 or A100; cpu for none, list to see all that are known.",
)
@click.option("--answers", type=click.Path(path_type=Path), help="A file of answers; other options change it.")
@click.option("--set", "assignments", multiple=True, metavar="NAME=VALUE", help="Any other setting.")
@click.option("--fit", "room", callback=bytes_of, metavar="8GB", help="What to change so that it fits this memory.")
@click.option("--within", "time", callback=seconds_of, metavar="2h", help="What to change so that it ends in time.")
@click.option("--steps", type=click.IntRange(1), help="What to change so that it makes this many steps.")
@click.option("--table", is_flag=True, help="Memory and time by batch size, resolution and checkpointing.")
@click.option("--measure", is_flag=True, help="Time a few real steps here first; every later forecast uses them.")
@click.option("--allow", "allowance", callback=bytes_of, metavar="12GB", help="What a card of this size would allow.")
@click.option("--processes", type=click.IntRange(1, 64), default=1, help="Cards that share the batches.")
@click.option(
    "--charts", type=click.Path(path_type=Path), metavar="FOLDER", help="Draw memory, rate and shapes as PNG."
)
@click.option("--price", type=click.FloatRange(min=0), help="What the computer costs per hour, in your money.")
@click.option("--curve", is_flag=True, help="Also the learning rate over the run.")
@click.option("--json", "as_json", is_flag=True, help="The plan as one JSON document.")
def calc(
    as_json: bool,
    curve: bool,
    price: float | None,
    room: int | None,
    time: float | None,
    steps: int | None,
    table: bool,
    measure: bool,
    allowance: int | None,
    charts: Path | None,
    **options: Any,
) -> None:
    """Steps, time, memory and file size of a run, before you start it."""
    if sum(goal is not None for goal in (room, time, steps)) > 1:
        raise PlainError("--fit, --within and --steps are three different goals; give one of them.", 2)
    case = gathered(room=room, **options)
    if measure:
        case = _measured(case, options["gpu"])
    found = case.plan
    findings = _findings(case, found)
    proposal = _proposal(case, room, time, steps) if room or time or steps else None
    cells = _cells(case) if table else []
    judged = _assessed(case, found)
    cost = _cost(case, found, price)
    allowed = _allowed(case, allowance) if allowance else []
    drawn = _drawn(case, found, charts) if charts else []
    if as_json:
        document = found.as_dict(findings, learning_rate=curve)
        document |= {"supposed": dict(case.supposed), "hardware": _hardware(case.hardware)}
        document["assessment"] = [asdict(one) for one in judged]
        document["dataset"] = _counted(case)
        document |= {name: value_of(case.config, where) for name, where in IN_THE_SENTENCE.items()}
        if cost is not None:
            document |= {"cost": cost.money, "cost_currency": cost.currency, "cost_basis": cost.basis}
        if allowed:
            document["allowed"] = [asdict(one) for one in allowed]
        if drawn:
            document["charts"] = [str(path) for path in drawn]
        if proposal is not None:
            document["proposal"] = {
                "reached": proposal.reached,
                "changes": proposal.changes,
                "effects": list(proposal.effects),
                "moves": [
                    {
                        "changes": move.changes,
                        "effect": move.effect,
                        "vram_likely_bytes": move.after.vram.likely_bytes,
                        "likely_seconds": move.after.duration.likely_seconds,
                        "total_steps": move.after.total_steps,
                    }
                    for move in proposal.moves
                ],
                "plan": proposal.after.as_dict(),
            }
        if table:
            document["table"] = [asdict(cell) for cell in cells]
        click.echo(json.dumps(document, ensure_ascii=False))
        return
    from wizard import calc_page, views

    console = views.console()
    parts = [calc_page.page(case, found, judged, findings, cost, curve)]
    if proposal is not None:
        parts.append(calc_page.proposed(case, proposal))
    if allowance:
        parts.append(calc_page.allowances(case, allowance, allowed))
    if table:
        parts.append(calc_page.grid(case, cells))
    if drawn:
        parts.append("\n".join(f"[good]✓[/] Drawn: {views.escape(str(path))}" for path in drawn))
    console.print()
    console.print(views.indented(views.page(*parts)))
    console.print()


def gathered(
    dataset: Path | None,
    images: int | None,
    size: tuple[int, int] | None,
    repeats: int | None,
    gpu: str | None,
    answers: Path | None,
    assignments: tuple[str, ...],
    room: int | None = None,
    processes: int = 1,
    **flags: Any,
) -> Case:
    """The case that the options describe. Raises PlainError for what contradicts itself or cannot be read."""
    if dataset is not None and images is not None:
        raise PlainError("--dataset and --images are two ways to say the same; give one of them.", 2)
    if size is not None and images is None:
        raise PlainError("--size is the size of the pictures that --images counts; give --images too.", 2)
    chosen = {FLAGS[name]: value for name, value in flags.items() if value is not None}
    chosen |= dict(parse_assignment(text) for text in assignments)
    if dataset is not None:
        chosen["dataset.folders"] = _folders(dataset, repeats)
    base = read_answers(answers) if answers else TrainingConfig()
    if answers is None:
        chosen = {"base_model.family": SUPPOSED_FAMILY, **chosen}
        if chosen["base_model.family"] != POCKET_MODEL:
            chosen = {"base_model.path": SUPPOSED_PATH, **chosen}
    config = _with(base, chosen)
    if dataset is not None or (answers is not None and images is None and base.dataset.folders):
        from engine.dataset.folders import scan

        counted = scan(config.dataset)
    else:
        side = config.dataset.resolution
        width, height = size or (side, side)
        # What the captions say is not known; that they differ is all that a figure needs.
        shown = tuple(Picture("", width, height, f"picture {n}") for n in range(images or SUPPOSED_IMAGES))
        counted = DatasetFacts((FolderFacts(shown, repeats or 1),))
    hardware = computer(gpu)
    supposed_card = gpu is None and room is not None and not hardware.vram_bytes
    if supposed_card:  # who asks what fits 8 GB, without a card here, thinks of one
        hardware = _card_with(room) or hardware
    if answers is None:
        from knowledge.parameters import recommended_values

        advised = recommended_values(facts(config, counted, hardware), chosen=chosen.keys())
        config = _with(base, {**advised, **chosen})
    supposed = {name: value_of(config, name) for name in STATED if name not in chosen} if answers is None else {}
    if flags["family"] is None and answers is None:
        supposed = {"base_model.family": config.base_model.family, **supposed}
    if dataset is None and images is None and not (answers is not None and base.dataset.folders):
        supposed = {"images": SUPPOSED_IMAGES, **supposed}
    if supposed_card and hardware.vram_bytes:
        supposed = {"gpu": hardware.name, **supposed}
    return Case(config, counted, hardware, supposed, answers is not None, _measurements(), processes)


def _with(base: TrainingConfig, values: dict[str, Any]) -> TrainingConfig:
    from pydantic import ValidationError

    try:
        return with_values(base, values)
    except ValidationError as error:
        raise PlainError("\n".join(plain_problems(error)), 2) from None


def _folders(dataset: Path, repeats: int | None) -> list[dict[str, Any]]:
    from engine.dataset.folders import suggest_folders

    folders: tuple[DatasetFolder, ...] = suggest_folders(dataset)
    changed = {"repeats": repeats} if repeats else {}
    return [folder.model_dump() | (changed if not folder.regularisation else {}) for folder in folders]


def _measurements() -> tuple[Measurement, ...]:
    from calculator.measurements import read_measurements
    from wizard.drafts import user_folder

    return read_measurements(user_folder() / "measurements.jsonl")


def computer(name: str | None) -> Hardware:
    if name is None:
        from wizard.hardware import this_computer

        return this_computer()
    if name.lower() == "cpu":
        return Hardware("CPU", cores=os.cpu_count() or 1)
    from knowledge.gpus import find_gpu

    return find_gpu(name).hardware()


def _card_with(memory_bytes: int | None) -> Hardware | None:
    from knowledge.gpus import smallest_gpu

    card = smallest_gpu(memory_bytes or 0)
    return card.hardware() if card else None


def _findings(case: Case, found: Plan) -> list[Finding]:
    from knowledge.rules import check

    everything = check(_facts(case, found))
    return [finding for finding in everything if case.answered or not NOT_ASKED & set(finding.parameters)]


def _facts(case: Case, found: Plan) -> dict[str, Any]:
    return facts(case.config, case.dataset, case.hardware, found.facts())


def _assessed(case: Case, found: Plan) -> list[Assessment]:
    from knowledge.assessment import assess

    return assess(_facts(case, found))


def _cost(case: Case, found: Plan, price: float | None) -> Cost | None:
    """What the run costs: at the price that was named, or at the table's for renting such a card."""
    hours = found.duration.likely_seconds / 3600 * case.processes
    cards = f" for each of {case.processes} cards" if case.processes > 1 else ""
    if price is not None:
        return Cost(hours * price, "", f"at {price:g} an hour{cards}")
    from knowledge.prices import price_of

    known = price_of(case.hardware.name, case.hardware.vram_bytes)
    if known is None:
        return None
    basis = f"if you rent it, at {known.hour:.2f} an hour{cards} ({known.where}, {known.date}); yours: --price"
    return Cost(hours * known.hour, known.currency, basis)


def _allowed(case: Case, room: int) -> list[fit.Allowance]:
    from calculator import fit

    return list(fit.allowed(case.to_fit, room))


def _drawn(case: Case, found: Plan, folder: Path) -> list[Path]:
    from wizard.plan_charts import draw_plan

    try:
        return draw_plan(found, case.hardware, folder)
    except OSError as problem:
        raise PlainError(f"The charts cannot be written to {folder}: {problem.strerror or problem}.") from None


def _counted(case: Case) -> dict[str, Any]:
    """The pictures behind the steps: how many, and how often an epoch shows those of each folder."""
    dataset = case.dataset
    folders = [
        {"pictures": len(folder.pictures), "repeats": folder.repeats, "regularisation": folder.regularisation}
        for folder in dataset.folders
    ]
    counts = {"pictures": dataset.images, "regularisation_pictures": dataset.regularisation_images}
    return counts | {"held_out": len(held_out(dataset, case.config)), "folders": folders}


def _hardware(hardware: Hardware) -> dict[str, Any]:
    return {"name": hardware.name, "vram_bytes": hardware.vram_bytes, "ram_bytes": hardware.ram_bytes}


def _measured(case: Case, gpu: str | None) -> Case:
    """The case with a timing that was taken just now."""
    if gpu is not None:
        raise PlainError(
            "--measure times steps on this computer; it cannot time another one's card. Leave --gpu out.", 2
        )
    if case.config.base_model.path == SUPPOSED_PATH:
        raise PlainError("--measure needs a base model to run: name it with --set base_model.path=FOLDER_OR_FILE.", 2)
    from wizard import measuring, views

    views.say(f"[quiet]Timing {measuring.STEPS} steps …[/]", sys.stderr)
    taken = measuring.measure(case.config, case.hardware)
    return replace(case, measurements=(*case.measurements, taken))


def _proposal(case: Case, room: int | None, time: float | None, steps: int | None) -> fit.Proposal | None:
    from calculator import fit

    if room is not None:
        return fit.fit_memory(case.to_fit, room)
    if time is not None:
        return fit.fit_time(case.to_fit, time)
    return fit.fit_steps(case.to_fit, steps) if steps is not None else None


def _cells(case: Case) -> list[fit.Cell]:
    from calculator import fit

    return list(fit.table(case.to_fit))
