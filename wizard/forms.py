"""The answers that are more than one value: the pictures and the prompts for samples, and what a typed answer means."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from knowledge.answers import PlainError
from knowledge.config import DatasetFolder, TrainingConfig, with_values
from knowledge.facts import facts
from knowledge.parameters import Parameter, parameters, recommended
from wizard import picture_sources, questions, views, words
from wizard import pictures as found
from wizard.base_models import base_model, model_at
from wizard.paths import typed_path
from wizard.prompts import Move, Option, Page, show
from wizard.vaes import vae

if TYPE_CHECKING:
    from wizard.session import Session

Values = Mapping[str, Any]
ELSEWHERE = object()
"""The answer of who has no folder of pictures yet."""

# --- what a flag or a typed line means --------------------------------------------------------------------------------


def read_all(name: str, form: str, said: str | Sequence[str]) -> Values:
    """The values of an option that was given once, or several times."""
    if isinstance(said, str):
        return read(name, form, said)
    if form == "pictures":
        read_folders = [folders_in(text) for text in said]
        folders = tuple(folder for values in read_folders for folder in values["dataset.folders"])
        return {**read_folders[0], "dataset.folders": folders}
    return read(name, form, "\n".join(said))


def folders_in(text: str) -> Values:
    """The dataset folders that a path means, and the ending of their captions. Raises PlainError without pictures."""
    from engine.dataset.folders import suggest_caption_extension, suggest_folders

    path = typed_path(text)
    if not path:
        raise PlainError("Name the folder that holds your pictures.", 2)
    folders = suggest_folders(Path(path).expanduser().resolve())
    extension = suggest_caption_extension(folders)
    if all(folder.repeats == 1 for folder in folders):  # no kohya names: nobody has decided yet
        folders = _repeated(folders, extension)
    return {
        "dataset.folders": tuple(folder.model_dump() for folder in folders),
        "dataset.caption_extension": extension,
    }


def _repeated(folders: Sequence[DatasetFolder], caption_extension: str) -> tuple[DatasetFolder, ...]:
    """The folders with the repeats that are recommended for as many pictures as they hold."""
    from engine.dataset.folders import scan

    config = with_values(TrainingConfig(), {"dataset.folders": folders, "dataset.caption_extension": caption_extension})
    advice = recommended("dataset.folders.repeats", facts(config, scan(config.dataset)))
    repeats = advice.value if advice is not None else 1
    return tuple(folder.model_copy(update={"repeats": repeats}) for folder in folders)


def prompts_in(text: str) -> Values:
    """One prompt a line; blank lines do not count."""
    return {"sampling.prompts": tuple(line.strip() for line in text.splitlines() if line.strip())}


READERS: dict[str, Callable[[str], Values]] = {"pictures": folders_in, "base_model": model_at, "prompts": prompts_in}


def read(name: str, form: str, text: str) -> Values:
    """The values that a line of text means as the answer to a question. Raises PlainError when it means none."""
    return READERS[form](text) if form in READERS else {name: questions.parse(name, text)}


# --- pictures ---------------------------------------------------------------------------------------------------------


def pictures(session: Session, around: Values) -> Values | Move:
    """Asks for folders, shows what lies in them, and lets one change them until they are right."""
    folders = [folder.model_dump() for folder in session.situation().config.dataset.folders]
    values: dict[str, Any] = {}
    while True:
        if not folders:
            answer = _ask_folder(session, around)
            if isinstance(answer, Move):
                return answer
            session.answer(answer)  # kept from here on: going back from the next page does not lose it
            values, folders = dict(answer), [*answer["dataset.folders"]]
        chosen = {**session.draft.values, **values, "dataset.folders": tuple(folders)}
        answer = session.ask(_found_page(session, chosen, around))
        if answer == "use":
            return {**values, "dataset.folders": tuple(folders)}
        if isinstance(answer, Move):
            return answer
        if answer == "other":
            folders, values = [], {}
            session.bench.forget_pictures()
        elif answer == "add":
            added = _ask_folder(session, {**around, "back": "back", "more": False})
            if not isinstance(added, Move):
                known = {folder["path"] for folder in folders}
                folders += [folder for folder in added["dataset.folders"] if folder["path"] not in known]
        elif answer == "work":
            picture_sources.work_on(session, chosen, around, lambda chosen=chosen: _show_captions(session, chosen))  # type: ignore[misc]
        else:
            folders = _edit_folder(session, folders, answer, around)


def _ask_folder(session: Session, around: Values) -> Any:
    """The folders that somebody names, or that come out of what is fetched; or a Move."""
    entry = parameters()["dataset.folders"]
    within = {**around, "more": False, "back": "back"}
    while True:
        answer = session.ask(
            Page(
                title=session.wording("dataset.folders"),
                body=(
                    *questions.explanation(entry, None),
                    "[quiet]Captions are read from text files beside the pictures: cat.png and cat.txt.[/]",
                    "A folder, a ZIP archive, picture files, or the page of a dataset on Hugging Face. Or press Enter "
                    "on the empty line for more ways, Gelbooru among them.",
                ),
                default="",
                help=lambda _: questions.long_explanation(entry, None),
                check=_source_in,
                is_path=True,
                **around,
            )
        )
        if answer is ELSEWHERE:
            answer = picture_sources.elsewhere(session, within)
            if isinstance(answer, Move):
                continue
        if not isinstance(answer, picture_sources.Fetch):
            return answer
        answer = picture_sources.into(session, answer, within)
        if isinstance(answer, Move):
            continue
        picture_sources.run(answer.words)
        try:
            return folders_in(str(answer.folder))
        except PlainError:
            around = {**around, "error": "No pictures have come."}


def _source_in(text: str) -> Any:
    """The folders that a typed line means, the import that it means, or ELSEWHERE for an empty one."""
    if not text:
        return ELSEWHERE
    return picture_sources.fetch_in(text) or folders_in(text)


def _found_page(session: Session, chosen: Values, around: Values) -> Page:
    entry = parameters()["dataset.folders"]
    situation = session.bench.situation(chosen)
    folders = situation.config.dataset.folders
    if situation.dataset is None:
        body: tuple[Any, ...] = (views.problem(situation.problem),)
        options: tuple[Option, ...] = (Option("other", "Choose other pictures"),)
    else:
        every = [picture for folder in situation.dataset.folders for picture in folder.pictures]
        damaged = session.waiting(f"Looking at {words.count(len(every), 'picture')} …", lambda: found.unreadable(every))
        body = (
            found.report(situation.dataset, situation.config.dataset, damaged),
            "The model will read, for example",
            views.indented(found.captions_as_trained(situation.dataset, situation.config.dataset)),
        )
        refusal = ""
        if damaged:
            names = ", ".join(Path(path).name for path in damaged[:3])
            refusal = f"Some pictures break off in the middle ({names}). Replace or remove them, then choose again."
        options = (
            Option("use", "Use these pictures", refusal=refusal),
            Option("work", "Look closely, tag, write captions …"),
            Option("add", "Add another folder"),
            Option("other", "Choose other pictures"),
            *(
                Option(index, found.short(folder.path, 30), f"{folder.repeats} × in an epoch")
                for index, folder in enumerate(folders)
            ),
        )
    return Page(
        title="Are these the right pictures?",
        body=body,
        options=options,
        help=lambda _: questions.long_explanation(entry, None),
        preview=lambda value: None,
        **around,
    )


def _show_captions(session: Session, chosen: Values) -> None:
    situation = session.bench.situation(chosen)
    if situation.dataset is not None:
        every = found.captions_as_trained(situation.dataset, situation.config.dataset, None)
        show(views.page(views.heading("Captions", "as the model will read them"), every))


def _edit_folder(session: Session, folders: list[dict[str, Any]], index: int, around: Values) -> list[dict[str, Any]]:
    """The folders after one of them was changed or taken out."""
    folder, around = folders[index], {**around, "more": False, "back": "back"}
    columns = [parameters()[f"dataset.folders.{key}"] for key in DatasetFolder.model_fields if key != "path"]
    answer = session.ask(
        Page(
            title=found.short(folder["path"], 70),
            options=(
                *(Option(c.name, c.title, questions.display(c, _column(folder, c)), c.meaning) for c in columns),
                Option("remove", "Leave this folder out"),
            ),
            **around,
        )
    )
    if answer == "remove":
        return folders[:index] + folders[index + 1 :]
    if isinstance(answer, Move):
        return folders
    column = parameters()[answer]
    value = session.ask(questions.plain_page(column, _column(folder, column), around))
    if isinstance(value, Move):
        return folders
    changed = {**folder, answer.rpartition(".")[2]: value}
    return [*folders[:index], changed, *folders[index + 1 :]]


def _column(folder: Values, column: Parameter) -> Any:
    """What a folder has in the column that this parameter describes."""
    return folder.get(column.name.rpartition(".")[2], column.default)


# --- prompts ----------------------------------------------------------------------------------------------------------


def prompts(session: Session, around: Values) -> Values | Move:
    """Shows the prompts as a list to change, add to and take from."""
    entry = parameters()["sampling.prompts"]
    current = list(session.situation().config.sampling.prompts)
    at: Any = "use"
    while True:
        use = f"Use {'these' if len(current) > 1 else 'this prompt'}" if current else "Draw nothing"
        answer = session.ask(
            Page(
                title=session.wording("sampling.prompts"),
                body=questions.explanation(entry, None),
                options=(
                    Option("use", use),
                    *(Option(index, prompt[:66]) for index, prompt in enumerate(current)),
                    Option("add", "Add a prompt …"),
                ),
                default=at,
                help=lambda _: questions.long_explanation(entry, None),
                preview=lambda value: session.estimate(),
                **around,
            )
        )
        if answer == "use":
            return {"sampling.prompts": tuple(current)}
        if isinstance(answer, Move):
            return answer
        index = len(current) if answer == "add" else answer
        typed = session.ask(
            Page(
                title="What shall it draw?" if answer == "add" else "Change the prompt",
                body=("[quiet]Leave it empty to take the prompt out.[/]",) if answer != "add" else (),
                default="" if answer == "add" else current[index],
                **{**around, "more": False, "back": "back"},
            )
        )
        if not isinstance(typed, Move):
            current[index : index + 1] = [typed] if typed else []
        at = "use" if answer == "add" else answer if answer in range(len(current)) else "use"


FORMS: dict[str, Callable[[Any, Values], Values | Move]] = {
    "pictures": pictures,
    "base_model": base_model,
    "prompts": prompts,
    "vae": vae,
}
