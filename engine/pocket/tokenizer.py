"""Stable Diffusion's CLIP tokenizer, rebuilt from OpenAI's merge list (MIT), bpe_simple_vocab_16e6.txt.gz.

The open_clip_torch wheel ships that file; it is a source of the build, never a dependency of the program.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

VOCABULARY_SIZE = 49_408
START, END = "<|startoftext|>", "<|endoftext|>"


def byte_letters() -> list[str]:
    """One printable character for each byte, printable bytes first, as GPT-2 orders them."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(byte) for byte in printable] + [chr(256 + number) for number in range(256 - len(printable))]


def write_tokenizer(merge_list: Path, folder: Path) -> None:
    """The four files that transformers' CLIPTokenizer loads."""
    with gzip.open(merge_list, "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")
    letters = byte_letters()
    merges = lines[1 : VOCABULARY_SIZE - 2 * len(letters) - 2 + 1]
    words = letters + [letter + "</w>" for letter in letters] + [merge.replace(" ", "") for merge in merges]
    vocabulary = {word: number for number, word in enumerate([*words, START, END])}
    assert len(vocabulary) == VOCABULARY_SIZE
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    special = {
        word: {"content": word, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
        for word in (START, END)
    }
    names = {"bos_token": special[START], "eos_token": special[END], "pad_token": END, "unk_token": END}
    (folder / "special_tokens_map.json").write_text(json.dumps(names, indent=2) + "\n")
    settings = {
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(VOCABULARY_SIZE - 2 + number): {**special[word], "special": True}
            for number, word in enumerate((START, END))
        },
        "bos_token": START,
        "eos_token": END,
        "pad_token": END,
        "unk_token": END,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": 77,
        "tokenizer_class": "CLIPTokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
