"""Any foreign file: which trainer wrote it, and what it means here."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from knowledge.answers import PlainError
from knowledge.formats.translation import Imported

COMMANDS = {".sh", ".bat", ".cmd", ".ps1", ".txt"}
LARGEST_BYTES = 20_000_000


def is_foreign(path: Path | str) -> bool:
    """Is this file a config of another trainer, or a LoRA, rather than answers of ours? For commands that take both."""
    path = Path(path)
    if path.suffix.lower() != ".toml":
        return path.suffix.lower() in {".json", ".yaml", ".yml", ".safetensors", *COMMANDS}
    try:
        return not _is_ours(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return False


def read_foreign(path: Path | str) -> Imported:
    """The config that a file of another trainer describes. Raises PlainError when no trainer's shape is found in it."""
    path = Path(path)
    if path.is_dir():
        raise PlainError(f"{path} is a folder; name the config file itself.", 2)
    if not path.exists():
        raise PlainError(f"There is no file {path}.", 2)
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        from knowledge.formats.lora_metadata import read_lora

        return read_lora(path)
    if path.stat().st_size > LARGEST_BYTES:
        raise PlainError(f"{path} is too large for a config file ({path.stat().st_size:,} bytes).", 2)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise PlainError(f"{path} is not text in UTF-8, so it is no config file.", 2) from None
    except OSError as error:
        raise PlainError(f"{path} cannot be read: {error.strerror or error}.") from None
    if suffix in (".yaml", ".yml"):
        from knowledge.formats.ai_toolkit import read_yaml

        return read_yaml(text, path)
    if suffix == ".toml":
        return _read_toml(text, path)
    if suffix == ".json" or text.lstrip().startswith("{"):
        return _read_json(text, path)
    from knowledge.formats.kohya import read_command_line

    if "--" not in text:
        raise PlainError(f"{path} holds neither a config nor a command with options.", 2)
    return read_command_line(text, path.parent)


def _read_toml(text: str, path: Path) -> Imported:
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PlainError(f"{path} is not valid TOML: {error}.", 2) from None
    if _is_ours(document):
        if _known_sections(document):
            raise PlainError(f"{path} is an answers file of this program already; nothing needs to be imported.", 2)
        raise PlainError(f"{path} is TOML, but no config of a trainer that is known here.", 2)
    from knowledge.formats.kohya import read_toml

    return read_toml(document, path)


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
    from knowledge.formats.vocabulary import facts_of

    if _known_sections(document):
        return True
    known = facts_of("sd_scripts")
    theirs = {*known["options"], *known["unset"], "datasets", "subsets", "general"}
    return not theirs & ({*flattened(document), *document} - {"seed"})


def _read_json(text: str, path: Path) -> Imported:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise PlainError(f"{path} is not valid JSON.", 2) from None
    if not isinstance(document, dict):
        raise PlainError(f"{path} is JSON, but not a list of settings.", 2)
    if isinstance(document.get("config"), dict) and "process" in document["config"]:
        from knowledge.formats.ai_toolkit import read_yaml

        return read_yaml(text, path)
    if {"LoRA_type", "network_dim", "pretrained_model_name_or_path", "optimizer_args"} & document.keys():
        from knowledge.formats import kohya_gui

        return kohya_gui.read_json(document, path)
    # Model configs of the hub have a model_type too, as a word in small letters.
    named = str(document.get("model_type", "")).isupper()
    if named or {"training_method", "lora_rank", "base_model_name", "learning_rate_scheduler"} & document.keys():
        from knowledge.formats import onetrainer

        return onetrainer.read_json(document, path)
    raise PlainError(
        f"{path} is JSON of no trainer that is known here. Known are kohya_ss, OneTrainer and ai-toolkit.", 2
    )
