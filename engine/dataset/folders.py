"""The pictures of the dataset folders: sizes from file headers and captions, without decoding and without torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.dataset.captions import read_caption
from engine.dataset.images import UNREADABLE, picture_size
from knowledge.answers import PlainError, quoted
from knowledge.config import DatasetFolder, DatasetSettings
from knowledge.facts import DatasetFacts, FolderFacts, Picture

PICTURE_EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif"})
OTHER_PICTURE_EXTENSIONS = frozenset(
    {".gif", ".tif", ".tiff", ".heic", ".heif", ".jxl", ".psd", ".svg", ".raw", ".dng"}
)
"""Pictures that are not read; a folder that holds nothing else is told so."""
CAPTION_EXTENSIONS = (".txt", ".caption", ".captions", ".tags", ".cap")
"""Extensions under which caption files are found in the wild, the usual one first."""

_REPEATS = re.compile(r"(\d+)_(.+)")
_TRAINING_PARENTS = ("img", "image", "images", "train")
_REGULARISATION_PARENTS = ("reg", "regularization", "regularisation", "class")


@dataclass(frozen=True)
class Listing:
    """The files of one folder by role. `captions` is by stem, for one extension; hidden files are left out."""

    folder: Path
    pictures: tuple[Path, ...]
    captions: Mapping[str, Path]
    others: tuple[Path, ...]
    subfolders: tuple[Path, ...]

    @property
    def unread_pictures(self) -> tuple[Path, ...]:
        """Pictures of kinds that are not read."""
        return tuple(path for path in self.others if path.suffix.lower() in OTHER_PICTURE_EXTENSIONS)


def listing(folder: Path, caption_extension: str = ".txt") -> Listing:
    """What lies in this folder, not in folders below it, in order of name. Raises OSError where it cannot be read."""
    pictures, captions, others, subfolders = [], {}, [], []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        extension = path.suffix.lower()
        if extension in PICTURE_EXTENSIONS and not path.is_dir():
            pictures.append(path)
        elif extension == caption_extension.lower() and not path.is_dir():
            captions[path.stem] = path
        elif path.is_dir():
            subfolders.append(path)
        else:
            others.append(path)
    return Listing(folder, tuple(pictures), captions, tuple(others), tuple(subfolders))


def scan(settings: DatasetSettings) -> DatasetFacts:
    """The pictures and captions of all dataset folders.

    Raises PlainError that tells the problems of all folders together: a folder that is missing or holds no pictures,
    captions that are not UTF-8 text, captions under another extension than dataset.caption_extension, masks that fit
    no picture.
    """
    if not settings.folders:
        raise PlainError("dataset.folders is empty; there is nothing to train on. Name a folder of pictures.", 2)
    problems: list[str] = []
    broken: list[str] = []
    folders = []
    for folder in settings.folders:
        try:
            found = folder_listing(Path(folder.path).expanduser(), settings.caption_extension)
            pictures = tuple(_pictures(found, folder.caption, broken))
            mask_files(folder)
        except PlainError as error:
            problems.append(str(error))
        else:
            folders.append(FolderFacts(pictures, folder.repeats, folder.regularisation))
    if not problems and not any(folder.pictures for folder in folders if not folder.regularisation):
        problems.append(_nothing_left(settings.folders, broken))
    if problems:
        raise PlainError("\n".join(problems))
    return DatasetFacts(tuple(folders), tuple(broken))


def mask_files(folder: DatasetFolder) -> dict[Path, Path]:
    """The mask of each picture that has one, by file name; none without dataset.folders.masks.

    Raises PlainError for a mask folder that is missing or holds no mask for any picture of its folder.
    """
    if not folder.masks:
        return {}
    masks = {path.stem: path for path in folder_listing(Path(folder.masks).expanduser()).pictures}
    pictures = folder_listing(Path(folder.path).expanduser()).pictures
    found = {path: masks[path.stem] for path in pictures if path.stem in masks}
    if not found:
        raise PlainError(
            f"dataset.folders.masks is {folder.masks}, but no file there is named like a picture in {folder.path}. "
            "A mask for cat.jpg is called cat.png, or any other picture ending."
        )
    return found


def suggest_folders(path: Path | str) -> tuple[DatasetFolder, ...]:
    """The dataset folders in a folder that a user names: itself, or kohya's `10_name` folders with their repeats.

    Of two folders `img` and `reg` that hold `10_name` folders, the second is for regularisation. The rest of a
    `10_name` becomes the caption of pictures that have none, as in kohya. Raises PlainError where no pictures are.
    """
    path = Path(path).expanduser()
    top = folder_listing(path)
    suggested = [DatasetFolder(path=str(path))] if top.pictures else []
    suggested += _numbered(top.subfolders)
    by_name = {folder.name.lower(): folder for folder in top.subfolders}
    for names, regularisation in ((_TRAINING_PARENTS, False), (_REGULARISATION_PARENTS, True)):
        for name in names:
            if name in by_name:
                suggested += _numbered(listing(by_name[name]).subfolders, regularisation=regularisation)
    if not any(not folder.regularisation for folder in suggested):
        raise PlainError(no_pictures(top))
    return tuple(suggested)


def suggest_caption_extension(folders: Iterable[DatasetFolder]) -> str:
    """The extension that most captions in these folders have; .txt where there are none."""
    counts = dict.fromkeys(CAPTION_EXTENSIONS, 0)
    for folder in folders:
        stems = {picture.stem for picture in listing(Path(folder.path).expanduser()).pictures}
        for file in Path(folder.path).expanduser().iterdir():
            if file.suffix.lower() in counts and file.stem in stems:
                counts[file.suffix.lower()] += 1
    return max(counts, key=lambda extension: counts[extension])


def _numbered(folders: Sequence[Path], *, regularisation: bool = False) -> Iterator[DatasetFolder]:
    """The folders named like `10_sks cat` that hold pictures."""
    for folder in folders:
        match = _REPEATS.fullmatch(folder.name)
        if match and int(match[1]) >= 1 and listing(folder).pictures:
            repeats, caption = int(match[1]), match[2].strip()
            yield DatasetFolder(path=str(folder), repeats=repeats, regularisation=regularisation, caption=caption)


def folder_listing(folder: Path, caption_extension: str = ".txt") -> Listing:
    """`listing`, but raising PlainError where the folder cannot be listed."""
    try:
        return listing(folder, caption_extension)
    except FileNotFoundError:
        raise PlainError(
            f"There is no folder {folder}. Check the name; relative names start at {Path.cwd()}."
        ) from None
    except NotADirectoryError:
        extension = folder.suffix.lower()
        if extension == ".zip":
            remedy = f"Unpack it first: lora-wizard dataset import {quoted(folder)}"
        else:
            remedy = f"Name the folder that holds the pictures, here {folder.parent}."
        raise PlainError(f"{folder} is a file, not a folder. {remedy}") from None
    except PermissionError:
        raise PlainError(f"{folder} may not be read by this user; change its permissions or copy it.") from None
    except OSError as error:
        raise PlainError(f"{folder} cannot be read: {error.strerror or error}.") from None


def _pictures(found: Listing, caption: str, broken: list[str]) -> Iterator[Picture]:
    """The readable pictures of a folder; the others are added to `broken`."""
    if not found.pictures:
        raise PlainError(no_pictures(found))
    _check_caption_extension(found)
    not_text = []
    for path in found.pictures:
        file = found.captions.get(path.stem)
        try:
            text = read_caption(file) if file else caption or None
        except UnicodeDecodeError:
            not_text.append(str(file))
            continue
        try:
            width, height = picture_size(path)
        except UNREADABLE:
            broken.append(str(path))
        else:
            yield Picture(str(path), width, height, text)
    if not_text:
        raise PlainError(
            f"{_some(not_text)} {'is' if len(not_text) == 1 else 'are'} not UTF-8 text, so the words cannot be "
            "trusted. Save as UTF-8 in a text editor."
        )


def _check_caption_extension(found: Listing) -> None:
    """Raises PlainError when no picture has a caption under the extension asked for, but some have under another."""
    stems = {path.stem for path in found.pictures}
    if stems & found.captions.keys():
        return
    others = [path for path in found.others if path.suffix.lower() in CAPTION_EXTENSIONS and path.stem in stems]
    if others:
        extension = others[0].suffix
        raise PlainError(
            f"No picture in {found.folder} has a caption under dataset.caption_extension, but {len(others)} of "
            f'{len(found.pictures)} have one that ends in {extension}. Set dataset.caption_extension to "{extension}".'
        )


def no_pictures(found: Listing) -> str:
    """Why a folder has no pictures and where they may be."""
    below = []
    for folder in found.subfolders:
        try:
            if listing(folder).pictures:
                below.append(str(folder))
        except OSError:
            continue
    if below:
        deeper = _some(below, " or ")
        return f"There are no pictures in {found.folder} itself, but there are one folder deeper: use {deeper}."
    kinds = ", ".join(sorted(PICTURE_EXTENSIONS))
    unread = sorted({path.suffix.lower() for path in found.unread_pictures})
    if unread:
        return f"Pictures in {found.folder} are of a kind that is not read ({', '.join(unread)}). Convert to {kinds}."
    if not (found.others or found.captions or found.subfolders):
        return f"{found.folder} is empty. Put pictures there ({kinds})."
    return f"There are no pictures in {found.folder}. Pictures end in {kinds}."


def _nothing_left(folders: Sequence[DatasetFolder], broken: Sequence[str]) -> str:
    if broken:
        return f"None of the pictures can be read: {_some(broken)}. Are they really pictures, and complete?"
    assert all(folder.regularisation for folder in folders)
    return "All of dataset.folders are for regularisation; name at least one folder with pictures to learn."


def _some(names: Sequence[str], last: str = " and ") -> str:
    """The first few names of a list in words."""
    shown, rest = list(names[:3]), len(names) - 3
    if rest > 0:
        return ", ".join(shown) + f"{last}{rest} more"
    return ", ".join(shown[:-1]) + last + shown[-1] if len(shown) > 1 else shown[0]
