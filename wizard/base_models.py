"""The question for the base model: one that is here, one from the network, or the built-in one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from knowledge.answers import PlainError
from knowledge.config import POCKET_MODEL
from knowledge.parameters import parameters
from wizard import pictures as found
from wizard import questions, vaes
from wizard.model_downloads import downloaded
from wizard.paths import typed_path
from wizard.prompts import Move, Option, Page

if TYPE_CHECKING:
    from wizard.session import Session

Values = Mapping[str, Any]

OWN_MODEL = "A Stable Diffusion 1.5, 2 or SDXL model that you have already, as one .safetensors file or as a folder."
DOWNLOAD = object()
"""The answer of who wants a model from the network."""

VAE = object()
"""The answer of who wants another VAE than the model's own."""

MOST_FOUND = 6


def model_at(text: str) -> Values:
    """The base model at a path and what it is. Raises PlainError when it cannot be trained."""
    from engine.models.detect import detect

    path = typed_path(text)
    if not path:
        raise PlainError("Name a .safetensors file or the folder of a diffusers model.", 2)
    if path != POCKET_MODEL:
        path = str(Path(path).expanduser().resolve())
    model = detect(path)
    return {
        "base_model.path": path,
        "base_model.family": model.family,
        "base_model.prediction_type": model.prediction_type,
        "base_model.zero_terminal_snr": model.zero_terminal_snr,
    }


def base_model(session: Session, around: Values) -> Values | Move:
    """Asks for the model to build on: one that lies on this computer, one to download, the built-in one, or a path."""
    entry = parameters()["base_model.path"]
    family = parameters()["base_model.family"]
    current = session.draft.values.get("base_model.path")
    at: Any = current or ""
    while True:
        models, problem = _known_models()
        if current and current != POCKET_MODEL and current not in models:
            models[current] = "in use so far"
        answer = session.ask(
            Page(
                title=session.wording("base_model.path"),
                body=questions.explanation(entry, None),
                options=(
                    Option("", "A model on this computer …", "type or paste its path", OWN_MODEL),
                    *(Option(path, found.short(path, 34), what) for path, what in models.items()),
                    Option(POCKET_MODEL, "The pocket model", "built in", family.choices["pocket"].meaning),
                    Option(DOWNLOAD, "Download a model …", "2 to 7 GB", "From Hugging Face or Civitai, checked."),
                    Option(VAE, "Another VAE …", _vae_in_words(session), parameters()[vaes.NAME].meaning),
                ),
                default=at,
                help=lambda _: questions.long_explanation(entry, None),
                **{**around, "error": around.get("error") or problem},
            )
        )
        around = {**around, "error": ""}
        if answer is VAE:
            at = VAE
            chosen = vaes.vae(session, around)
            if not isinstance(chosen, Move):
                session.answer(chosen)
            continue
        if answer is DOWNLOAD:
            at = DOWNLOAD
            try:
                answer = downloaded(session, {**around, "more": False, "back": "back"}, "base model")
            except PlainError as problem_of_download:
                around = {**around, "error": str(problem_of_download)}
                continue
            except KeyboardInterrupt:
                around = {
                    **around,
                    "error": "The download was interrupted. Choose it again, and it goes on from there.",
                }
                continue
            if answer is Move.BACK:
                continue
        elif answer == "":
            answer = session.ask(
                Page(
                    title="Where is the model?",
                    body=(
                        "A single [strong].safetensors[/] file, or the folder of a diffusers model. "
                        "What kind of model it is, is read from the file.",
                    ),
                    default="",
                    help=lambda _: questions.long_explanation(entry, None),
                    check=model_at,
                    is_path=True,
                    **{**around, "more": False, "back": "back"},
                )
            )
            if answer is Move.BACK:
                continue
        if isinstance(answer, Move):
            return answer
        try:
            values = answer if isinstance(answer, Mapping) else model_at(answer)
            settled = _with_its_prediction(session, values, {**around, "error": "", "more": False, "back": "back"})
            if settled is Move.BACK:
                at = values["base_model.path"]
                continue
            return settled
        except PlainError as problem_of_model:
            around = {**around, "error": str(problem_of_model)}


def _with_its_prediction(session: Session, values: Values, around: Values) -> Values | Move:
    """The values with what the model predicts, asked for where its file does not say."""
    from engine.models.detect import detect

    if not detect(values["base_model.path"]).prediction_supposed:
        return values
    entry = parameters()["base_model.prediction_type"]
    answer = session.ask(
        Page(
            title="What does this model predict?",
            body=(
                "Stable Diffusion 2 comes in two kinds, and the file does not say which this is. "
                "Its weights look like those of the kind that is marked. The page that it came from says it: models "
                "for 768 pixels predict v, models for 512 predict noise.",
            ),
            options=tuple(
                Option(name, choice.title, note=choice.meaning) for name, choice in sorted(entry.choices.items())
            ),
            default=values["base_model.prediction_type"],
            help=lambda _: questions.long_explanation(entry, None),
            **around,
        )
    )
    return answer if isinstance(answer, Move) else {**values, "base_model.prediction_type": answer}


def _vae_in_words(session: Session) -> str:
    chosen = session.situation().config.base_model.vae
    return found.short(chosen, 30) if chosen else "now the model's own"


# --- models that are here ---------------------------------------------------------------------------------------------


def _known_models() -> tuple[dict[str, str], str]:
    """Models to choose from, each with what it is: downloaded ones first; and what is wrong with their manifest."""
    problem = ""
    try:
        models = dict(models_downloaded())
    except PlainError as error:
        models, problem = {}, str(error)
    for path, what in models_on_this_computer():
        if len(models) < MOST_FOUND:
            models.setdefault(path, what)
    return models, problem


def models_downloaded() -> Iterator[tuple[str, str]]:
    """Base models in the manifest of the models folder: (path, what it is)."""
    from engine.acquire.models_folder import models_folder

    folder = models_folder()
    for model in folder.models():
        if model.kind == "base model":
            path = (folder.path / model.name).resolve()
            yield str(path), f"{_title(model.family)}, downloaded"


def models_on_this_computer() -> Iterator[tuple[str, str]]:
    """Base models in the places where other programs keep them: (path, what it is)."""
    from engine.models.detect import detect

    places = [Path.cwd(), Path.cwd() / "models", Path.home() / "models"]
    for program in ("ComfyUI/models", "stable-diffusion-webui/models", "stable-diffusion-webui-forge/models"):
        places += [Path.home() / program / kind for kind in ("checkpoints", "Stable-diffusion", "diffusers")]
    candidates = [file for place in places if place.is_dir() for file in sorted(place.glob("*.safetensors"))]
    candidates += [
        index.parent for place in places if place.is_dir() for index in sorted(place.glob("*/model_index.json"))
    ]
    cache = Path.home() / ".cache" / "huggingface" / "hub"
    candidates += [index.parent for index in sorted(cache.glob("models--*/snapshots/*/model_index.json"))]
    shown = 0
    for candidate in candidates:
        try:
            model = detect(candidate)
        except PlainError:
            continue
        yield str(candidate), _title(model.family)
        shown += 1
        if shown == MOST_FOUND:
            return


def _title(family: str) -> str:
    return parameters()["base_model.family"].choices[family].title
