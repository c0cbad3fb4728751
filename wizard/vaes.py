"""The VAE's question: the base model's own, one that is here, or one from the network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from knowledge.answers import PlainError
from knowledge.config import POCKET_MODEL
from knowledge.downloads import fitting_vae
from knowledge.parameters import parameters
from wizard import pictures as found
from wizard import questions
from wizard.model_downloads import downloaded
from wizard.paths import typed_path
from wizard.prompts import Move, Option, Page

if TYPE_CHECKING:
    from wizard.session import Session

Values = Mapping[str, Any]
NAME = "base_model.vae"
HERE, DOWNLOAD = object(), object()
"""The answers of who has a VAE on this computer, and of who wants one from the network."""


def vae_at(text: str) -> str:
    """The path of a VAE, as a file or a folder. Raises PlainError for what is none."""
    from engine.models.detect import is_vae, read_header, refuse_pickle

    path = Path(typed_path(text)).expanduser()
    if not text or not path.exists():
        raise PlainError(f"There is no {text}." if text else "Name a .safetensors file or the folder of a VAE.", 2)
    refuse_pickle(path)
    weights = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not weights or not is_vae(read_header(weights[0])):
        raise PlainError(f"{path} is no VAE: a .safetensors file of one, or a folder that holds config.json and it.", 2)
    return str(path.resolve())


def vae(session: Session, around: Values) -> Values | Move:
    """Asks which VAE shall encode the pictures."""
    entry = parameters()[NAME]
    config = session.situation().config.base_model
    around = {**around, "more": False, "back": "back"}
    family = config.family if config.path and config.path != POCKET_MODEL else ""
    fitting = fitting_vae(family)
    at: Any = config.vae
    while True:
        here = dict(vaes_downloaded(family))
        if config.vae and config.vae not in here:
            here[config.vae] = "in use so far"
        answer = session.ask(
            Page(
                title="Which VAE shall encode the pictures?",
                body=questions.explanation(entry, None),
                options=(
                    Option("", "The base model's own", "recommended"),
                    *(Option(path, found.short(path, 34), what) for path, what in here.items()),
                    Option(HERE, "A VAE on this computer …", "type or paste its path"),
                    Option(DOWNLOAD, "Download a VAE …", fitting.title if fitting else "", _fits(family)),
                ),
                default=at,
                help=lambda _: questions.long_explanation(entry, None),
                **around,
            )
        )
        around = {**around, "error": ""}
        at = answer
        try:
            if answer is HERE:
                answer = session.ask(Page(title="Where is the VAE?", default="", check=vae_at, is_path=True, **around))
            elif answer is DOWNLOAD:
                answer = downloaded(session, around, "vae", family)
        except PlainError as problem:
            around = {**around, "error": str(problem)}
            continue
        except KeyboardInterrupt:
            around = {**around, "error": "The download was interrupted. Choose it again, and it goes on from there."}
            continue
        if not isinstance(answer, Move):
            return {NAME: answer}
        if isinstance(at, Move):  # of this page; one of the pages behind it leads back to it
            return at


def _fits(family: str) -> str:
    fitting = fitting_vae(family)
    return fitting.meaning if fitting else "From Hugging Face or Civitai, checked."


def vaes_downloaded(family: str) -> Iterator[tuple[str, str]]:
    """VAEs in the manifest of the models folder: (path, what it is); the one that fits this family is told apart."""
    from engine.acquire.models_folder import models_folder

    folder = models_folder()
    fitting = fitting_vae(family)
    for model in folder.models():
        if model.kind == "vae":
            fits = fitting is not None and fitting.address in model.title
            yield str((folder.path / model.name).resolve()), "downloaded, fits" if fits else "downloaded"
