"""Names: the entry that goes by a name, in whatever program or guide it was met and however it is written there."""

from __future__ import annotations

import difflib
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache

from knowledge import library
from knowledge.answers import PlainError
from knowledge.parameters import TERM_FILES, UNSECTIONED, Choice, Parameter, Term, address_of, parameters, terms

BETWEEN = re.compile(r"[^a-z0-9+]+")


def normal(name: str) -> str:
    """A name without case, dashes, brackets and the like, so that spellings of one name meet."""
    return BETWEEN.sub(" ", name.lower().replace("\u00b3", "3")).strip()


@cache
def _index() -> Mapping[str, str]:
    """The address of the entry by every normalised name. A name that an entry claims beats a bare last part."""
    claimed: dict[str, str] = {}
    for address, _, names in headings():
        claimed[normal(address)] = address
        for name in names:
            if not name.endswith("*"):
                claimed.setdefault(normal(name), address)
    return {word: owners[0] for word, owners in _bare_names().items() if len(owners) == 1} | claimed


@cache
def _bare_names() -> Mapping[str, tuple[str, ...]]:
    """The addresses of the entries by their titles and by the last parts of their addresses, normalised."""
    bare: dict[str, dict[str, None]] = {}
    for address, title, _ in headings():
        for word in (address.rpartition(".")[2], title):
            bare.setdefault(normal(word), {})[address] = None
    return {word: tuple(owners) for word, owners in bare.items()}


QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')


@cache
def headings() -> tuple[tuple[str, str, tuple[str, ...]], ...]:
    """Address, title and foreign names of every entry, parameters first.

    Read off the lines of the files, which is ten times faster than to parse them whole; a test holds that it finds
    what parsing finds.
    """
    return tuple(_headings())


def _headings() -> Iterator[tuple[str, str, tuple[str, ...]]]:
    sections = dict.fromkeys(address_of(name)[0] for name in parameters())
    for path, prefix in [
        *((f"parameters/{section}.toml", section) for section in sections),
        *((file, "") for file in TERM_FILES),
    ]:
        address, title = "", ""
        names: tuple[str, ...] = ()
        for line in (library.DATA / path).read_text(encoding="utf-8").split("\n"):
            if line.startswith("[") and line.endswith("]"):
                if address:
                    yield address, title, names
                table = line[1:-1].replace('"', "").replace(".choices.", ".")
                address = table if prefix in ("", UNSECTIONED) else f"{prefix}.{table}"
                title, names = "", ()
            elif line.startswith('title = "'):
                title = line[9:-1]
            elif line.startswith("names = {"):
                names = tuple(QUOTED.findall(line))
        if address:
            yield address, title, names


def entry(address: str) -> Parameter | Choice | Term:
    """The entry with this address: a parameter's dotted name, that and a value, or the name of a term."""
    if address in parameters():
        return parameters()[address]
    parameter, _, value = address.rpartition(".")
    if parameter in parameters():
        return parameters()[parameter].choices[value]
    return terms()[address]


def find(name: str) -> Parameter | Choice | Term:
    """The entry that goes by this name in any dialect. Raises PlainError with the nearest name when there is none, and
    with all that it may mean when there are several."""
    if name in parameters():
        return parameters()[name]
    index = _index()
    address = next((index[spelling] for spelling in _spellings(name) if spelling in index), None)
    if address is None:
        address = next((_families()[start] for start in _beginnings(name) if start in _families()), None)
    if address is None:
        several = _bare_names().get(normal(name), ())
        if len(several) > 1:
            raise PlainError(f'"{name}" is the name of several: {", ".join(several)}. Say which.', 2)
        raise PlainError(
            f'Nothing here is called "{name}".{_near(normal(name))} See the whole index with: lora-wizard explain', 2
        )
    return entry(address)


@cache
def _families() -> Mapping[str, str]:
    """The address of the entry by the normalised beginning of names, for those that end in an asterisk."""
    return {normal(name): address for address, _, names in headings() for name in names if name.endswith("*")}


def _beginnings(name: str) -> Iterator[str]:
    """What the name begins with, by whole words, the longest first."""
    words = normal(name).split()
    for end in range(len(words) - 1, 0, -1):
        yield " ".join(words[:end])


# -- what may have been meant -----------------------------------------------------------------------------------------

MISTYPED = 0.25
"""The share of a name's letters that may be wrong, missing or exchanged."""
TELLING = 0.5
"""The share of what a name's words tell that another name must have too, to stand near it."""


def _near(word: str) -> str:
    """' Did you mean …?' for a mistyped name, else what stands near because it shares the words that tell most."""
    index = _index()
    candidates = difflib.get_close_matches(word, list(index), n=12, cutoff=0.7)
    mistakes, near = min(((_mistakes(word, other), other) for other in candidates), default=(len(word), ""))
    if near and mistakes <= max(1, MISTYPED * len(word)):
        return f' Did you mean "{near}" ({index[near]})?'
    addresses = dict.fromkeys(index[other] for other in _related(word))
    return f" Near to it: {', '.join(list(addresses)[:3])}." if addresses else ""


def _mistakes(one: str, other: str) -> int:
    """Letters to leave out, add, change, or exchange with their neighbour to make one word of the other (optimal
    string alignment)."""
    before: list[int] = []
    last = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        row = [i]
        for j, wanted in enumerate(other, 1):
            row.append(min(last[j] + 1, row[-1] + 1, last[j - 1] + (letter != wanted)))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == wanted:
                row[-1] = min(row[-1], before[j - 2] + 1)
        before, last = last, row
    return last[-1]


def _related(word: str) -> list[str]:
    """Names that share words with this one, best first. A word tells the more the fewer names have it."""
    index = _index()
    counts = Counter(each for name in index for each in set(name.split()))
    whole, telling = 0.0, dict[str, float]()
    for each in set(word.split()):
        spelt = each if each in counts else next(iter(difflib.get_close_matches(each, list(counts), 1, 0.8)), "")
        tells = math.log(len(index) / counts.get(spelt, 1))
        whole += tells
        if spelt:
            telling[spelt] = tells

    scored = [
        (sum(telling.get(each, 0.0) for each in words), -len(words - telling.keys()), name)
        for name in index
        for words in [set(name.split())]
    ]
    return [name for score, _, name in sorted(scored, reverse=True)[:12] if score > TELLING * whole]


AROUND = {"enable", "enabled", "use", "is", "custom", "optional", "what", "how", "many", "much", "the", "best", "which"}
"""Words that programs and questions put before or after the name of a setting without meaning another one."""
NETWORKS = {"lora", "loha", "lokr", "locon", "dora", "oft", "lycoris"}
"""Networks whose settings are called after them in some windows, as in LoHa rank."""
SECTIONS_ELSEWHERE = {"config", "process", "train", "model", "sample", "save", "datasets", "general", "subsets"}
"""Sections of foreign files that settings are named below, as in train.lr."""
REMARK = re.compile(r"\s*\([^)]*\)")
HUMPS = re.compile(r"(?<=[a-z])(?=[A-Z])")
VALUE = re.compile(r"\s*[=:]\s*(?=\S)")


def _spellings(name: str) -> Iterator[str]:
    """The name as it stands, then as it would stand here if it came with its value behind it (network_dim=32) or a
    remark in brackets, from the metadata of a LoRA file (ss_network_dim), from a section of a foreign file (train.lr),
    with words around it (min_snr_gamma_enabled, what is rank), in two words (U-Net), with capitals for gaps
    (networkDim), or in the other number (sample_prompt)."""
    yield normal(name)
    bare = VALUE.split(REMARK.sub("", name) or name, maxsplit=1)[0]
    section, _, last = bare.rpartition(".")
    last = last if section.partition(".")[0] in SECTIONS_ELSEWHERE else bare
    for written in (name, bare, last, HUMPS.sub(" ", last)):
        whole = normal(written).removeprefix("ss ").replace("u net", "unet")
        words = whole.split()
        while words and words[0] in AROUND | NETWORKS:
            del words[0]
        while words and words[-1] in AROUND:
            del words[-1]
        for spelling in filter(None, (whole, " ".join(words))):
            yield spelling
            yield spelling.replace(" ", "")
            yield spelling.removesuffix("s") if spelling.endswith("s") else f"{spelling}s"
