"""Proposals made of the user's own words, which no recommendation could know: sample prompts and a name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from knowledge.config import DatasetSettings
from knowledge.facts import DatasetFacts
from knowledge.parsed import parsed
from wizard.pictures import as_trained


def proposed(known: Mapping[str, Any], settings: DatasetSettings, dataset: DatasetFacts | None) -> dict[str, Any]:
    """Values by dotted name, proposed until the user chooses others. `known` are the facts, by dotted name."""
    return {
        "sampling.prompts": sample_prompts(known["base_model.family"], settings, dataset),
        "output.name": name(settings.trigger_word, settings.goal),
    }


def sample_prompts(family: str, settings: DatasetSettings, dataset: DatasetFacts | None) -> tuple[str, ...]:
    """Prompts for this goal with the trigger word and a caption in them; none while the pictures are unknown."""
    if dataset is None:
        return ()
    training = [p for folder in dataset.folders if not folder.regularisation for p in folder.pictures]
    captioned = next((picture for picture in training if picture.caption), None)
    plain = settings.model_copy(update={"shuffle_tags": False})
    caption = as_trained(captioned, plain) if captioned else settings.trigger_word
    templates = _templates()["pocket" if family == "pocket" else settings.goal]
    named = [template for template in templates if settings.trigger_word or not NEEDS_A_SUBJECT.match(template)]
    filled = (_filled(template, caption, settings.trigger_word) for template in named)
    return tuple(dict.fromkeys(prompt for prompt in filled if prompt))


NEEDS_A_SUBJECT = re.compile(r"\{trigger\} (on|in|at) ")
"""A template that would be left without anything to draw where there is no trigger word."""


def _filled(template: str, caption: str, trigger_word: str) -> str:
    return " ".join(template.replace("{caption}", caption).replace("{trigger}", trigger_word).split()).lstrip(" ,")


@lru_cache(maxsize=1)
def _templates() -> dict[str, list[str]]:
    document = parsed(Path(__file__).parent / "steps.toml")
    templates: dict[str, list[str]] = document["prompts"]
    return templates


def name(trigger_word: str, goal: str) -> str:
    """A file name made of the trigger word, or of what is taught."""
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", trigger_word).strip("-._")
    return (slug or f"my-{goal}")[:100]
