"""What `tools inspect` shows of a network file: a page, a chart, a document."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from knowledge.answers import PlainError, printable, quoted
from knowledge.families import family_facts, family_names
from wizard import words

if TYPE_CHECKING:
    from engine.tools.inspect import Report

FOREIGN_FAMILIES = {
    "sdxl-refiner": "SDXL refiner",
    "flux": "Flux",
    "sd3": "SD 3",
    "cascade": "Stable Cascade",
}
"""Of models that are not trained here."""


def _title(family: str) -> str:
    return family_facts(family).title if family in family_names() else FOREIGN_FAMILIES.get(family, family)


def show_report(report: Report, every_layer: bool) -> None:
    from rich.text import Text

    from wizard import views

    out = views.console()
    path = Path(report.path)
    kinds = ", ".join(report.algorithms)
    families = " or ".join(_title(name) for name in report.families) or "unknown base"
    out.print(
        views.heading(
            printable(path.name), f"{words.size(report.bytes)} · {kinds} · {families} · {', '.join(report.precisions)}"
        )
    )
    out.print(f"{words.count(report.parameters, 'weight')} in {words.count(len(report.layers), 'layer')}\n")
    strongest = max((block.mean_norm or 0.0 for block in report.blocks), default=0.0) or 1.0
    lines = []
    for block in report.blocks:
        strength: Any = Text("depends on the base model", style="quiet")
        if block.mean_norm is not None:
            bar = views.bar(block.mean_norm / strongest, 24)
            strength = Text.assemble(bar, f"  {words.number(block.mean_norm)}")
        lines.append((block.name, str(block.layers), _span(block.ranks), _span(block.alphas), strength))
    out.print(
        views.table(
            ("block", "layers", "rank", "alpha", "mean strength ‖ΔW‖"), lines, right=("layers", "rank", "alpha")
        )
    )
    if every_layer:
        rows = [
            (printable(layer.module), _span((layer.rank,)), _span((layer.alpha,)), _strength(layer))
            for layer in report.layers
        ]
        out.print()
        out.print(views.table(("layer", "rank", "alpha", "‖ΔW‖"), rows, right=("rank", "alpha", "‖ΔW‖")))
    out.print()
    out.print(views.rows(_facts(report)))
    for message in _troubles(report):
        out.print(views.finding("warning", message))
    if any(layer.norm is None and layer.finite for layer in report.layers):
        message = f"How strongly {kinds} changes a layer depends on the base model's weights."
        out.print(views.finding("note", message, f"lora-wizard tools inspect {quoted(path)} --base BASE_MODEL"))


def _strength(layer: Any) -> str:
    return "broken" if not layer.finite else "–" if layer.norm is None else words.number(layer.norm)


def _facts(report: Report) -> list[tuple[str, Any]]:
    """Label and value of everything worth a line below the table."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    marks = {"yes": ("✓", "good"), "partly": ("▲", "warning"), "no": ("✗", "error")}
    facts: list[tuple[str, Any]] = []
    facts += [(label, Text(printable(text))) for label, text in recipe(report.metadata)]
    if report.folders:
        lines = [
            f"{words.count(count, 'picture')} × {repeats} in {name}" for name, repeats, count in report.folders[:6]
        ]
        more = f" and {words.count(len(report.folders) - 6, 'more folder')}" if len(report.folders) > 6 else ""
        facts.append(("pictures", Text(printable(" · ".join(lines) + more))))
    if report.triggers:
        facts.append(("trigger", Text(printable(" · ".join(report.triggers)), style="strong")))
    if report.tags:
        facts.append(("tags", Text(printable(" · ".join(f"{tag} {count}" for tag, count in report.tags[:12])))))
    for reading in report.readings:
        mark, style = marks[reading.verdict]
        line = Text.assemble((mark, style), f" {reading.read} of {words.count(reading.layers, 'layer')}")
        remarks = [Padding(Text(remark, "quiet"), (0, 0, 0, 2)) for remark in reading.remarks[:3]]
        facts.append((reading.application, Group(line, *remarks)))
    if not report.readings:
        ours = "lora-wizard alone: no other program has the pocket model"
        unknown = "not looked up: the layers of this model are not known here"
        facts.append(("read by", Text(ours if report.families == ("pocket",) else unknown, style="quiet")))
    names = ("AutoV3", "AutoV2", "sshs_model_hash")
    facts += [(name, Text(report.hashes[name], style="quiet")) for name in names if name in report.hashes]
    return facts


IDLE = {
    "ss_gradient_accumulation_steps": ("", "1"),
    "ss_lr_warmup_steps": ("", "0"),
    "ss_noise_offset": ("", "0.0", "0"),
    "ss_loss_type": ("", "l2"),
    "ss_mixed_precision": ("", "no"),
    "ss_shuffle_caption": ("", "False"),
    "ss_keep_tokens": ("", "0"),
    "ss_caption_dropout_rate": ("", "0.0", "0"),
    "ss_caption_tag_dropout_rate": ("", "0.0", "0"),
    "ss_flip_aug": ("", "False"),
}
"""Values of metadata that say that nothing was done."""


def recipe(metadata: dict[str, str]) -> list[tuple[str, str]]:
    """How the file says it was made, in a few lines of words."""
    known = {key: value for key, value in metadata.items() if value not in ("None", "", "{}")}
    told: list[tuple[str, str]] = []

    def line(label: str, *parts: tuple[str, str]) -> None:
        said = [text.format(known[key]) for key, text in parts if key in known]
        if said:
            told.append((label, " · ".join(said)))

    if "ss_unet_lr" not in known and "ss_text_encoder_lr" not in known:
        known["learning rate"] = known.get("ss_learning_rate", "")
    known["optimizer"] = known.get("ss_optimizer", "").partition("(")[0].rpartition(".")[2]
    known = {key: value for key, value in known.items() if value not in IDLE.get(key, ("",))}
    line("base model", ("ss_sd_model_name", "{}"), ("modelspec.prediction_type", "predicts {}"))
    line(
        "trained for",
        ("ss_steps", "{} steps"),
        ("ss_epoch", "epoch {}"),
        ("ss_total_batch_size", "batch {}"),
        ("ss_gradient_accumulation_steps", "{} batches a step"),
        ("ss_num_train_images", "{} views an epoch"),
        ("ss_resolution", "at {}"),
        ("modelspec.date", "done {}"),
    )
    line(
        "with",
        ("optimizer", "{}"),
        ("learning rate", "rate {}"),
        ("ss_unet_lr", "UNet {}"),
        ("ss_text_encoder_lr", "text encoder {}"),
        ("ss_lr_scheduler", "{}"),
        ("ss_lr_warmup_steps", "{} steps of warm-up"),
        ("ss_min_snr_gamma", "min-SNR {}"),
        ("ss_noise_offset", "noise offset {}"),
        ("ss_loss_type", "loss {}"),
        ("ss_mixed_precision", "computed in {}"),
        ("ss_clip_skip", "clip skip {}"),
    )
    line(
        "captions",
        ("ss_shuffle_caption", "shuffled"),
        ("ss_keep_tokens", "the first {} kept in place"),
        ("ss_caption_dropout_rate", "left out at a rate of {}"),
        ("ss_caption_tag_dropout_rate", "single tags left out at a rate of {}"),
        ("ss_flip_aug", "pictures mirrored"),
    )
    line("author", ("modelspec.author", "{}"), ("modelspec.license", "licence {}"))
    return told


def _troubles(report: Report) -> Iterator[str]:
    if report.broken:
        yield (
            f"{words.count(len(report.broken), 'layer')} with numbers that are not finite: training went "
            f"off the rails, and this file draws noise or black pictures. First: {printable(report.broken[0], 120)}"
        )
    if report.dead:
        first = printable(report.dead[0], 120)
        yield f"{words.count(len(report.dead), 'layer')} that change nothing at all. First: {first}"
    if report.hash_as_stated is False:
        yield (
            "Its own sshs_model_hash does not fit its weights: another program changed them and kept the old hash, or "
            "wrote the file through LyCORIS, which counts that hash in another way. Nothing is wrong with the weights."
        )


def _span(numbers: tuple[float | int | None, ...]) -> str:
    given = [number for number in numbers if number is not None]
    if not given:
        return "–"
    low, high = min(given), max(given)
    return f"{low:g}" if low == high else f"{low:g}–{high:g}"


def report_document(report: Report) -> dict[str, Any]:
    document = asdict(report)
    document["blocks"] = [asdict(block) for block in report.blocks]
    document |= {"dead": report.dead, "broken": report.broken}
    document["readings"] = [asdict(reading) | {"verdict": reading.verdict} for reading in report.readings]
    return document


def strength_chart(report: Report, path: Path) -> None:
    """A PNG with ‖ΔW‖ of every layer as a dot, by block, and the mean of each block as a line.

    Raises PlainError where no layer's strength is known.
    """
    if all(layer.norm is None and layer.finite for layer in report.layers):
        raise PlainError(
            f"There is nothing to draw: how strongly {' and '.join(report.algorithms)} changes a layer cannot be told "
            f"from the file alone. Name the base model it was trained on: --base. {path} was not written."
        )
    from matplotlib.figure import Figure

    from engine.sheet import ACCENT, HAIR, INK, QUIET
    from engine.tools.writing import atomic
    from wizard.charts import CHART_DPI, CHART_INCHES

    figure = Figure(figsize=CHART_INCHES, dpi=CHART_DPI, layout="constrained")
    axes = figure.add_subplot()
    blocks = report.blocks
    for place, block in enumerate(blocks):
        norms = [layer.norm for layer in report.layers if layer.block == block.name and layer.norm is not None]
        spread = [place + (index / max(1, len(norms) - 1) - 0.5) * 0.6 for index in range(len(norms))]
        axes.scatter(spread, norms, s=9, color=ACCENT, alpha=0.55, linewidths=0)
        if block.mean_norm is not None:
            axes.hlines(block.mean_norm, place - 0.38, place + 0.38, color=INK, linewidth=1.6)
    axes.set_xticks(range(len(blocks)), [block.name for block in blocks], rotation=30, ha="right", color=INK)
    axes.set_ylabel("‖ΔW‖ of each layer", color=INK)
    axes.set_ylim(bottom=0)
    axes.set_title(f"What {Path(report.path).name} changes, block by block", loc="left", color=INK)
    axes.grid(axis="y", color=HAIR)
    axes.set_axisbelow(True)
    axes.tick_params(colors=QUIET)
    axes.spines[["top", "right"]].set_visible(False)
    with atomic(path) as file:
        figure.savefig(file, format="png")
