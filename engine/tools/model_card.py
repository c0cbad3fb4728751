"""The page of a published LoRA: what it is, what calls it up, how to use it, how it was made, under which licence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from engine.acquire.huggingface import REPOSITORY
from engine.tools.applications import Reading
from knowledge.config import TrainingConfig, value_of
from knowledge.facts import RANKS
from knowledge.families import family_facts
from knowledge.parameters import parameters
from knowledge.words import count

LICENCES: dict[str, str] = {
    "creativeml-openrail-m": "as Stable Diffusion 1.5: free, but for a list of harmful uses",
    "openrail++": "as SDXL: free, but for a list of harmful uses",
    "cc0-1.0": "no rights reserved",
    "cc-by-4.0": "anything, if your name is given",
    "cc-by-sa-4.0": "your name is given, and what is made of it is shared alike",
    "cc-by-nc-4.0": "not for money, and your name is given",
    "cc-by-nc-sa-4.0": "not for money, your name is given, shared alike",
    "apache-2.0": "anything; patents are granted too",
    "mit": "anything, if the licence text comes along",
}
"""Licences that the hub knows by this name and that LoRAs usually get; the base model's licence holds besides."""
RECIPE = (
    "network.algorithm", "network.rank", "network.alpha", "network.train_text_encoder", "optimizer.name",
    "optimizer.learning_rate", "optimizer.text_encoder_learning_rate", "schedule.scheduler", "schedule.batch_size",
    "dataset.resolution", "loss.minimum_snr_gamma", "noise.offset", "memory.precision", "seed",
)  # fmt: skip
"""What a reader of the card wants to know of the settings; all of them stand in the file's metadata."""
FOLDERS = {"ComfyUI": "ComfyUI/models/loras", "A1111": "stable-diffusion-webui/models/Lora", "Forge": "models/Lora"}


@dataclass(frozen=True)
class CardFile:
    """A network file as the card lists it."""

    name: str
    bytes: int
    auto_v3: str


@dataclass(frozen=True)
class CardPicture:
    """A sample under its path in the repository, and the prompt it was drawn from."""

    path: str
    prompt: str


@dataclass(frozen=True)
class Facts:
    """What the card tells besides the settings. The first file is the one to use; steps and images where known;
    `goal_known` is false for a file of another trainer, which has no word for what was taught."""

    repository: str
    licence: str
    files: Sequence[CardFile]
    readings: Sequence[Reading]
    pictures: Sequence[CardPicture] = ()
    grid: str = ""
    steps: int | None = None
    images: int | None = None
    base_repository: str = ""
    goal_known: bool = True


def base_repository(config: TrainingConfig) -> str:
    """The hub's repository of the base model, where the answers name one; empty for a file or folder on a disk."""
    path = config.base_model.path
    named = REPOSITORY.fullmatch(path) and not path.endswith((".safetensors", ".ckpt"))
    return path if named and not Path(path).exists() else ""


def model_card(config: TrainingConfig, facts: Facts) -> str:
    """README.md of the repository: the hub's fields in YAML, then the page in Markdown."""
    parts = [f"---\n{_fields(config, facts)}---", f"# {config.output.name}", *_page(config, facts)]
    return "\n\n".join(parts) + "\n"


def _fields(config: TrainingConfig, facts: Facts) -> str:
    known = facts.licence in LICENCES
    tags = ["text-to-image", *family_facts(config.base_model.family).tags, "lora", "lora-wizard", "template:sd-lora"]
    fields: dict[str, Any] = {"license": facts.licence if known else "other"}
    if not known:
        fields["license_name"] = facts.licence
    if facts.base_repository:
        fields |= {"base_model": facts.base_repository, "base_model_relation": "adapter"}
    if _reads(facts, "diffusers"):
        fields["library_name"] = "diffusers"
    fields["pipeline_tag"] = "text-to-image"
    if config.dataset.trigger_word:
        fields["instance_prompt"] = config.dataset.trigger_word
    fields["tags"] = list(dict.fromkeys([*tags, config.network.algorithm]))
    if facts.pictures:
        fields["widget"] = [{"text": one.prompt, "output": {"url": one.path}} for one in facts.pictures]
    return str(yaml.safe_dump(fields, allow_unicode=True, sort_keys=False, width=10_000))


def _reads(facts: Facts, application: str) -> bool:
    return any(one.application == application and one.verdict == "yes" for one in facts.readings)


def _page(config: TrainingConfig, facts: Facts) -> Iterator[str]:
    trigger, base = (
        config.dataset.trigger_word,
        config.base_model.path.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1],
    )
    if config.output.description:
        yield config.output.description
    made_for = facts.base_repository or base
    goals = {"character": " of a character", "style": " of a style", "object": " of an object"}
    goal = goals.get(config.dataset.goal, "") if facts.goal_known else ""
    about = f"A LoRA{goal} for `{made_for}`" if made_for else f"A LoRA{goal}"
    pictures = f", trained on {count(facts.images, 'picture')}" if facts.images else ""
    yield f"{about}{pictures}."
    if config.output.author:
        yield f"By {config.output.author}."
    if trigger:
        yield f"## Trigger\n\nWrite {_code(trigger)} in the prompt."
    if facts.grid:
        yield f"## Pictures\n\n![Samples of the training, each beside what the base model draws]({facts.grid})"
    elif facts.pictures:
        shown = "\n\n".join(f"![{_flat(one.prompt)}]({one.path})" for one in facts.pictures)
        yield f"## Pictures\n\n{shown}"
    yield "## How to use it\n\n" + "\n\n".join(_usage(config, facts))
    yield "## How it was made\n\n" + _table(("setting", "value"), _recipe(config, facts))
    lines = [(f"`{one.name}`", f"{one.bytes / 1e6:.1f} MB", f"`{one.auto_v3}`") for one in facts.files]
    yield "## Files\n\n" + _table(("file", "size", "AutoV3"), lines)
    meaning = LICENCES.get(facts.licence)
    licence = f"{facts.licence} ({meaning})" if meaning else facts.licence
    yield f"## Licence\n\n{licence}. The licence of the base model holds besides."
    yield "Made with lora-wizard. All settings stand in the file's metadata."


def _usage(config: TrainingConfig, facts: Facts) -> Iterator[str]:
    file, trigger = facts.files[0].name, config.dataset.trigger_word
    readings = {one.application: one for one in facts.readings}
    if config.base_model.family == "pocket":
        yield (
            "It is for the small practice model that comes with lora-wizard. No other program has that model, so there "
            "is nothing to use it with elsewhere."
        )
        return
    if not facts.readings:
        yield "It is for a model whose layers lora-wizard does not know, so which programs read it was not looked up."
        return
    for application, folder in FOLDERS.items():
        reading = readings.get(application)
        if reading is None or reading.verdict == "no":
            yield f"**{application}** does not read this file."
            continue
        way = f"put `{file}` into `{folder}`"
        if application == "ComfyUI":
            way += " and add a *Load LoRA* node"
        else:
            way += f" and write `<lora:{file.removesuffix('.safetensors')}:1>` in the prompt"
        remark = f" ({reading.remarks[0]})" if reading.remarks else ""
        yield f"**{application}**: {way}.{remark}"
    if not _reads(facts, "diffusers"):
        reason = (readings["diffusers"].remarks or ("",))[0] if "diffusers" in readings else ""
        yield f"**diffusers** does not read it as it was trained{f': {reason}' if reason else ''}."
        return
    prompt = f"{trigger}, " if trigger else ""
    prompt = repr(f"{prompt}a photo" if not facts.pictures else facts.pictures[0].prompt)
    yield (
        "**diffusers**:\n\n```python\nimport torch\nfrom diffusers import AutoPipelineForText2Image\n\n"
        f"pipeline = AutoPipelineForText2Image.from_pretrained(\n"
        f'    "{facts.base_repository or "THE_BASE_MODEL"}", torch_dtype=torch.float16\n).to("cuda")\n'
        f'pipeline.load_lora_weights("{facts.repository}", weight_name="{file}")\n'
        f"image = pipeline({prompt}).images[0]\n```"
    )


def _recipe(config: TrainingConfig, facts: Facts) -> Iterator[tuple[str, str]]:
    known = parameters()
    if facts.steps:
        yield "Steps", f"{facts.steps:,}"
    for name in RECIPE:
        value = value_of(config, name)
        if config.network.ranks_in_start and name in RANKS:
            value = f"those of {Path(config.network.start_from).name}"
        if value is None or value == "":
            continue
        choices = known[name].choices
        said = choices[value].title if isinstance(value, str) and value in choices else value
        yield known[name].title, {True: "yes", False: "no"}[value] if isinstance(value, bool) else f"{said}"


def _table(heads: Sequence[str], lines: Iterator[tuple[str, ...]] | Sequence[tuple[str, ...]]) -> str:
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join("| " + " | ".join(_flat(str(cell)) for cell in row) + " |" for row in rows)


def _flat(text: str) -> str:
    """The text on one line, without what would end a table's cell or a picture's words."""
    return " ".join(text.split()).replace("|", "\\|").replace("[", "(").replace("]", ")")


def _code(text: str) -> str:
    """The text as Markdown code, whatever backticks are in it."""
    flat = " ".join(text.split())
    return f"`` {flat} ``" if "`" in flat else f"`{flat}`"
