"""ai-toolkit's jobs."""

from __future__ import annotations

from collections import Counter

import pytest
from foreign import AI_TOOLKIT, read

from knowledge.answers import PlainError
from knowledge.formats.reader import read_foreign
from knowledge.formats.sd_scripts import ENDLESS


def test_ai_toolkit_is_read_with_yamls_traps(tmp_path):
    imported = read(tmp_path, "x.yaml", AI_TOOLKIT)
    config = imported.config
    assert config.optimizer.learning_rate == 1e-4  # YAML 1.1 reads 1e-4 as text
    assert not config.dataset.shuffle_tags  # and no as false
    assert (config.network.rank, config.network.alpha) == (24, 12)
    assert (config.base_model.family, config.memory.precision) == ("sdxl", "bf16")
    assert (config.schedule.epochs, config.schedule.maximum_steps) == (ENDLESS, 900)
    assert (config.dataset.resolution, config.dataset.caption_extension) == (768, ".txt")
    assert config.sampling.prompts == ("p3r5on on a horse",)
    assert (config.sampling.width, config.sampling.height, config.saving.every_steps) == (1024, 768, 250)
    assert config.output.name == "my_lora-v1"
    assert imported.listed("unknown") == []
    assert max(Counter(note.key for note in imported.notes).values()) == 1


def test_a_job_of_ai_toolkit_that_trains_nothing_is_refused(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text("job: generate\nconfig: {process: [{type: to_folder, output_folder: x}]}", encoding="utf-8")
    with pytest.raises(PlainError, match="trains nothing"):
        read_foreign(path)


def test_a_quantised_and_offloaded_base_is_read_from_ai_toolkit(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "job: extension\nconfig:\n  name: a\n  process:\n  - type: sd_trainer\n    network: {type: lora}\n"
        "    model: {name_or_path: m, is_xl: true, quantize: true, layer_offloading: true}\n"
    )
    memory = read_foreign(tmp_path / "a.yaml").config.memory
    assert (memory.base_weights, memory.offload_blocks) == ("fp8", True)
