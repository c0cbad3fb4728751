"""`check`: an answers file planned and judged without starting anything."""

import json

import pytest
from click.testing import CliRunner
from PIL import Image

from knowledge.answers import PlainError
from wizard.check import check


@pytest.fixture
def answers(tmp_path):
    """An answers file over eight small pictures; its text can be changed by appending."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(8):
        Image.new("RGB", (96 if number % 2 else 64, 64), (number * 30, 90, 120)).save(pictures / f"{number}.png")
        (pictures / f"{number}.txt").write_text(f"a creature number {number}")
    path = tmp_path / "answers.toml"
    path.write_text(
        f'[[dataset.folders]]\npath = "{pictures.as_posix()}"\nrepeats = 20\n'
        '[dataset]\ntrigger_word = "ohwx"\nresolution = 64\nbucket_step = 16\nbucket_minimum_side = 32\n'
        "[schedule]\nbatch_size = 4\nepochs = 15\n[optimizer]\nlearning_rate = 0.002\n"
        "[network]\nrank = 8\nalpha = 8.0\n"
        '[sampling]\nprompts = ["ohwx"]\nevery_epochs = 5\n'
    )
    return path


def run(path, *options):
    return CliRunner().invoke(check, [str(path), *options])


def test_the_plan_and_the_findings_come_as_one_document(answers):
    result = run(answers, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.output)
    # two shapes of 4 pictures × 20 repeats, 20 batches of 4 each
    assert (document["batches_per_epoch"], document["total_steps"], document["blocked"]) == (40, 600, False)
    assert document["vram"]["likely_bytes"] > 0
    assert {"rule", "severity", "message", "parameters", "fix"} == set(document["findings"][0])
    assert not [found for found in document["findings"] if found["severity"] in {"blocks", "high"}]


def test_the_plan_says_what_its_figures_are_worth(answers):
    judged = {one["measure"]: one for one in json.loads(run(answers, "--json").output)["assessment"]}
    assert set(judged) == {"steps", "views", "time", "memory"}
    # 15 epochs × 20 repeats; three times as many show every picture too often
    assert (judged["views"]["value"], judged["views"]["verdict"]) == (300, "right")
    longer = run(answers, "--set", "schedule.epochs=45").output
    assert "What these figures are worth" in longer
    assert "△ too high" in longer.split("Views per picture")[-1]


def test_a_config_that_cannot_work_ends_with_exit_code_three_and_its_fix(answers):
    result = run(answers, "--json", "--set", "optimizer.learning_rate=1.0")
    assert result.exit_code == 3
    first = json.loads(result.output)["findings"][0]
    assert (first["rule"], first["fix"]) == ("rate-beyond-reason", {"optimizer.learning_rate": 0.002})
    shown = run(answers, "--set", "optimizer.learning_rate=1.0")
    assert shown.exit_code == 3
    assert "cannot start as it is" in shown.output


def test_pictures_or_models_that_are_not_there_block_with_their_reason(answers, tmp_path):
    for text, said in (
        ('[[dataset.folders]]\npath = "nowhere"\n', "no folder nowhere"),
        ('[base_model]\npath = "nowhere.safetensors"\nfamily = "sd15"\n', "nowhere.safetensors, and nothing is there"),
        ('[base_model]\npath = "pocket"\nfamily = "sd15"\n', "is a model of the family pocket"),
        ('[base_model]\nvae = "no-vae.safetensors"\n', "base_model.vae is no-vae.safetensors, and nothing"),
        ('[network]\nstart_from = "no-lora.safetensors"\n', "there is no such file"),
    ):
        path = tmp_path / "other.toml"
        path.write_text(text)
        result = run(path, "--json")
        assert result.exit_code == 3
        assert said in json.loads(result.output)["problem"]
        assert "cannot start" in run(path).output


def test_a_tracker_that_is_not_installed_blocks_with_the_command_that_installs_it(answers, monkeypatch):
    assert run(answers, "--set", "logging.tracker=tensorboard").exit_code == 0
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = run(answers, "--json", "--set", "logging.tracker=tensorboard")
    assert result.exit_code == 3
    assert "-m pip install tensorboard; or go without" in json.loads(result.output)["problem"]


def test_a_file_that_is_wanted_twice_is_told_of_once(tmp_path):
    path = tmp_path / "other.toml"
    path.write_text('[network]\nstart_from = "no-lora.safetensors"\nrank_from_start = true\n')
    assert json.loads(run(path, "--json").output)["problem"].count("no such file") == 1
    assert run(path).output.count("no such file") == 1


def test_a_file_that_is_not_valid_is_refused(tmp_path):
    path = tmp_path / "answers.toml"
    path.write_text("[network]\nrank = 0\n")
    result = run(path)
    assert isinstance(result.exception, PlainError)
    assert result.exception.exit_code == 2


FOREIGN = """pretrained_model_name_or_path = "elsewhere/base.safetensors"
train_data_dir = "elsewhere"
network_module = "networks.lora"
network_dim = 16
network_alpha = 8
network_train_unet_only = true
learning_rate = 1e-4
max_train_epochs = 10
train_batch_size = 2
resolution = 512
mixed_precision = "bf16"
lr_scheduler = "constant"
lr_warmup_steps = 100
max_grad_normm = 1.0
"""


@pytest.fixture
def foreign(tmp_path):
    """A config of sd-scripts whose pictures and base model are on another computer."""
    path = tmp_path / "forum.toml"
    path.write_text(FOREIGN)
    return path


def test_a_foreign_file_is_planned_without_its_pictures_and_its_base_model(foreign):
    result = run(foreign, "--json", "--images", "20", "--gpu", "RTX 3060")
    document = json.loads(result.output)
    # 20 pictures ÷ 2, ten times
    assert (document["total_steps"], document["imported"]["format"]) == (100, "sd-scripts TOML")
    assert document["vram"]["likely_bytes"] > 2 * 2**30
    assert result.exit_code == 3
    assert "base.safetensors, and nothing is there" in document["problem"]


def test_a_foreign_file_is_told_key_by_key_where_something_changes_and_what_bites_there(foreign):
    shown = " ".join(run(foreign, "--images", "20", "--gpu", "RTX 3060").output.split())
    for said in (
        "Taken over as it is",
        "max_grad_normm = 1",
        'Did you mean "max_grad_norm"?',
        "sd-scripts stops at a warm-up",
        "100 steps in 10 epochs",
        "RTX 3060",
        "--all",
    ):
        assert said in shown, said
    without = " ".join(run(foreign).output.split())
    assert "how many there are: --images 20" in without


def test_a_foreign_file_that_does_not_go_together_here_still_tells_its_keys(tmp_path):
    path = tmp_path / "x.toml"
    path.write_text(FOREIGN + "min_timestep = 900\nmax_timestep = 100\n")
    shown = run(path)
    assert shown.exit_code == 3
    assert "Taken over as it is" in shown.output
    assert "noise.minimum_timestep" in " ".join(shown.output.split())
    assert json.loads(run(path, "--json").output)["blocked"]
