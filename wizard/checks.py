"""The doctor's checks: each reads what was found out and yields lines. Nothing here asks the computer anything."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Iterator, Sequence

from knowledge.downloads import suggestions
from knowledge.expressions import in_words
from knowledge.parameters import number
from wizard import library_checks, views
from wizard.hardware import system
from wizard.library_checks import dotted, pip, version
from wizard.patient import Line, Patient
from wizard.words import count, duration, size

LITTLE_DISK_BYTES = 10 * 10**9


def examine(patient: Patient) -> Iterator[Line]:
    """Every check's lines, in the order in which a person would look."""
    for check in CHECKS:
        yield from check(patient)


def in_the_way(lines: Sequence[Line]) -> list[Line]:
    """The lines that keep a training from starting."""
    return [line for line in lines if line.state == "problem"]


def _system(patient: Patient) -> Iterator[Line]:
    where = f", in {' in '.join(patient.places)}" if patient.places else ""
    found = f"{system()}{where}; Python {platform.python_version()}; lora-wizard {version('lora-wizard')}"
    if struct_bits() < 64:
        yield Line(
            "system", found, "problem", "This Python has 32 bits; PyTorch needs 64.", "Install the 64-bit Python."
        )
    else:
        yield Line("system", found)
    rented = next((place for place in patient.places if place in LASTING), None)
    if rented is not None:
        yield Line(
            "rented machine",
            rented,
            "note",
            "What is on its disk may be gone when it ends; copy finished files away, or keep runs where they last.",
            LASTING[rented],
        )


LASTING = {
    "RunPod": "lora-wizard train FILE --set output.folder=/workspace/runs",
    "Vast.ai": "vastai copy INSTANCE:/workspace/runs ./runs",
    "Google Colab": "from google.colab import drive; drive.mount('/content/drive'), and output.folder below it",
    "Kaggle": "lora-wizard train FILE --set output.folder=/kaggle/working/runs",
}
"""Machines by the hour, and where on each a run outlives it."""


def struct_bits() -> int:
    """Bits of an address in this Python."""
    return 64 if sys.maxsize > 2**32 else 32


def _graphics_card(patient: Patient) -> Iterator[Line]:
    if not patient.cards:
        yield _no_card(patient)
        return
    for card in patient.cards:
        capability = f", compute capability {dotted(card.capability)}" if card.capability else ""
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


def _no_card(patient: Patient) -> Line:
    device = patient.torch.get("device")
    if device == "mps":
        return Line("graphics card", "Apple GPU", "good", "It shares the computer's memory.")
    if device == "cuda":
        return Line("graphics card", "an AMD or unlisted GPU that PyTorch can use")
    plan = patient.situation.plan if patient.situation else None
    slow = "The built-in pocket model trains on the processor; SD 1.5 takes hours there, and SDXL days."
    if plan is not None:
        slow = f"This training runs on the processor, for about {duration(plan.duration.likely_seconds)}."
    mend = next((GPUS[place] for place in patient.places if place in GPUS), "")
    if patient.silent_card:
        return Line("graphics card", "an NVIDIA card whose driver does not answer", "warning", slow, mend or DRIVER)
    if not mend and sys.platform != "darwin":
        mend = f"If there is a card: {DRIVER}"
    return Line("graphics card", "no NVIDIA card, or its driver is not installed", "note", slow, mend)


DRIVER = (
    "install its driver from https://www.nvidia.com/drivers"
    if sys.platform == "win32"
    else "sudo ubuntu-drivers install"
)
GPUS = {
    "Google Colab": "Runtime > Change runtime type > T4 GPU",
    "Kaggle": "Settings > Accelerator > GPU T4 x2",
    "RunPod": "Start a pod that has a GPU",
    "Vast.ai": "Rent an instance that has a GPU",
    "WSL": "Install the driver in Windows, from https://www.nvidia.com/drivers, and none in WSL; then: wsl --shutdown",
    "a Docker container": "docker run --gpus all …, with the NVIDIA container toolkit on the host",
    "a Podman container": "podman run --device nvidia.com/gpu=all …",
}
"""How one comes by a graphics card in each place."""


def _base_model(patient: Patient) -> Iterator[Line]:
    """Only for a training: is the model there that it builds on?"""
    if patient.situation is None or not patient.situation.config.base_model.path:
        return
    from engine.models.detect import detect
    from knowledge.answers import PlainError

    settings = patient.situation.config.base_model
    try:
        model = detect(settings.path)
    except PlainError as problem:
        mend = f"lora-wizard download {settings.family}" if settings.family in suggestions() else ""
        yield Line("base model", settings.path, "problem", str(problem), mend)
        return
    if model.family != settings.family:
        yield Line(
            "base model",
            f"{settings.path}, a model of the family {model.family}",
            "problem",
            f"These answers say {settings.family}.",
            f"lora-wizard train {patient.answers} --set base_model.family={model.family}",
        )
    else:
        yield Line("base model", settings.path)


def _memory(patient: Patient) -> Iterator[Line]:
    ram, swap = patient.hardware.ram_bytes, patient.swap_bytes
    kind = "page file" if sys.platform == "win32" else "swap"
    found = f"{views.memory(ram)}, {views.memory(swap)} of {kind}" if swap else f"{views.memory(ram)}, no {kind}"
    if patient.situation is not None and patient.situation.plan is not None:
        yield _fits(patient, patient.situation.plan.vram.likely_bytes)
    sdxl = patient.situation is not None and patient.situation.config.base_model.family == "sdxl"
    little, much = number("memory.precision.sd15_ram_and_swap"), number("memory.precision.sdxl_ram_and_swap")
    if ram + swap < (much if sdxl else little):
        what = f"This training loads SDXL, which needs about {in_words(much, 'GiB')}"
        what = what if sdxl else f"SDXL needs about {in_words(much, 'GiB')}, SD 1.5 {in_words(little, 'GiB')}"
        yield Line("memory", found, "warning", f"{what}, {kind} included.", _more_memory(patient))
    elif sys.platform == "win32" and not swap:
        why = "Windows promises no more memory than RAM and page file hold; loading a model then fails early."
        yield Line("memory", found, "warning", why, _more_memory(patient))
    else:
        yield Line("memory", found)
    yield Line("processor", count(patient.hardware.cores, "core"))


def _fits(patient: Patient, need: int) -> Line:
    hardware = patient.hardware
    room, kind = (hardware.vram_bytes, "VRAM") if hardware.vram_bytes else (hardware.ram_bytes, "memory")
    found = f"this training needs about {views.memory(need)} of {views.memory(room)} {kind}"
    if need > room:
        mend = f"lora-wizard check {patient.answers} shows what would make it fit"
        return Line("fits", found, "problem", "It would run out of memory.", mend)
    free = max((card.vram_free_bytes for card in patient.cards), default=room)
    if need > free:
        held = f"Only {views.memory(free)} are free while other programs hold the rest."
        return Line("fits", found, "warning", held, "Close them; nvidia-smi lists them.")
    return Line("fits", found)


def _more_memory(patient: Patient) -> str:
    if "WSL" in patient.places:
        return "In %UserProfile%\\.wslconfig, below [wsl2]: memory=24GB and swap=16GB; then: wsl --shutdown"
    if sys.platform == "win32":
        return "SystemPropertiesPerformance.exe > Advanced > Virtual memory > let Windows manage it"
    if any("container" in place for place in patient.places):
        return "Give the container more memory: docker run --memory 24g …"
    if sys.platform == "darwin":
        return "Close other programs; macOS makes room on the disk by itself."
    return "sudo sh -c 'fallocate -l 16G /swapfile && chmod 600 /swapfile && mkswap /swapfile && swapon /swapfile'"


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
            "" if enough else f"lora-wizard train {patient.answers} --set saving.keep_last=2",
        )
    elif free < LITTLE_DISK_BYTES:
        yield Line(
            "disk",
            f"{size(free)} free here",
            "warning",
            "A full base model alone takes 2 to 7 GB.",
            f"{pip()} cache purge; hf cache prune",
        )
    else:
        yield Line("disk", f"{size(free)} free here")


def _network(patient: Patient) -> Iterator[Line]:
    silent = [name for name, answers in patient.sites.items() if not answers]
    found = ", ".join(f"{name} {'answers' if there else 'does not answer'}" for name, there in patient.sites.items())
    needs = "This training needs none." if patient.situation else "Only downloads need it; what is here trains without."
    if silent:
        mend = "Set HTTPS_PROXY to your proxy" + (", or HF_ENDPOINT to a mirror" if "Hugging Face" in silent else "")
        yield Line("network", found, "note", needs, mend)
    elif patient.sites:
        yield Line("network", found, "good", needs if patient.situation else "")
    missing = [name for name, there in patient.tokens.items() if not there]
    needs = "This training needs none." if patient.situation else ""
    yield Line(
        "access tokens",
        ", ".join(f"{name}: {'there' if there else 'none'}" for name, there in patient.tokens.items()),
        "note" if missing else "good",
        needs or (WHEN_TOKENS_ARE_NEEDED if missing else ""),
        "" if needs else "; ".join(TOKENS[name] for name in missing),
    )


WHEN_TOKENS_ARE_NEEDED = (
    "Only gated models on Hugging Face and some downloads from Civitai need one; you are asked for it then."
)
TOKENS = {
    "Hugging Face": "hf auth login",
    "Civitai": '$env:CIVITAI_TOKEN = "…"' if sys.platform == "win32" else "export CIVITAI_TOKEN=…",
}
"""How each token is set."""


CHECKS: tuple[Callable[[Patient], Iterator[Line]], ...] = (
    _system,
    _graphics_card,
    library_checks.pytorch,
    library_checks.libraries,
    library_checks.bitsandbytes,
    library_checks.tagger,
    library_checks.tracker,
    _base_model,
    _memory,
    _disk,
    _network,
)
