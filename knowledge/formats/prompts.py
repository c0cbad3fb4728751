"""Sample prompt files of sd-scripts: one prompt a line, with its size, seed, steps and strength behind two dashes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from knowledge.formats.text import text_at
from knowledge.formats.translation import Translation
from knowledge.formats.values import as_number

MARKS = {"n": "negative", "w": "width", "h": "height", "d": "seed", "s": "steps", "l": "guidance"}
NAMES = {
    "negative": "sampling.negative_prompt",
    "width": "sampling.width",
    "height": "sampling.height",
    "seed": "sampling.seed",
    "steps": "sampling.steps",
    "guidance": "sampling.guidance_scale",
}


def parse_line(line: str) -> dict[str, Any]:
    """The prompt of a line and what stands behind its dashes, by our words for it."""
    prompt, *marks = re.split(r"\s--(?=[a-z]+\s)", " " + line.strip())
    found: dict[str, Any] = {"prompt": prompt.strip()}
    for mark in marks:
        letter, _, value = mark.partition(" ")
        if letter in MARKS:
            found[MARKS[letter]] = value.strip() if letter == "n" or as_number(value) is not None else None
    return found


def read_prompts(job: Translation, key: str, beside: Path | None) -> None:
    """Take the prompts of a file, or of the text itself; size, seed and the rest are those of the first prompt."""
    given = str(job.get(key))
    text = given
    if "\n" not in given:
        path = Path(given) if Path(given).is_absolute() or beside is None else beside / given
        if path.suffix.lower() in (".txt", ".toml", ".json") or path.is_file():
            found = text_at(path) if path.suffix.lower() == ".txt" else None
            if found is None:
                job.unsupported(key, f"The prompts are in {given}, which is not a text file on this computer.")
                return
            text = found
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    prompts = [parse_line(line) for line in lines]
    if not prompts:
        job.no_effect(key, "There is no prompt in it.")
        return
    first = prompts[0]
    from knowledge.formats.values import fitted, refusal

    for word, name in NAMES.items():
        value = first.get(word)
        if value is not None and not refusal(name, fitted(name, value)):
            job.values[name] = fitted(name, value)
    texts = tuple(prompt["prompt"] for prompt in prompts)
    marked = any(len(prompt) > 1 for prompt in prompts)
    if marked:
        why = "Size, seed, steps and negative prompt are those of the first prompt, for all of them."
        job.changed(key, "sampling.prompts", texts, why)
    else:
        job.mapped(key, "sampling.prompts", texts)
