from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from short_runs import Configure, short_config

from knowledge.config import TrainingConfig


@pytest.fixture
def configure(tiny_sd15: Path, tiny_sdxl: Path, tmp_path: Path, quick_tokenizers: None) -> Configure:
    """Makes the config of a short run; changes are given by section."""

    def config(family: str = "sd15", **changes: Any) -> TrainingConfig:
        return short_config({"sd15": tiny_sd15, "sdxl": tiny_sdxl}[family], family, tmp_path / "runs", **changes)

    return config


@pytest.fixture
def quick_tokenizers(remembered_tokenizers: Callable[[Path], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets runs share the tokenizers that they only read: a vocabulary takes longer to load than four tiny steps."""
    monkeypatch.setattr("engine.models.reading._tokenizer", remembered_tokenizers)


@pytest.fixture(scope="session")
def remembered_tokenizers() -> Callable[[Path], Any]:
    """Reads a tokenizer's folder unless its files are those of a folder that was read before."""
    from engine.models import reading

    folders: dict[tuple[bytes, ...], Path] = {}
    read = lru_cache(reading._tokenizer)

    def remembered(folder: Path) -> Any:
        content = tuple(path.read_bytes() for path in sorted(folder.iterdir()))
        return read(folders.setdefault(content, folder))

    return remembered
