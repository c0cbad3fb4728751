"""Pictures of a plan, before anything runs: the learning rate, the memory against the card, the steps by shape."""

from __future__ import annotations

from pathlib import Path

from calculator.plan import Plan
from engine.sheet import ACCENT, HAIR, INK, QUIET
from knowledge.facts import Hardware
from wizard import views
from wizard.charts import SECOND, new_figure, save_figure
from wizard.words import count, number

COLOURS = {
    "base model": "#4c6ef5",
    "network": ACCENT,
    "optimizer": "#f08c00",
    "averaged weights": "#fab005",
    "gradients": "#e64980",
    "activations": "#12b886",
    "picture": "#15aabf",
    "kept pictures": "#7950f2",
    "CUDA context": "#868e96",
    "fragmentation": "#ced4da",
    "program": "#868e96",
}
"""One colour for a part of the memory, whichever phase it is in; parts without one are drawn in SECOND."""
MOST_SHAPES = 24


def draw_plan(found: Plan, hardware: Hardware, folder: Path) -> list[Path]:
    """Draws the plan's pictures into the folder, which is made where it is missing; the files."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = [memory_chart(found, hardware, folder / "memory.png")]
    if found.total_steps > 1:
        drawn.append(rate_chart(found, folder / "learning-rate.png"))
    if found.buckets:
        drawn.append(steps_chart(found, folder / "steps-by-shape.png"))
    return drawn


def rate_chart(found: Plan, path: Path) -> Path:
    """The learning rate of every update, as the engine will use it."""
    rates = found.learning_rates()
    figure, axes = new_figure("How big the steps will be: the learning rate", f"over {count(len(rates), 'step')}")
    axes.plot(range(1, len(rates) + 1), rates, color=ACCENT, linewidth=2.2)
    axes.fill_between(range(1, len(rates) + 1), rates, color=ACCENT, alpha=0.08, linewidth=0)
    axes.set_xlim(0, len(rates))
    axes.set_ylim(0, max(rates) * 1.12 or 1)
    axes.yaxis.set_major_formatter(lambda value, _: number(value))
    axes.set_xlabel("step", color=QUIET, size=9, loc="right")
    return save_figure(figure, path)


def memory_chart(found: Plan, hardware: Hardware, path: Path) -> Path:
    """A bar for every phase, made of its parts, against what the card (or the main memory) holds."""
    memory = found.vram
    room = hardware.vram_bytes or hardware.ram_bytes
    kind = hardware.name if hardware.vram_bytes else "main memory"
    figure, axes = new_figure(
        "What it needs: memory by phase",
        f"likely {views.memory(memory.likely_bytes)}, between {views.memory(memory.low_bytes)} and "
        f"{views.memory(memory.high_bytes)}; most while {memory.phase}",
    )
    axes.grid(visible=False)
    axes.grid(axis="x", color=HAIR, linewidth=0.8)
    phases = list(memory.phases.items())[::-1]
    shown: dict[str, str] = {}
    for row, (_, parts) in enumerate(phases):
        left = 0.0
        for name, size in parts.items():
            colour = shown.setdefault(name, COLOURS.get(name, SECOND))
            axes.barh(row, size / 2**30, left=left, height=0.55, color=colour, zorder=2)
            left += size / 2**30
        axes.text(left, row, f"  {views.memory(sum(parts.values()))}", va="center", color=INK, size=9, zorder=5)
    axes.set_yticks(range(len(phases)), [name for name, _ in phases])
    axes.tick_params(axis="y", colors=INK)
    most = max(sum(parts.values()) for _, parts in phases)
    axes.set_xlim(0, max(most, room) / 2**30 * 1.14)
    axes.set_xlabel("GB", color=QUIET, size=9, loc="right")
    if room:
        axes.axvline(room / 2**30, color=INK, linewidth=1.4, linestyle=(0, (4, 3)), zorder=4)
        label = f"{kind}: {views.memory(room)} "
        axes.text(room / 2**30, len(phases) - 0.52, label, ha="right", va="bottom", color=INK, size=9, zorder=5)
    axes.set_ylim(-0.6, len(phases) - 0.2)
    marks = [axes.scatter([], [], marker="s", s=46, color=colour) for colour in shown.values()]
    figure.legend(
        marks, list(shown), loc="lower left", bbox_to_anchor=(0.06, -0.005), ncols=5, frameon=False, fontsize=8.5
    )
    axes.set_position((0.1, 0.24, 0.84, 0.56))
    return save_figure(figure, path)


def steps_chart(found: Plan, path: Path) -> Path:
    """The batches that an epoch has of every shape; of many shapes, those with most."""
    from matplotlib.ticker import MaxNLocator

    buckets = sorted(found.buckets, key=lambda bucket: -bucket.batches)[:MOST_SHAPES]
    left_out = len(found.buckets) - len(buckets)
    shapes = count(len(found.buckets), "shape") + (f"; the {MOST_SHAPES} with most are drawn" if left_out else "")
    figure, axes = new_figure(
        "What an epoch is made of: batches by picture shape",
        f"{count(found.batches_per_epoch, 'batch', 'batches')} of {shapes}",
    )
    axes.grid(visible=False)
    axes.grid(axis="x", color=HAIR, linewidth=0.8)
    for row, bucket in enumerate(reversed(buckets)):
        axes.barh(row, bucket.batches, height=0.62, color=ACCENT, zorder=2)
        told = f"  {count(bucket.batches, 'batch', 'batches')} of {count(bucket.images, 'view')}"
        axes.text(bucket.batches, row, told, va="center", color=QUIET, size=8.5, zorder=5)
    axes.set_yticks(range(len(buckets)), [f"{b.width} × {b.height}" for b in reversed(buckets)])
    axes.tick_params(axis="y", colors=INK, labelsize=9 if len(buckets) < 14 else 7)
    axes.set_xlim(0, max(bucket.batches for bucket in buckets) * 1.3)
    axes.set_ylim(-0.7, max(len(buckets), 3) - 0.3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_position((0.13, 0.12, 0.81, 0.68))
    return save_figure(figure, path)
