"""Sentences for pictures from BLIP, for photographs and all that is not drawn."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from engine.acquire.picture_models import PictureModel
from engine.dataset.images import load_picture
from knowledge.answers import PlainError

CAPTIONERS = {
    "blip-base": "Salesforce/blip-image-captioning-base",
    "blip-large": "Salesforce/blip-image-captioning-large",
}
"""The captioners by name, with their repositories on the Hugging Face hub. A newer BLIP is a row."""

NEEDS = (
    ("config.json",),
    ("preprocessor_config.json",),
    ("vocab.txt", "tokenizer.json"),
    ("model.safetensors", "pytorch_model.bin"),  # transformers reads the second as weights and runs nothing in it
)
ALSO = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json")
"""The files of a BLIP, and those that some have beside them."""


def is_captioner(name: str) -> bool:
    """Whether this is one of them, or a folder that holds one."""
    config = Path(name).expanduser() / "config.json"
    try:
        return name in CAPTIONERS or json.loads(config.read_text(encoding="utf-8")).get("model_type") == "blip"
    except (OSError, ValueError):
        return False


def captioner(name: str) -> PictureModel:
    """The captioner of this name, one of CAPTIONERS."""
    return PictureModel(name, CAPTIONERS[name], NEEDS, ALSO)


class Captioner:
    """A loaded BLIP."""

    def __init__(self, folder: Path) -> None:
        """Raises PlainError for a folder that does not hold one."""
        import torch
        from transformers import AutoTokenizer, BlipForConditionalGeneration, BlipImageProcessorPil
        from transformers.utils import logging

        quiet: Any = logging
        quiet.set_verbosity_error()
        quiet.disable_progress_bar()
        self._torch = torch
        self.device = "GPU" if torch.cuda.is_available() else "CPU"
        self._place = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self._processor = BlipImageProcessorPil.from_pretrained(folder, local_files_only=True)
            model: Any = BlipForConditionalGeneration.from_pretrained(folder, local_files_only=True)
            self._model = model.to(self._place).eval()
        except (OSError, ValueError, KeyError) as error:
            first = str(error).strip().splitlines()[0]
            raise PlainError(f"The captioner in {folder} cannot be loaded: {first}") from None

    def captions(self, pictures: Sequence[Image.Image]) -> list[str]:
        """One sentence for each picture."""
        pixels = self._processor(images=list(pictures), return_tensors="pt").pixel_values.to(self._place)
        with self._torch.no_grad():
            ids = self._model.generate(pixel_values=pixels, max_new_tokens=40, num_beams=3, do_sample=False)
        return [text.strip() for text in self._tokenizer.batch_decode(ids, skip_special_tokens=True)]


def caption_pictures(
    captioner: Captioner, pictures: Sequence[Path], batch_size: int = 4
) -> Iterator[tuple[Path, str | PlainError]]:
    """A sentence for each picture, in their order; the error for one that cannot be read."""
    for start in range(0, len(pictures), batch_size):
        group: list[tuple[Path, Image.Image | PlainError]] = []
        for path in pictures[start : start + batch_size]:
            try:
                group.append((path, load_picture(path)))
            except PlainError as error:
                group.append((path, error))
        readable = [picture for _, picture in group if isinstance(picture, Image.Image)]
        texts = iter(captioner.captions(readable) if readable else [])
        for path, picture in group:
            yield path, picture if isinstance(picture, PlainError) else next(texts)
