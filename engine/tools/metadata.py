"""What a network file says of itself: read, changed, taken out. The tensors stay as they are, byte for byte."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.tools.files import PICKLES
from engine.tools.headers import opened, read_header
from engine.tools.writing import replace_metadata
from knowledge.answers import PlainError

WHAT_LOADING_NEEDS = (
    "ss_v2",
    "ss_base_model_version",
    "ss_network_module",
    "ss_network_dim",
    "ss_network_alpha",
    "ss_network_args",
)
"""What sd-scripts itself leaves in with --no_metadata."""
HASHES = ("sshs_model_hash", "sshs_legacy_hash")
MODELSPEC = {
    "title": "modelspec.title",
    "author": "modelspec.author",
    "description": "modelspec.description",
    "license": "modelspec.license",
    "usage": "modelspec.usage_hint",
    "tags": "modelspec.tags",
    "trigger": "modelspec.trigger_phrase",
    "thumbnail": "modelspec.thumbnail",
}
"""Short names of what people edit most, by the key of Stability's ModelSpec 1.0.1."""
LARGEST_THUMBNAIL = 512


def metadata_of(path: Path | str) -> dict[str, str]:
    """The metadata of a .safetensors file, empty where there is none. Raises PlainError for a pickle."""
    if Path(path).suffix.lower() in PICKLES:
        raise PlainError(
            f"{path} is not a .safetensors file, so it has no metadata. Convert it first: lora-wizard tools convert", 2
        )
    return dict(read_header(path).metadata)


def edited(metadata: Mapping[str, str], changes: Mapping[str, str | None]) -> dict[str, str]:
    """The metadata with changes applied; None removes a key. Short names of MODELSPEC are understood."""
    result = dict(metadata)
    for name, value in changes.items():
        key = MODELSPEC.get(name, name)
        if value is None:
            if key not in result:
                raise PlainError(f'There is no metadata "{key}" to remove.', 2)
            del result[key]
        else:
            result[key] = value
    return result


def stripped(metadata: Mapping[str, str], everything: bool = False) -> dict[str, str]:
    """Only what programs need to load the file, or nothing at all with `everything`; the hashes always stay."""
    kept = HASHES if everything else (*WHAT_LOADING_NEEDS, *HASHES)
    return {name: value for name, value in metadata.items() if name in kept}


def thumbnail(picture: Path | str) -> str:
    """A picture as the data URL that modelspec.thumbnail holds: JPEG, at most 512 pixels a side."""
    import io

    from PIL import Image

    try:
        with opened(Path(picture)) as file, Image.open(file) as large:
            small = large.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # what Pillow raises for broken pictures
        raise PlainError(f"{picture} cannot be read as a picture.", 2) from None
    small.thumbnail((LARGEST_THUMBNAIL, LARGEST_THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def write_metadata(source: Path | str, target: Path | str, metadata: Mapping[str, str]) -> None:
    """A copy of the file with this metadata."""
    replace_metadata(source, target, metadata)


def tag_frequency(metadata: Mapping[str, str]) -> list[tuple[str, int]]:
    """The tags of the training captions, the most frequent first, counted over all folders."""
    counts: dict[str, int] = {}
    for folder in document(metadata, "ss_tag_frequency").values():
        for tag, count in folder.items() if isinstance(folder, dict) else ():
            if isinstance(count, int):
                counts[tag.strip()] = counts.get(tag.strip(), 0) + count
    return sorted(counts.items(), key=lambda item: -item[1])


def folders(metadata: Mapping[str, str]) -> list[tuple[str, int, int]]:
    """The dataset folders a kohya file tells of: name, repeats, pictures."""
    found = []
    for name, facts in document(metadata, "ss_dataset_dirs").items():
        told = facts if isinstance(facts, dict) else {"n_repeats": None}
        repeats, pictures = told.get("n_repeats", 1), told.get("img_count", 0)
        if isinstance(repeats, int) and isinstance(pictures, int):
            found.append((name, repeats, pictures))
    return found


def trigger_words(metadata: Mapping[str, str]) -> list[str]:
    """What probably calls the LoRA up: the trigger phrase, or else the tags that all captions of a folder share."""
    if metadata.get("modelspec.trigger_phrase"):
        return [metadata["modelspec.trigger_phrase"]]
    pictures = {name: count for name, _, count in folders(metadata)}
    frequency = document(metadata, "ss_tag_frequency")
    shared = [
        tag.strip()
        for folder, tags in frequency.items()
        for tag, count in (tags.items() if isinstance(tags, dict) else ())
        if isinstance(count, int) and 0 < pictures.get(folder, 0) <= count
    ]
    return list(dict.fromkeys(shared))[:5]


def document(metadata: Mapping[str, str], key: str) -> dict[str, Any]:
    """The JSON object that an entry holds; an empty one where it is missing or holds anything else."""
    try:
        found = json.loads(metadata.get(key, "{}"))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
