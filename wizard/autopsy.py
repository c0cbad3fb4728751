"""Why an engine ended without a word: its exit status, the system's counters and its last lines are the evidence."""

from __future__ import annotations

import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

from engine.events import Failed
from engine.run_folder import RunFolder
from knowledge.config import TrainingConfig
from wizard.progress import Progress

ENGINE_LOG = "engine.log"
VMSTAT = Path("/proc/vmstat")
CGROUP_EVENTS = (Path("/sys/fs/cgroup/memory.events"), Path("/sys/fs/cgroup/memory/memory.oom_control"))
DISK_FULL_BYTES = 50 * 10**6
"""Less free space than this, when an engine dies without a word, is taken for the reason."""

ACCESS_VIOLATIONS = {-signal.SIGSEGV, -getattr(signal, "SIGBUS", signal.SIGSEGV), 0xC0000005, -1073741819}


@dataclass(frozen=True)
class Machine:
    """What the system had counted at one moment: programs ended for want of memory; None where it does not tell."""

    memory_kills: int | None

    @classmethod
    def now(cls) -> Machine:
        counted = [int(value) for file in (VMSTAT, *CGROUP_EVENTS) if (value := _counter(file, "oom_kill")) is not None]
        return cls(sum(counted) if counted else None)


def death(run: RunFolder, returncode: int | None, before: Machine, after: Machine, progress: Progress) -> Failed:
    """The event that the engine could not write itself: the cause as far as the evidence goes, and what to do."""
    cause, remedy = _cause(run, returncode, before, after)
    return Failed(
        cause=cause,
        remedy=remedy,
        phase=progress.phase or "loading",
        step=progress.step,
        traceback=last_lines(run.path / ENGINE_LOG, 40),
    )


def _cause(run: RunFolder, returncode: int | None, before: Machine, after: Machine) -> tuple[str, str]:
    ran_out_of_memory = (after.memory_kills or 0) > (before.memory_kills or 0)
    if shutil.disk_usage(run.path).free < DISK_FULL_BYTES:
        return f"The disk that holds {run.path} is full, so the training could not write any more.", "Make room on it."
    if returncode is None:
        return "The training ended without saying why, as when the computer is switched off.", "What is saved is whole."
    if returncode == -9 and ran_out_of_memory:
        return (
            "The computer ran out of memory (RAM), and the system ended the training to save the rest.",
            lower_memory(run.config()),
        )
    if returncode == -9:
        return (
            "The training was ended from outside (signal 9). That is what `kill -9` does, and what many systems do to "
            "the largest program when memory runs out.",
            f"If nobody ended it on purpose: {_lower_first(lower_memory(run.config()))}",
        )
    if returncode in (-15, -1, -2):
        return "The training was asked to end from outside, as when a computer shuts down.", "What is saved is whole."
    if returncode in ACCESS_VIOLATIONS:
        return (
            "The training crashed inside a library that talks to the hardware (a memory access that is not allowed).",
            "Bring the graphics driver and PyTorch up to date: lora-wizard doctor tells what is there.",
        )
    last = last_lines(run.path / ENGINE_LOG, 1)
    said = f" Its last words: {last}" if last else ""
    return (
        f"The training ended unexpectedly (exit status {returncode}).{said}",
        f"All it printed is in {run.path / ENGINE_LOG}.",
    )


def lower_memory(config: TrainingConfig) -> str:
    """What would make this config need less memory, the least harmful first."""
    steps = []
    if not config.memory.gradient_checkpointing:
        steps.append("turn memory.gradient_checkpointing on")
    if config.schedule.batch_size > 1:
        steps.append(f"lower schedule.batch_size from {config.schedule.batch_size} to 1")
    if config.memory.precision == "fp32":
        steps.append("set memory.precision to bf16")
    if config.dataset.resolution > 512:
        steps.append(f"lower dataset.resolution from {config.dataset.resolution} to 512")
    steps.append("close other programs")
    return _sentence(steps) if len(steps) == 1 else _sentence([", ".join(steps[:-1]) + " or " + steps[-1]])


def last_lines(file: Path, count: int) -> str:
    """The last lines with something in them; empty when there is no such file."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return "\n".join([line.rstrip() for line in text.splitlines() if line.strip()][-count:])


def _counter(file: Path, name: str) -> str | None:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((line.split()[1] for line in lines if line.startswith(f"{name} ")), None)


def _sentence(parts: list[str]) -> str:
    text = " ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def _lower_first(text: str) -> str:
    return text[0].lower() + text[1:]
