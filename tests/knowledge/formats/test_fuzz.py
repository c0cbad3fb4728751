"""Broken configs end in a translation or in one plain sentence, never in a traceback."""

from __future__ import annotations

import copy
import json
import random
from collections import Counter

import pytest
import yaml
from foreign import AI_TOOLKIT, BAT, EASY_TRAINING, FORM, OLDER_ONETRAINER, PS1, SECTIONED, SH

from knowledge.answers import PlainError
from knowledge.formats.reader import is_foreign, read_foreign

ONETRAINER = OLDER_ONETRAINER | {
    "optimizer": {"optimizer": "PRODIGY", "d_coef": 1.0, "beta1": 0.9},
    "concepts": [{"path": "a", "balancing": 2.0, "image": {"enable_random_flip": True}, "text": {}}],
    "samples": [{"prompt": "a", "width": 512, "cfg_scale": 7.0}],
}
DATASET = """
[general]
keep_tokens = 1
[[datasets]]
resolution = 512
[[datasets.subsets]]
image_dir = "a"
num_repeats = 2
"""
SEEDS = {
    ".json": [json.dumps(FORM), json.dumps(ONETRAINER)],
    ".yaml": [AI_TOOLKIT],
    ".toml": [
        EASY_TRAINING,
        SECTIONED,
        DATASET + "num_repeats = 2\n",
        'network_dim = 8\nnetwork_args = ["conv_dim=4"]\n',
    ],
    ".bat": [BAT],
    ".ps1": [PS1],
    ".sh": [SH],
}
ODD = [None, True, -1, 1e309, float("nan"), 10**19, "", "x", "\0", "1e999", [], {}, [[]], {"a": {}}, ["a=1"], 2**70]
WORDS = [b"[]", b"{}", b"-1", b"nan", b'""', b"true", b"[1, [2]]", b"1e400", b"9" * 25, b"2020-01-01", b"*x"]


def a_value_changed(document, chance):
    """The document with one value of it odd, one key misspelt, or one part threefold."""
    holder, key, held = None, None, document
    while isinstance(held, dict | list) and held and (holder is None or chance.random() < 0.8):
        holder = held
        key = chance.choice(list(held)) if isinstance(held, dict) else chance.randrange(len(held))
        held = held[key]
    how = chance.random()
    if how < 0.7:
        holder[key] = copy.deepcopy(chance.choice(ODD))
    elif how < 0.85 and isinstance(holder, dict):
        holder[f"{key}x"] = holder.pop(key)
    else:
        holder[key] = [copy.deepcopy(held) for _ in range(3)]


def lines_changed(data: bytes, chance) -> bytes:
    lines = data.split(b"\n")
    place = chance.randrange(len(lines))
    how = chance.randrange(5)
    if how == 0:
        return bytes(byte if chance.random() > 0.01 else chance.randrange(256) for byte in data)
    if how == 1:
        return b"\n".join(lines[:place])
    if how == 2:
        lines.insert(place, chance.choice(lines))
    elif how == 3:
        chance.shuffle(lines)
    else:
        sign = next((sign for sign in (b"=", b":") if sign in lines[place]), b" ")
        lines[place] = lines[place].split(sign)[0] + sign + b" " + chance.choice(WORDS)
    return b"\n".join(lines)


def broken(suffix: str, text: str, chance) -> bytes:
    if suffix in (".json", ".yaml") and chance.random() < 0.6:
        document = json.loads(text) if suffix == ".json" else yaml.safe_load(text)
        for _ in range(chance.randint(1, 5)):
            a_value_changed(document, chance)
        return json.dumps(document).encode()
    data = text.encode()
    for _ in range(chance.randint(1, 4)):
        data = lines_changed(data, chance)
    return data


@pytest.mark.parametrize("suffix", SEEDS)
def test_no_broken_file_ends_in_a_traceback(suffix, tmp_path):
    chance = random.Random(suffix)
    path = tmp_path / f"x{suffix}"
    read, refused = 0, []
    for _ in range(60):
        path.write_bytes(broken(suffix, chance.choice(SEEDS[suffix]), chance))
        is_foreign(path)
        try:
            imported = read_foreign(path)
        except PlainError as refusal:
            refused.append(str(refusal))
            continue
        read += 1
        assert max(Counter(note.key for note in imported.notes).values(), default=1) == 1
        assert (imported.config is None) == bool(imported.problems)
    assert not [sentence for sentence in refused if "\n" in sentence]
    assert read > 5, "most of them would say nothing"
