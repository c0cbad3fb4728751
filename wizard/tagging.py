"""`lora-wizard dataset tag`: captions for pictures, from a tagger that knows tags or a model that writes sentences."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from knowledge.answers import PlainError
from wizard import views
from wizard.captions import preview, settled
from wizard.file_commands import watched
from wizard.words import count, size

if TYPE_CHECKING:
    from engine.acquire.picture_models import PictureModel


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--tagger",
    default="wd-vit-v3",
    show_default=True,
    metavar="NAME|FOLDER",
    help="wd-vit-v3, wd-swinv2-v3, wd-eva02-large-v3, blip-base, blip-large … or a folder.",
)
@click.option("--threshold", type=click.FloatRange(0.01, 1), default=0.35, show_default=True, help="For general tags.")
@click.option(
    "--character-threshold", type=click.FloatRange(0.01, 1), default=0.85, show_default=True, help="For names."
)
@click.option(
    "--own-gap",
    is_flag=True,
    help="Let the largest gap among a picture's own general tags decide in place of --threshold (MCut).",
)
@click.option("--blacklist", default="", metavar="TAGS", help="Never write these tags, separated by commas.")
@click.option("--trigger", metavar="WORD", help="Put the trigger word first.")
@click.option("--rating", is_flag=True, help="Add the rating (general, sensitive, questionable, explicit).")
@click.option("--underscores", is_flag=True, help="Keep the underscores in tags.")
@click.option("--append", "existing", flag_value="append", help="Add to captions that are there.")
@click.option("--replace", "existing", flag_value="replace", help="Replace captions that are there.")
@click.option("--skip", "existing", flag_value="skip", default="skip", help="Leave captions that are there.  [this]")
@click.option("--caption-extension", default=".txt", show_default=True, metavar=".EXT", help="Ending of the files.")
@click.option("--batch-size", type=click.IntRange(1, 64), default=4, show_default=True)
@click.option("--dry-run", is_flag=True, help="Show what would be written, and stop.")
@click.option("--yes", is_flag=True, help="Write without asking.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document; needs --yes or --dry-run.")
def tag(
    folder: Path,
    tagger: str,
    threshold: float,
    character_threshold: float,
    own_gap: bool,
    blacklist: str,
    trigger: str | None,
    rating: bool,
    underscores: bool,
    existing: str,
    caption_extension: str,
    batch_size: int,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Write captions for the pictures in FOLDER: tags from a WD14 tagger, or a sentence from BLIP.

    Tags are good for drawings and anime, sentences (--tagger blip-large) for photographs. Tagger and captioner are
    downloaded once, or taken from a folder. To take back what they wrote: lora-wizard dataset captions FOLDER --undo

    \b
    Example: lora-wizard dataset tag pictures --threshold 0.4 --blacklist "simple background" --trigger sks
    """
    from engine.dataset import caption_edits as edits

    if not (dry_run or yes) and (as_json or not views.interactive()):
        raise click.UsageError("Without a terminal to ask in, say --yes to write or --dry-run to look.")
    files = edits.caption_files(folder, caption_extension)
    old = {picture: edits.caption_text(file) for picture, file in files.items()}
    wanted = [picture for picture, text in old.items() if existing != "skip" or not (text or "").strip()]
    if not wanted:
        why = "has a caption for every picture; --append or --replace" if files else "has no pictures"
        raise PlainError(f"{folder} {why}.", 2)
    device, said = _words_for(
        wanted, tagger, threshold, character_threshold, own_gap, rating, underscores, batch_size, quiet=as_json
    )
    unwanted, changes, broken = edits.remove_tags(edits.split(blacklist)), [], []
    with watched(f"Tagging on the {device}", quiet=as_json) as tell:
        for number, (picture, text) in enumerate(said, start=1):
            tell(number, len(wanted))
            if isinstance(text, PlainError):
                broken.append(str(text))
                continue
            text, before = unwanted(text), old[picture]
            if existing == "append" and before:
                text = edits.without_doubles(edits.join([*edits.split(before), *edits.split(text)]))
            if trigger:
                text = edits.trigger_first(trigger)(text)
            if text != before:
                changes.append(edits.Change(files[picture], before, text))
    words = f"tagged by {Path(tagger).name}"
    if not as_json:
        preview(changes, words)
        for sentence in broken:
            views.console().print(f"[warning]{sentence}[/]")
    asked = f"Write {count(len(changes), 'caption')}?"
    if settled(folder, changes, words, asked, yes, dry_run, {"broken": broken} if as_json else None):
        views.console().print(f"[good]{count(len(changes), 'caption')} written.[/]")


def _words_for(
    pictures: Sequence[Path],
    tagger: str,
    threshold: float,
    character_threshold: float,
    own_gap: bool,
    rating: bool,
    underscores: bool,
    batch_size: int,
    quiet: bool,
) -> tuple[str, Iterator[tuple[Path, str | PlainError]]]:
    """Where it computes, and what it says of each picture: tags from a tagger, a sentence from a captioner."""
    from engine.captioning import CAPTIONERS, Captioner, caption_pictures, captioner, is_captioner

    if is_captioner(tagger):
        describing = Captioner(fetched(captioner(tagger), quiet) if tagger in CAPTIONERS else Path(tagger).expanduser())
        return describing.device, caption_pictures(describing, pictures, batch_size)
    from engine.dataset.caption_edits import join
    from engine.tagging import Tagger, spoken, tag_pictures
    from engine.tagging import tagger as tagger_of_the_hub

    own = Path(tagger).expanduser()
    loaded = Tagger(own if own.is_dir() else fetched(tagger_of_the_hub(tagger), quiet))

    def text(row: Any) -> str | PlainError:
        if not hasattr(row, "shape"):
            return row  # type: ignore[no-any-return]
        names = [tag.name for tag in loaded.tags(row, threshold, character_threshold, rating=rating, own_gap=own_gap)]
        return join(name if underscores else spoken(name) for name in names)

    return loaded.device, ((path, text(row)) for path, row in tag_pictures(loaded, pictures, batch_size))


def fetched(model: PictureModel, quiet: bool = False) -> Path:
    """The folder of a model that puts pictures into words, downloaded with a bar where it is not here yet.

    Raises PlainError, which says what to do without the hub.
    """
    from engine.acquire.network import NetworkError
    from engine.acquire.picture_models import bring, look
    from wizard.download import bar, waiting

    here = model.here()
    if here is not None:
        return here
    console = views.console(sys.stderr)
    try:
        with waiting(f"Looking at {model.repository}") as notice:
            coming = look(model, notice)
        if not quiet:
            console.print(f"[quiet]Downloading {model.repository} ({size(coming.size_bytes)}) to {model.folder}[/]")
        with bar(coming.size_bytes, quiet) as (tell, notice):
            return bring(coming, tell, notice)
    except NetworkError as problem:
        files = ", ".join(names[0] for names in model.needs)
        raise PlainError(
            f"{problem}\nWithout the hub: put {files} of {model.repository} into a folder, and name it with --tagger."
        ) from None
