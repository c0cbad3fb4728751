"""Names: the entry that goes by a name, in whatever program or guide it was met and however it is written there."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache

from knowledge import library
from knowledge.answers import PlainError, did_you_mean
from knowledge.parameters import TERM_FILES, UNSECTIONED, Choice, Parameter, Term, address_of, parameters, terms


def normal(name: str) -> str:
    """A name without case, dashes, brackets and the like, so that spellings of one name meet."""
    return " ".join(re.sub(r"[^a-z0-9+]+", " ", name.lower().replace("\u00b3", "3")).split())


@cache
def _index() -> Mapping[str, str]:
    """The address of the entry by every normalised name. A name that an entry claims beats a bare last part."""
    claimed: dict[str, str] = {}
    for address, _, names in headings():
        claimed[normal(address)] = address
        for name in names:
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


TABLE = re.compile(r'^\[(.+)\]$|^title = "(.*)"$|^names = \{(.*)\}$', re.MULTILINE)
QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')


def headings() -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Address, title and foreign names of every entry, parameters first.

    Read off the lines of the files, which is ten times faster than to parse them whole; a test holds that it finds
    what parsing finds.
    """
    sections = dict.fromkeys(address_of(name)[0] for name in parameters())
    for path, prefix in [*((f"parameters/{section}.toml", section) for section in sections), *TERM_FILES]:
        address, title = "", ""
        names: tuple[str, ...] = ()
        for match in TABLE.finditer((library.DATA / path).read_text(encoding="utf-8")):
            if match[1]:
                if address:
                    yield address, title, names
                table = match[1].replace('"', "").replace(".choices.", ".")
                address = table if prefix in ("", UNSECTIONED) else f"{prefix}.{table}"
                title, names = "", ()
            elif match[2] is not None:
                title = match[2]
            else:
                names = tuple(QUOTED.findall(match[3]))
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
        several = _bare_names().get(normal(name), ())
        if len(several) > 1:
            raise PlainError(f'"{name}" is the name of several: {", ".join(several)}. Say which.', 2)
        near = did_you_mean(normal(name), index)
        word = near.partition('"')[2].rpartition('"')[0]
        meant = f' Did you mean "{word}" ({index[word]})?' if word else ""
        raise PlainError(f'Nothing here is called "{name}".{meant} See the whole index with: lora-wizard explain', 2)
    return entry(address)


AROUND = {"enable", "enabled", "use", "is", "custom", "optional"}
"""Words that programs put before or after the name of a setting without meaning another one."""
SECTIONS_ELSEWHERE = {"config", "process", "train", "model", "sample", "save", "datasets", "general", "subsets"}
"""Sections of foreign files that settings are named below, as in train.lr."""
REMARK = re.compile(r"\s*\([^)]*\)")
VALUE = re.compile(r"\s*[=:]\s*(?=\S)")


def _spellings(name: str) -> Iterator[str]:
    """The name as it stands, then as it would stand here if it came with its value behind it (network_dim=32) or a
    remark in brackets, from the
    metadata of a LoRA file (ss_network_dim), from a section of a foreign file (train.lr), with a switch's words around
    it (min_snr_gamma_enabled), or in the other number (sample_prompt)."""
    yield normal(name)
    bare = VALUE.split(REMARK.sub("", name) or name, maxsplit=1)[0]
    section, _, last = bare.rpartition(".")
    for written in (name, bare, last if section.partition(".")[0] in SECTIONS_ELSEWHERE else bare):
        whole = normal(written).removeprefix("ss ")
        words = whole.split()
        while words and words[0] in AROUND:
            del words[0]
        while words and words[-1] in AROUND:
            del words[-1]
        for spelling in filter(None, (whole, " ".join(words))):
            yield spelling
            yield spelling.replace(" ", "")
            yield spelling.removesuffix("s") if spelling.endswith("s") else f"{spelling}s"
