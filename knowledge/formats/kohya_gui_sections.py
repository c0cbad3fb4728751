"""kohya_ss' config.toml: what its forms begin with, by section; some sections belong to other tools of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from knowledge.formats import kohya_gui
from knowledge.formats.translation import Imported, Note
from knowledge.formats.vocabulary import facts_of

SECTIONS = {
    "settings", "server", "model", "folders", "configuration", "accelerate_launch", "basic", "advanced", "network",
    "dataset_preparation", "huggingface", "samples", "sdxl", "wd14_caption", "metadata",
}  # fmt: skip
TELLING = {"accelerate_launch", "basic", "advanced", "wd14_caption", "dataset_preparation"}
"""Sections that no other trainer's file has."""
OF_THE_FORM = {"LoRA_type": "Standard", "network_dim": 8, "network_alpha": 1}
"""What the LoRA form begins with whatever this file says, since it has no section for the network."""
KIND = "kohya_ss config.toml"


def is_sectioned(document: Mapping[str, Any]) -> bool:
    """Is this kohya_ss' own config.toml, or a part of one?"""
    tables = {name for name, value in document.items() if isinstance(value, dict)}
    if not TELLING & tables:
        return False
    if len(SECTIONS & tables) > 1:
        return True
    keys = {key for name in TELLING & tables for key in document[name]}
    return bool(keys & {"max_resolution", "lr_warmup", "epoch", "optimizer", "noise_offset_type", "thresh"})


def read_sections(document: Mapping[str, Any], path: Path) -> Imported:
    """The training that the forms would begin with; notes on what is read nowhere carry the section's name."""
    facts = facts_of("kohya_gui")["sections"]
    known = facts_of("sd_scripts")
    options = {*known["options"], *known["unset"]}
    form: dict[str, Any] = {}
    where: dict[str, str] = {}
    idle: list[Note] = []
    for section, table in document.items():
        if not isinstance(table, dict):
            again = any(isinstance(other, dict) and section in other for other in document.values())
            name = f"{section} (in no section)" if again else section
            idle.append(Note(name, table, "no_effect", why="It stands in no section, where nothing reads it."))
            continue
        for key, value in table.items():
            name = f"{section}.{key}"
            if section in facts["idle"]:
                idle.append(Note(name, value, "no_effect", why=facts["idle"][section]))
                continue
            longer = facts["prefix"].get(section, "") + key
            option = longer if longer in options else key
            if option in form:
                before = where[option]
                why = f"It stands again in a later section, as {name}, which counts."
                idle.append(Note(before, form[option], "no_effect", why=why))
            form[option], where[option] = value, name
    begun = {key: value for key, value in OF_THE_FORM.items() if key not in form}
    imported = kohya_gui.read_json(form | begun, path)
    notes = [note for note in imported.notes if note.key not in begun]
    renamed = {option: name for option, name in where.items() if name.partition(".")[2] != option}
    notes = [dataclasses.replace(note, key=renamed.get(note.key, note.key)) for note in notes]
    said = (
        "This file holds what kohya_ss' forms begin with, not one training. It says nothing of the network; "
        f"the LoRA form begins with rank {OF_THE_FORM['network_dim']} and alpha {OF_THE_FORM['network_alpha']}.",
    )
    warnings = (*said, *imported.warnings) if "network_dim" in begun else imported.warnings
    return dataclasses.replace(imported, format=KIND, notes=(*notes, *idle), warnings=warnings)
