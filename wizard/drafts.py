"""The draft on disk: kept after every answer, so that neither Ctrl-C nor a crash costs one."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from knowledge.config import SCHEMA_VERSION
from wizard.steps import Draft


@dataclass(frozen=True)
class SavedDraft:
    draft: Draft
    saved_at: float


def user_folder() -> Path:
    """Where this program keeps files of its user: LORA_WIZARD_HOME, or the platform's place for application data."""
    chosen = os.environ.get("LORA_WIZARD_HOME")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "lora-wizard"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "lora-wizard"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "lora-wizard"


def draft_file() -> Path:
    return user_folder() / "draft.json"


def files() -> list[Path]:
    """The draft, and what a crash may have left of the writing of one."""
    return [file for file in (draft_file(), *sorted(user_folder().glob("draft.*.part"))) if file.is_file()]


def save(draft: Draft) -> None:
    """Keeps the draft in place of the one before."""
    file = draft_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "schema_version": SCHEMA_VERSION,
        "saved_at": time.time(),
        "at": draft.at,
        "values": dict(draft.values),
        "accepted": list(draft.accepted),
    }
    temporary = file.with_suffix(f".{os.getpid()}.part")
    temporary.write_text(json.dumps(document, ensure_ascii=False, indent=1), encoding="utf-8")
    temporary.replace(file)


def load() -> SavedDraft | None:
    """The draft kept from an earlier start; None when there is none, or none that this version can read."""
    try:
        document = json.loads(draft_file().read_text(encoding="utf-8"))
        if document["schema_version"] != SCHEMA_VERSION:
            return None
        draft = Draft(dict(document["values"]), str(document["at"]), tuple(document["accepted"]))
        return SavedDraft(draft, float(document["saved_at"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def discard() -> None:
    draft_file().unlink(missing_ok=True)
