"""What stands at an address on the Hugging Face hub: which files a model there needs, and what a refusal means.

huggingface_hub says where the hub is and which token is the user's; the files come through transfer.py, since
hf_hub_download does not go on with what another process began.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal
from urllib.parse import quote, unquote, urlsplit

from engine.acquire import network
from engine.acquire.models_folder import Offer, Wanted
from engine.acquire.network import Notice, RefusalError, Source, TokenNeededError, silent
from engine.models.detect import PICKLES, refuse_pickle
from knowledge.answers import PlainError, did_you_mean
from knowledge.families import families

Weights = Literal["half", "full"]

HOSTS = frozenset({"huggingface.co", "www.huggingface.co", "hf.co"})
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
TOKENS_PAGE = "https://huggingface.co/settings/tokens"

WEIGHTS = ("diffusion_pytorch_model", "model")
SMALL_ENDINGS = (".json", ".txt")
FILES_NAMED = 12


@dataclass(frozen=True)
class Address:
    """A repository on the hub, and perhaps one revision, file or folder of it."""

    repository: str
    revision: str = ""
    path: str = ""
    kind: Literal["models", "datasets"] = "models"

    @property
    def page(self) -> str:
        """The page that a person opens in a browser, at the hub itself or at its mirror."""
        return f"{endpoint()}/{'datasets/' if self.kind == 'datasets' else ''}{self.repository}"


@dataclass(frozen=True)
class File:
    """A file in a repository: its bytes, and its SHA-256 or its name in git."""

    path: str
    size_bytes: int | None
    sha256: str
    git_blob: str


@dataclass(frozen=True)
class Repository:
    """A repository at one commit."""

    address: Address
    commit: str
    files: Mapping[str, File]

    def source(self, path: str) -> Source:
        file = self.files[path]
        prefix = "datasets/" if self.address.kind == "datasets" else ""
        url = f"{endpoint()}/{prefix}{self.address.repository}/resolve/{self.commit}/{quote(path)}"
        return Source(url, file.size_bytes, file.sha256, "" if file.sha256 else file.git_blob, token())


def endpoint() -> str:
    """The hub's address, or that of the mirror in HF_ENDPOINT."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def token() -> str:
    """The user's token: HF_TOKEN, or the one that `hf auth login` has kept; empty without."""
    from huggingface_hub import get_token

    return get_token() or ""


def parse(text: str) -> Address | None:
    """The address that this text means; None when it is none of the hub's.

    Takes owner/name, owner/name@revision, and the addresses of pages and files as a browser shows them.
    """
    text = text.strip()
    bare = re.fullmatch(r"(datasets/)?([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?", text)
    if bare and "://" not in text:
        return Address(bare[2], bare[3] or "", "", "datasets" if bare[1] else "models")
    parts = urlsplit(text if "://" in text else f"https://{text}")
    if parts.hostname not in HOSTS and parts.netloc != urlsplit(endpoint()).netloc:
        return None
    words = [unquote(word) for word in parts.path.split("/") if word]
    kind: Literal["models", "datasets"] = "models"
    if words[:1] == ["datasets"]:
        kind, words = "datasets", words[1:]
    elif words[:1] in (["spaces"], ["collections"], ["papers"]):
        raise PlainError(f"{text} is not the page of a model. Open the model's own page and copy its address.", 2)
    if len(words) < 2 or not REPOSITORY.fullmatch("/".join(words[:2])):
        raise PlainError(f"{text} names no repository. An address on the hub has an owner and a name.", 2)
    repository, rest = "/".join(words[:2]), words[2:]
    if not rest or rest[0] not in ("tree", "blob", "resolve", "raw"):
        return Address(repository, kind=kind)
    revision, path = rest[1:2], rest[2:]
    if rest[1:3] == ["refs", "pr"] or rest[1:3] == ["refs", "convert"]:
        revision, path = rest[1:4], rest[4:]
    return Address(repository, "/".join(revision), "/".join(path), kind)


def look_up(address: Address, notice: Notice = silent) -> Repository:
    """The repository with its files. Raises PlainError for every way in which that fails."""
    if _offline():
        raise PlainError(
            "HF_HUB_OFFLINE is set, so nothing is asked of the Hugging Face hub. Unset it, or use what is on this disk."
        )
    revision = f"/revision/{quote(address.revision, safe='')}" if address.revision else ""
    url = f"{endpoint()}/api/{address.kind}/{address.repository}{revision}?blobs=true"
    try:
        document = network.json_document(Source(url, token=token()), notice=notice)
        files = {entry["rfilename"]: _file(entry) for entry in document["siblings"]}
        return Repository(address, str(document["sha"]), files)
    except RefusalError as refused:
        raise explain(address)(refused) from None
    except (KeyError, TypeError, AttributeError):
        raise PlainError(f"{endpoint()} did not answer as the Hugging Face hub does. Check HF_ENDPOINT.") from None


def _file(entry: Mapping[str, Any]) -> File:
    large = entry.get("lfs") or {}
    return File(entry["rfilename"], entry.get("size"), str(large.get("sha256", "")), str(entry.get("blobId") or ""))


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _token_needed(message: str) -> PlainError:
    return TokenNeededError(message, "Hugging Face", "HF_TOKEN")


def explain(address: Address) -> Callable[[RefusalError], PlainError]:
    """What makes a sentence of a refusal of the hub: what it means, and which page or setting would change it."""
    name, page = address.repository, address.page

    def sentence(refused: RefusalError) -> PlainError:
        if refused.code == "GatedRepo" and not token():
            return _token_needed(
                f"{name} is gated: whoever wants it accepts its conditions first.\n"
                f"1. Log in and accept them on {page}\n"
                f"2. Make a token that may read, on {TOKENS_PAGE}\n"
                "3. Set it as HF_TOKEN (or run: hf auth login) and start the download again."
            )
        if refused.code == "GatedRepo":
            return PlainError(
                f"{name} is gated, and the account of your token has not been let in.\n"
                f"Log in and accept the conditions on {page} (some owners answer only after days).\n"
                f"A fine-grained token must be allowed to read public gated repositories: {TOKENS_PAGE}"
            )
        if refused.code == "RevisionNotFound":
            return PlainError(f"{name} has no revision {address.revision}. Its branches are on {page}/tree/main", 2)
        if refused.code == "EntryNotFound":
            return PlainError(f"{name} has no file {address.path}. Its files are on {page}/tree/main", 2)
        if "credentials" in refused.said:
            return _token_needed(
                f"The Hugging Face hub does not know your token (HF_TOKEN). Make a new one: {TOKENS_PAGE}"
            )
        if refused.status in (401, 404):
            asked = "with your token" if token() else "without a token"
            made = PlainError if token() else _token_needed
            return made(
                f"There is no {name} on {endpoint()} that can be seen {asked}. Check the spelling; "
                f"for a private one set HF_TOKEN to a token of somebody who may read it ({TOKENS_PAGE}).",
            )
        said = f" It says: {refused.said}" if refused.said else ""
        return PlainError(f"The Hugging Face hub refused {name} (status {refused.status}).{said}")

    return sentence


def offer(
    text: str, *, file: str = "", revision: str = "", weights: Weights = "half", notice: Notice = silent
) -> Offer:
    """What a training would need of the model at this address. Raises PlainError where there is nothing of use.

    file: one file of the repository. weights: which of a diffusers folder's weights, where it has both.
    """
    address = parse(text)
    assert address is not None, f"{text} is no address on the hub"
    if address.kind == "datasets":
        raise PlainError(f"{text} is a dataset. Bring its pictures in with: lora-wizard dataset import {text}", 2)
    address = Address(address.repository, revision or address.revision, file or address.path)
    if address.path:
        refuse_pickle(PurePosixPath(address.path))
    repository = look_up(address, notice)
    chosen = choose(repository, weights)
    alone = len(chosen) == 1 and chosen[0].endswith(".safetensors")
    root = f"{address.path}/" if not alone and address.path else ""
    own_name = address.repository.rpartition("/")[2]
    name = network.safe_name(chosen[0]) if alone else network.safe_name(own_name)
    if alone and name in ("diffusion_pytorch_model.safetensors", "model.safetensors"):
        name = network.safe_name(f"{own_name}.safetensors")
    return Offer(
        name=name or "model",
        title=address.repository + (f"/{chosen[0]}" if alone else ""),
        page=address.page,
        revision=repository.commit,
        files=tuple(Wanted(path.removeprefix(root) if not alone else name, repository.source(path)) for path in chosen),
        folder=not alone,
        explain=explain(address),
    )


def choose(repository: Repository, weights: Weights) -> list[str]:
    """The paths in the repository that make up the model at its address. Raises PlainError naming the choices."""
    path, files = repository.address.path, repository.files
    if path in files:
        return [path]
    root = f"{path}/" if path else ""
    inside = [name for name in files if name.startswith(root)]
    if path and not inside:
        raise PlainError(
            f"{repository.address.repository} has no {path}.{did_you_mean(path, list(files))} "
            f"Its files are on {repository.address.page}/tree/main",
            2,
        )
    if f"{root}model_index.json" in files:
        return _diffusers_folder(repository, root, weights)
    if f"{root}config.json" in files:
        found = _weights_in(inside, root, weights)
        if found:
            return [f"{root}config.json", *found]
    single = [name for name in inside if name.endswith(".safetensors") and "/" not in name.removeprefix(root)]
    if len(single) == 1:
        return single
    name = repository.address.repository
    if single:
        listed = "\n".join(f"  {path}" for path in single[:FILES_NAMED])
        more = f"\n  and {len(single) - FILES_NAMED} more" if len(single) > FILES_NAMED else ""
        raise PlainError(
            f"{name} holds {len(single)} model files. Choose one with --file:\n{listed}{more}",
            2,
        )
    pickles = [path for path in inside if any(path.endswith(ending) for ending in PICKLES)]
    if pickles:
        raise PlainError(
            f"{name} holds its weights as pickles only ({pickles[0]}), which can run any program when they are opened. "
            "Look for the same model as .safetensors."
        )
    raise PlainError(f"{name} holds no model: neither model_index.json nor a .safetensors file.")


def _parts() -> list[str]:
    """The parts of a diffusers folder that a training reads, whatever the family."""
    weights = dict.fromkeys(part for family in families() for part in family.folders.values())
    tokenizers = [part.replace("text_encoder", "tokenizer") for part in weights if part.startswith("text_encoder")]
    return [*weights, *tokenizers, "scheduler"]


def _diffusers_folder(repository: Repository, root: str, weights: Weights) -> list[str]:
    """Index, configurations, tokenizers and one set of weights of each part."""
    files = repository.files
    parts = {part: [name for name in files if name.startswith(f"{root}{part}/")] for part in _parts()}
    wanted: Weights = weights
    loaded = [part for part in parts if _weights_in(parts[part], f"{root}{part}/", "full")]
    if any(not _weights_in(parts[part], f"{root}{part}/", "half", strict=True) for part in loaded):
        wanted = "full"
    chosen = [f"{root}model_index.json"]
    for part, names in parts.items():
        chosen += [name for name in names if name.endswith(SMALL_ENDINGS) and ".index." not in name]
        found = _weights_in(names, f"{root}{part}/", wanted)
        if not found and any(name.endswith(tuple(PICKLES)) for name in names):
            raise PlainError(
                f"{repository.address.repository} holds the weights of its {part} as a pickle only, which can run any "
                "program when it is opened. Look for the same model as .safetensors."
            )
        chosen += found
    return chosen


def _weights_in(names: Iterable[str], root: str, weights: Weights, strict: bool = False) -> list[str]:
    """The safetensors of one part, as diffusers and transformers name them; in half precision if wanted and there.

    Not other copies of them, for other programs or without the moving average.
    """
    direct: Sequence[str] = [name.removeprefix(root) for name in names if name.startswith(root)]
    half = [name for name in direct if name in {f"{stem}.fp16.safetensors" for stem in WEIGHTS}]
    if half and weights == "half":
        return [root + name for name in half]
    if strict:
        return []
    whole = [name for name in direct if name in {f"{stem}.safetensors" for stem in WEIGHTS}]
    if not whole:
        whole = [name for name in direct if re.fullmatch(r"(?:diffusion_pytorch_)?model-\d+-of-\d+\.safetensors", name)]
        whole += [
            f"{stem}.safetensors.index.json" for stem in WEIGHTS if whole and f"{stem}.safetensors.index.json" in direct
        ]
    return [root + name for name in whole or half]
