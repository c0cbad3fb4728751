"""The text of a foreign file and the document in it: in any encoding, with comments in JSON, with doubled keys."""

from __future__ import annotations

import codecs
import json
import re
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from knowledge.answers import PlainError

LARGEST_BYTES = 20_000_000
LARGEST_NUMBER = 2**63
MOST_VALUES = 200_000
DEEPEST = 100
TOO_MUCH = "it holds more than any config does"
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""The first bytes of a file that says its encoding, the longer ones before the shorter that they begin with."""
FALLBACKS = ("gbk", "cp1252")
"""Encodings of Windows that say nothing of themselves."""


@dataclass(frozen=True)
class Written:
    """What stands in a file: its text or the document in it, and sentences on what its own reader would stop at."""

    text: str
    document: Any = None
    remarks: tuple[str, ...] = ()


def read_text(path: Path) -> Written:
    """The text of a file in its encoding. Raises PlainError when it cannot be read, is empty, or is no text."""
    try:
        size = path.stat().st_size
        if size > LARGEST_BYTES:
            raise PlainError(f"{path} is too large for a config file ({size:,} bytes).", 2)
        data = path.read_bytes()
    except OSError as error:
        raise PlainError(f"{path} cannot be read: {error.strerror or error}.") from None
    text, encoding = _decoded(data)
    if text is None or "\0" in text.rstrip("\0"):
        raise PlainError(f"{path} is not text, so it is no config file.", 2)
    if not text.strip("\0 \t\r\n"):
        raise PlainError(f"{path} is empty.", 2)
    guessed = encoding in FALLBACKS
    remark = f"It is not written in UTF-8; it was read as {encoding}. Look at names with other letters than a to z."
    return Written(text.replace("\0", ""), remarks=(remark,) if guessed else ())


def _decoded(data: bytes) -> tuple[str | None, str]:
    for mark, encoding in MARKS.items():
        if data.startswith(mark):
            return _attempt(data, encoding), encoding
    if len(data) > 3 and len(data) % 2 == 0 and data.count(0) >= len(data) // 4:  # UTF-16 that does not say so
        encoding = "utf-16-be" if data[0] == 0 else "utf-16-le"
        return _attempt(data, encoding), encoding
    # Chinese letters are pairs of bytes above 127, and accents of European ones stand alone.
    runs = re.findall(rb"[\x80-\xff]+", data)
    in_pairs = sum(len(run) for run in runs if len(run) % 2 == 0) > sum(map(len, runs)) / 2
    for encoding in ("utf-8", "gbk" if in_pairs else "cp1252", "cp1252"):
        text = _attempt(data, encoding)
        if text is not None:
            return text, encoding
    return None, ""


def _attempt(data: bytes, encoding: str) -> str | None:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        return None


def parsed_toml(written: Written, path: Path) -> Written:
    """The text with the TOML document in it. Raises PlainError, as the other two do, when it is not valid."""
    return _with_document(written, path, "TOML", tomllib.loads, ())


def parsed_yaml(written: Written, path: Path) -> Written:
    """The text with the YAML document in it; of a key that stands twice the last one counts, as in PyYAML."""
    doubled: list[str] = []

    def load(text: str) -> Any:
        waiting = [yaml.compose(text, yaml.SafeLoader)]
        for node in waiting:  # which grows while it is walked
            if isinstance(node, yaml.MappingNode):
                doubled.extend(_doubled([key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]))
                waiting += [value for _, value in node.value]
            elif isinstance(node, yaml.SequenceNode):
                waiting += node.value
            if len(waiting) > MOST_VALUES:
                raise ValueError(TOO_MUCH)
        return yaml.safe_load(text)

    return _with_document(written, path, "YAML", load, doubled)


def parsed_json(written: Written, path: Path) -> Written:
    """The text with the JSON document in it, also where it has comments or commas too many."""
    doubled: list[str] = []

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        doubled.extend(_doubled([key for key, _ in items]))
        return dict(items)

    def load(text: str) -> Any:
        return json.loads(text, object_pairs_hook=pairs)

    try:
        json.loads(written.text)
    except (ValueError, RecursionError):
        plain = without_comments(written.text)
        if plain != written.text:
            remark = "It has comments or commas that JSON does not know; its trainer stops at them."
            written = replace(written, text=plain, remarks=(*written.remarks, remark))
    return _with_document(written, path, "JSON", load, doubled)


def _with_document(
    written: Written, path: Path, kind: str, load: Callable[[str], Any], doubled: list[str] | tuple[()]
) -> Written:
    try:
        document = load(written.text)
        _measure(document)
    except yaml.MarkedYAMLError as error:
        where = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise PlainError(f"{path} is not valid YAML: {error.problem or error.context}{where}.", 2) from None
    except json.JSONDecodeError as error:
        raise PlainError(f"{path} is not valid JSON: {error.msg} (line {error.lineno}).", 2) from None
    except RecursionError:
        raise PlainError(f"{path} is not a config: its {kind} is nested too deeply.", 2) from None
    except (ValueError, yaml.YAMLError, AttributeError, TypeError) as error:
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise PlainError(f"{path} is not valid {kind}: {reason}.", 2) from None
    said = [f"{key} stands twice in one place; the last one counts." for key in dict.fromkeys(doubled)]
    return replace(written, document=_named(document), remarks=(*written.remarks, *said))


def _named(document: Any) -> Any:
    """The document with every key as text; YAML has keys of other kinds."""
    if isinstance(document, dict):
        return {str(key): _named(value) for key, value in document.items()}
    return [_named(value) for value in document] if isinstance(document, list) else document


def _measure(document: Any) -> None:
    """Raises ValueError for a document that no config is: too many values, too deep, or a number beyond 64 bits."""
    count, waiting = 0, [(document, 0)]
    while waiting:
        value, depth = waiting.pop()
        count += 1
        if count > MOST_VALUES or depth > DEEPEST:
            raise ValueError(TOO_MUCH)
        if isinstance(value, int) and abs(value) > LARGEST_NUMBER:
            raise ValueError("it holds a number beyond 64 bits")
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        waiting += [(one, depth + 1) for one in inner]


def _doubled(keys: list[str]) -> Iterator[str]:
    seen: set[str] = set()
    for key in keys:
        if key in seen:
            yield key
        seen.add(key)


PIECES = re.compile(r'"(?:\\.|[^"\\])*"|//[^\n]*|/\*.*?\*/|(?<![^\s,])#[^\n]*|,(?=\s*[}\]])', re.DOTALL)


def without_comments(text: str) -> str:
    """JSON without its comments and without a comma before a closing bracket; strings stay as they are."""

    def kept(match: re.Match[str]) -> str:
        return match[0] if match[0].startswith('"') else ""

    bare = PIECES.sub(kept, text)
    return PIECES.sub(kept, bare)  # a comma that a comment kept from its bracket


# -- files that another one names --------------------------------------------------------------------------------------


def text_at(path: Path) -> str | None:
    """The text of a file; None where there is none that can be read."""
    try:
        return read_text(path).text if path.is_file() else None
    except (OSError, ValueError, PlainError):  # ValueError: a name that no file can have
        return None


def toml_at(path: Path) -> dict[str, Any] | None:
    """The TOML document in a file; None where there is none."""
    document: dict[str, Any] | None = _document_at(path, parsed_toml)
    return document


def json_at(path: Path) -> Any:
    """The JSON document in a file; None where there is none."""
    return _document_at(path, parsed_json)


def _document_at(path: Path, parsed: Callable[[Written, Path], Written]) -> Any:
    text = text_at(path)
    try:
        return None if text is None else parsed(Written(text), path).document
    except PlainError:
        return None


def is_folder(path: Path) -> bool:
    """Is there a folder of this name? Not where no file can have such a name."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False
