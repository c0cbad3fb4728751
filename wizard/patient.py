"""What the doctor finds out about this computer, and the lines in which it speaks of it."""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import psutil

from knowledge.facts import Hardware
from wizard.hardware import GraphicsCard, graphics_cards, nvidia_card_inside, this_computer

if TYPE_CHECKING:
    from wizard.situation import Situation

SITES = {
    "Hugging Face": ("HF_ENDPOINT", "https://huggingface.co"),
    "Civitai": ("CIVITAI_ENDPOINT", "https://civitai.com"),
}
"""Where models come from, with the variable that names a mirror."""

ANSWER_SECONDS = 3.0


State = Literal["good", "note", "warning", "problem"]


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
    """Everything that was found out; the checks only read it.

    silent_card: an NVIDIA card is in this computer, and no driver speaks for it. answers: the file of this training, as
    one would type it.
    """

    hardware: Hardware
    cards: list[GraphicsCard]
    probes: Mapping[str, Mapping[str, Any]]
    environment: Mapping[str, str]
    situation: Situation | None = None
    places: tuple[str, ...] = ()
    sites: Mapping[str, bool] = field(default_factory=dict)
    tokens: Mapping[str, bool] = field(default_factory=dict)
    swap_bytes: int = 0
    silent_card: bool = False
    answers: str = "FILE"

    @property
    def torch(self) -> Mapping[str, Any]:
        return self.probes["torch"]


def find_out(
    situation: Situation | None = None,
    answers: str = "FILE",
    *,
    probes: Mapping[str, Mapping[str, Any]] | None = None,
    network: bool = True,
) -> Patient:
    """Everything about this computer, for this training where there is one.

    Takes seconds: libraries are asked too, unless `probes` has what they said. network: ask the sites as well.
    """
    from wizard.probes import ask_all

    cards = graphics_cards()
    return Patient(
        hardware=this_computer(situation.config.output.folder if situation else "."),
        cards=cards,
        probes=probes if probes is not None else ask_all(),
        environment=os.environ,
        situation=situation,
        places=tuple(places(os.environ)),
        sites=sites(os.environ) if network else {},
        tokens=tokens(os.environ),
        swap_bytes=int(psutil.swap_memory().total),
        silent_card=not cards and nvidia_card_inside(),
        answers=answers,
    )


ROOT = Path("/")
"""Where a container leaves its mark."""

PLACES: tuple[tuple[str, Callable[[Mapping[str, str]], bool]], ...] = (
    ("RunPod", lambda e: "RUNPOD_POD_ID" in e),
    ("Vast.ai", lambda e: "VAST_CONTAINERLABEL" in e or "VAST_TCP_PORT_22" in e),
    ("Google Colab", lambda e: "COLAB_RELEASE_TAG" in e or "COLAB_GPU" in e),
    ("Kaggle", lambda e: "KAGGLE_KERNEL_RUN_TYPE" in e),
    ("WSL", lambda e: "WSL_DISTRO_NAME" in e or "microsoft" in platform.release().lower()),
    ("a Docker container", lambda e: (ROOT / ".dockerenv").exists()),
    ("a Podman container", lambda e: (ROOT / "run" / ".containerenv").exists()),
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


def sites(environment: Mapping[str, str]) -> dict[str, bool]:
    """Which of the sites that models come from, or their mirrors, can be connected to."""
    with ThreadPoolExecutor() as pool:
        addresses = [environment.get(variable) or usual for variable, usual in SITES.values()]
        return dict(zip(SITES, pool.map(connects, addresses), strict=True))


def connects(address: str, seconds: float = ANSWER_SECONDS) -> bool:
    """Whether a connection to the host of this address can be opened, through the proxy where one is set."""
    from urllib.request import getproxies, proxy_bypass

    parts = urlsplit(address)
    proxy = getproxies().get(parts.scheme)
    if proxy and not proxy_bypass(parts.hostname or ""):
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        with socket.create_connection((parts.hostname or "", port), timeout=seconds):
            return True
    except OSError:
        return False
