"""A run that was stopped and goes on ends as if it had never been stopped."""

from typing import get_args

import pytest
from short_runs import RESTLESS, Configure, of_kind, run_to_end, same, stopped_at, weights

from engine.events import (
    CheckpointSaved,
    RunFinished,
    Warned,
)
from engine.networks import ALGORITHMS
from engine.run_folder import RunFolder
from engine.train import train
from knowledge.answers import PlainError
from knowledge.config import CONVOLUTIONS_TOO, Scheduler
from knowledge.optimizers import OPTIMIZERS


def schedule_with(name: str) -> str:
    """A schedule to try with an optimizer, so that every schedule has its turn; Adafactor gets its own."""
    schedulers = get_args(Scheduler)
    return "adafactor" if name == "adafactor" else schedulers[list(OPTIMIZERS).index(name) % len(schedulers)]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_stopped_and_resumed_is_straight_through_bit_for_bit(configure: Configure, name: str):
    number = list(OPTIMIZERS).index(name)
    config = configure(
        optimizer={"name": name} | RESTLESS.get(name, {}),
        schedule={"scheduler": schedule_with(name), "warmup": 1.0, "epochs": 3, "cycles": 2, "warmup_init": True},
        ema={"decay": 0.9, "every_steps": 2} if number % 2 else {},
        memory=({}, {"precision": "bf16"}, {"precision": "bf16", "full_half": True})[number % 3],
        dataset={"shuffle_tags": True, "flip": True, "caption_dropout_rate": 0.3},
        network={"dropout": 0.2},
    )
    straight, _ = run_to_end(config)
    assert same(weights(stopped_at(config, [1, 4])), weights(straight))  # within an epoch, and between two


@pytest.mark.parametrize("algorithm", [name for name in ALGORITHMS if name not in ("lora", "locon")])
def test_every_algorithm_is_stopped_and_resumed_bit_for_bit_on_convolutions_too(configure: Configure, algorithm: str):
    rank = {"rank": 12, "conv_rank": 12} if algorithm == "boft" else {}
    config = configure(
        network={
            "algorithm": algorithm,
            "convolutions": algorithm in CONVOLUTIONS_TOO,
            "dylora_block_size": 1,
            "module_dropout": 0.2,
        }
        | rank,
        memory={"gradient_checkpointing": True},
    )
    run, events = run_to_end(config)
    assert same(weights(stopped_at(config, [1, 3])), weights(run))
    saved = of_kind(events, CheckpointSaved)[-1]
    assert saved.applications["A1111"] == "yes"
    assert of_kind(events, Warned) == []


def test_a_stopped_run_leaves_a_network_and_a_state(configure: Configure):
    config = configure()
    run = RunFolder.create(config)
    events = list(train(config, run, should_stop=lambda: True))
    finished = of_kind(events, RunFinished)[0]
    assert (finished.reason, finished.step) == ("stopped", 1)
    assert (run.path / finished.network).is_file()
    assert [path.name for path in run.states()] == ["step-000001"]


def test_a_save_request_saves_and_goes_on(configure: Configure):
    config = configure()
    run = RunFolder.create(config)
    run.request("save")
    events = list(train(config, run))
    assert [(e.step, e.kind) for e in of_kind(events, CheckpointSaved)] == [
        (1, "network"),
        (1, "state"),
        (4, "network"),
    ]
    assert not run.requested("save")


def test_resuming_a_finished_run_says_so(configure: Configure):
    config = configure(schedule={"maximum_steps": 1})
    run, events = run_to_end(config)
    with run.event_log() as log:  # as the engine's process keeps them
        for event in events:
            log.write(event)
    with pytest.raises(PlainError, match="is finished"):
        list(train(config, run, resume=True))
