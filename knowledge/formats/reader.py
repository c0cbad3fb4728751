"""Any foreign file: which trainer wrote it, and what it means here."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from knowledge.answers import PlainError, refuse_stream
from knowledge.formats import text
from knowledge.formats.text import Written
from knowledge.formats.translation import Imported
from knowledge.formats.vocabulary import facts_of

COMMANDS = {".sh", ".bash", ".bat", ".cmd", ".ps1", ".txt"}
KNOWN = "Known are sd-scripts, kohya_ss, LoRA Easy Training Scripts, OneTrainer, ai-toolkit and diffusers' scripts."


def is_foreign(path: Path | str) -> bool:
    """Is this file a config of another trainer, or a LoRA, rather than answers of ours? For commands that take both."""
    path = Path(path)
    if path.suffix.lower() != ".toml":
        return path.suffix.lower() in {".json", ".yaml", ".yml", ".safetensors", *COMMANDS}
    try:
        refuse_stream(path)
        return not _is_ours(tomllib.loads(text.read_text(path).text))
    except PlainError:
        return False
    except (ValueError, RecursionError):  # of a file that is broken, read_foreign and read_answers say the same
        return False


def read_foreign(path: Path | str) -> Imported:
    """The config that a file of another trainer describes. Raises PlainError when no trainer's shape is found in it."""
    path = Path(path)
    if path.is_dir():
        raise PlainError(f"{path} is a folder; name the config file itself.", 2)
    if not path.exists():
        raise PlainError(f"There is no file {path}.", 2)
    refuse_stream(path)
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        from knowledge.formats.lora_metadata import read_lora

        return read_lora(path)
    written = text.read_text(path)
    if suffix in (".yaml", ".yml"):
        written, read = text.parsed_yaml(written, path), _read_yaml
    elif suffix == ".toml":
        written, read = text.parsed_toml(written, path), _read_toml
    elif suffix == ".json" or written.text.lstrip().startswith("{"):
        written, read = text.parsed_json(written, path), _read_json
    else:
        read = _read_command
    imported = read(written, path)
    return dataclasses.replace(imported, warnings=(*imported.warnings, *written.remarks))


def _read_yaml(written: Written, path: Path) -> Imported:
    from knowledge.formats.ai_toolkit import process_of, read_job

    if process_of(written.document) is None:
        _refuse(written.document, path, "YAML")
    return read_job(written.document, path)


def _read_toml(written: Written, path: Path) -> Imported:
    from knowledge.formats import kohya, kohya_gui_sections

    document = written.document
    if kohya_gui_sections.is_sectioned(document):
        return kohya_gui_sections.read_sections(document, path)
    if _known_sections(document):
        raise PlainError(f"{path} is an answers file of this program already; nothing needs to be imported.", 2)
    if _is_ours(document):
        _refuse(document, path, "TOML")
    return kohya.read_toml(document, path)


def _read_command(written: Written, path: Path) -> Imported:
    from knowledge.formats.kohya import read_command_line

    return read_command_line(written.text, path)


def _known_sections(document: dict[str, Any]) -> bool:
    """Does it carry our mark, or a setting of ours in its section?"""
    from knowledge.config import fields

    sections = {name: table for name, table in document.items() if isinstance(table, dict)}
    return "schema_version" in document or any(
        f"{section}.{key}" in fields() for section, table in sections.items() for key in table
    )


def _is_ours(document: dict[str, Any]) -> bool:
    """Answers of ours, or at least nothing that sd-scripts would know."""
    from knowledge.formats.kohya import flattened

    if _known_sections(document):
        return True
    known = facts_of("sd_scripts")
    theirs = {*known["options"], *known["unset"], "datasets", "subsets", "general"}
    keys = {*flattened(document), *document} - {"seed"}
    return _unrelated(document) is not None or not theirs & keys


def _read_json(written: Written, path: Path) -> Imported:
    from knowledge.formats.ai_toolkit import process_of, read_job

    document = written.document
    if process_of(document) is not None:
        return read_job(document, path)
    trainer = None if not isinstance(document, dict) or _unrelated(document) else _trainer_of(document)
    return trainer(document, path) if trainer else _refuse(document, path, "JSON")


def _trainer_of(document: Mapping[str, Any]) -> Callable[[Mapping[str, Any], Path], Imported] | None:
    """What reads a JSON document with settings like these; None when no trainer has them."""
    if {"LoRA_type", "network_dim", "pretrained_model_name_or_path", "optimizer_args"} & document.keys():
        from knowledge.formats import kohya_gui

        return kohya_gui.read_json
    # Model configs of the hub have a model_type too, as a word in small letters.
    named = str(document.get("model_type", "")).isupper()
    if named or {"training_method", "lora_rank", "base_model_name", "learning_rate_scheduler"} & document.keys():
        from knowledge.formats import onetrainer

        return onetrainer.read_json
    return None


def _refuse(document: Any, path: Path, kind: str) -> NoReturn:
    """Raises PlainError: this is no training config, and what it is instead where one can tell."""
    if not isinstance(document, dict):
        raise PlainError(f"{path} is no training config: it holds no table of settings. {KNOWN}", 2)
    what = _unrelated(document)
    if what:
        raise PlainError(f"{path} is no training config: it is {what}.", 2)
    raise PlainError(f"{path} is {kind}, but no training config of a trainer that is known here. {KNOWN}", 2)


def _unrelated(document: Mapping[str, Any]) -> str | None:
    """What this file is when it is one of those that are handed over by mistake."""
    return next((kind["what"] for kind in facts_of("unrelated")["kinds"] if _fits(kind, document)), None)


def _fits(kind: Mapping[str, Any], document: Mapping[str, Any]) -> bool:
    def there(key: str) -> bool:
        section, dot, inner = key.partition(".")
        held = document.get(section)
        return key in document or bool(dot and isinstance(held, dict) and inner in held)

    if "each" in kind:
        tables = list(document.values())
        return bool(tables) and all(isinstance(table, dict) and kind["each"] in table for table in tables)
    return all(map(there, kind.get("all", ()))) and (not kind.get("any") or any(map(there, kind["any"])))
