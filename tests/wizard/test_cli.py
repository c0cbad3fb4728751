"""The command line itself: what it loads, how it fails, and what it says then."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import click
import pytest

from knowledge.answers import PlainError
from wizard import cli

ROOT = Path(__file__).parents[2]


def code_of(*words: str) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main(list(words))
    return int(end.value.code or 0)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch):
    """Puts a function in the place of `lora-wizard runs`."""

    def put(work) -> None:
        made = click.command("runs")(click.option("--json", "as_json", is_flag=True)(work))
        monkeypatch.setitem(cli.COMMANDS, "runs", "stand_in:runs")
        monkeypatch.setitem(sys.modules, "stand_in", type(sys)("stand_in"))
        sys.modules["stand_in"].runs = made

    return put


def test_every_command_exists_and_is_in_the_help():
    for name, address in cli.COMMANDS.items():
        module, attribute = address.split(":")
        assert isinstance(getattr(import_module(module), attribute), click.Command), name
    assert {name for group in cli.GROUPS.values() for name in group} == set(cli.COMMANDS)


def commands() -> list[tuple[str, ...]]:
    """Every command, and every command of a group, as it is typed."""
    typed: list[tuple[str, ...]] = []
    for name in cli.COMMANDS:
        command = cli.lora_wizard.get_command(click.Context(cli.lora_wizard), name)
        assert command is not None
        typed += [(name, inner) for inner in command.commands] if isinstance(command, click.Group) else [(name,)]
    return typed


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_explains_itself_with_an_example(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]):
    assert code_of(*words, "--help") == 0
    shown = capsys.readouterr().out
    assert "Example" in shown
    assert "--debug" in shown
    assert "--json" in shown


def test_the_help_groups_the_commands(capsys: pytest.CaptureFixture[str]):
    assert code_of("--help") == 0
    shown = capsys.readouterr().out
    assert shown.index("Train:") < shown.index("Understand:")


def test_a_mistyped_command_is_met_with_a_guess(capsys: pytest.CaptureFixture[str]):
    assert code_of("explian") == 2
    assert 'Did you mean "explain"?' in capsys.readouterr().err


def test_an_error_for_the_user_is_one_line_and_its_own_exit_code(command, capsys: pytest.CaptureFixture[str]):
    def work(as_json: bool) -> None:
        raise PlainError("The disk is full.", 1)

    command(work)
    assert code_of("runs") == 1
    printed = capsys.readouterr()
    assert printed.err.split() == ["✗", "The", "disk", "is", "full."]
    assert printed.out == ""


def test_an_error_under_json_is_a_document(command, capsys: pytest.CaptureFixture[str]):
    def work(as_json: bool) -> None:
        raise PlainError("There is no file a.toml.", 2)

    command(work)
    assert code_of("runs", "--json") == 2
    assert json.loads(capsys.readouterr().out) == {"error": "There is no file a.toml.", "exit_code": 2}


def test_an_exit_code_that_a_command_returns_is_the_programs(command):
    command(lambda as_json: 3)
    assert code_of("runs") == 3


def test_ctrl_c_is_130(command):
    def work(as_json: bool) -> None:
        raise KeyboardInterrupt

    command(work)
    assert code_of("runs") == 130


def test_a_fault_of_our_own_shows_no_traceback_unless_asked(command, capsys: pytest.CaptureFixture[str]):
    def work(as_json: bool) -> None:
        raise RuntimeError("unforeseen")

    command(work)
    assert code_of("runs") == 1
    said = capsys.readouterr().err
    assert "unforeseen" in said
    assert "--debug" in said
    assert "Traceback" not in said
    with pytest.raises(RuntimeError, match="unforeseen"):
        cli.main(["runs", "--debug"])


def test_the_wizard_up_to_its_review_never_imports_torch(photos: Path, own_home: Path):
    program = (
        "import sys; from wizard.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as end: code = end.code\n"
        "heavy = [n for n in ('torch', 'diffusers', 'transformers', 'accelerate', 'lycoris', 'matplotlib') "
        "if n in sys.modules]\n"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    words = ["new", "--pictures", str(photos), "--goal", "object", "--base-model", "pocket", "--dry-run"]
    answer = subprocess.run(
        [sys.executable, "-c", program, *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    assert "steps" in answer.stdout
