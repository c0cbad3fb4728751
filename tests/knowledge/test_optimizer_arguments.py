"""Optimizer arguments: what is said of a wrong one, and that they survive the answers file and other trainers'."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from knowledge.answers import PlainError, answers_text, parse_assignment, plain_problems, read_answers
from knowledge.config import TrainingConfig, with_values
from knowledge.formats.export import to_sd_scripts
from knowledge.formats.reader import read_foreign
from knowledge.optimizer_arguments import from_line, to_line


def problems_of(optimizer: str, arguments: object) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        with_values(TrainingConfig(), {"optimizer.name": optimizer, "optimizer.arguments": arguments})
    return plain_problems(caught.value)


def test_a_wrong_argument_is_one_sentence_that_says_what_would_be_right():
    assert problems_of("adamw", {"beta": [0.9, 0.99]}) == [
        'optimizer.arguments has "beta", which adamw does not take. Did you mean "betas"? It takes betas, eps, amsgrad.'
    ]
    assert problems_of("adamw", {"betas": 0.9}) == [
        "optimizer.arguments.betas is 0.9; adamw wants 2 numbers, as in [0.9,0.999] there."
    ]
    assert problems_of("adamw", {"amsgrad": 1}) == [
        "optimizer.arguments.amsgrad is 1; adamw wants true or false there."
    ]
    assert problems_of("schedule_free_adamw", {"decoupling_c": 0.5}) == [
        "optimizer.arguments.decoupling_c is 0.5; schedule_free_adamw wants a whole number there."
    ]
    assert problems_of("sgd", {"weight_decay": 0.1}) == [
        'optimizer.arguments has "weight_decay", which is not set there: it is a setting of its own, '
        "optimizer.weight_decay."
    ]
    assert problems_of("adamw", {"eps": "small"}) == [
        "optimizer.arguments.eps is 'small'; it must be a number, true or false, or a list of numbers, "
        "as in { betas = [0.9, 0.99] }."
    ]
    assert problems_of("adamw", 3) == [
        "optimizer.arguments must be a table of names and values, as in { betas = [0.9, 0.99] }."
    ]


def test_the_answers_file_keeps_them_and_the_settings_after_them(tmp_path: Path):
    changes = {"optimizer.arguments": {"betas": (0.9, 0.95), "amsgrad": True}, "schedule.epochs": 3}
    config = with_values(TrainingConfig(), changes)
    path = tmp_path / "answers.toml"
    path.write_text(answers_text(config), encoding="utf-8")
    assert read_answers(path) == config
    path.write_text("schema_version = 1\n[optimizer.arguments]\nbeta = 1\n", encoding="utf-8")
    with pytest.raises(PlainError, match='Did you mean "betas"'):
        read_answers(path)
    assert parse_assignment("optimizer.arguments={betas = [0.9, 0.95]}") == (
        "optimizer.arguments",
        {"betas": [0.9, 0.95]},
    )


def test_a_line_of_text_holds_the_same():
    arguments = {"betas": (0.9, 0.99), "eps": 1e-6, "amsgrad": True, "decoupling_c": 2}
    assert to_line(arguments) == "betas=0.9,0.99 eps=1e-06 amsgrad=True decoupling_c=2"
    assert from_line(to_line(arguments)) == arguments
    assert from_line("betas=[0.9, 0.99] amsgrad=true") == {"betas": (0.9, 0.99), "amsgrad": True}
    with pytest.raises(ValueError, match='"eps" sets nothing'):
        from_line("eps")


def imported(tmp_path: Path, *arguments: str, optimizer: str = "AdamW"):
    path = tmp_path / "theirs.toml"
    path.write_text(f'optimizer_type = "{optimizer}"\noptimizer_args = {list(arguments)}\n', encoding="utf-8")
    return read_foreign(path)


def test_arguments_of_sd_scripts_come_in_and_those_with_a_setting_become_it(tmp_path: Path):
    config = imported(tmp_path, "weight_decay=0.1", "betas=0.9,0.95", "amsgrad=True").config
    assert config.optimizer.weight_decay == 0.1
    assert config.optimizer.arguments == {"betas": (0.9, 0.95), "amsgrad": True}
    notes = {note.key: note for note in imported(tmp_path, "bettas=1", "betas=0.9", "foreach=True").notes}
    assert notes["optimizer_args.bettas"].why == ("It sets bettas of the optimizer; adamw has no such argument here.")
    assert "wants 2 numbers" in notes["optimizer_args.betas"].why
    assert "how it computes is chosen by the program" in notes["optimizer_args.foreach"].why


def test_what_another_library_does_unasked_is_taken_over(tmp_path: Path):
    """sd-scripts' Prodigy comes without the safeguards that ours has; its names are others as well."""
    plain = imported(tmp_path, "d_coef=2", optimizer="Prodigy").config
    assert plain.optimizer.arguments == {"bias_correction": False, "safeguard_warmup": False, "d_coef": 2}
    named = imported(tmp_path, "use_bias_correction=True", "safeguard_warmup=True", optimizer="Prodigy").config
    assert named.optimizer.arguments == {}


def test_arguments_go_out_under_the_other_librarys_names(tmp_path: Path):
    changes = {"optimizer.name": "prodigy", "optimizer.arguments": {"d_coef": 0.5}, "base_model.path": "m"}
    written = to_sd_scripts(with_values(TrainingConfig(), changes))
    assert set(written.options["optimizer_args"]) == {
        "weight_decay=0.01", "d_coef=0.5", "use_bias_correction=True", "safeguard_warmup=True"
    }  # fmt: skip
    lost = to_sd_scripts(with_values(TrainingConfig(), {**changes, "optimizer.arguments": {"fixed_decay": True}})).lost
    assert "optimizer.arguments" in {one.name for one in lost}


def test_ai_toolkits_optimizer_params_come_in_one_by_one(tmp_path: Path):
    path = tmp_path / "job.yaml"
    path.write_text(
        "job: extension\nconfig:\n  name: x\n  process:\n  - type: sd_trainer\n    train:\n      optimizer: adamw\n"
        "      optimizer_params: {weight_decay: 0.2, betas: [0.9, 0.95], oddity: 1}\n",
        encoding="utf-8",
    )
    found = read_foreign(path)
    assert (found.config.optimizer.weight_decay, found.config.optimizer.arguments) == (0.2, {"betas": (0.9, 0.95)})
    assert {note.key: note.outcome for note in found.notes}["train.optimizer_params.oddity"] == "unsupported"


def test_adafactor_that_sets_its_own_rate_is_a_schedule_here(tmp_path: Path):
    relative = imported(tmp_path, "warmup_init=True", optimizer="Adafactor").config
    assert (relative.schedule.scheduler, relative.schedule.warmup_init) == ("adafactor", True)
    assert relative.optimizer.arguments == {}
    steady = imported(tmp_path, "relative_step=False", "scale_parameter=False", optimizer="Adafactor").config
    assert (steady.schedule.scheduler, steady.optimizer.arguments) == ("constant", {})
    scaled = imported(tmp_path, "relative_step=False", optimizer="Adafactor").config
    assert scaled.optimizer.arguments == {"scale_parameter": True}
