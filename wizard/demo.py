"""`lora-wizard demo`: the whole path on the pocket model. It is an answers file, trained in the usual way."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from knowledge.answers import PlainError, read_answers, write_answers
from knowledge.config import with_values
from wizard import views

if TYPE_CHECKING:
    from rich.console import RenderableType

ANSWERS = Path(__file__).parent / "demo.toml"

INTRODUCTION = """The [strong]{trigger}[/] is a creature that the built-in pocket model has never seen.
{count} drawings of it are in [strong]{pictures}[/], each with a caption.
The training teaches it the word, with the answers in [strong]{answers}[/]."""

LOOK = (
    (
        "before-after.png",
        "Each pair starts from the same noise. On the left the base model, which does not know the word “{trigger}”; "
        "on the right the same model with your LoRA.",
    ),
    (
        "the same picture",
        "Look at the prompt without the word, “{other}”, too: it is nearly as it was. The pictures in the folder known "
        "saw to that: they are practised beside the creature, so that nothing is forgotten.",
    ),
    (
        "loss.png",
        "The dots jump; the line is what counts. Where it has stopped falling, more steps bring little.",
    ),
)
NEXT = (
    ("lora-wizard train {answers} --set network.rank=1", "the same with a smaller network"),
    ("lora-wizard train {answers} --set schedule.epochs=2", "the same with less practice"),
    ("lora-wizard", "the guided path, with your own pictures"),
)


@click.command(epilog="Example: lora-wizard demo")
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    default=None,
    help="Where to put pictures, answers and run.  [default: lora-wizard-demo, and runs]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the raw events, one JSON object a line.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def demo(folder: Path | None, as_json: bool, debug: bool) -> int:
    """See it all work in three minutes on the built-in model.

    Trains a real LoRA on a tiny model with a dozen drawings: no graphics card, no downloads.
    """
    from wizard.follow import all_runs
    from wizard.launch import train_file
    from wizard.runs import state_of

    answers = prepare(folder)
    config = read_answers(answers)
    trigger, pictures = config.dataset.trigger_word, Path(config.dataset.folders[0].path)
    if not as_json:
        shown = {
            "trigger": trigger,
            "count": len(list(pictures.glob("*.png"))),
            "pictures": views.escape(str(pictures)),
            "answers": views.escape(str(answers)),
        }
        views.console().print(views.indented(INTRODUCTION.format(**shown)), "")
    code = train_file(answers, as_json=as_json, debug=debug)
    finished = code == 0 and state_of(all_runs(config.output.folder)[0]).state == "finished"
    if finished and not as_json:
        other = next(prompt for prompt in config.sampling.prompts if trigger not in prompt)
        views.console().print("", views.indented(_closing(trigger, other, str(answers))))
    return code


def _closing(trigger: str, other: str, answers: str) -> RenderableType:
    """What there is to see, and what to try next."""
    from rich.console import Group
    from rich.text import Text

    look = [(what, Text(text.format(trigger=trigger, other=other))) for what, text in LOOK]
    commands: list[RenderableType] = []
    for command, what in NEXT:
        commands += [Text(f"{what}:", "quiet"), Text(f"  {command.format(answers=answers)}")]
    return views.page(
        views.heading("What to look at"), views.rows(look), views.heading("What to try next"), Group(*commands)
    )


def prepare(folder: Path | None) -> Path:
    """Lay out the demo's pictures and its answers file, which names their folders; the path of the file."""
    from engine.pocket import DEMO_FOLDER, KNOWN_FOLDER

    config = read_answers(ANSWERS)
    rows = config.dataset.folders
    place = folder or Path(rows[0].path).parent
    places = [place / Path(row.path).name for row in rows]
    answers = place / "demo.toml"
    moved = [{**row.model_dump(), "path": str(path)} for row, path in zip(rows, places, strict=True)]
    placed: dict[str, Any] = {"dataset.folders": moved}
    if folder:
        placed["output.folder"] = str(place / "runs")
    try:
        for path, shipped in zip(places, (DEMO_FOLDER, KNOWN_FOLDER), strict=True):
            path.mkdir(parents=True, exist_ok=True)
            for file in sorted(shipped.iterdir()):
                shutil.copyfile(file, path / file.name)
        write_answers(with_values(config, placed), answers)
    except OSError as error:
        raise PlainError(
            f"The demo cannot be put in {place}: {error.strerror or error}. Name another place with --folder."
        ) from None
    return answers
