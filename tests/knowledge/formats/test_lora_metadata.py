"""The recipe inside a LoRA file."""

from __future__ import annotations

from foreign import NETWORK

from knowledge.config import TrainingConfig, with_values
from knowledge.formats.reader import read_foreign


def test_a_lora_of_sd_scripts_tells_its_recipe():
    imported = read_foreign(NETWORK)
    config = imported.config
    assert config.base_model.family == "sd15"
    assert (config.network.rank, config.network.train_text_encoder) == (4, False)
    assert config.schedule.scheduler == "cosine"
    assert config.loss.minimum_snr_gamma == 5.0
    assert [folder.repeats for folder in config.dataset.folders] == [10, 2]
    assert imported.listed("unknown") == []


def test_our_own_file_gives_its_config_back(tmp_path):
    from engine.tools.writing import replace_metadata

    config = with_values(TrainingConfig(), {"network.rank": 24, "dataset.trigger_word": "sks"})
    target = tmp_path / "x.safetensors"
    replace_metadata(NETWORK, target, {"lora_wizard.config": config.model_dump_json()})
    assert read_foreign(target).config == config
