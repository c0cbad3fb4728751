"""`lora-wizard download`: a base model or a VAE into the models folder, looked at before it comes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from knowledge.answers import PlainError, did_you_mean
from knowledge.downloads import Suggestion, fitting_vae, suggestions
from knowledge.families import families
from knowledge.parameters import parameters
from wizard import views, words
from wizard.paths import quoted

if TYPE_CHECKING:
    from rich.console import RenderableType

    from engine.acquire.models import Recognised
    from engine.acquire.models_folder import Model, ModelsFolder, Offer

Notice = Callable[[str], None]
Tell = Callable[[str, int], None]

PREDICTIONS = {"epsilon": "predicts the noise (epsilon)", "v_prediction": "predicts v"}
PARTS_OF_A_LINE = 10
LITTLE_BYTES = 1_000_000
"""The configuration files, which come while a folder is looked at."""


@click.command()
@click.argument("address", required=False)
@click.option("--file", "file", default="", metavar="NAME", help="Which file, where the address holds several.")
@click.option("--revision", default="", metavar="NAME", help="Branch, tag or commit on Hugging Face.  [main]")
@click.option(
    "--weights",
    type=click.Choice(["half", "full"]),
    default="half",
    show_default=True,
    help="Which weights of a folder on Hugging Face that has both.",
)
@click.option(
    "--family",
    type=click.Choice([each.name for each in families()]),
    help="Take nothing but this family.  [whatever it is]",
)
@click.option("--to", "to", type=click.Path(path_type=Path), help="The models folder.  [LORA_WIZARD_MODELS, or models]")
@click.option("--with-vae", is_flag=True, help="Fetch the VAE that fits as well.")
@click.option("--list", "listing", is_flag=True, help="Show what is in the models folder, and stop.")
@click.option("--dry-run", is_flag=True, help="Say what it is and how large, and stop.")
@click.option("--yes", is_flag=True, help="Download without asking.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document; needs --yes, --dry-run or --list.")
def download(
    address: str | None,
    file: str,
    revision: str,
    weights: str,
    family: str | None,
    to: Path | None,
    with_vae: bool,
    listing: bool,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Fetch a base model or a VAE from Hugging Face or Civitai into the models folder.

    ADDRESS is the page of the model, a link to one of its files, owner/name on Hugging Face, or a short name: sd15,
    sdxl, illustrious, animagine, sd2, sdxl-vae, sd15-vae. What it is, is found out before it is downloaded; what cannot
    be trained is refused. A download that was interrupted goes on where it stopped. For models that want to know who
    you are, set HF_TOKEN or CIVITAI_TOKEN; else you are asked, and what you answer is kept nowhere.

    \b
    Examples: lora-wizard download sdxl
              lora-wizard download https://civitai.com/models/4201 --yes
    """
    from engine.acquire.models_folder import models_folder
    from wizard.tokens import ask_on_terminal, with_token

    folder = models_folder(to)
    if listing:
        _list(folder, as_json)
        return
    if not address:
        raise click.UsageError(f"Name a model: {', '.join(suggestions())}, or the address of its page.")
    if not (dry_run or yes) and (as_json or not views.interactive()):
        raise click.UsageError("Without a terminal to ask in, say --yes to download or --dry-run to look.")
    vae = None
    asker = ask_on_terminal if views.interactive() and not (yes or as_json) else None
    found, there = with_token(lambda: look(address, folder, file=file, revision=revision, weights=weights), asker)
    family_found = there.family if there else found.detected.family if found and found.detected else ""
    if family and family_found and family_found != family:
        raise PlainError(f"{address} is a model of the family {family_found}, not {family}. Nothing was downloaded.")
    if found is not None:
        if not as_json:
            views.console().print(views.indented(views.page("", *offered(found, folder), "")))
        if dry_run or not (yes or click.confirm("Download it?", default=True)):
            set_aside(found, folder)
            if as_json:
                print(json.dumps(_as_offered(found), ensure_ascii=False))
            return
        there = fetch(found, folder, quiet=as_json)
    assert there is not None
    if with_vae and there.kind == "base model" and (fitting := fitting_vae(there.family)) is not None:
        vae_found, vae = look(fitting.name, folder)
        if vae_found is not None and not dry_run:
            vae = fetch(vae_found, folder, quiet=as_json)
    if as_json:
        print(json.dumps(_as_kept(there, folder, vae), ensure_ascii=False))
    else:
        views.console().print(views.indented(views.page(*kept(there, folder, vae, new=found is not None), "")))


# --- looking ----------------------------------------------------------------------------------------------------------


def look(
    address: str, folder: ModelsFolder, *, file: str = "", revision: str = "", weights: str = "half"
) -> tuple[Recognised | None, Model | None]:
    """What stands at the address, or the model that it has become here before. Raises PlainError for neither."""
    from engine.acquire.models import recognise

    with waiting(f"Looking at {address}") as notice:
        offer = offer_of(address, file=file, revision=revision, weights=weights, notice=notice)
        there = folder.find(offer)
        return (None, there) if there is not None else (recognise(offer, folder, notice), None)


def offer_of(address: str, *, file: str = "", revision: str = "", weights: str = "half", notice: Notice) -> Offer:
    """What is offered at an address or under a short name."""
    from engine.acquire import civitai, huggingface

    suggested = suggestions().get(address.strip().lower())
    if suggested is not None:
        address, file = suggested.address, file or suggested.path
    if huggingface.parse(address) is not None and not Path(address).expanduser().exists():
        return huggingface.offer(
            address, file=file, revision=revision, weights="full" if weights == "full" else "half", notice=notice
        )
    if civitai.parse(address) is not None:
        if revision:
            raise PlainError("Models on Civitai have versions and no revisions: give the address of the version.", 2)
        return civitai.offer(address, file=file, notice=notice)
    raise PlainError(_unknown(address), 2)


def check_address(text: str) -> str:
    """The text, where it can be the address of a model; asks nobody. Raises PlainError where it cannot."""
    from engine.acquire import civitai, huggingface

    known = text.strip().lower() in suggestions()
    if not text.strip() or not (known or huggingface.parse(text) is not None or civitai.parse(text) is not None):
        raise PlainError(_unknown(text), 2)
    return text.strip()


def _unknown(text: str) -> str:
    if text.strip() and Path(text).expanduser().exists():
        return f"{text} is on this computer already. Use it as it is: lora-wizard new --base-model {text}"
    return (
        f'"{text}" is no address of a model.{did_you_mean(text, suggestions())} Give the address of its page on '
        f"Hugging Face or Civitai, owner/name, or one of {', '.join(suggestions())}."
    )


def offered(found: Recognised, folder: ModelsFolder) -> Iterator[RenderableType]:
    """What would be downloaded, in lines."""
    from engine.acquire.models import begun_bytes
    from wizard.hardware import disk_free_bytes

    offer = found.offer
    size = offer.size_bytes
    here = begun_bytes(offer, folder)
    begun = f", of which {words.size(here)} are here already" if here > LITTLE_BYTES else ""
    lines: list[tuple[str, RenderableType]] = [
        ("What", kind_in_words(found.kind, *_of(found))),
        ("From", f"{offer.page}\nrevision {offer.revision[:12]}"),
        ("Size", f"{words.size(size or 0)}{begun}; {words.size(disk_free_bytes(folder.path))} are free"),
        ("To", str(folder.path / folder.free_name(offer))),
        *(("Note", note) for note in offer.notes),
    ]
    yield views.heading(offer.title)
    yield views.rows(lines, 5)


def _of(found: Recognised) -> tuple[str, str, bool]:
    detected = found.detected
    if detected is None:
        return "", "", False
    said = "" if detected.prediction_supposed else detected.prediction_type
    return detected.family, said, detected.zero_terminal_snr


def kind_in_words(kind: str, family: str, prediction_type: str, zero_terminal_snr: bool) -> str:
    """ "SDXL base model; predicts v, its noise ends without signal"."""
    if kind == "vae":
        return "VAE with latents of 4 channels"
    title = parameters()["base_model.family"].choices[family].title
    if not prediction_type:
        return f"{title} base model; whether it predicts the noise or v, its weights will tell once they are here"
    ends = ", and its noise ends without signal (zero terminal SNR)" if zero_terminal_snr else ""
    return f"{title} base model; it {PREDICTIONS[prediction_type]}{ends}"


def _as_offered(found: Recognised) -> dict[str, Any]:
    offer = found.offer
    family, prediction_type, zero_terminal_snr = _of(found)
    return {
        "downloaded": False,
        "name": offer.name,
        "kind": found.kind,
        "title": offer.title,
        "page": offer.page,
        "revision": offer.revision,
        "bytes": offer.size_bytes,
        "family": family,
        "prediction_type": prediction_type,
        "zero_terminal_snr": zero_terminal_snr,
        "files": [file.path for file in offer.files],
    }


def set_aside(found: Recognised, folder: ModelsFolder) -> None:
    """Clears away what looking at it has left."""
    from engine.acquire import models

    models.set_aside(found, folder)


# --- fetching ---------------------------------------------------------------------------------------------------------


def fetch(found: Recognised, folder: ModelsFolder, quiet: bool = False) -> Model:
    """The model, downloaded with a bar on stderr where somebody watches."""
    from engine.acquire.models import bring_in

    with bar(found.offer.size_bytes or 0, quiet) as (tell, notice):
        try:
            return bring_in(found, folder, tell, notice)
        except KeyboardInterrupt:
            notice("Interrupted. What has come is kept; the same command goes on from there.")
            raise


@contextmanager
def bar(size: int, quiet: bool) -> Iterator[tuple[Tell, Notice]]:
    """What is told of the progress and of trouble: a bar, or a line now and then where nothing can move."""
    console = views.console(sys.stderr)
    if quiet:
        yield (lambda path, done: None), (lambda sentence: console.print(sentence, markup=False))
        return
    if not sys.stderr.isatty() or views.plain_terminal():
        yield _lines(size), (lambda sentence: console.print(sentence, markup=False))
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("  {task.fields[file]}"),
        BarColumn(bar_width=None),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=console, transient=True, expand=True) as progress:
        progress.console.print("  [quiet]Ctrl-C interrupts; what has come by then is kept.[/]")
        task = progress.add_task("", total=size or None, file="")

        def tell(path: str, done: int) -> None:
            name = path.rpartition("/")[2]
            progress.update(task, completed=done, file=name if len(name) <= 26 else f"…{name[-25:]}")

        yield tell, (lambda sentence: progress.console.print(f"  [quiet]{views.escape(sentence)}[/]"))


def _lines(size: int) -> Tell:
    """Prints a line whenever another tenth is there."""
    told = -1

    def tell(path: str, done: int) -> None:
        nonlocal told
        tenth = PARTS_OF_A_LINE * done // size if size else PARTS_OF_A_LINE
        if tenth > told:
            told = tenth
            click.echo(f"{words.size(done)} of {words.size(size)}", err=True)

    return tell


@contextmanager
def waiting(message: str) -> Iterator[Notice]:
    """Says that it is at work, where somebody watches, and what holds it up."""
    console = views.console(sys.stderr)
    if not sys.stderr.isatty() or views.plain_terminal():
        yield lambda sentence: console.print(sentence, markup=False)
        return
    with console.status(f"{views.escape(message)} …") as status:
        yield lambda sentence: status.update(views.escape(sentence))


# --- telling ----------------------------------------------------------------------------------------------------------


def kept(model: Model, folder: ModelsFolder, vae: Model | None = None, new: bool = True) -> Iterator[RenderableType]:
    """What is there now, and what one does with it."""
    path = folder.path / model.name
    done = "is here" if new else "was here already"
    yield f"[good]✓[/] [strong]{views.escape(model.title)}[/] {done}: {views.escape(str(path))}"
    hashes = [str(file["sha256"]) for file in model.files.values()]
    lines: list[tuple[str, RenderableType]] = [
        ("What", kind_in_words(model.kind, model.family, model.prediction_type, model.zero_terminal_snr)),
        ("Size", words.size(model.size_bytes)),
    ]
    if len(hashes) == 1:
        lines.append(("SHA256", hashes[0]))
    yield views.rows(lines, 6)
    if model.kind == "vae":
        yield f"[quiet]Use it in place of a model's own with[/] --set base_model.vae={views.escape(quoted(path))}"
        return
    if vae is not None:
        vae_path = views.escape(quoted(folder.path / vae.name))
        yield f"[good]✓[/] A VAE that fits: {vae_path}\n[quiet]Use it with[/] --set base_model.vae={vae_path}"
    elif (fitting := fitting_vae(model.family)) is not None:
        yield from _vae_hint(fitting)
    yield f"[quiet]Train with it:[/] lora-wizard new --base-model {views.escape(quoted(path))}"


def _vae_hint(fitting: Suggestion) -> Iterator[RenderableType]:
    yield (
        f"[quiet]A VAE that fits, where you want another: {views.escape(fitting.meaning)} "
        f"A training here runs the VAE in full precision and is safe with either.[/]\n"
        f"[quiet]Fetch it:[/] lora-wizard download {fitting.name}"
    )


def _as_kept(model: Model, folder: ModelsFolder, vae: Model | None) -> dict[str, Any]:
    fitting = fitting_vae(model.family) if model.kind == "base model" else None
    return {
        "downloaded": True,
        "path": str(folder.path / model.name),
        **asdict(model),
        "fitting_vae": fitting.name if fitting else None,
        "vae_path": str(folder.path / vae.name) if vae else None,
    }


def _list(folder: ModelsFolder, as_json: bool) -> None:
    models = folder.models()
    if as_json:
        rows = [{"path": str(folder.path / model.name), **asdict(model)} for model in models]
        print(json.dumps({"folder": str(folder.path), "models": rows}, ensure_ascii=False))
        return
    console = views.console()
    if not models:
        console.print(views.indented(f"\nNothing has been downloaded to {views.escape(str(folder.path))} yet."))
    else:
        lines = [
            (
                model.name,
                parameters()["base_model.family"].choices[model.family].title if model.family else "VAE",
                words.size(model.size_bytes),
                model.downloaded[:10],
            )
            for model in models
        ]
        console.print()
        console.print(views.indented(views.heading("Models", str(folder.path))))
        console.print(views.indented(views.table(("name", "what", "size", "since"), lines, right=("size",))))
    console.print()
    console.print(views.indented(views.heading("To start with")))
    starts = [(each.name, each.title, each.meaning) for each in suggestions().values()]
    console.print(views.indented(views.table(("name", "", ""), starts)))
    console.print()
