"""`lora-wizard doctor`: is this computer ready? Each line says what was found, if it matters, and what mends it."""

from __future__ import annotations

import json
import os
import platform
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import click
import psutil

from knowledge.facts import Hardware
from wizard import views
from wizard.hardware import GraphicsCard, graphics_cards, system, this_computer
from wizard.words import count, size

if TYPE_CHECKING:
    from rich.console import RenderableType

    from wizard.situation import Situation

State = Literal["good", "note", "warning", "problem"]
MARKS = {"good": ("✓", "good"), "note": ("·", "quiet"), "warning": ("!", "warning"), "problem": ("✗", "error")}

PYTORCH_WHEELS = "https://download.pytorch.org/whl/"
OLDEST_CARD_OF_CUDA_13 = (7, 5)
OLDEST_DRIVER_OF_CUDA_13 = 580
HUB = "https://huggingface.co"
HUB_SECONDS = 3.0
LITTLE_DISK_BYTES = 10 * 10**9
LITTLE_RAM_BYTES = 8 * 2**30


@dataclass(frozen=True)
class Line:
    """One thing that was looked at. `mend` is the command, or the step, that puts it right."""

    name: str
    found: str
    state: State = "good"
    matters: str = ""
    mend: str = ""


@dataclass(frozen=True)
class Patient:
    """Everything that was found out; the checks below only read it."""

    hardware: Hardware
    cards: list[GraphicsCard]
    probes: Mapping[str, Mapping[str, Any]]
    environment: Mapping[str, str]
    situation: Situation | None = None
    places: tuple[str, ...] = ()
    hub_answers: bool = True
    tokens: Mapping[str, bool] = field(default_factory=dict)
    swap_bytes: int = 0

    @property
    def torch(self) -> Mapping[str, Any]:
        return self.probes["torch"]


@click.command(epilog="Example: lora-wizard doctor my-lora.toml")
@click.argument("answers", metavar="[FILE]", required=False, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print what was found as one JSON document.")
def doctor(answers: Path | None, as_json: bool) -> int:
    """What this computer can train, and what would mend what is missing.

    With an answers FILE it also says whether that training fits this computer. Exits with 1 when something is in the
    way of training.
    """
    if as_json:
        lines = list(examine(_patient(answers)))
        document = {"ready": not _in_the_way(lines), "lines": [asdict(line) for line in lines]}
        print(json.dumps(document, ensure_ascii=False))
    else:
        console = views.console()
        with console.status("Looking at this computer; some libraries take a while to answer"):
            lines = list(examine(_patient(answers)))
        console.print(views.indented(views.page(*_page(lines))))
    return 1 if _in_the_way(lines) else 0


def examine(patient: Patient) -> Iterator[Line]:
    """Every check's lines, in the order in which a person would look."""
    for check in CHECKS:
        yield from check(patient)


def _in_the_way(lines: list[Line]) -> list[Line]:
    return [line for line in lines if line.state == "problem"]


def _page(lines: list[Line]) -> Iterator[RenderableType]:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(style="quiet", no_wrap=True)
    grid.add_column()
    for line in lines:
        mark, style = MARKS[line.state]
        said: list[RenderableType] = [Text(line.found)]
        if line.matters:
            said.append(Text(line.matters, style="quiet"))
        if line.mend:
            said.append(Text.assemble(("→ ", "accent"), line.mend, overflow="fold"))
        grid.add_row(Text(mark, style=style), line.name, Group(*said))
    yield ""
    yield views.heading("This computer")
    yield grid
    problems = _in_the_way(lines)
    if problems:
        yield Text.assemble(
            ("✗ ", "error"),
            f"{count(len(problems), 'thing')} in the way of training: {', '.join(p.name for p in problems)}.",
        )
    else:
        yield Text.assemble(("✓ ", "good"), "Nothing is in the way of training.")


# Finding out


def _patient(answers: Path | None) -> Patient:
    from wizard.probes import ask_all

    situation = None
    if answers is not None:
        from knowledge.answers import read_answers
        from wizard.launch import situation_of

        situation = situation_of(read_answers(answers))
    return Patient(
        hardware=this_computer(situation.config.output.folder if situation else "."),
        cards=graphics_cards(),
        probes=ask_all(),
        environment=os.environ,
        situation=situation,
        places=tuple(places(os.environ)),
        hub_answers=hub_answers(os.environ.get("HF_ENDPOINT", HUB)),
        tokens=tokens(os.environ),
        swap_bytes=int(psutil.swap_memory().total),
    )


PLACES: tuple[tuple[str, Callable[[Mapping[str, str]], bool]], ...] = (
    ("RunPod", lambda e: "RUNPOD_POD_ID" in e),
    ("Vast.ai", lambda e: "VAST_CONTAINERLABEL" in e or "VAST_TCP_PORT_22" in e),
    ("Google Colab", lambda e: "COLAB_RELEASE_TAG" in e or "COLAB_GPU" in e),
    ("Kaggle", lambda e: "KAGGLE_KERNEL_RUN_TYPE" in e),
    ("WSL", lambda e: "WSL_DISTRO_NAME" in e or "microsoft" in platform.release().lower()),
    ("a container", lambda e: Path("/.dockerenv").exists() or Path("/run/.containerenv").exists()),
)
"""Rented machines and containers by what they leave in the environment."""


def places(environment: Mapping[str, str]) -> list[str]:
    """Where this computer stands, when it is not one of the user's own: "RunPod", "WSL", "a container"."""
    return [name for name, is_it in PLACES if is_it(environment)]


def tokens(environment: Mapping[str, str]) -> dict[str, bool]:
    """Which access tokens are there. Their values are not read, let alone shown."""
    home = Path(environment.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    file = Path(environment.get("HF_TOKEN_PATH") or home / "token")
    return {
        "Hugging Face": bool(environment.get("HF_TOKEN") or environment.get("HUGGING_FACE_HUB_TOKEN"))
        or file.is_file(),
        "Civitai": bool(environment.get("CIVITAI_TOKEN") or environment.get("CIVITAI_API_KEY")),
    }


def hub_answers(address: str, seconds: float = HUB_SECONDS) -> bool:
    """Whether a connection to the Hugging Face hub, or its mirror in HF_ENDPOINT, can be opened."""
    parts = urlsplit(address)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        with socket.create_connection((parts.hostname or "", port), timeout=seconds):
            return True
    except OSError:
        return False


# The checks


def _system(patient: Patient) -> Iterator[Line]:
    where = f", in {' in '.join(patient.places)}" if patient.places else ""
    found = f"{system()}{where}; Python {platform.python_version()}; lora-wizard {_version('lora-wizard')}"
    if struct_bits() < 64:
        yield Line(
            "system", found, "problem", "This Python has 32 bits; PyTorch needs 64.", "Install the 64-bit Python."
        )
    else:
        yield Line("system", found)
    if set(patient.places) & {"Google Colab", "Kaggle", "RunPod", "Vast.ai"}:
        yield Line(
            "rented machine",
            patient.places[0],
            "note",
            "What is on its disk may be gone when it ends; copy finished files away, or keep runs on a lasting volume.",
        )


def struct_bits() -> int:
    """Bits of an address in this Python."""
    return 64 if sys.maxsize > 2**32 else 32


def _graphics_card(patient: Patient) -> Iterator[Line]:
    if not patient.cards:
        device = patient.torch.get("device")
        if device == "mps":
            yield Line("graphics card", "Apple GPU", "good", "It shares the computer's memory.")
        elif device == "cuda":
            yield Line("graphics card", "an AMD or unlisted GPU that PyTorch can use")
        else:
            yield Line(
                "graphics card",
                "no NVIDIA card, or its driver is not installed",
                "note",
                "The built-in pocket model trains on the processor; SD 1.5 takes hours there, and SDXL days.",
                "" if sys.platform == "darwin" else "If there is a card, install its driver from nvidia.com/drivers",
            )
        return
    for card in patient.cards:
        capability = f", compute capability {card.capability[0]}.{card.capability[1]}" if card.capability else ""
        found = (
            f"{card.name}, {views.memory(card.vram_bytes)} VRAM ({views.memory(card.vram_free_bytes)} free)"
            f"{capability}, driver {card.driver}"
        )
        busy = card.vram_bytes - card.vram_free_bytes
        if busy > max(2 * 2**30, card.vram_bytes // 4):
            yield Line(
                "graphics card",
                found,
                "warning",
                f"Other programs hold {views.memory(busy)} of its memory.",
                "Close them; nvidia-smi lists them.",
            )
        else:
            yield Line("graphics card", found)


def _pytorch(patient: Patient) -> Iterator[Line]:
    torch = patient.torch
    if "error" in torch:
        yield Line("PyTorch", torch["error"], "problem", "Nothing trains without it.", _install_torch(patient))
        return
    build = f"CUDA {torch['cuda']}" if torch["cuda"] else f"ROCm {torch['rocm']}" if torch["rocm"] else "CPU only"
    found = f"{torch['version']} ({build})"
    wrong = {name: problem for name, problem in torch["formats"].items() if problem}
    if patient.cards and torch["device"] != "cuda":
        yield Line("PyTorch", found, "problem", "It cannot use the graphics card.", _install_torch(patient))
    elif "float32" in wrong:
        yield Line(
            "PyTorch",
            f"{found}; a test multiplication failed: {wrong['float32']}",
            "problem",
            "It has no working code for this device.",
            _install_torch(patient),
        )
    else:
        yield Line("PyTorch", f"{found}; a test multiplication came out right")
        right = [short for name, short in FORMATS.items() if name not in wrong]
        yield Line(
            "precision",
            f"{' and '.join(right) or 'only fp32'} {'work' if len(right) > 1 else 'works'}",
            "good" if right else "note",
            "" if "bf16" in right else "Keep memory.precision at fp16 or fp32." if right else "Keep it at fp32.",
        )


FORMATS = {"bfloat16": "bf16", "float16": "fp16"}


def _install_torch(patient: Patient) -> str:
    """The command that installs a PyTorch for this computer's card.

    CUDA 13 wheels need compute capability 7.5 and driver 580; the CUDA 12.6 wheels carry the older cards.
    """
    pip = f"{Path(sys.executable).name} -m pip install --upgrade --force-reinstall"
    requirement = next((r for r in _requirements() if r.startswith("torch")), "torch")
    if not patient.cards:
        return f'{pip} "{requirement}"'
    card = max(patient.cards, key=lambda card: card.vram_bytes)
    driver = int(card.driver.partition(".")[0]) if card.driver.partition(".")[0].isdigit() else 0
    if card.capability and card.capability < OLDEST_CARD_OF_CUDA_13:
        wheels = "cu126"
    else:
        wheels = "cu130" if driver >= OLDEST_DRIVER_OF_CUDA_13 else "cu128"
    return f'{pip} "{requirement}" --index-url {PYTORCH_WHEELS}{wheels}'


def _requirements() -> list[str]:
    try:
        return [text.partition(";")[0].strip() for text in metadata.requires("lora-wizard") or []]
    except metadata.PackageNotFoundError:
        return []


def _libraries(patient: Patient) -> Iterator[Line]:
    probe = patient.probes["libraries"]
    names = ("diffusers", "transformers", "accelerate", "lycoris-lora", "safetensors")
    missing = [name for name in names if not _version(name)]
    versions = ", ".join(f"{name} {_version(name)}" for name in names if _version(name))
    if missing:
        yield Line(
            "libraries",
            f"missing: {', '.join(missing)}",
            "problem",
            "The engine needs them.",
            f"{Path(sys.executable).name} -m pip install --upgrade lora-wizard",
        )
    elif "error" in probe:
        yield Line(
            "libraries",
            f"{versions}; they do not load: {probe['error']}",
            "problem",
            "Often a torchvision that belongs to another PyTorch; lora-wizard does not need it.",
            f"{Path(sys.executable).name} -m pip uninstall torchvision torchaudio",
        )
    else:
        yield Line("libraries", versions)


def _bitsandbytes(patient: Patient) -> Iterator[Line]:
    probe = patient.probes["bitsandbytes"]
    wanted = patient.situation is not None and patient.situation.config.optimizer.name == "adamw8bit"
    works = "error" not in probe and probe.get("moved") and (probe["device"] == "cuda" or not patient.cards)
    if works:
        where = "graphics card" if probe["device"] == "cuda" else "processor"
        yield Line("8-bit optimizer", f"bitsandbytes {probe['version']} made a step on the {where}")
        return
    yield Line(
        "8-bit optimizer",
        f"bitsandbytes does not work: {probe.get('error', 'its step changed nothing')}",
        "problem" if wanted else "note",
        "These answers ask for adamw8bit." if wanted else "Only the optimizer adamw8bit needs it.",
        "lora-wizard train FILE --set optimizer.name=adamw" if wanted else "",
    )


def _tagger(patient: Patient) -> Iterator[Line]:
    probe = patient.probes["onnxruntime"]
    if "error" in probe:
        yield Line("tagger", f"onnxruntime: {probe['error']}", "note", "Only automatic captions need it.")
        return
    listed = [name.removesuffix("ExecutionProvider") for name in probe["providers"]]
    yield Line("tagger", f"onnxruntime {probe['version']} offers {', '.join(listed)}")


def _memory(patient: Patient) -> Iterator[Line]:
    ram = patient.hardware.ram_bytes
    swap = f", and {views.memory(patient.swap_bytes)} to swap" if patient.swap_bytes else ", none to swap"
    found = f"{views.memory(ram)}{swap}"
    plan = patient.situation.plan if patient.situation else None
    if plan is not None:
        room, kind = (patient.hardware.vram_bytes, "VRAM") if patient.hardware.vram_bytes else (ram, "memory")
        need = f"this training needs about {views.memory(plan.vram.likely_bytes)} of {views.memory(room)} {kind}"
        fits = plan.vram.likely_bytes <= room
        yield Line(
            "fits",
            need,
            "good" if fits else "problem",
            "" if fits else "It would run out of memory.",
            "" if fits else "lora-wizard check FILE shows what would make it fit",
        )
    if ram < LITTLE_RAM_BYTES:
        yield Line("memory", found, "warning", "SDXL needs about 16 GB to load; SD 1.5 about 8 GB.")
    else:
        yield Line("memory", found)
    yield Line("processor", count(patient.hardware.cores, "core"))


def _disk(patient: Patient) -> Iterator[Line]:
    free = patient.hardware.disk_free_bytes
    plan = patient.situation.plan if patient.situation else None
    if plan is not None:
        enough = free >= plan.disk_bytes
        yield Line(
            "disk",
            f"{size(free)} free; this training writes about {size(plan.disk_bytes)}",
            "good" if enough else "problem",
            "" if enough else "It would fill the disk.",
            "" if enough else "Make room, or save less often: --set saving.keep_last=2",
        )
    elif free < LITTLE_DISK_BYTES:
        yield Line(
            "disk", f"{size(free)} free here", "warning", "A full base model alone takes 2 to 7 GB.", "Make room."
        )
    else:
        yield Line("disk", f"{size(free)} free here")


def _network(patient: Patient) -> Iterator[Line]:
    if patient.hub_answers:
        yield Line("network", "the Hugging Face hub answers")
    else:
        yield Line(
            "network",
            "the Hugging Face hub does not answer",
            "note",
            "Only downloads need it; what is on this disk trains without.",
        )
    missing = [name for name, there in patient.tokens.items() if not there]
    yield Line(
        "access tokens",
        ", ".join(f"{name}: {'there' if there else 'none'}" for name, there in patient.tokens.items()),
        "note" if missing else "good",
        "Only gated models on Hugging Face and some downloads from Civitai need one." if missing else "",
    )


CHECKS: tuple[Callable[[Patient], Iterator[Line]], ...] = (
    _system,
    _graphics_card,
    _pytorch,
    _libraries,
    _bitsandbytes,
    _tagger,
    _memory,
    _disk,
    _network,
)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""
