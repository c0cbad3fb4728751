"""Commands of diffusers' training scripts."""

from __future__ import annotations

import pytest
from foreign import outcome, read

TEXT_TO_IMAGE = """accelerate launch --mixed_precision=fp16 train_text_to_image_lora_sdxl.py \\
  --pretrained_model_name_or_path=stabilityai/sdxl --train_data_dir=pics --resolution=1024 --center_crop \\
  --random_flip \\
  --train_batch_size=1 --max_train_steps=1500 --learning_rate=1e-4 --lr_scheduler=cosine --snr_gamma=5.0 --rank=8 \\
  --mixed_precision=bf16 --use_8bit_adam --adam_beta2=0.99 --output_dir=models/fox --seed=7 \\
  --validation_prompt="a fox" \\
  --checkpointing_steps=250 --report_to=wandb --push_to_hub --scale_lr --typo=1
"""
DREAMBOOTH = """python train_dreambooth_lora.py --pretrained_model_name_or_path=sd --instance_data_dir=fox
  --instance_prompt="a sks fox" --class_data_dir=foxes --class_prompt="a fox" --with_prior_preservation
  --prior_loss_weight=0.5 --num_train_epochs=4 --use_dora --lr_warmup_steps=0
""".replace("\n", " ")


def test_a_script_of_diffusers_is_read_by_its_own_meanings(tmp_path):
    imported = read(tmp_path, "x.sh", TEXT_TO_IMAGE)
    config = imported.config
    assert imported.format == "diffusers command line"
    assert (config.base_model.family, config.memory.precision) == ("sdxl", "bf16")
    assert (config.network.rank, config.network.alpha) == (8, 8.0)  # its alpha is the rank
    assert config.network.attention_only
    assert (config.schedule.maximum_steps, config.schedule.warmup) == (1500, 500.0)  # what it warms up unasked
    assert (config.dataset.buckets, config.dataset.random_crop, config.dataset.flip) == (False, False, True)
    assert (config.optimizer.name, dict(config.optimizer.arguments)) == ("adamw8bit", {"betas": (0.9, 0.99)})
    assert (config.output.folder, config.output.name) == ("models", "fox")
    assert (config.saving.every_steps, config.logging.tracker, config.seed) == (250, "wandb", 7)
    assert [note.key for note in imported.listed("unknown")] == ["typo"]
    assert outcome(imported, "push_to_hub") == outcome(imported, "scale_lr") == "unsupported"
    assert outcome(imported, "accelerate.mixed_precision") == "no_effect"
    assert "metadata.jsonl" in imported.warnings[0]


def test_dreambooths_two_folders_are_ours_with_their_captions(tmp_path):
    imported = read(tmp_path, "x.sh", DREAMBOOTH)
    folders = imported.config.dataset.folders
    assert [(f.path, f.regularisation, f.caption) for f in folders] == [
        ("fox", False, "a sks fox"),
        ("foxes", True, "a fox"),
    ]
    assert (imported.config.network.algorithm, imported.config.loss.prior_weight) == ("dora", 0.5)
    assert imported.listed("unknown") == []


@pytest.mark.parametrize("given", ["", "--lr_warmup_steps=100", "--lr_scheduler=constant --lr_warmup_steps=100"])
def test_its_constant_schedule_warms_up_never(given, tmp_path):
    imported = read(tmp_path, "x.sh", f"python train_text_to_image_lora.py --pretrained_model_name_or_path=sd {given}")
    assert imported.config.schedule.warmup == 0
