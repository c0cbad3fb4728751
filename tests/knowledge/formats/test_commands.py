"""Commands out of scripts of every shell."""

from __future__ import annotations

from pathlib import Path

import pytest
from foreign import BAT, PS1, SH, outcome, read

from knowledge.formats.commands import training_command

NESTED = """bash -lc "accelerate launch sdxl_train_network.py --network_dim 16 --output_name 'my lora'"; echo --done"""
BARE = "--network_dim 8\n--learning_rate 1e-4\n"


@pytest.mark.parametrize(
    ("name", "text", "script", "options"),
    [
        ("x.bat", BAT, "sdxl_train_network.py", {
            "pretrained_model_name_or_path": r"C:\My Models\base.safetensors", "output_dir": r"D:\out dir",
            "network_dim": 32, "optimizer_args": ["weight_decay=0.1", "betas=0.9,0.99"]}),
        ("x.ps1", PS1, "train_network.py", {
            "pretrained_model_name_or_path": r"D:\x y\m.safetensors", "train_data_dir": r"D:\pics", "network_dim": 8,
            "network_alpha": 4}),
        ("x.sh", SH, "train_network.py", {
            "pretrained_model_name_or_path": "/m/base.safetensors", "network_dim": 8,
            "network_args": ["conv_dim=4", "conv_alpha=1"], "output_name": 'it"s'}),
        ("x.sh", NESTED, "sdxl_train_network.py", {"network_dim": 16, "output_name": "my lora"}),
        ("x.txt", BARE, "", {"network_dim": 8, "learning_rate": 1e-4}),
        ("x.sh", 'python train_network.py --network_dim 4 --output_name "open', "train_network.py", {
            "network_dim": 4, "output_name": "open"}),
    ],
)  # fmt: skip
def test_the_command_that_trains_is_found_in_scripts_of_every_shell(name, text, script, options):
    command = training_command(text, Path(name))
    assert (command.script, command.options, command.remarks) == (script, options, [])
    dos = training_command(text.replace("\n", "\r\n"), Path(name))
    assert dos.options == options


def test_a_second_training_is_not_dropped_in_silence():
    text = "python train_network.py --network_dim 4\npython train_network.py --network_dim 8\n"
    command = training_command(text, Path("x.sh"))
    assert command.options == {"network_dim": 4}
    assert command.remarks == ["The file trains 2 times; the first of its commands is read."]


def test_options_twice_and_words_of_no_option_are_told():
    command = training_command("train_network.py x --xformers yes --network_dim 4 --network_dim 8", Path("x.sh"))
    assert command.options == {"xformers": True, "network_dim": 8}
    assert [remark.split(";")[0] for remark in command.remarks] == [
        '"x" stands before the first option',
        '"yes" stands after --xformers, which takes no value',
        "--network_dim stands twice",
    ]


def test_options_of_accelerate_are_listed_and_do_not_count(tmp_path):
    imported = read(tmp_path, "x.sh", "accelerate launch --mixed_precision fp16 train_network.py --network_dim 4")
    assert imported.config.memory.precision == "fp32"
    note = next(note for note in imported.notes if note.key == "accelerate.mixed_precision")
    assert note.outcome == "no_effect"
    assert "script's own" in note.why


def test_a_command_reads_its_options_file_and_overrides_it(tmp_path):
    (tmp_path / "base.toml").write_text("[a]\nnetwork_dim = 4\nnetwork_alpha = 2\n", encoding="utf-8")
    imported = read(tmp_path, "x.sh", "accelerate launch train_network.py --config_file base --network_dim 8")
    assert (imported.config.network.rank, imported.config.network.alpha) == (8, 2)
    assert outcome(imported, "config_file") == "no_effect"
    missing = read(tmp_path, "x.sh", "accelerate launch train_network.py --config_file other.toml")
    assert outcome(missing, "config_file") == "unsupported"
