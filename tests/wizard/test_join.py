"""Joining a run from another computer: what is missing or wrong is said before anything starts."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner

from engine.run_folder import RunFolder
from knowledge.answers import PlainError
from knowledge.config import TrainingConfig, with_values
from wizard.group import Group, remember_group
from wizard.join import await_first, join, missing_here


def listening() -> socket.socket:
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen()
    return server


def test_a_first_computer_that_waits_is_found_at_once():
    said: list[str] = []
    with listening() as server:
        await_first(Group(2, 2, "127.0.0.1", server.getsockname()[1]), said.append)
    assert len(said) == 1
    assert said[0].startswith("Connected to 127.0.0.1, port ")


def test_a_first_computer_that_is_late_is_waited_for_and_named_once():
    said: list[str] = []
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        late = threading.Timer(0.2, server.listen)
        late.start()
        await_first(Group(2, 2, "127.0.0.1", server.getsockname()[1]), said.append, pause_seconds=0.05)
        late.join()
    assert len(said) == 2
    assert "answers, but no run waits at its port" in said[0]
    assert "up to 15 minutes" in said[0]


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("no-such-computer.invalid", "knows no computer of that name"),
        ("127.0.0.1", "No run has been started at 127.0.0.1, port 1, within 0 minutes"),
    ],
)
def test_an_address_where_nobody_can_be_is_told_in_a_sentence(address: str, words: str):
    with pytest.raises(PlainError, match=words):
        await_first(Group(2, 2, address, 1), lambda _: None, minutes=0, pause_seconds=0)


def test_what_this_computer_lacks_is_named_before_it_joins(tmp_path: Path):
    run = RunFolder.create(
        with_values(
            TrainingConfig(),
            {
                "output.folder": str(tmp_path),
                "base_model.path": "/models/sdxl",
                "dataset.folders": [{"path": str(tmp_path)}, {"path": "/pictures/fox"}],
            },
        )
    )
    assert list(missing_here(run.config())) == ["the base model /models/sdxl", "the folder /pictures/fox"]
    remember_group(run, Group(2, 2, "127.0.0.1", 1))
    refused = CliRunner().invoke(join, [str(run.path), "--machine", "1"])
    assert "Not on this computer: the base model /models/sdxl and the folder /pictures/fox." in str(refused.exception)
    wrong = CliRunner().invoke(join, [str(run.path), "--machine", "2"])
    assert "was begun with machine 1 alone beside it" in str(wrong.exception)
