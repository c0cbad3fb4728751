"""What stands at an address on Civitai: the version, its files with their hashes, and what a refusal means."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from engine.acquire import network
from engine.acquire.models_folder import Offer, Wanted
from engine.acquire.network import Notice, RefusalError, Source, TokenNeededError, silent
from engine.models.detect import PICKLES, refuse_pickle
from knowledge.answers import PlainError, did_you_mean

HOSTS = frozenset({"civitai.com", "www.civitai.com", "civitai.red", "www.civitai.red"})
KEYS_PAGE = "https://civitai.com/user/account"

PATHS = (
    r"/api/download/models/(?P<version>\d+)",
    r"/api/v1/model-versions/(?P<version>\d+)",
    r"/api/v1/models/(?P<model>\d+)",
    r"/model-versions/(?P<version>\d+)",
    r"/models/(?P<model>\d+)(?:/.*)?",
)
NAME = r"urn:air:[^:]+:[^:]+:civitai:(?P<model>\d+)(?:@(?P<version>\d+))?"

ASKED_FOR = ("Civitai", "CIVITAI_TOKEN")
"""The site, and where the environment says the user's key."""

REFUSED_KINDS = ("LORA", "LoCon", "DoRA", "TextualInversion", "Hypernetwork", "Controlnet", "Upscaler", "Workflows")
"""Types of models on Civitai that are neither base models nor VAEs."""


@dataclass(frozen=True)
class Address:
    """A model on Civitai, or one version of it; `query` narrows down which file, as in a download link."""

    host: str
    model: str = ""
    version: str = ""
    query: tuple[tuple[str, str], ...] = ()


def endpoint() -> str:
    """Civitai's address, or that of a mirror in CIVITAI_ENDPOINT."""
    return (os.environ.get("CIVITAI_ENDPOINT") or "https://civitai.com").rstrip("/")


def token() -> str:
    """The user's key, from CIVITAI_TOKEN or CIVITAI_API_KEY; empty without."""
    return os.environ.get("CIVITAI_TOKEN") or os.environ.get("CIVITAI_API_KEY") or ""


def parse(text: str) -> Address | None:
    """The address that this text means; None when it is none of Civitai's.

    Takes the page of a model or a version, a download link, an address of the API, and Civitai's own names (urn:air).
    """
    text = text.strip()
    if named := re.fullmatch(NAME, text):
        return Address(endpoint(), named["model"], named["version"] or "")
    parts = urlsplit(text if "://" in text else f"https://{text}")
    own = urlsplit(endpoint())
    if parts.netloc == own.netloc:
        host = endpoint()
    elif parts.hostname in HOSTS:
        host = f"https://{parts.hostname}"
    else:
        return None
    query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    for pattern in PATHS:
        if found := re.fullmatch(pattern, parts.path.rstrip("/")):
            ids = found.groupdict()
            version = ids.get("version") or query.get("modelVersionId", "")
            kept = tuple((name, query[name]) for name in ("type", "format", "size", "fp") if name in query)
            return Address(host, ids.get("model") or "", version, kept)
    raise PlainError(
        f"{text} is not the page of a model. Open the model on Civitai and copy the address from there.", 2
    )


def offer(text: str, *, file: str = "", notice: Notice = silent) -> Offer:
    """The file that this address means. Raises PlainError where there is nothing of use.

    file: the name of one of the version's files, where the usual one is not meant.
    """
    address = parse(text)
    assert address is not None, f"{text} is no address on Civitai"
    version = _version(address, notice)
    model = version.get("model") or {}
    title = f"{model.get('name') or 'Model'} {version.get('name') or ''}".strip()
    kind = str(model.get("type") or "")
    if kind in REFUSED_KINDS:
        raise PlainError(
            f"{title} is a {kind} on Civitai, neither a base model nor a VAE. Choose the base model it was made for"
            f"{f' ({found})' if (found := version.get('baseModel')) else ''}."
        )
    chosen = _choose(version, address, file, title)
    number, model_number = str(version["id"]), str(version.get("modelId") or address.model)
    name = network.safe_name(str(chosen["name"])) or f"civitai-{number}.safetensors"
    refuse_pickle(PurePosixPath(name))
    return Offer(
        name=name,
        title=f"{title} ({name})",
        page=f"{address.host}/models/{model_number}?modelVersionId={number}",
        revision=number,
        files=(Wanted(name, _source(chosen, address, number)),),
        notes=_notes(version),
        explain=explain(title, address),
    )


def _version(address: Address, notice: Notice) -> Mapping[str, Any]:
    """The version's document; the newest version of a model whose address names none."""
    path = f"model-versions/{address.version}" if address.version else f"models/{address.model}"
    source = Source(f"{address.host}/api/v1/{path}", token=token())
    try:
        document = network.json_document(source, notice=notice)
        if address.version:
            return {**document, "files": list(document["files"])}
        newest = document["modelVersions"][0]
        model = {"name": document.get("name"), "type": document.get("type")}
        return {**newest, "modelId": document["id"], "model": model, "files": list(newest["files"])}
    except RefusalError as refused:
        raise explain(f"model {address.model or address.version}", address)(refused) from None
    except IndexError:
        raise PlainError(f"Model {address.model} on Civitai has no published version.") from None
    except (KeyError, TypeError, AttributeError):
        raise PlainError("Civitai's answer cannot be read; it may be under repair. Try again later.") from None


def _choose(version: Mapping[str, Any], address: Address, file: str, title: str) -> Mapping[str, Any]:
    """The file that is meant: the one named, the one of the link, or the primary safetensors file."""
    files: Sequence[Mapping[str, Any]] = version["files"]
    names = [str(entry.get("name")) for entry in files]
    if file:
        if file not in names:
            raise PlainError(f"{title} has no file {file}.{did_you_mean(file, names)} It has: {', '.join(names)}", 2)
        return files[names.index(file)]
    for entry in files:
        link = parse_qs(urlsplit(str(entry.get("downloadUrl") or "")).query)
        asked = {name: [value] for name, value in address.query}
        if asked and all(link.get(name) == value for name, value in asked.items()):
            return entry
    usable = [entry for entry in files if str(entry.get("name", "")).lower().endswith(".safetensors")]
    models = [entry for entry in usable if entry.get("type") in ("Model", "Pruned Model", None)] or usable
    if models:
        return next((entry for entry in models if entry.get("primary")), models[0])
    pickles = [name for name in names if any(name.lower().endswith(ending) for ending in PICKLES)]
    if pickles:
        raise PlainError(
            f"{title} is there as a pickle only ({pickles[0]}), which can run any program when it is opened. "
            "Look for a version of it as .safetensors."
        )
    raise PlainError(f"{title} has no .safetensors file to download{': ' + ', '.join(names) if names else ''}.")


def _source(entry: Mapping[str, Any], address: Address, version: str) -> Source:
    """Where the file lies. The key goes to Civitai alone, whatever address its answer names."""
    url = str(entry.get("downloadUrl") or f"{address.host}/api/download/models/{version}")
    parts = urlsplit(url)
    theirs = parts.hostname in HOSTS or parts.netloc == urlsplit(endpoint()).netloc
    kept = {name: values for name, values in parse_qs(parts.query).items() if name != "token"}
    clean = parts._replace(query=urlencode(kept, doseq=True)).geturl()
    sha256 = str((entry.get("hashes") or {}).get("SHA256") or "").lower()
    return Source(clean, sha256=sha256, token=token() if theirs else "")


def _notes(version: Mapping[str, Any]) -> tuple[str, ...]:
    """What the page says that the file does not."""
    base = version.get("baseModel")
    return (f"Civitai calls its base “{base}”",) if base else ()


def explain(title: str, address: Address) -> Callable[[RefusalError], PlainError]:
    """What makes a sentence of a refusal of Civitai: what it means and what would change it."""

    def sentence(refused: RefusalError) -> PlainError:
        if refused.status == 401 and not token():
            return TokenNeededError(
                f"{title} can be downloaded only by who is logged in.\n"
                f"1. Make an API key on {KEYS_PAGE}\n"
                "2. Set it as CIVITAI_TOKEN and start the download again.",
                *ASKED_FOR,
            )
        if refused.status == 401:
            said = f"Civitai does not take your key (CIVITAI_TOKEN). Make a new one on {KEYS_PAGE}"
            return TokenNeededError(said, *ASKED_FOR)
        if refused.status == 403:
            said = f" It says: {refused.said}." if refused.said else ""
            return PlainError(
                f"Civitai does not let you have {title}.{said} It may be in early access, or not offered for download; "
                f"its page says which: {address.host}/models/{address.model or ''}".rstrip("/")
            )
        if refused.status == 404:
            return PlainError(
                f"There is no {title} on {urlsplit(address.host).hostname}; it may have been taken down.", 2
            )
        said = f" It says: {refused.said}" if refused.said else ""
        return PlainError(f"Civitai refused {title} (status {refused.status}).{said}")

    return sentence
