"""What the doctor found missing, installed with the very commands that it names."""

from __future__ import annotations

import importlib
import shlex
import subprocess
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from wizard import views
from wizard.checks import in_the_way
from wizard.library_checks import pip

if TYPE_CHECKING:
    from wizard.patient import Line


def installs(lines: Sequence[Line]) -> list[str]:
    """The commands that install something of what is in the way of training, as they are shown."""
    wanted = f"{pip()} install "
    return [line.mend for line in in_the_way(lines) if line.mend.startswith(wanted) and ";" not in line.mend]


def install(commands: Sequence[str]) -> bool:
    """Whether all of them came to a good end; each has the terminal meanwhile, and the first that fails is the last."""
    console = views.console()
    for command in commands:
        console.print(f"\n[quiet]$ {views.escape(command)}[/]")
        words = [sys.executable, *shlex.split(command)[1:]]
        if subprocess.run(words, check=False).returncode != 0:
            console.print("[error]✗[/] That did not succeed; what is above says why. Nothing else was installed.")
            return False
    importlib.invalidate_caches()  # what was looked for in vain is found now
    return True
