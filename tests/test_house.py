"""The house itself: its floors, its start-up, what it says of itself."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "diffusers", "transformers", "accelerate", "lycoris", "matplotlib")


def test_imports_go_down_only():
    linter = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert linter.returncode == 0, linter.stdout + linter.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("--version",),
        ("calc", "--images", "20", "--repeats", "10", "--json"),
        ("explain", "network.rank"),
        ("explain",),
    ],
    ids=" ".join,
)
def test_what_comes_before_training_never_imports_torch(arguments: tuple[str, ...]):
    program = (
        "import sys; from wizard.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as end: code = end.code\n"
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    answer = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip()


def test_every_dependency_says_why_it_is_here():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = text[text.index("dependencies = [") : text.index("[project.scripts]")]
    requirements = [line for line in block.splitlines() if line.strip().startswith('"')]
    assert len(requirements) > 15
    heading_explains = ("onnxruntime",)
    silent = [r for r in requirements if "#" not in r and not any(name in r for name in heading_explains)]
    assert silent == []


def test_readme_has_one_command_for_the_demo_and_one_for_the_tests():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in ("demo", "tests"):
        assert re.search(rf"<!-- {name} -->\n```bash\n[^\n]+\n```", text), name
