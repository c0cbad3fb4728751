"""A LoRA in a repository of its own on the Hugging Face hub: what goes up, and the going up, which can be gone on with.

Large files go up one by one and are known there by their content, so what is up already is not sent again; the commit
that makes all of it visible comes last.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.acquire.huggingface import REPOSITORY, TOKENS_PAGE, endpoint, token
from engine.tools.headers import read_header
from knowledge.answers import PlainError

CARD = "README.md"
SECRET = re.compile(
    rb"\b(hf_[A-Za-z0-9]{24,}|ghp_[A-Za-z0-9]{36}|github_pat_\w{40,}|glpat-[\w-]{20}|AKIA[0-9A-Z]{16}|sk-[\w-]{32,})\b"
)
"""What tokens look like: the hub's, GitHub's, GitLab's, Amazon's, OpenAI's."""
SECRET_NAMES = ("TOKEN", "API_KEY", "APIKEY", "SECRET", "PASSWORD")
SHORTEST_SECRET = 8
LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]{1,60}")
HEAD_BYTES = 1 << 22
"""How much of a picture is looked through; of a network file it is all that stands before its weights."""

Notice = Callable[[str], None]


@dataclass(frozen=True)
class Upload:
    """One file: its path in the repository, and the file here or its content."""

    path: str
    source: Path | bytes

    @property
    def size_bytes(self) -> int:
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size

    def head(self) -> bytes:
        """What it says in words: all of a small file, the beginning of a large one."""
        if isinstance(self.source, bytes):
            return self.source
        most = read_header(self.source).body_start if self.source.suffix == ".safetensors" else HEAD_BYTES
        with self.source.open("rb") as file:
            return file.read(most)


@dataclass(frozen=True)
class Publication:
    """What goes up where. `repository` is OWNER/NAME."""

    repository: str
    private: bool
    uploads: tuple[Upload, ...]
    replace_card: bool = False

    def __post_init__(self) -> None:
        if not REPOSITORY.fullmatch(self.repository):
            raise PlainError(f"{self.repository!r} is no name of a repository; it is OWNER/NAME.", 2)

    @property
    def size_bytes(self) -> int:
        return sum(upload.size_bytes for upload in self.uploads)


@dataclass(frozen=True)
class Published:
    """Where it is now. `card_kept`: the card that was there before was left as it is."""

    url: str
    repository: str
    private: bool
    card_kept: bool


def refuse_secrets(uploads: Iterable[Upload]) -> None:
    """Raises PlainError, without the secret itself, when a token or password stands in anything that would go up."""
    known = [value.encode() for name, value in _secrets() if len(value) >= SHORTEST_SECRET]
    for upload in uploads:
        head = upload.head()
        if SECRET.search(head) or any(value in head for value in known):
            raise PlainError(
                f"{upload.path} contains a secret (a token or password), so nothing was published. Take it out: look "
                "at the description, the prompts and the file's metadata (lora-wizard tools metadata FILE)."
            )


def home_named(uploads: Iterable[Upload]) -> list[str]:
    """The files in which the path of the home folder stands, and with it mostly a person's name."""
    home = os.path.expanduser("~").encode()  # noqa: PTH111  (no error where there is no home)
    spelled = {home, home.replace(b"\\", b"/"), home.replace(b"\\", b"\\\\")}
    return [upload.path for upload in uploads if any(len(one) > 3 and one in upload.head() for one in spelled)]


def _secrets() -> Iterator[tuple[str, str]]:
    yield "HF_TOKEN", token()
    for name, value in os.environ.items():
        if name.upper().endswith(SECRET_NAMES):
            yield name, value


def owner() -> str:
    """The account that the token belongs to. Raises PlainError without one that the hub knows."""
    api = _api()
    with _in_plain_words("your account"):
        return str(api.whoami()["name"])


def _api() -> Any:
    if not token():
        raise PlainError(
            f"Publishing needs a token that may write. Make one on {TOKENS_PAGE}, then set HF_TOKEN to it, or keep it "
            "with: hf auth login"
        )
    from huggingface_hub import HfApi

    return HfApi(endpoint=endpoint(), token=token(), library_name="lora-wizard")


def publish(publication: Publication, notice: Notice = lambda _: None) -> Published:
    """Send everything, and make it visible in one commit. Raises PlainError for whatever is in the way.

    A new repository is private where the publication says so; one that exists is never opened or closed. A card that
    is there already stays, unless it is to be replaced.
    """
    refuse_secrets(publication.uploads)
    from huggingface_hub import CommitOperationAdd

    api, name = _api(), publication.repository
    with _in_plain_words(name), _unsaid_addresses():
        there, private = _repository(api, name, publication)
        card_kept = CARD in there and not publication.replace_card
        operations = [
            CommitOperationAdd(upload.path, upload.source)
            for upload in publication.uploads
            if not (card_kept and upload.path == CARD)
        ]
        for number, operation in enumerate(operations, 1):
            notice(f"{number} of {len(operations)}: {operation.path_in_repo}")
            api.preupload_lfs_files(name, [operation], free_memory=False)
        api.create_commit(name, operations, commit_message=f"Publish {name.split('/')[1]}")
    return Published(f"{endpoint()}/{name}", name, private, card_kept)


def _repository(api: Any, name: str, publication: Publication) -> tuple[set[str], bool]:
    """The files of the repository, made new where there is none, and whether it is private."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        found = api.model_info(name)
    except RepositoryNotFoundError:
        api.create_repo(name, private=publication.private, exist_ok=True)
        return set(), publication.private
    if publication.private and not found.private:
        raise PlainError(
            f"{name} exists and everybody can see it. To publish there, add --public; to keep this private, choose "
            "another --repo.",
            2,
        )
    return {file.rfilename for file in found.siblings or ()}, bool(found.private)


@contextmanager
def _in_plain_words(name: str) -> Iterator[None]:
    """Turns what the hub's library raises into a sentence, which repeats neither addresses nor headers."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    again = "What is up already is not sent again: run the same command once more."
    try:
        yield
    except OfflineModeIsEnabled:
        raise PlainError("HF_HUB_OFFLINE is set, so nothing is sent to the Hugging Face hub. Unset it.") from None
    except Exception as error:
        status = next((s for s in map(_status, _chain(error)) if s), 0)
        if status == 401:
            raise PlainError(
                f"The Hugging Face hub does not know your token (HF_TOKEN). Make a new one: {TOKENS_PAGE}"
            ) from None
        if status == 403:
            raise PlainError(
                f"Your token may not write to {name}. Make one that may, on {TOKENS_PAGE}, or choose another --repo."
            ) from None
        network = any(type(one).__module__.split(".")[0].startswith(("httpx", "httpcore")) for one in _chain(error))
        if status or network or isinstance(error, HfHubHTTPError | ConnectionError):
            what = f"it answered with {status}" if status else "the connection broke"
            raise PlainError(f"The Hugging Face hub could not take it: {what}. {again}") from None
        raise


@contextmanager
def _unsaid_addresses() -> Iterator[None]:
    """Keeps the hub's library from telling of each new try: it names the address, which is signed to be written to."""
    from huggingface_hub.utils import logging as told

    before = told.get_verbosity()
    told.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        told.set_verbosity(before)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int:
    return int(getattr(getattr(error, "response", None), "status_code", 0) or 0)
