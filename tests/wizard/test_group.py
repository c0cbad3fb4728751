"""Several processes as the wizard starts them: what the launcher is told, and a run that two of them share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from accelerate.commands.launch import launch_command_parser
from short_runs import run_to_end, short_config, weights

from engine.events import RunFinished, StepFinished
from engine.run_folder import RunFolder
from knowledge.answers import PlainError, write_answers
from knowledge.config import TrainingConfig, with_values
from wizard.follow import PLAN
from wizard.group import FILE, Group, commands_elsewhere, group_of, launch_arguments, remember_group
from wizard.launch import train_file

TWO_MACHINES = Group(processes=4, machines=2, main_address="10.0.0.5", main_port=1234)


def test_two_processes_train_the_same_as_one_that_adds_up_two_batches(tiny_sd15: Path, tmp_path: Path):
    def config(accumulation: int) -> TrainingConfig:
        return short_config(
            tiny_sd15,
            "sd15",
            tmp_path / f"runs-{accumulation}",
            dataset={"shuffle_tags": True, "flip": True},
            network={"dropout": 0.2},
            optimizer={"learning_rate": 1e-3},
            schedule={"epochs": 2, "gradient_accumulation_steps": accumulation},
        )

    one, events = run_to_end(config(2))
    write_answers(config(1), tmp_path / "answers.toml")
    assert train_file(tmp_path / "answers.toml", as_json=True, group=Group(processes=2)) == 0
    two = RunFolder(tmp_path / "runs-1" / "toy")
    alone, together = (
        [event for event in told if isinstance(event, StepFinished)] for told in (events, list(two.events()))
    )
    # Sums of gradients are taken in another order; AdamW makes a thousandth of an update (1e-6) of the last bits.
    for first, second in zip(alone, together, strict=True):
        assert abs(first.loss - second.loss) < 1e-6
        assert abs(first.gradient_norm - second.gradient_norm) < 1e-5 * first.gradient_norm
    for name, tensor in weights(one).items():
        torch.testing.assert_close(weights(two)[name], tensor, rtol=1e-5, atol=1e-6)
    assert len([event for event in two.events() if isinstance(event, RunFinished)]) == 1  # only one of them tells
    planned = json.loads((two.path / PLAN).read_text())
    assert (planned["processes"], planned["total_steps"]) == (2, len(together))
    assert group_of(two) == Group(processes=2)  # with which it would go on


@pytest.mark.parametrize(("precision", "word"), [("fp32", "no"), ("fp16", "fp16"), ("bf16", "bf16")])
def test_the_launcher_reads_what_is_written_as_it_is_meant(precision: str, word: str):
    parser = launch_command_parser()
    for machine in (0, 1):
        read = parser.parse_args([*launch_arguments(TWO_MACHINES, machine, precision), "-m", "engine"])
        assert (read.num_processes, read.num_machines, read.machine_rank) == (4, 2, machine)
        assert (read.main_process_ip, read.main_process_port) == ("10.0.0.5", 1234)
        assert (read.mixed_precision, read.dynamo_backend, read.multi_gpu) == (word, "no", True)
    alone = parser.parse_args([*launch_arguments(Group(2), 0, precision), "-m", "engine"])
    assert (alone.main_process_ip, alone.main_process_port) == (None, 0)  # any port that is free


def test_every_other_machine_has_a_command_of_its_own(tmp_path: Path):
    run = RunFolder.create(with_values(TrainingConfig(), {"output.folder": str(tmp_path / "all runs")}))
    first, second = commands_elsewhere(run, Group(6, 3, "10.0.0.5"))
    assert first == f"lora-wizard join '{run.path}' --machine 1"
    assert second.endswith("--machine 2")
    assert list(commands_elsewhere(run, Group(2))) == []


def test_a_run_remembers_who_trains_it(tmp_path: Path):
    run = RunFolder.create(with_values(TrainingConfig(), {"output.folder": str(tmp_path)}))
    remember_group(run, Group())
    assert not (run.path / FILE).exists()
    assert group_of(run) == Group()
    remember_group(run, TWO_MACHINES)
    assert group_of(run) == TWO_MACHINES
    (run.path / FILE).write_text("{")
    with pytest.raises(PlainError, match="cannot be read"):
        group_of(run)


@pytest.mark.parametrize(
    ("group", "cards", "words"),
    [
        (Group(5, 2, "10.0.0.5"), 4, "cannot be shared evenly by --machines 2. Take 4 or 6"),
        (Group(1, 2, "10.0.0.5"), 4, "cannot be shared evenly by --machines 2. Take 2"),
        (Group(4, 2), 4, "--machines needs --main-address"),
        (Group(4), 2, "it has 2. Take --processes 2"),
        (Group(8, 2, "10.0.0.5"), 2, "it has 2. Take --processes 4"),
    ],
)
def test_a_group_that_cannot_start_is_refused_in_a_sentence(group: Group, cards: int, words: str):
    with pytest.raises(PlainError, match=words) as error:
        group.check(cards)
    assert error.value.exit_code == 2
    Group(2).check(2)
    Group(2).check(0)  # on the processor
