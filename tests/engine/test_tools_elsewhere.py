"""What each tool makes of each algorithm, read by diffusers' own key map, under the names that ComfyUI looks for."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from trained_networks import loaded, trained_network

from engine.networks import ALGORITHMS, create_network
from engine.tools.adapters import in_memory
from engine.tools.applications import Reading, readings
from engine.tools.checkpoints import Checkpoint
from engine.tools.convert import converted
from engine.tools.decompose import Keep
from engine.tools.effect import change
from engine.tools.merge import Weighted, combine, extract, merge_into
from engine.tools.names import spelled
from engine.tools.resize import resize
from knowledge.config import NetworkSettings

Tensors = dict[str, torch.Tensor]
WHOLE = Keep(rank=1000)


def read_by_diffusers(tensors: Tensors, family: str, model: Path) -> dict[str, torch.Tensor]:
    """ΔW of every layer as diffusers applies the file, in float64. Raises what diffusers raises."""
    pipeline = pipeline_of(family, model)
    pipeline.load_lora_weights(dict(tensors))
    found = {}
    for part in ("unet", "text_encoder", *(["text_encoder_2"] if family == "sdxl" else [])):
        for path, layer in getattr(pipeline, part).named_modules():
            for adapter, scale in getattr(layer, "scaling", {}).items():
                down, up = (side[adapter].weight.detach().double().flatten(1) for side in (layer.lora_A, layer.lora_B))
                inside = path if part == "unet" or path.startswith("text_model.") else f"text_model.{path}"
                found[f"{part}.{inside}"] = up @ down * scale
    pipeline.unload_lora_weights()
    return found


def read_otherwise(tensors: Tensors, family: str, model: Path) -> int:
    """How many layers diffusers applies otherwise than the file means them."""
    read = read_by_diffusers(tensors, family, model)
    whole = {adapter.canonical: change(adapter, precision=torch.float64) for adapter in in_memory(tensors).values()}
    return sum(float((read[name] - meant).norm() / meant.norm()) > 1e-4 for name, meant in whole.items())


@functools.cache
def pipeline_of(family: str, model: Path) -> Any:
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    return (StableDiffusionXLPipeline if family == "sdxl" else StableDiffusionPipeline).from_pretrained(model)


def resized(tensors: Tensors, base: Checkpoint, family: str, _: Path) -> Tensors:
    return resize(in_memory(tensors), WHOLE, family=family, dtype=torch.float32, weights=base.weight).tensors


def decomposed(tensors: Tensors, base: Checkpoint, family: str, _: Path) -> Tensors:
    made = combine([Weighted(in_memory(tensors))], keep=WHOLE, family=family, dtype=torch.float32, weights=base.weight)
    return converted(made.tensors, {}, "sd-scripts", family).tensors


def merged(tensors: Tensors, base: Checkpoint, family: str, _: Path) -> Tensors:
    halves = [Weighted(in_memory(tensors), 0.25), Weighted(in_memory(tensors), 0.75)]
    return combine(halves, family=family, dtype=torch.float32, weights=base.weight).tensors


def merged_by_values(tensors: Tensors, base: Checkpoint, family: str, _: Path) -> Tensors:
    halves = [Weighted(in_memory(tensors), 0.25), Weighted(in_memory(tensors), 0.75)]
    return combine(halves, keep=WHOLE, family=family, dtype=torch.float32, weights=base.weight).tensors


def extracted(tensors: Tensors, base: Checkpoint, family: str, folder: Path) -> Tensors:
    merge_into(base, [Weighted(in_memory(tensors))], folder / "merged")
    found = extract(base, Checkpoint(folder / "merged"), WHOLE, conv_rank=1000, dtype=torch.float32)
    return found.network.tensors


Tool = Callable[[Tensors, Checkpoint, str, Path], Tensors]
PLAIN = ("lora", "locon", "dylora")
TOOLS: dict[Tool, tuple[str, ...]] = {
    resized: tuple(name for name in ALGORITHMS if name != "dora"),
    decomposed: tuple(ALGORITHMS),
    merged: PLAIN,
    merged_by_values: tuple(name for name in ALGORITHMS if name not in ("dora", "oft", "boft")),
    extracted: tuple(ALGORITHMS),
}
"""The algorithms that a tool makes plain LoRA of, with all that they do.

Resizing keeps DoRA's magnitudes, which diffusers drops; of rotations and DoRA, a quarter and three quarters are not
the whole.
"""


def said_of(application: str, tensors: Tensors, family: str) -> Reading:
    return next(one for one in readings(in_memory(tensors), family) if one.application == application)


@functools.cache
def checkpoint(folder: Path) -> Checkpoint:
    return Checkpoint(folder)


@pytest.mark.parametrize(
    ("tool", "algorithm", "family"),
    [
        *((tool, name, "sd15") for tool, names in TOOLS.items() for name in names),
        *((tool, "locon", "sdxl") for tool in TOOLS),
    ],
    ids=lambda one: str(getattr(one, "__name__", one)),
)
def test_diffusers_reads_what_a_tool_made_with_the_effect_it_had_and_comfyui_knows_its_names(
    tool, algorithm, family, tiny_sd15, tiny_sdxl, tmp_path
):
    model = {"sd15": tiny_sd15, "sdxl": tiny_sdxl}[family]
    tensors, _ = trained_network(model, algorithm)
    base = checkpoint(model)
    made = tool(tensors, base, family, tmp_path)
    if tool is not extracted and algorithm == "full":  # its biases come along, and diffusers stops at them
        with pytest.raises(ValueError, match="diff_b"):
            read_by_diffusers(made, family, model)
        assert said_of("diffusers", made, family).remarks[0].startswith("cannot load changes of biases")
        made = {name: tensor for name, tensor in made.items() if not name.endswith(".diff_b")}
    found = in_memory(made)
    said = said_of("diffusers", made, family)
    assert said_of("ComfyUI", made, family).verdict == "yes"
    if said.verdict == "partly":  # its layers have alphas of their own, since they have ranks of their own
        made = converted(made, {}, "peft", family).tensors
    expected = {
        adapter.canonical: change(adapter, base.weight(adapter.canonical), precision=torch.float64)
        for adapter in in_memory(tensors).values()
        if adapter.changes_weight
    }
    read = read_by_diffusers(made, family, model)
    assert read.keys() == expected.keys()
    for name, whole in expected.items():
        assert float((read[name] - whole).norm() / whole.norm()) < 1e-4
    assert all(module == spelled(adapter.canonical, "sd-scripts", family) for module, adapter in found.items())
    assert said_of("diffusers", made, family).verdict == "yes"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_is_said_of_diffusers_is_what_its_key_map_does(algorithm, tiny_sd15):
    tensors, _ = trained_network(tiny_sd15, algorithm)
    said = said_of("diffusers", tensors, "sd15")
    if said.verdict == "no":
        with pytest.raises(ValueError, match="not been correctly renamed"):
            read_by_diffusers(tensors, "sd15", tiny_sd15)
        return
    read = read_by_diffusers(tensors, "sd15", tiny_sd15)
    assert len(read) == said.read == said.layers
    assert (said.verdict == "partly") == (algorithm == "dora")


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_of_a_file_with_many_alphas_it_is_said_how_many_layers_diffusers_applies_otherwise(
    family, tiny_sd15, tiny_sdxl
):
    model = {"sd15": tiny_sd15, "sdxl": tiny_sdxl}[family]
    settings = NetworkSettings(algorithm="locon", rank=4, train_text_encoder=True)
    tensors = {
        name: torch.rand_like(t) for name, t in create_network(loaded(model), settings, 1).saved_tensors().items()
    }
    alphas = [name for name in tensors if name.endswith(".alpha")]
    tensors |= {name: torch.tensor(float(1 + number * number % 3)) for number, name in enumerate(alphas)}
    said = said_of("diffusers", tensors, family)
    assert said.remarks == (
        "gives layers the alpha that most have instead of their own; convert with --names peft "
        f"({read_otherwise(tensors, family, model)} layers)",
    )
    assert said_of("ComfyUI", tensors, family).verdict == "yes"
