"""The doctor's checks of PyTorch and the other libraries, and the commands that put them right."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

from engine.trackers import LOGIN, PACKAGES, lacks_login, lacks_package
from knowledge.optimizers import OPTIMIZERS
from wizard.hardware import GraphicsCard
from wizard.patient import Line, Patient

PYTORCH_WHEELS = "https://download.pytorch.org/whl/"
OLDEST_CARD_OF_CUDA_13 = (7, 5)
OLDEST_DRIVER_OF_CUDA_13 = 580
OLDEST_CARD_WITH_BF16 = (8, 0)


def pytorch(patient: Patient) -> Iterator[Line]:
    torch = patient.torch
    if "error" in torch:
        yield Line("PyTorch", torch["error"], "problem", "Nothing trains without it.", _install_torch(patient))
        return
    build = f"CUDA {torch['cuda']}" if torch["cuda"] else f"ROCm {torch['rocm']}" if torch["rocm"] else "CPU only"
    found = f"{torch['version']} ({build})"
    wrong = {name: problem for name, problem in torch["formats"].items() if problem}
    foreign = [card for card in patient.cards if card.capability and not has_kernels(card, torch["architectures"])]
    if patient.cards and torch["device"] != "cuda":
        yield Line("PyTorch", found, "problem", "It cannot use the graphics card.", _install_torch(patient))
    elif "float32" in wrong:
        why = f"It has no kernels for compute capability {dotted(foreign[0].capability)}." if foreign else ""  # type: ignore[arg-type]
        yield Line(
            "PyTorch",
            f"{found}; a test multiplication failed: {wrong['float32']}",
            "problem",
            why or "It has no working code for this device.",
            _install_torch(patient),
        )
    else:
        if foreign:
            yield Line(
                "PyTorch",
                f"{found}, with kernels for {', '.join(torch['architectures'])}",
                "warning",
                f"None of them is for the {foreign[0].name}, which would fail if it were used.",
                _install_torch(patient),
            )
        else:
            kernels = f", with kernels for compute capability {dotted(c)}" if (c := _capability(patient)) else ""
            yield Line("PyTorch", f"{found}{kernels}; a test multiplication came out right")
        yield _precision(patient, [short for name, short in FORMATS.items() if name not in wrong])


def _capability(patient: Patient) -> tuple[int, int] | None:
    return max(patient.cards, key=lambda card: card.vram_bytes).capability if patient.cards else None


def has_kernels(card: GraphicsCard, architectures: Sequence[str]) -> bool:
    """Whether a PyTorch built for these architectures has code for the card.

    Binary code (sm_86) serves its own generation from its number on; intermediate code (compute_90) every later card.
    """
    assert card.capability is not None
    major, minor = card.capability
    for name in architectures:
        found = re.fullmatch(r"(sm|compute)_(\d+)(\d)[af]?", name)
        if found is None:
            continue
        built = int(found[2]), int(found[3])
        if built <= (major, minor) and (found[1] == "compute" or built[0] == major):
            return True
    return not architectures  # a build that does not say


def _precision(patient: Patient, right: Sequence[str]) -> Line:
    found = f"{' and '.join(right) or 'only fp32'} {'work' if len(right) > 1 else 'works'}"
    wanted = patient.situation.config.memory.precision if patient.situation else None
    if wanted in FORMATS.values() and wanted not in right:
        instead = right[0] if right else "fp32"
        return Line(
            "precision",
            found,
            "problem",
            f"These answers ask for {wanted}, which does not work here.",
            f"lora-wizard train {patient.answers} --set memory.precision={instead}",
        )
    capability = _capability(patient)
    if "bf16" in right and capability is not None and capability < OLDEST_CARD_WITH_BF16:
        return Line("precision", found, "note", "This card only imitates bf16, slowly; fp16 is what it is good at.")
    if wanted is not None:
        return Line("precision", found, "good", f"These answers ask for {wanted}.")
    advice = "" if "bf16" in right else "Keep memory.precision at fp16 or fp32." if right else "Keep it at fp32."
    return Line("precision", found, "good" if right else "note", advice)


FORMATS = {"bfloat16": "bf16", "float16": "fp16"}


def pip() -> str:
    """How this Python's pip is called."""
    return f"{Path(sys.executable).name} -m pip"


def _install_torch(patient: Patient) -> str:
    """The command that installs a PyTorch for this computer's card.

    CUDA 13 wheels need compute capability 7.5 and driver 580; the CUDA 12.6 wheels carry the older cards.
    """
    install = f"{pip()} install --upgrade --force-reinstall"
    requirement = next((r for r in _requirements() if r.startswith("torch")), "torch")
    if not patient.cards:
        return f'{install} "{requirement}"'
    card = max(patient.cards, key=lambda card: card.vram_bytes)
    driver = int(card.driver.partition(".")[0]) if card.driver.partition(".")[0].isdigit() else 0
    if card.capability and card.capability < OLDEST_CARD_OF_CUDA_13:
        wheels = "cu126"
    else:
        wheels = "cu130" if driver >= OLDEST_DRIVER_OF_CUDA_13 else "cu128"
    return f'{install} "{requirement}" --index-url {PYTORCH_WHEELS}{wheels}'


def _requirements() -> list[str]:
    try:
        return [text.partition(";")[0].strip() for text in metadata.requires("lora-wizard") or []]
    except metadata.PackageNotFoundError:
        return []


def libraries(patient: Patient) -> Iterator[Line]:
    probe = patient.probes["libraries"]
    names = ("diffusers", "transformers", "accelerate", "lycoris-lora", "pytorch-optimizer", "safetensors")
    missing = [name for name in names if not version(name)]
    versions = ", ".join(f"{name} {version(name)}" for name in names if version(name))
    if missing:
        yield Line(
            "libraries",
            f"missing: {', '.join(missing)}",
            "problem",
            "The engine needs them.",
            f"{pip()} install {' '.join(missing)}",
        )
    elif "error" in probe:
        yield Line(
            "libraries",
            f"{versions}; they do not load: {probe['error']}",
            "problem",
            "Often a torchvision that belongs to another PyTorch; lora-wizard does not need it.",
            f"{pip()} uninstall torchvision torchaudio",
        )
    else:
        yield Line("libraries", versions)


def bitsandbytes(patient: Patient) -> Iterator[Line]:
    probe = patient.probes["bitsandbytes"]
    asked = dict(_eight_bits(patient))
    needs = f"These answers ask for {' and '.join(asked)}." if asked else ""
    works = "error" not in probe and probe.get("moved") and (probe["device"] == "cuda" or not patient.cards)
    if works:
        where = "graphics card" if probe["device"] == "cuda" else "processor"
        yield Line("8 bits", f"bitsandbytes {probe['version']} made a step on the {where}", "good", needs)
        return
    without = " ".join(f"--set {change}" for change in asked.values())
    yield Line(
        "8 bits",
        f"bitsandbytes does not work: {probe.get('error', 'its step changed nothing')}",
        "problem" if asked else "note",
        needs or "Only optimizers whose name ends in 8bit, and a base model held in 8 or 4 bits, need it.",
        f"lora-wizard train {patient.answers} {without}" if asked else f"{pip()} install --upgrade bitsandbytes",
    )


def _eight_bits(patient: Patient) -> Iterator[tuple[str, str]]:
    """What of these answers only bitsandbytes can do, and the change that does without it."""
    if patient.situation is None:
        return
    config = patient.situation.config
    if plain := OPTIMIZERS[config.optimizer.name].eight_bits_of:
        yield config.optimizer.name, f"optimizer.name={plain}"
    if config.memory.base_weights in ("8bit", "nf4"):
        yield f"memory.base_weights = {config.memory.base_weights}", "memory.base_weights=fp8"


def tagger(patient: Patient) -> Iterator[Line]:
    probe = patient.probes["onnxruntime"]
    captions = "Only automatic captions need it; this training does not." if patient.situation else ""
    captions = captions or "Only automatic captions need it."
    if "error" in probe:
        yield Line(
            "tagger", f"onnxruntime: {probe['error']}", "note", captions, f"{pip()} install --upgrade onnxruntime"
        )
        return
    used = [name.removesuffix("ExecutionProvider") for name in probe["used"]]
    found = f"onnxruntime {probe['version']} computes on {' and '.join(used) or 'nothing'}"
    if "CUDA" not in used and patient.cards:
        slow = "Tagging takes the processor: some pictures a second at best. Training does not need it."
        yield Line("tagger", found, "note", slow, f'{pip()} install --upgrade "onnxruntime-gpu[cuda,cudnn]"')
    else:
        yield Line("tagger", found, "good" if used else "note", captions if patient.situation else "")


def tracker(patient: Patient) -> Iterator[Line]:
    """Only for a training that writes to one: can it?"""
    name = patient.situation.config.logging.tracker if patient.situation else "none"
    asked = "These answers ask for it (logging.tracker)."
    if name == "none":
        return
    if lacks_package(name):
        yield Line("tracker", f"{name} is not installed", "problem", asked, f"{pip()} install {PACKAGES[name]}")
    elif lacks_login(name):
        yield Line("tracker", f"nobody is logged in to {name}", "problem", asked, f"{LOGIN}, or WANDB_MODE=offline")
    else:
        yield Line("tracker", f"{name} {version(PACKAGES[name])}", "good", asked)


def dotted(capability: tuple[int, int]) -> str:
    """ "8.6"."""
    return f"{capability[0]}.{capability[1]}"


def version(name: str) -> str:
    """The installed version of a library; empty without it."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""
