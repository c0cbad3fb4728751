"""`lora-wizard tools publish`: a finished LoRA on the Hugging Face hub, with a card written from its run."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from knowledge.answers import PlainError
from wizard import prompts, words
from wizard.file_commands import as_json, print_json, say, watched

if TYPE_CHECKING:
    from engine.events import Event
    from engine.run_folder import RunFolder
    from engine.tools.inspect import Report
    from engine.tools.model_card import CardPicture
    from engine.tools.publish import Publication, Upload
    from knowledge.config import TrainingConfig

MOST_PICTURES = 8


@click.command()
@click.argument("run_or_file", metavar="RUN_OR_FILE")
@click.option("--repo", metavar="OWNER/NAME", help="The repository; your account's and the LoRA's names if not given.")
@click.option("--license", "licence", metavar="ID", help="E.g. cc-by-4.0; asked for in a terminal.")
@click.option("--public", is_flag=True, help="Everybody can see it; without, only you can.")
@click.option("--base-model", metavar="OWNER/NAME", help="The base model's place on the hub, for the card's link.")
@click.option("--all-files", is_flag=True, help="Every file that the run saved, not only the newest.")
@click.option("--no-samples", is_flag=True, help="Without sample pictures.")
@click.option("--replace-card", is_flag=True, help="Write the card anew where the repository has one.")
@click.option("--folder", default="runs", show_default=True, help="Where the runs are.")
@click.option("--yes", is_flag=True, help="Publish without asking.")
@click.option("--dry-run", is_flag=True, help="List what would go up, show the card, and send nothing.")
@as_json
def publish(
    run_or_file: str,
    repo: str | None,
    licence: str | None,
    public: bool,
    base_model: str | None,
    all_files: bool,
    no_samples: bool,
    replace_card: bool,
    folder: str,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Put a LoRA on the Hugging Face hub, in a private repository unless you say --public.

    The card is written from the run: what it is, what calls it up, how to use it in ComfyUI, A1111, Forge and
    diffusers, how it was made, samples, licence. Needs HF_TOKEN, or a token kept by `hf auth login`. If it breaks off,
    run it again: what is up already is not sent again.

    Example: lora-wizard tools publish my-lora --repo mila/my-lora --license cc-by-4.0 --dry-run
    """
    from engine.tools import publish as hub

    asking = prompts.can_ask() and not as_json
    if not dry_run and not yes and not asking:
        raise PlainError("Without a terminal to ask in, say --yes to publish or --dry-run to look.", 2)
    licence = _licence(licence, asking)
    if repo is None or "/" not in repo:
        repo = f"{'OWNER' if dry_run else hub.owner()}/{repo or _name_of(run_or_file)}"
    with watched("Looking through the file", as_json) as progress:
        publication, reports = _prepared(
            run_or_file,
            folder,
            repo,
            licence,
            not public,
            base_model,
            all_files,
            not no_samples,
            replace_card,
            progress,
        )
    hub.refuse_secrets(publication.uploads)
    card = next(upload.head().decode() for upload in publication.uploads if upload.path == hub.CARD)
    document: dict[str, Any] = {
        "repository": publication.repository,
        "private": publication.private,
        "license": licence,
        "files": [{"path": upload.path, "bytes": upload.size_bytes} for upload in publication.uploads],
        "bytes": publication.size_bytes,
        "card": card,
        "names_home_folder": hub.home_named(publication.uploads),
        "url": None,
    }
    if not as_json:
        _show(publication, reports, card if dry_run else None)
    if dry_run:
        if as_json:
            print_json(document)
        return
    if not yes and not click.confirm("Publish it?"):
        say("Nothing was sent.")
        return
    _quiet_hub(as_json)
    done = hub.publish(publication, lambda line: None if as_json else say(f"[quiet]{line}[/]"))
    if as_json:
        print_json(document | {"url": done.url, "private": done.private, "card_kept": done.card_kept})
        return
    seen = "only you can see it" if done.private else "everybody can see it"
    say(f"[good]✓[/] [strong]{done.url}[/]   [quiet]{seen}[/]")
    if done.card_kept:
        say("  The card that was there stays as it is; --replace-card writes it anew.")


def _licence(given: str | None, asking: bool) -> str:
    """The licence from the option, or asked for. Raises PlainError where there is neither."""
    from engine.tools.model_card import LICENCES
    from engine.tools.publish import LICENCE

    if given is None and asking:
        lines = [f"  {number:>2}  {name:<24}{meaning}" for number, (name, meaning) in enumerate(LICENCES.items(), 1)]
        click.echo("What may others do with it? The base model's own licence holds in any case.\n" + "\n".join(lines))
        typed = click.prompt("Number, or another licence's name on the hub")
        given = list(LICENCES)[int(typed) - 1] if typed.isdigit() and 1 <= int(typed) <= len(LICENCES) else typed
    if given is None:
        raise PlainError(f"Name a licence with --license, for example {', '.join(list(LICENCES)[:4])}.", 2)
    if not LICENCE.fullmatch(given):
        raise PlainError(f"{given!r} is no licence's name; on the hub these are written like cc-by-4.0.", 2)
    return given


def _name_of(run_or_file: str) -> str:
    """The LoRA's own name: its run's, or its file's."""
    path = Path(run_or_file)
    return path.stem if path.suffix == ".safetensors" else path.name


def _prepared(
    run_or_file: str,
    folder: str,
    repo: str,
    licence: str,
    private: bool,
    base_model: str | None,
    all_files: bool,
    samples: bool,
    replace_card: bool,
    progress: Any,
) -> tuple[Publication, list[Report]]:
    """What would go up. Raises PlainError for a file that is damaged or was trained to nonsense."""
    from engine.tools.inspect import inspect
    from engine.tools.model_card import CardFile, Facts, base_repository, model_card
    from engine.tools.publish import CARD, Publication, Upload

    run, files, config = _source(run_or_file, folder, all_files)
    reports = [inspect(file, progress=progress) for file in files]
    for file, report in zip(files, reports, strict=True):
        if report.broken:
            count = words.count(len(report.broken), "layer")
            raise PlainError(f"{file} has {count} with numbers that are not finite; it draws noise, so it stays here.")
    events = list(run.events()) if run else []
    pictures, grid, picture_uploads = _pictures(run, events) if run and samples else ([], "", [])
    listed = [
        CardFile(file.name, report.bytes, report.hashes["AutoV3"]) for file, report in zip(files, reports, strict=True)
    ]
    facts = Facts(
        repository=repo,
        licence=licence,
        files=listed,
        readings=reports[0].readings,
        pictures=pictures,
        grid=grid,
        steps=_steps(reports[0]),
        images=_images(reports[0]),
        base_repository=base_model or base_repository(config),
        goal_known=run is not None or "lora_wizard.config" in reports[0].metadata,
    )
    card = Upload(CARD, model_card(config, facts).encode())
    uploads = (card, *(Upload(file.name, file) for file in files), *picture_uploads)
    return Publication(repo, private, uploads, replace_card), reports


def _source(run_or_file: str, folder: str, all_files: bool) -> tuple[RunFolder | None, list[Path], TrainingConfig]:
    """The run, where one is named, the network files with the newest first, and the config they were made with."""
    path = Path(run_or_file).expanduser()
    if path.suffix == ".safetensors" or os.path.isfile(path):  # noqa: PTH113  (false for a name that cannot be)
        from engine.tools.headers import read_header
        from knowledge.formats.reader import read_foreign

        if path.suffix != ".safetensors":
            raise PlainError(f"{path} is not a .safetensors file. Convert it first: lora-wizard tools convert", 2)
        read_header(path)  # the sentences on a broken file are better than those on a config that is none
        config = read_foreign(path).config
        if config is None:
            raise PlainError(f"{path} does not say enough of how it was made to write a card; publish its run instead.")
        return None, [path], config
    from wizard.follow import find_run

    run = find_run(run_or_file, folder)
    files = sorted(run.checkpoints.glob("*.safetensors"), key=lambda file: file.stat().st_mtime_ns, reverse=True)
    if not files:
        raise PlainError(f"{run.name} has no LoRA file yet.")
    return run, files if all_files else files[:1], run.config()


def _pictures(run: RunFolder, events: Sequence[Event]) -> tuple[list[CardPicture], str, list[Upload]]:
    """The newest samples, the sheet that shows them beside the base model's, and both as uploads."""
    from engine.sample_grid import samples_of
    from engine.tools.model_card import CardPicture
    from engine.tools.publish import Upload
    from wizard.charts import before_after

    by_step = samples_of(events)
    newest = list(by_step[max(by_step)].values())[:MOST_PICTURES] if by_step else []
    there = [sample for sample in newest if (run.path / sample.path).is_file()]
    pictures = [CardPicture(f"samples/{Path(sample.path).name}", sample.prompt) for sample in there]
    uploads = [Upload(one.path, run.path / sample.path) for one, sample in zip(pictures, there, strict=True)]
    sheet = before_after(events, run.path, run.path / "before-after.png") if there else None
    if sheet is not None:
        uploads.append(Upload("before-after.png", sheet))
    return pictures, sheet.name if sheet else "", uploads


def _steps(report: Report) -> int | None:
    said = report.metadata.get("ss_steps", "")
    return int(said) if said.isdigit() else None


def _images(report: Report) -> int | None:
    return sum(images for _, _, images in report.folders) or None


def _show(publication: Publication, reports: Sequence[Report], card: str | None) -> None:
    from engine.tools.publish import home_named
    from wizard import views

    seen = "private" if publication.private else "public"
    count = words.count(len(publication.uploads), "file")
    console = views.console()
    console.print(views.heading(publication.repository, f"{seen} · {count}, {words.size(publication.size_bytes)}"))
    lines = [(upload.path, words.size(upload.size_bytes)) for upload in publication.uploads]
    console.print(views.indented(views.table(("file", "size"), lines, right=("size",))))
    if any(report.tags for report in reports):
        message = "The file's metadata lists the tags of your captions; whoever gets the file can read them."
        console.print(views.finding("note", message, "lora-wizard tools metadata FILE --strip -o public.safetensors"))
    for path in home_named(publication.uploads):
        message = f"In {path} stands the path of your home folder, and whoever gets the file can read it."
        console.print(views.finding("warning", message, "lora-wizard tools metadata FILE"))
    if card is not None:
        say("\n[strong]The card[/]")
        click.echo("\n" + re.sub(r"(?m)^", "  ", card))


def _quiet_hub(quiet: bool) -> None:
    """The hub's own progress bars are for somebody who watches."""
    import sys

    from huggingface_hub.utils.tqdm import disable_progress_bars

    if quiet or not sys.stderr.isatty():
        disable_progress_bars()
