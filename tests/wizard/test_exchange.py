"""`lora-wizard import` and `export` as they are typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from knowledge.answers import PlainError, read_answers
from wizard.exchange import FORMATS, export, import_

NETWORK = Path(__file__).parent.parent / "data" / "network_fp16.safetensors"
OPTIONS = """
[model]
pretrained_model_name_or_path = "models/base.safetensors"
[training]
network_dim = 8
network_alpha = 4
learning_rate = 1e-4
max_train_epochs = 5
xformers = true
save_model_as = "ckpt"
max_grad_normm = 1.0
train_data_dir = "pictures"
resolution = "512,768"
"""


def run(command, *arguments: object) -> Result:
    outcome = CliRunner().invoke(command, [str(argument) for argument in arguments], standalone_mode=False)
    if outcome.exception is not None:
        raise outcome.exception
    return outcome


@pytest.fixture
def options(tmp_path) -> Path:
    path = tmp_path / "kohya.toml"
    path.write_text(OPTIONS, encoding="utf-8")
    return path


def test_import_shows_five_lists(options):
    text = run(import_, options).stdout
    for piece in (
        "Taken over as it is",
        "Taken over with a change",
        "Without effect on the result",
        "Not supported here",
        "Unknown",
        'Did you mean "max_grad_norm"?',
    ):
        assert piece in text


def test_import_writes_answers_that_can_be_read(options, tmp_path):
    run(import_, options, "--output", tmp_path / "mine.toml")
    config = read_answers(tmp_path / "mine.toml")
    assert (config.network.rank, config.schedule.epochs) == (8, 5)
    with pytest.raises(PlainError, match="--overwrite"):
        run(import_, options, "--output", tmp_path / "mine.toml")


def test_import_as_json_lists_every_key_once(options):
    document = json.loads(run(import_, options, "--json").stdout)
    keys = [
        note["key"] for part in ("mapped", "changed", "no_effect", "unsupported", "unknown") for note in document[part]
    ]
    assert sorted(keys) == sorted(set(keys))
    assert len(keys) == 10
    assert document["config"]["network"]["rank"] == 8


def test_import_of_a_lora_makes_another_like_it(tmp_path):
    run(import_, NETWORK, "--output", tmp_path / "again.toml")
    assert read_answers(tmp_path / "again.toml").network.rank == 4


@pytest.mark.parametrize("kind", sorted(FORMATS.keys() - {"sky"}))  # which carries pictures: test_sky.py
def test_export_writes_files_and_says_what_gets_lost(kind, options, tmp_path):
    run(import_, options, "--output", tmp_path / "mine.toml")
    document = json.loads(run(export, kind, tmp_path / "mine.toml", "--folder", tmp_path / kind, "--json").stdout)
    assert document["files"]
    assert all(Path(file).stat().st_size for file in document["files"])
    assert document["command"]
    with pytest.raises(PlainError, match="--overwrite"):
        run(export, kind, tmp_path / "mine.toml", "--folder", tmp_path / kind)


def test_importing_never_loads_torch(options):
    import subprocess
    import sys

    program = (
        "import sys; from wizard.cli import main\n"
        f"try: main(['import', {str(options)!r}, '--json'])\n"
        "except SystemExit as end: code = end.code\n"
        "sys.exit('torch was imported' if 'torch' in sys.modules else code)"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr


def test_check_explains_a_foreign_file_and_plans_the_same_training(options):
    from wizard.check import check

    outcome = CliRunner().invoke(check, [str(options)], standalone_mode=False)
    assert "Taken over with a change" in outcome.stdout
    document = json.loads(CliRunner().invoke(check, [str(options), "--json"], standalone_mode=False).stdout)
    assert document["imported"]["format"] == "sd-scripts TOML"
    assert "findings" in document


OURS = """schema_version = 1
[base_model]
path = "m.safetensors"
family = "sdxl"
[dataset]
trigger_word = "sks"
[[dataset.folders]]
path = "pictures"
repeats = 5
[schedule]
scheduler = "rex"
[network]
conv_rank = 4
"""


@pytest.mark.parametrize("kind", sorted(FORMATS.keys() - {"sky"}))
def test_an_export_tells_in_five_lists_what_became_of_every_setting(kind, tmp_path):
    (tmp_path / "ours.toml").write_text(OURS, encoding="utf-8")
    document = json.loads(run(export, kind, tmp_path / "ours.toml", "--folder", tmp_path / kind, "--json").stdout)
    for outcome, name in (
        ("mapped", "base_model.path"),
        ("changed", "schedule.scheduler"),
        ("no_effect", "network.conv_rank"),
        ("unsupported", "dataset.trigger_word"),
    ):
        assert name in {note["key"] for note in document[outcome]}, outcome
    assert document["unknown"] == []
    shown = run(export, kind, tmp_path / "ours.toml", "--folder", tmp_path / kind, "--overwrite").stdout
    assert "Cannot be said there" in shown
    assert "path=" not in shown  # values as one writes them, not as Python does


def test_import_all_tells_every_key_and_what_the_file_leaves_unsaid(options):
    shown = run(import_, options, "--all").stdout
    assert "network_dim = 8" in shown
    assert "What its defaults mean" in shown
