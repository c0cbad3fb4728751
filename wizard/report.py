"""report.html: a run on one page that needs nothing else. Made from the run's events, config and plan alone."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from engine.events import (
    CheckpointSaved,
    Event,
    Failed,
    PhaseStarted,
    PictureSkipped,
    RunFinished,
    RunStarted,
    StepFinished,
)
from engine.run_folder import RunFolder, whole_file
from knowledge.answers import answers_text
from knowledge.config import POCKET_MODEL, TrainingConfig
from knowledge.parameters import parameters
from knowledge.rules import SEVERITIES
from knowledge.starting_network import rank_in_words
from wizard import views
from wizard.charts import Charts, steps_of
from wizard.follow import PLAN
from wizard.narrator import narrate, trend_sentence
from wizard.verdict import Verdict, judged
from wizard.words import count, duration, number, size


def write_report(run: RunFolder, events: Sequence[Event], charts: Charts) -> Path:
    """Write the page into the run folder."""
    path = run.path / "report.html"
    with whole_file(path) as partial:
        partial.write_text(report(run, events, charts), encoding="utf-8")
    return path


def report(run: RunFolder, events: Sequence[Event], charts: Charts) -> str:
    """The page as HTML, pictures and style inside."""
    config = run.config()
    parts = [
        _head(run, events, config),
        _picture(
            charts.before_after,
            "Before and after: base model beside the LoRA, same prompts and same noise",
            least=SHEET,
        ),
        _picture(charts.over_time, "How it came about: the same prompts, epoch by epoch", least=SHEET),
        _section("What happened to the loss", _loss(events, charts)),
        _section("Plan and reality", _comparison(run, events)),
        _section("What was remarked before the start", _findings(run)),
        _section("Pictures that were left out", _left_out(events)),
        _section("How to use the file", _usage(events, config)),
        _section("The story", _story(events)),
        _section("What was asked", _asked(config)),
    ]
    return PAGE.format(title=escape(run.name), style=STYLE, body="\n".join(filter(None, parts)))


def _head(run: RunFolder, events: Sequence[Event], config: TrainingConfig) -> str:
    started = next((event for event in events if isinstance(event, RunStarted)), None)
    ended = next((event for event in reversed(events) if isinstance(event, Failed | RunFinished)), None)
    verdict, tone = _verdict(ended, events)
    found = judged(events)
    judgement = f'<p class="verdict {COURSE_TONES[found.course]}">{_judgement(found)}</p>' if found else ""
    facts = []
    if started:
        facts.append(time.strftime("%d %B %Y, %H:%M", time.localtime(started.at)))
        facts.append(f"{count(started.images, 'picture')}")
        facts.append(f"{escape(_algorithm(config))}, {escape(rank_in_words(config.network))}")
        facts.append(started.device)
    return (
        f'<header><p class="kicker">LoRA training report</p><h1>{escape(run.name)}</h1>'
        f'<p class="verdict {tone}">{escape(verdict)}</p>{judgement}'
        f'<p class="quiet">{escape(" · ".join(facts))}</p></header>'
    )


def _verdict(ended: Failed | RunFinished | None, events: Sequence[Event]) -> tuple[str, str]:
    match ended:
        case RunFinished(reason="completed"):
            return f"Finished: {count(ended.step, 'step')} in {duration(_seconds_spent(events))}.", "good"
        case RunFinished():
            return f"Stopped after step {ended.step:,} of {ended.total_steps:,}; it can go on.", "pause"
        case Failed():
            return f"{ended.cause} {ended.remedy}", "bad"
    steps = steps_of(events)
    return f"Not finished yet: {count(len(steps), 'step')} so far.", "pause"


FINDING_TONES = {"blocks": "bad", "high": "warning", "warning": "warning"}
COURSE_TONES = {
    "learns nothing": "bad",
    "undertrained": "pause",
    "about right": "good",
    "overtrained": "pause",
    "cannot be told": "pause",
}


def _judgement(found: Verdict) -> str:
    """The verdict in words, with the file to take."""
    untold = found.course == "cannot be told"
    course = "Too short or too long: cannot be told" if untold else found.course.capitalize()
    take = "Begin with" if untold else "Take"
    file = f" {take} <code>{escape(found.file.path)}</code>." if found.file else ""
    return f"<b>{course}.</b> {escape(found.text)}{file}"


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>" if body else ""


def _picture(path: Path | None, words: str, *, least: float) -> str:
    """The picture as a figure, moved sideways rather than made smaller than this share of its width."""
    if path is None:
        return ""
    content = path.read_bytes()
    width = round(least * int.from_bytes(content[16:20], "big"))  # where a PNG says it
    data = base64.b64encode(content).decode("ascii")
    return (
        f'<figure><img style="min-width: {width}px" alt="{escape(words, quote=True)}" '
        f'src="data:image/png;base64,{data}"></figure>'
    )


def _loss(events: Sequence[Event], charts: Charts) -> str:
    steps = steps_of(events)
    if not steps:
        return ""
    said = trend_sentence([step.loss for step in steps], steps[-1].step, samples=charts.over_time is not None)
    held_out = _picture(charts.held_out, "Loss on held-out pictures by step", least=CHART)
    few = f"{count(len(steps), 'step is', 'steps are')} too few to say anything about the loss."
    loss = _picture(charts.loss, "Loss by step", least=CHART)
    rate = _picture(charts.learning_rate, "Learning rate by step", least=CHART)
    words = (
        "The loss tells how far the model was off when it guessed the noise in a picture. Every step draws other "
        "noise, so it jumps; only its average says something, and what counts are the pictures."
    )
    return f'<p>{escape(said.text if said else few)}</p>{loss}<p class="quiet">{words}</p>{held_out}{rate}'


def _plan(run: RunFolder) -> dict[str, Any]:
    """The plan that was shown before the start; empty where none was kept."""
    try:
        plan: dict[str, Any] = json.loads((run.path / PLAN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return plan


def _comparison(run: RunFolder, events: Sequence[Event]) -> str:
    """What was promised before the start, beside what the run did."""
    plan = _plan(run)
    if not plan:
        return ""
    rows = "".join(
        f"<tr><th>{escape(what)}</th><td>{escape(planned)}</td><td>{escape(real)}</td></tr>"
        for what, planned, real in _rows(plan, events)
    )
    return f"<table><thead><tr><th></th><th>plan</th><th>reality</th></tr></thead><tbody>{rows}</tbody></table>"


def _findings(run: RunFolder) -> str:
    """What was remarked on the answers before the start, the gravest first; empty where nothing was."""
    found = sorted(_plan(run).get("findings", ()), key=lambda finding: SEVERITIES.index(finding["severity"]))
    rows = "".join(
        f'<li class="{FINDING_TONES.get(finding["severity"], "")}"><span>{escape(finding["severity"])}</span>'
        f"{escape(finding['message'])}</li>"
        for finding in found
    )
    return f'<ul class="story">{rows}</ul>' if rows else ""


def _rows(plan: dict[str, Any], events: Sequence[Event]) -> Iterator[tuple[str, str, str]]:
    steps = steps_of(events)
    yield "steps", f"{plan['total_steps']:,}", f"{steps[-1].step if steps else 0:,}"
    started = next((event for event in events if isinstance(event, RunStarted)), None)
    if started:
        yield "steps in an epoch", f"{plan['updates_per_epoch']:,}", f"{started.updates_per_epoch:,}"
        planned = ", ".join(f"{b['batches']} of {b['width']}×{b['height']}" for b in plan["buckets"])
        real = ", ".join(f"{n} of {shape.replace('x', '×')}" for shape, n in started.batches_by_bucket.items())
        yield "batches in an epoch", planned, real
        broken = len({event.path for event in events if isinstance(event, PictureSkipped)})
        left = f"{started.images - broken:,}, {broken:,} could not be read" if broken else f"{started.images:,}"
        yield "pictures", f"{started.images:,}", left
        yield "weights trained", f"{plan['trainable_parameters']:,}", f"{started.trainable_parameters:,}"
    time_planned = plan["duration"]
    spent = _seconds_spent(events)
    if spent:
        span = f"{duration(time_planned['low_seconds'])} to {duration(time_planned['high_seconds'])}"
        yield "time", f"{duration(time_planned['likely_seconds'])} ({span})", duration(spent)
    peak = max((max(e.vram_bytes, 0) for e in events if isinstance(e, StepFinished)), default=0)
    kind = "VRAM" if peak else "memory"
    peak = peak or max((e.ram_bytes for e in events if isinstance(e, StepFinished)), default=0)
    if peak:
        yield f"{kind}, at most", views.memory(plan["vram"]["likely_bytes"]), views.memory(peak)
    files = [e for e in events if isinstance(e, CheckpointSaved) and e.kind == "network"]
    if files:
        yield "size of the file", size(plan["file_bytes"]), size(files[-1].bytes)
        yield "files saved", f"{plan['saved_files']:,}", f"{len({file.path for file in files}):,}"


def _left_out(events: Sequence[Event]) -> str:
    """The pictures that broke while the run went on, each with its reason; empty where all stayed whole."""
    broken = {event.path: event for event in events if isinstance(event, PictureSkipped)}
    if not broken:
        return ""
    items = "".join(
        f"<li><code>{escape(Path(path).name)}</code> {escape(event.reason)} (from step {event.step + 1:,} on)</li>"
        for path, event in broken.items()
    )
    verb = "was" if len(broken) == 1 else "were"
    return f"<p>{count(len(broken), 'picture')} {verb} trained on no longer than until here:</p><ul>{items}</ul>"


def _seconds_spent(events: Sequence[Event]) -> float:
    """Seconds that an engine was at work, the time between a stop and a resume left out."""
    spent, since, last = 0.0, None, 0.0
    for event in events:
        begins = isinstance(event, PhaseStarted) and event.phase == "loading"  # what every engine says first
        if since is None or begins:
            spent += last - since if since is not None else 0.0
            since = event.at
        last = event.at
    return spent + (last - since if since is not None else 0.0)


def _usage(events: Sequence[Event], config: TrainingConfig) -> str:
    files = [event for event in events if isinstance(event, CheckpointSaved) and event.kind == "network"]
    if not files:
        return "<p>No file was saved.</p>"
    name = Path(files[-1].path).name
    trigger = config.dataset.trigger_word
    word = f"Write <b>{escape(trigger)}</b> in the prompt to call it up. " if trigger else ""
    where = f"<p>The file is <code>{escape(files[-1].path)}</code> in this folder ({size(files[-1].bytes)}). {word}"
    if config.base_model.family == "pocket":
        return (
            f"{where}It was trained on the built-in pocket model and fits that one only, so no other application can "
            "use it: the pocket model is there to try things out. Train on a full model for pictures to keep.</p>"
        )
    prompt = escape(f"{trigger}, a photo".strip(", "))
    called = escape(f"<lora:{Path(name).stem}:1>")
    rows = [
        ("ComfyUI", "Copy it to <code>models/loras</code>; add a <b>Load LoRA</b> node after the checkpoint."),
        ("A1111, Forge", f"Copy it to <code>models/Lora</code>; write <code>{prompt} {called}</code> in the prompt."),
    ]
    if config.network.algorithm in DIFFUSERS_READS:
        code = f'pipe.load_lora_weights("{files[-1].path}")'
        rows.append(("diffusers", f"<code>{escape(code)}</code>"))
    listed = "".join(f"<tr><th>{name}</th><td>{how}</td></tr>" for name, how in rows)
    return f"{where}Use it with the base model it was trained on, or one made from that.</p><table>{listed}</table>"


DIFFUSERS_READS = frozenset({"lora", "locon"})
"""Algorithms that diffusers' load_lora_weights applies; the others it refuses or applies wrongly."""


def _story(events: Sequence[Event]) -> str:
    said = [sentence for sentence in narrate(events) if sentence.text]
    items = "".join(
        f'<li class="{sentence.tone}"><span>{f"step {sentence.step:,}" if sentence.step else ""}</span>'
        f"{escape(sentence.text)}</li>"
        for sentence in said
    )
    return f'<ol class="story">{items}</ol>' if items else ""


def _asked(config: TrainingConfig) -> str:
    known, trigger = parameters(), config.dataset.trigger_word
    called = f"called up by “{trigger}”" if trigger else "without a trigger word"
    asked = (
        f"<p>{escape(known['dataset.goal'].choices[config.dataset.goal].title)}, {escape(called)}, "
        f"at {config.dataset.resolution} pixels. {_algorithm(config)} of {escape(rank_in_words(config.network))}, "
        f"{known['optimizer.name'].choices[config.optimizer.name].title} at rate "
        f"{number(config.optimizer.learning_rate)}, {count(config.schedule.batch_size, 'picture')} a step, "
        f"{count(config.schedule.epochs, 'epoch')}, on {escape(_base_model(config))}.</p>"
    )
    answers = answers_text(config).replace(str(Path.home()), "~")  # a report is a thing to show to others
    return f"{asked}<details><summary>The answers file</summary><pre>{escape(answers)}</pre></details>"


def _base_model(config: TrainingConfig) -> str:
    path = config.base_model.path
    return "the built-in pocket model" if path == POCKET_MODEL else path.replace("\\", "/").rstrip("/").split("/")[-1]


def _algorithm(config: TrainingConfig) -> str:
    return str(parameters()["network.algorithm"].choices[config.network.algorithm].title)


SHEET, CHART = 0.75, 0.5
"""Of the width that sheets of samples and charts were drawn at, how much they keep on a narrow page."""
STYLE = """
:root { color-scheme: light; --ink: #1f2430; --quiet: #6b7183; --hair: #e6e8ee; --accent: #9b2fae; --paper: #fff; }
* { box-sizing: border-box }
body { margin: 0; background: #f6f6f9; color: var(--ink);
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif }
main { max-width: 62rem; margin: 0 auto; padding: 3rem 1.25rem 5rem }
header { margin-bottom: 2rem }
.kicker { margin: 0; color: var(--accent); font-weight: 600; font-size: .85rem; letter-spacing: .04em }
h1 { margin: .1rem 0 .4rem; font-size: 2.4rem; line-height: 1.15 }
h2 { margin: 0 0 .6rem; font-size: 1.25rem }
p { margin: .4rem 0 .8rem; max-width: 46rem }
.quiet, th { color: var(--quiet) }
.verdict { font-size: 1.15rem; border-left: 4px solid var(--accent); padding-left: .8rem }
.verdict.good { border-color: #2b9348 } .verdict.bad { border-color: #d00000 } .verdict.pause { border-color: #e09f3e }
section, figure { background: var(--paper); border: 1px solid var(--hair); border-radius: 12px; margin: 0 0 1.25rem;
  padding: 1.4rem 1.6rem }
figure { padding: .5rem; overflow-x: auto } section figure { border: 0; padding: 0; margin: .6rem 0 }
img { max-width: 100%; height: auto }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .4rem 1rem .4rem 0; border-bottom: 1px solid var(--hair); vertical-align: top }
th { font-weight: 500 } tr:last-child > * { border-bottom: 0 }
code, pre { font: .88em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; background: #f3f3f7;
  border-radius: 5px; padding: .1em .35em } pre { padding: 1rem; overflow-x: auto }
summary { cursor: pointer; color: var(--accent) }
.story { list-style: none; padding: 0; margin: 0 }
.story li { display: grid; grid-template-columns: 6rem minmax(0, 1fr); padding: .25rem 0; overflow-wrap: anywhere }
.story span { color: var(--quiet); font-variant-numeric: tabular-nums }
@media (max-width: 40rem) { main { padding: 1.5rem .75rem } section { padding: 1rem }
  .story li { grid-template-columns: 4.75rem minmax(0, 1fr) } }
.story .warning { color: #a86800 } .story .bad { color: #b00000 } .story .good { color: #1c7c36 }
"""

PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} · LoRA training report</title><style>{style}</style></head>
<body><main>
{body}
</main></body>
</html>
"""
