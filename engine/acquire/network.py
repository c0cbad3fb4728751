"""Questions to servers: asked again where the network was at fault, with a token that stays with its host.

What is told of an address is its host, since signed addresses are secrets as well.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import PurePosixPath
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote, urlencode, urljoin, urlsplit, urlunsplit

import requests
from requests.exceptions import Timeout
from urllib3.exceptions import MaxRetryError, ReadTimeoutError

from knowledge.answers import PlainError

MOST_REDIRECTS = 8
AGENT = "lora-wizard"


@dataclass(frozen=True)
class Source:
    """Where a file lies and what is known of it: its size, its SHA-256, MD5 or name in git, where somebody says so.

    `token`, and `secrets` (parameters of the address, for servers that want their keys there), are sent to the host of
    `url` only. Of a file of unknown size no more than `most_bytes` are taken.
    """

    url: str
    size_bytes: int | None = None
    sha256: str = ""
    git_blob: str = ""
    token: str = field(default="", repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)
    md5: str = ""
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    most_bytes: int | None = None

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or self.url


@dataclass(frozen=True)
class Patience:
    """How long the network may be unwell. `attempts` counts tries in a row that brought nothing.

    Who has nothing yet is better told soon; who has half of it would rather wait for a minute.
    """

    attempts: int = 8
    attempts_at_first: int = 4
    first_wait_seconds: float = 0.5
    longest_wait_seconds: float = 120.0
    connect_seconds: float = 15.0
    read_seconds: float = 60.0


PATIENCE = Patience()


class RefusalError(Exception):
    """A server that said no: its status, its own code and words, and how long it asks to wait.

    Whoever knows that server puts it in a sentence.
    """

    def __init__(
        self, status: int, host: str, code: str = "", said: str = "", wait_seconds: float | None = None
    ) -> None:
        super().__init__(f"{host} answers with status {status}")
        self.status, self.host, self.code, self.said, self.wait_seconds = status, host, code, said, wait_seconds


class TokenNeededError(PlainError):
    """A site that wants to know who asks. variable: where the environment would say it."""

    def __init__(self, message: str, site: str, variable: str) -> None:
        super().__init__(message)
        self.site, self.variable = site, variable


class NetworkError(PlainError):
    """The network, and not the request, was at fault. `asked_to_wait`: longer than anybody would watch."""

    asked_to_wait = False


Read = TypeVar("Read")

Notice = Callable[[str], None]
"""Told in a sentence what somebody who waits should know."""


def silent(_: object) -> None:
    """The progress and the notice of who does not want to hear of it."""


def json_document(source: Source, patience: Patience | None = None, notice: Notice = silent) -> Any:
    """The JSON document at an address. Raises RefusalError, or PlainError where the host cannot be reached."""

    def read() -> Any:
        with opened(source, {}, patience or PATIENCE) as response:
            return response.json()

    try:
        return patiently(source.host, read, patience or PATIENCE, notice)
    except requests.exceptions.JSONDecodeError:
        raise PlainError(
            f"{source.host} did not answer in JSON. Perhaps it is under repair; try again later."
        ) from None


@dataclass(frozen=True)
class Beginning:
    """The first bytes of a file, how large it is in all, and the name that its server gives it."""

    content: bytes
    size_bytes: int | None
    name: str


def beginning(source: Source, length: int, patience: Patience | None = None, notice: Notice = silent) -> Beginning:
    """The first `length` bytes, without the rest. Raises as `json_document`."""

    def read() -> Beginning:
        with opened(source, {"Range": f"bytes=0-{length - 1}"}, patience or PATIENCE) as response:
            content = b""
            for chunk in response.iter_content(64 * 1024):
                content += chunk
                if len(content) >= length:  # a server that knows no ranges would send all of it
                    break
            return Beginning(content[:length], whole_size(response) or source.size_bytes, _file_name(response))

    return patiently(source.host, read, patience or PATIENCE, notice)


def patiently(
    host: str,
    read: Callable[[], Read],
    patience: Patience,
    notice: Notice = silent,
    gained: Callable[[], int] = lambda: 0,
) -> Read:
    """What `read` returns, tried again where the network or a busy server was at fault.

    Waits as long as the server asks for; begins to count anew when something was gained. Raises RefusalError for
    answers that stay the same, and NetworkError after the last attempt.
    """
    failures, before = 0, gained()
    while True:
        try:
            return read()
        except requests.exceptions.JSONDecodeError:
            raise
        except requests.exceptions.SSLError:
            raise NetworkError(
                "The connection is not trustworthy: the certificate cannot be verified. A proxy or a wrong clock "
                "may be the reason; REQUESTS_CA_BUNDLE names the certificates of a proxy."
            ) from None
        except RefusalError as refused:
            if refused.status not in BUSY:
                raise
            why = f"{refused.host} is busy (status {refused.status})"
            asked: float | None = refused.wait_seconds
        except (requests.exceptions.ConnectionError, requests.exceptions.ChunkedEncodingError, Timeout) as trouble:
            why, asked = f"{host} {_trouble(trouble)}", None
        except requests.exceptions.RequestException:  # its own words would hold the address
            raise NetworkError(f"{host} answers in a way that cannot be followed. Try again later.") from None
        now = gained()
        failures, before = (1 if now > before else failures + 1), now
        wait = asked if asked is not None else patience.first_wait_seconds * 2 ** (failures - 1)
        attempts = patience.attempts if now else min(patience.attempts_at_first, patience.attempts)
        if failures >= attempts or wait > patience.longest_wait_seconds:
            when = f"It asks to wait {wait:.0f} s." if asked is not None else "Try again later."
            kept = " What has come so far is kept; the same command goes on from there." if now else ""
            error = NetworkError(f"{why}. {when}{kept}")
            error.asked_to_wait = wait > patience.longest_wait_seconds
            raise error from None
        notice(f"{why}; trying again in {max(wait, 1):.0f} s")
        time.sleep(wait)


BUSY = frozenset({429, 500, 502, 503, 504})


def safe_name(name: str) -> str:
    """The last part of a name that a stranger gave, without what some systems do not allow; it may come out empty."""
    last = PurePosixPath(unquote(name).replace("\\", "/")).name
    return re.sub(r'[<>:"|?*\x00-\x1f]', "_", last).strip(". ")


@contextmanager
def opened(source: Source, headers: Mapping[str, str], patience: Patience) -> Iterator[requests.Response]:
    """The answer to a GET, redirects followed; the token stays with the host that it is for. Raises RefusalError."""
    url, token, secrets = source.url, source.token, source.secrets
    with requests.Session() as session:
        for _ in range(MOST_REDIRECTS):
            response = session.get(
                url,
                params=secrets,
                headers={"User-Agent": AGENT, "Accept-Encoding": "identity", **source.headers, **headers},
                auth=_Bearer(token),
                stream=True,
                allow_redirects=False,
                timeout=(patience.connect_seconds, patience.read_seconds),
            )
            with response:
                if response.is_redirect:
                    onward = _without(urljoin(url, response.headers["Location"]), secrets)  # it may repeat them
                    if _origin(onward)[0] != "https" and _origin(url)[0] == "https":
                        raise PlainError(
                            f"{source.host} sends on to an address without encryption. Nothing was loaded."
                        )
                    if _origin(onward) != _origin(url):
                        token, secrets = "", {}
                    url = onward
                    continue
                if not response.ok:
                    raise _refusal(response)
                yield response
                return
    raise PlainError(f"{source.host} sends on and on, {MOST_REDIRECTS} times. Nothing was loaded.")


def _without(url: str, names: Iterable[str]) -> str:
    """The address without these parameters."""
    parts = urlsplit(url)
    kept = [(name, value) for name, value in parse_qsl(parts.query, keep_blank_values=True) if name not in set(names)]
    return urlunsplit(parts._replace(query=urlencode(kept))) if names else url


class _Bearer(requests.auth.AuthBase):
    """The token as a header, and nothing from a netrc file in its place."""

    def __init__(self, token: str) -> None:
        self.token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self.token:
            request.headers["Authorization"] = f"Bearer {self.token}"
        return request


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port


def _refusal(response: requests.Response) -> RefusalError:
    """What a refusing server said, no longer than a sentence."""
    code, said = response.headers.get("X-Error-Code", ""), response.headers.get("X-Error-Message", "")
    if not said:
        try:
            document = json.loads(next(response.iter_content(4096), b""))
            said = str(document.get("message") or document.get("error") or "")
        except (ValueError, AttributeError, requests.RequestException):
            said = ""
    wait = _retry_after(response.headers.get("Retry-After", ""))
    return RefusalError(response.status_code, urlsplit(response.url).hostname or "", code, said[:200], wait)


def _retry_after(said: str) -> float | None:
    """Seconds to wait, from a number or a date."""
    if re.fullmatch(r"\d+", said):
        return float(said)
    try:
        return max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


def _trouble(error: requests.RequestException) -> str:
    """What the network did, in words that name no address."""
    cause = error.args[0] if error.args else None
    if isinstance(error, Timeout) or isinstance(cause, ReadTimeoutError):
        return "has stopped answering"
    if isinstance(cause, MaxRetryError):
        return "cannot be reached"
    return "broke the connection off"


def whole_size(response: requests.Response) -> int | None:
    """Bytes of the whole file, of which this may be a part."""
    found = re.search(r"/(\d+)$", response.headers.get("Content-Range", ""))
    text = found[1] if found else response.headers.get("Content-Length", "") if response.status_code == 200 else ""
    return int(text) if text.isdigit() else None


def _file_name(response: requests.Response) -> str:
    """The file name in Content-Disposition, as RFC 6266 has it; empty where there is none."""
    said = response.headers.get("Content-Disposition", "")
    extended = re.search(r"filename\*\s*=\s*(?:utf-8|iso-8859-1)'[^']*'([^;]+)", said, re.I)
    if extended:
        return safe_name(unquote(extended[1].strip()))
    plain = re.search(r'filename\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^;]+))', said, re.I)
    return safe_name((plain[1] or plain[2] or "").strip()) if plain else ""
