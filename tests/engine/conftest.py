from pathlib import Path
from typing import Any

import pytest
from short_runs import Configure, short_config

from knowledge.config import TrainingConfig


@pytest.fixture
def configure(tiny_sd15: Path, tiny_sdxl: Path, tmp_path: Path) -> Configure:
    """Makes the config of a short run; changes are given by section."""

    def config(family: str = "sd15", **changes: Any) -> TrainingConfig:
        return short_config({"sd15": tiny_sd15, "sdxl": tiny_sdxl}[family], family, tmp_path / "runs", **changes)

    return config
