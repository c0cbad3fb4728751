"""The answers file: a TrainingConfig as TOML with a comment to each setting, and the errors a user may see."""

from __future__ import annotations

import difflib
import os
import re
import shlex
import tomllib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails, PydanticUndefined

from knowledge.config import SCHEMA_VERSION, TrainingConfig, choices, fields, sections, value_of

MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""From a schema version to the next: what turns a document of that version into one of the next."""


EMPTY = "none"
"""How the file says that a setting with a default is to have no value: TOML itself has none."""


class PlainError(Exception):
    """An error in words for the user; exit_code 1 when something failed, 2 when it was used wrongly."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def did_you_mean(word: str, known: Collection[str]) -> str:
    """' Did you mean "x"?' for the nearest of the known words, or nothing when none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f' Did you mean "{near[0]}"?' if near else ""


def quoted(word: Path | str) -> str:
    """A path or word as it must be typed to stay one word; in double quotes, which all terminals know, if they do."""
    text = str(word)
    plain, special = (r"[\w@%+=:,./\\~-]+", r"\Z.") if os.name == "nt" else (r"[\w@%+=:,./~-]+", r'["$`!\\]')
    if re.fullmatch(plain, text):
        return text
    return shlex.quote(text) if re.search(special, text) else f'"{text}"'


def printable(text: str, most: int = 10_000) -> str:
    """Text from a foreign file as it may stand on a terminal, which obeys control characters, and no longer than that.

    Line breaks stay, unless `most` is so few letters that the text is to stand inside a sentence.
    """
    kept = "\n\t" if most > 200 else ""
    plain = "".join(one if one.isprintable() or one in kept else "\N{REPLACEMENT CHARACTER}" for one in text)
    return plain if len(plain) <= most else plain[: most - 1] + "…"


def refuse_stream(path: Path) -> None:
    """Raises PlainError for a pipe or a device: reading one may wait for ever, or never come to an end."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise PlainError(f"{path} is a pipe or a device. Save what it gives as a file, and name that file.", 2)


def read_answers(path: Path | str) -> TrainingConfig:
    """The config that a file of answers describes. Raises PlainError naming all problems of the file together."""
    path = Path(path)
    refuse_stream(path)
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PlainError(f"There is no file {path}. Make one with: lora-wizard new", 2) from None
    except IsADirectoryError:
        raise PlainError(f"{path} is a folder; an answers file is a single .toml file inside one.", 2) from None
    except OSError as error:
        raise PlainError(f"{path} cannot be read: {error.strerror or error}.") from None
    except UnicodeDecodeError:
        raise PlainError(f"{path} is not text in UTF-8, so it is not an answers file.", 2) from None
    except tomllib.TOMLDecodeError as error:
        raise PlainError(f"{path} is not valid TOML: {error}.", 2) from None
    try:
        return TrainingConfig.model_validate(_emptied(_migrated(document, path)))
    except ValidationError as error:
        problems = plain_problems(error)
        heading = f"{path} has a problem" if len(problems) == 1 else f"{path} has {len(problems)} problems"
        raise PlainError("\n".join([f"{heading}:", *(f"  {problem}" for problem in problems)]), 2) from None


def _migrated(document: dict[str, Any], path: Path) -> dict[str, Any]:
    version = document.get("schema_version", SCHEMA_VERSION)
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise PlainError(f"{path}: schema_version is {version!r}; it must be a whole number from 1.", 2)
    if version > SCHEMA_VERSION:
        raise PlainError(
            f"{path} was written by a newer lora-wizard (schema_version {version}, this one knows {SCHEMA_VERSION}). "
            "Update with: pip install --upgrade lora-wizard",
            2,
        )
    while version < SCHEMA_VERSION:
        document = MIGRATIONS[version](document) | {"schema_version": version + 1}
        version += 1
    return document


def _emptied(document: dict[str, Any]) -> dict[str, Any]:
    """The document with EMPTY read as no value, in the settings that may be without one."""
    read = dict(document)
    for name, field in fields().items():
        section, _, key = name.partition(".")
        table = read.get(section)
        if isinstance(table, dict) and table.get(key) == EMPTY and type(None) in get_args(field.annotation):
            read[section] = table | {key: None}
    return read


def write_answers(config: TrainingConfig, path: Path | str, *, chosen: Collection[str] = ()) -> None:
    """Write what differs from the defaults, and what was `chosen`, with one short comment to each setting."""
    write_whole(Path(path), answers_text(config, chosen=chosen))


def write_whole(path: Path, text: str) -> None:
    """Write a text file that appears whole or not at all: under another name first, then renamed.

    Raises PlainError where it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise PlainError(f"{path} cannot be written: {error.strerror or error}.") from None
    finally:
        temporary.unlink(missing_ok=True)


def answers_text(config: TrainingConfig, *, chosen: Collection[str] = ()) -> str:
    """The answers file as text."""
    import tomlkit
    from tomlkit.items import Table

    from knowledge.parameters import parameters

    known = parameters()
    document = tomlkit.document()
    document.add(tomlkit.comment("Answers of lora-wizard. Train with: lora-wizard train THIS_FILE"))
    document.add(tomlkit.comment("Change them with: lora-wizard new --from THIS_FILE"))
    document["schema_version"] = config.schema_version

    def add(table: tomlkit.TOMLDocument | Table, name: str, key: str) -> None:
        table.add(tomlkit.comment(known[name].meaning))
        value = value_of(config, name)
        if isinstance(value, Mapping):  # as a table of its own it would swallow the settings that follow
            inline = tomlkit.inline_table()
            inline.update({inner: list(each) if isinstance(each, tuple) else each for inner, each in value.items()})
            value = inline
        table[key] = EMPTY if value is None else value

    def wanted(name: str) -> bool:
        value, default = value_of(config, name), fields()[name].default
        return value != default or (name in chosen and value is not None)

    if wanted("seed"):
        add(document, "seed", "seed")
    for section, settings in sections().items():
        names = {f"{section}.{key}": key for key in settings.model_fields}
        table = tomlkit.table()
        for name, key in names.items():
            if name != "dataset.folders" and wanted(name):
                add(table, name, key)
        if section == "dataset" and config.dataset.folders:
            rows = tomlkit.aot()
            for folder in config.dataset.folders:
                row = tomlkit.table()
                row.update(folder.model_dump())
                rows.append(row)
            table.append("folders", rows)
        if len(table):
            document.add(tomlkit.nl())
            document.add(section, table)
    return tomlkit.dumps(document)


def parse_assignment(text: str) -> tuple[str, Any]:
    """The dotted name and the value of `network.rank=32`, for --set. Raises PlainError for an unknown name.

    The value is read as TOML where the parameter is not text, and `none` empties a parameter that may be empty.
    """
    name, equals, written = (part.strip() for part in text.partition("="))
    if not equals or not name:
        raise PlainError(f'"{text}" does not set anything; write NAME=VALUE, as in network.rank=32.', 2)
    if name not in fields():
        from knowledge.names import find
        from knowledge.parameters import Parameter

        entry = find(name)
        if not isinstance(entry, Parameter):
            raise PlainError(f'"{name}" is not a setting of this program, so it cannot be set: {entry.meaning}', 2)
        name = entry.name
    field = fields()[name]
    if field.annotation is str or choices(field):
        return name, written.strip('"')
    if written.lower() in {"", "none"}:
        return name, None
    try:
        return name, tomllib.loads(f"value = {written}")["value"]
    except tomllib.TOMLDecodeError:
        lowered = {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False}
        return name, lowered.get(written.lower(), written)


def plain_problems(error: ValidationError) -> list[str]:
    """One sentence for every problem that pydantic found, each with the parameter, its value and what to do."""
    return [sentence for details in error.errors() for sentence in _problem(details)]


def _problem(details: ErrorDetails) -> list[str]:
    kind, value, limits = details["type"], details["input"], details.get("ctx", {})
    name = _name(details["loc"])
    if kind == "value_error":
        return str(limits["error"]).splitlines()
    if kind == "extra_forbidden":
        return [_unknown(details["loc"], name)]
    if kind == "missing":
        return [f"{name} is missing."]
    if kind in _SENTENCES:
        return [f"{name} is {_shown(value)}; {_SENTENCES[kind](limits)}."]
    return [f"{name} is {_shown(value)}: {details['msg']}."]


def _name(location: tuple[int | str, ...]) -> str:
    """dataset.folders[2].path for ("dataset", "folders", 1, "path"); rows are counted from 1 for the reader."""
    text = ""
    for part in location:
        text += f"[{part + 1}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _unknown(location: tuple[int | str, ...], name: str) -> str:
    from knowledge.names import find
    from knowledge.parameters import Parameter

    if len(location) == 1:
        near = did_you_mean(str(location[0]), [*sections(), "seed", "schema_version"])
        if near:
            return f'There is no section or setting "{name}".{near}'
    else:
        siblings = [known.rpartition(".")[2] for known in fields() if known.startswith(f"{location[0]}.")]
        near = did_you_mean(str(location[-1]), siblings)
        if near:
            return f'There is no setting "{name}".{near}'
    try:
        entry = find(str(location[-1]))
    except PlainError:
        return f'There is no setting "{name}". See all of them with: lora-wizard explain'
    if isinstance(entry, Parameter):
        return f'There is no setting "{name}"; here it is called {entry.name}.'
    return f'There is no setting "{name}" in this program. To read about it: lora-wizard explain {location[-1]}'


def _shown(value: Any) -> str:
    if value is None or value is PydanticUndefined:
        return "empty"
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping | list | tuple):
        return "a list" if isinstance(value, list | tuple) else "a table"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _one_of(limits: Mapping[str, Any]) -> str:
    return f"it must be one of {limits['expected']}".replace("'", '"')


_SENTENCES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "greater_than": lambda limits: f"it must be above {limits['gt']:g}",
    "greater_than_equal": lambda limits: f"it must be at least {limits['ge']:,}",
    "less_than": lambda limits: f"it must be below {limits['lt']:,}",
    "less_than_equal": lambda limits: f"it must be at most {limits['le']:,}",
    "multiple_of": lambda limits: f"it must be a multiple of {limits['multiple_of']}",
    "literal_error": _one_of,
    "int_type": lambda _: "it must be a whole number",
    "int_from_float": lambda _: "it must be a whole number",
    "float_type": lambda _: "it must be a number",
    "finite_number": lambda _: "it must be a finite number",
    "bool_type": lambda _: "it must be true or false",
    "string_type": lambda _: "it must be text in quotation marks",
    "string_too_short": lambda _: "it must not be empty",
    "string_pattern_mismatch": lambda limits: f"it must match the pattern {limits['pattern']}",
    "model_type": lambda _: "it must be a section of settings, written under [its name]",
    "model_attributes_type": lambda _: "it must be a section of settings, written under [its name]",
    "tuple_type": lambda _: "it must be a list, in square brackets",
    "too_long": lambda limits: f"it must have at most {limits['max_length']} entries",
}
