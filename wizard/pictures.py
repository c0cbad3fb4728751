"""What the wizard finds in the picture folders, in words: how many, how large, which shapes, which captions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from knowledge.config import DatasetFolder, DatasetSettings
from knowledge.facts import DatasetFacts, Picture
from wizard import views, words

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

EXAMPLES = 3
"""Captions that are shown as the model will see them."""

_readable: dict[tuple[str, float, int], bool] = {}


def unreadable(pictures: Sequence[Picture]) -> list[str]:
    """The pictures that cannot be decoded to the last line, as a broken download cannot; each is decoded once."""

    def check(picture: Picture) -> bool:
        path = Path(picture.path)
        state = path.stat()
        key = (picture.path, state.st_mtime, state.st_size)
        if key not in _readable:
            _readable[key] = _decodes(path)
        return _readable[key]

    with ThreadPoolExecutor() as pool:
        fine = list(pool.map(check, pictures))
    return [picture.path for picture, readable in zip(pictures, fine, strict=True) if not readable]


def _decodes(path: Path) -> bool:
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.draft("RGB", (image.width // 8, image.height // 8))  # JPEG: all of the data, an eighth of the work
            image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False
    return True


def report(dataset: DatasetFacts, settings: DatasetSettings, damaged: Sequence[str] = ()) -> RenderableType:
    """What was found, as labelled lines."""
    from rich.text import Text

    training = [picture for folder in dataset.folders if not folder.regularisation for picture in folder.pictures]
    lines: list[tuple[str, RenderableType]] = [("Found", _counted(dataset, settings.folders))]
    unusable = [*dataset.broken, *damaged]
    if unusable:
        names = ", ".join(Path(path).name for path in unusable[:3])
        more = f" and {len(unusable) - 3} more" if len(unusable) > 3 else ""
        lines.append(
            ("Damaged", Text(f"{words.count(len(unusable), 'file')} cannot be read: {names}{more}", "warning"))
        )
    if training:
        lines.append(("Sizes", _sizes(training, settings)))
        lines.append(("Shapes", _shapes(training, settings)))
        lines.append(("Captions", _captions(dataset, training)))
        lines.append(("Repeats", _repeats(dataset)))
    return views.rows(lines, 9)


def _counted(dataset: DatasetFacts, folders: Sequence[DatasetFolder]) -> Text:
    from rich.text import Text

    text = Text.assemble((words.count(dataset.images, "picture"), "strong"))
    text.append(f" in {short(folders[0].path)}" if len(folders) == 1 else f" in {words.count(len(folders), 'folder')}")
    if dataset.regularisation_images:
        text.append(f"; {dataset.regularisation_images:,} more to keep it from forgetting")
    return text


def _repeats(dataset: DatasetFacts) -> Text:
    """How often an epoch shows each picture, and what that is."""
    from rich.text import Text

    each = sorted({folder.repeats for folder in dataset.folders if not folder.regularisation})
    often = words.count(each[0], "time") if len(each) == 1 else f"{each[0]} to {each[-1]} times, folder by folder"
    views = words.count(dataset.views_per_epoch, "view")
    return Text(f"each picture is shown {often} in one epoch, which is one pass through all of them: {views}")


def _sizes(pictures: Sequence[Picture], settings: DatasetSettings) -> Text:
    from rich.text import Text

    smallest = min(pictures, key=lambda picture: picture.width * picture.height)
    largest = max(pictures, key=lambda picture: picture.width * picture.height)
    text = Text(f"{smallest.width} × {smallest.height}")
    if (smallest.width, smallest.height) != (largest.width, largest.height):
        text.append(f" to {largest.width} × {largest.height}")
    text.append(" pixels")
    small = sum(picture.width * picture.height < settings.resolution**2 for picture in pictures)
    if small:
        text.append(f"; {small} would be enlarged to {settings.resolution}", "warning")
    return text


def _shapes(pictures: Sequence[Picture], settings: DatasetSettings) -> Text:
    """The buckets as the engine will make them."""
    from rich.text import Text

    from calculator.buckets import place

    buckets = Counter(place(picture.width, picture.height, settings).bucket for picture in pictures)
    shown = [f"{count} as {width} × {height}" for (width, height), count in buckets.most_common(4)]
    if len(buckets) > 4:
        shown.append(f"the rest in {words.count(len(buckets) - 4, 'other shape')}")
    return Text(", ".join(shown))


def _captions(dataset: DatasetFacts, training: Sequence[Picture]) -> Text:
    from rich.text import Text

    from engine.dataset.caption_tables import is_table

    missing = dataset.captions_missing
    if missing == 0:
        return Text("every picture has one")
    if missing == len(training):
        text = Text("none; the trigger word alone will stand for every picture", "warning")
    else:
        text = Text(
            f"{missing} of {words.count(len(training), 'picture')} {words.agreeing(missing, 'has', 'have')} none",
            "warning",
        )
    folders = dict.fromkeys(Path(picture.path).parent for picture in training if not picture.caption)
    tables = dict.fromkeys(file.name for folder in folders for file in folder.iterdir() if is_table(file.name))
    if tables:
        text.append(f"; {', '.join(tables)} may hold them, and “Change all captions at once” takes them over")
    return text


def captions_as_trained(
    dataset: DatasetFacts, settings: DatasetSettings, limit: int | None = EXAMPLES
) -> RenderableType:
    """Captions word for word as the model will see them, with the trigger word in its place."""
    from rich.text import Text

    training = [picture for folder in dataset.folders if not folder.regularisation for picture in folder.pictures]
    lines: list[tuple[str, RenderableType]] = []
    for picture in training[:limit]:
        caption = as_trained(picture, settings)
        lines.append((short(Path(picture.path).name, 20), Text(caption or "(nothing)", "" if caption else "quiet")))
    return views.rows(lines)


def first_caption(dataset: DatasetFacts | None, settings: DatasetSettings, trigger_word: str | None) -> Text | None:
    """What this trigger word makes of the first picture's caption; None while the pictures are unknown."""
    from rich.text import Text

    if dataset is None or not dataset.images:
        return None
    training = next(folder.pictures for folder in dataset.folders if not folder.regularisation and folder.pictures)
    picture = next((picture for picture in training if picture.caption), training[0])
    caption = as_trained(picture, settings.model_copy(update={"trigger_word": trigger_word or ""}))
    return Text.assemble((f"{short(Path(picture.path).name, 20)} will be read as  ", "quiet"), caption or "(nothing)")


def as_trained(picture: Picture, settings: DatasetSettings) -> str:
    """The caption word for word as the model will see it, before anything is dropped by chance."""
    from engine.dataset.captions import trained_caption

    return trained_caption(picture.caption, settings.model_copy(update={"caption_dropout_rate": 0.0}), Random(0), 1)


def short(path: str, longest: int = 44) -> str:
    """A path for the screen: ~ for the home folder, and its end where it is long."""
    home = str(Path.home())
    text = "~" + path[len(home) :] if path.startswith(home + "/") else path
    return text if len(text) <= longest else "…" + text[-(longest - 1) :]
