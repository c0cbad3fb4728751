"""The layers of a base model: what a network can be put on and what the weights take, from the model's own numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal, cast

from knowledge.expressions import evaluate
from knowledge.families import FamilyFacts, ListedPart, family_facts

HELD_BLOCK = {"8bit": 256, "nf4": 64}
"""How many weights share a scale where the engine holds a base model in bitsandbytes' forms."""

Kind = Literal["linear", "conv", "norm", "embedding"]
Group = Literal["attention", "convolution", "text", ""]


@dataclass(frozen=True)
class Layer:
    """One layer with weights.

    `path` is its name in diffusers or transformers, `original` in the checkpoint that the model was published as, for
    layers that networks can be put on; `group` is the kind of block it stands in, by which they choose their layers.
    """

    path: str
    kind: Kind
    inputs: int
    outputs: int
    kernel: int = 1
    bias: bool = True
    group: Group = ""
    original: str = ""

    @property
    def matrix(self) -> int:
        """The weights without the bias."""
        return self.inputs * self.outputs * self.kernel**2

    @property
    def weights(self) -> int:
        if self.kind == "norm":
            return 2 * self.outputs
        return self.matrix + (self.outputs if self.bias else 0)


@dataclass(frozen=True, eq=False)  # known by itself, so that what follows from it can be kept
class Architecture:
    """A base model as the configs of its parts: "unet", which is whatever predicts, "vae", and text encoders."""

    family: str
    configs: Mapping[str, Mapping[str, Any]]

    @property
    def known(self) -> FamilyFacts:
        return family_facts(self.family)

    @property
    def text_encoders(self) -> tuple[str, ...]:
        return tuple(name for name in self.configs if name.startswith("text_encoder"))

    @cached_property
    def layers(self) -> dict[str, tuple[Layer, ...]]:
        """All layers by part."""
        return {part: tuple(_layers(self.known, part, config)) for part, config in self.configs.items()}

    @cached_property
    def weights(self) -> dict[str, int]:
        """The number of weights of each part."""
        return {part: sum(layer.weights for layer in layers) for part, layers in self.layers.items()}

    def saved_name(self, part: str, layer: Layer) -> str:
        """The name of a layer in network files."""
        path = layer.original if self.known.original_names and part == "unet" else layer.path
        return f"{self.known.prefixes[part]}_{path.replace('.', '_')}"

    def text_outputs(self, tokens: int) -> tuple[int, int, int]:
        """What the text encoders make of a caption of so many tokens: tokens, their width, pooled numbers or 0."""
        widths = [int(self.configs[encoder]["hidden_size"]) for encoder in self.text_encoders]
        pooled = int(self.configs["text_encoder_2"]["projection_dim"]) if len(widths) > 1 else 0
        plain = {"tokens": tokens, "width": sum(widths), "pooled": pooled}
        values = plain | {
            f"{part}.{key}": value for part, config in self.configs.items() for key, value in config.items()
        }
        found = plain | {name: int(evaluate(formula, values.__getitem__)) for name, formula in self.known.text.items()}
        return found["tokens"], found["width"], found["pooled"]

    @property
    def latent_factor(self) -> int:
        """Pixels along one side of a latent."""
        return int(2 ** (len(self.configs["vae"]["block_out_channels"]) - 1))

    @property
    def usual_area(self) -> int:
        """Latent pixels of a picture at the size that the family was made for."""
        return (self.known.side // self.latent_factor) ** 2

    @property
    def latent_channels(self) -> int:
        return int(self.configs["vae"]["latent_channels"])


@lru_cache(maxsize=16)
def architecture(family: str) -> Architecture:
    """The usual architecture of a family, which every model of it has unless its own folder says otherwise."""
    return read_architecture(family_facts(family).folder, family)


def read_architecture(folder: Path, family: str) -> Architecture:
    """The architecture of a model of this family in diffusers' folder layout.

    Raises OSError or ValueError when the folder is no such model.
    """
    parts = family_facts(family).folders
    configs = {
        part: json.loads((folder / inside / "config.json").read_text(encoding="utf-8"))
        for part, inside in parts.items()
    }
    return Architecture(family, configs)


def architecture_in(folder: Path, family: str) -> Architecture | None:
    """The same; None where the folder is no such model, so that the family's usual architecture is as good a guess."""
    try:
        return read_architecture(folder, family)
    except (OSError, ValueError):
        return None


def _layers(family: FamilyFacts, part: str, config: Mapping[str, Any]) -> Iterator[Layer]:
    if part in family.listed:
        return _listed(family.listed[part], config)
    if part == "unet":
        return _unet(config)
    if part == "vae":
        return _vae(config)
    return _text_encoder(config)


# -- a part whose layers the family lists -------------------------------------------------------------------------


def _listed(part: ListedPart, config: Mapping[str, Any]) -> Iterator[Layer]:
    numbers = dict(config)
    for name, formula in part.numbers.items():
        numbers[name] = evaluate(formula, numbers.__getitem__)
    for row in part.layers:
        kernel, inputs, outputs, first, repeat = (
            int(evaluate(formula, numbers.__getitem__))
            for formula in (row.kernel, row.inputs, row.outputs, row.first, row.repeat)
        )
        for number in range(first, first + repeat):
            path = row.path.replace("{}", str(number))
            yield Layer(path, cast(Kind, row.kind), inputs, outputs, kernel, row.bias, cast(Group, row.group))


# -- UNet2DConditionModel ------------------------------------------------------------------------------------------


def _unet(config: Mapping[str, Any]) -> Iterator[Layer]:
    channels = list(config["block_out_channels"])
    levels = len(channels)
    residual_layers = _per_level(config.get("layers_per_block") or 2, levels)
    depths = _per_level(config.get("transformer_layers_per_block") or 1, levels)
    text_width = config["cross_attention_dim"]
    linear = config.get("use_linear_projection", False)
    time_width = 4 * channels[0]

    yield Layer("conv_in", "conv", config["in_channels"], channels[0], 3)
    yield Layer("time_embedding.linear_1", "linear", channels[0], time_width)
    yield Layer("time_embedding.linear_2", "linear", time_width, time_width)
    if config.get("addition_embed_type") == "text_time":
        yield Layer("add_embedding.linear_1", "linear", config["projection_class_embeddings_input_dim"], time_width)
        yield Layer("add_embedding.linear_2", "linear", time_width, time_width)

    skipped = [channels[0]]  # widths of what the way down keeps for the way up
    width = channels[0]
    for level, (kind, outputs) in enumerate(zip(config["down_block_types"], channels, strict=True)):
        block = f"down_blocks.{level}"
        for index in range(residual_layers[level]):
            original = f"input_blocks.{len(skipped)}"
            yield from _residual(f"{block}.resnets.{index}", width, outputs, time_width, f"{original}.0")
            if "CrossAttn" in kind:
                path = f"{block}.attentions.{index}"
                yield from _transformer(path, outputs, text_width, depths[level], linear, f"{original}.1")
            width = outputs
            skipped.append(width)
        if level < levels - 1:
            yield _resampler(f"{block}.downsamplers.0.conv", width, f"input_blocks.{len(skipped)}.0.op")
            skipped.append(width)

    yield from _residual("mid_block.resnets.0", width, width, time_width, "middle_block.0")
    yield from _transformer("mid_block.attentions.0", width, text_width, depths[-1], linear, "middle_block.1")
    yield from _residual("mid_block.resnets.1", width, width, time_width, "middle_block.2")

    place = 0
    for level, (kind, outputs) in enumerate(zip(config["up_block_types"], reversed(channels), strict=True)):
        block = f"up_blocks.{level}"
        attention = "CrossAttn" in kind
        for index in range(residual_layers[-1 - level] + 1):
            original = f"output_blocks.{place}"
            inputs = width + skipped.pop()
            yield from _residual(f"{block}.resnets.{index}", inputs, outputs, time_width, f"{original}.0")
            if attention:
                path = f"{block}.attentions.{index}"
                yield from _transformer(path, outputs, text_width, depths[-1 - level], linear, f"{original}.1")
            width = outputs
            place += 1
        if level < levels - 1:
            yield _resampler(f"{block}.upsamplers.0.conv", width, f"{original}.{1 + attention}.conv")

    yield Layer("conv_norm_out", "norm", width, width)
    yield Layer("conv_out", "conv", width, config["out_channels"], 3)


def _resampler(path: str, width: int, original: str) -> Layer:
    return Layer(path, "conv", width, width, 3, group="convolution", original=original)


def _residual(path: str, inputs: int, outputs: int, time_width: int | None, original: str = "") -> Iterator[Layer]:
    def layer(name: str, kind: Kind, source: int, kernel: int, original_name: str) -> Layer:
        called = f"{original}.{original_name}"
        return Layer(f"{path}.{name}", kind, source, outputs, kernel, group="convolution", original=called)

    yield Layer(f"{path}.norm1", "norm", inputs, inputs)
    yield layer("conv1", "conv", inputs, 3, "in_layers.2")
    if time_width:
        yield layer("time_emb_proj", "linear", time_width, 1, "emb_layers.1")
    yield Layer(f"{path}.norm2", "norm", outputs, outputs)
    yield layer("conv2", "conv", outputs, 3, "out_layers.3")
    if inputs != outputs:
        yield layer("conv_shortcut", "conv", inputs, 1, "skip_connection")


def _transformer(path: str, width: int, text_width: int, depth: int, linear: bool, original: str) -> Iterator[Layer]:
    def layer(name: str, inputs: int, outputs: int, kind: Kind = "linear", bias: bool = True) -> Layer:
        return Layer(f"{path}.{name}", kind, inputs, outputs, 1, bias, "attention", f"{original}.{name}")

    projection: Kind = "linear" if linear else "conv"
    yield Layer(f"{path}.norm", "norm", width, width)
    yield layer("proj_in", width, width, projection)
    for index in range(depth):
        block = f"transformer_blocks.{index}"
        for name, source in (("attn1", width), ("attn2", text_width)):
            yield layer(f"{block}.{name}.to_q", width, width, bias=False)
            yield layer(f"{block}.{name}.to_k", source, width, bias=False)
            yield layer(f"{block}.{name}.to_v", source, width, bias=False)
            yield layer(f"{block}.{name}.to_out.0", width, width)
        yield layer(f"{block}.ff.net.0.proj", width, 8 * width)
        yield layer(f"{block}.ff.net.2", 4 * width, width)
        for number in (1, 2, 3):
            yield Layer(f"{path}.{block}.norm{number}", "norm", width, width)
    yield layer("proj_out", width, width, projection)


def _per_level(value: Any, levels: int) -> list[int]:
    return list(value) if isinstance(value, list | tuple) else [value] * levels


# -- AutoencoderKL -------------------------------------------------------------------------------------------------


def _vae(config: Mapping[str, Any]) -> Iterator[Layer]:
    channels = list(config["block_out_channels"])
    latent, layers = config["latent_channels"], config.get("layers_per_block", 1)
    yield Layer("encoder.conv_in", "conv", config["in_channels"], channels[0], 3)
    width = channels[0]
    for level, outputs in enumerate(channels):
        for index in range(layers):
            yield from _residual(f"encoder.down_blocks.{level}.resnets.{index}", width, outputs, None)
            width = outputs
        if level < len(channels) - 1:
            yield Layer(f"encoder.down_blocks.{level}.downsamplers.0.conv", "conv", width, width, 3)
    yield from _vae_middle("encoder", width)
    yield Layer("encoder.conv_norm_out", "norm", width, width)
    yield Layer("encoder.conv_out", "conv", width, 2 * latent, 3)
    yield Layer("decoder.conv_in", "conv", latent, width, 3)
    yield from _vae_middle("decoder", width)
    for level, outputs in enumerate(reversed(channels)):
        for index in range(layers + 1):
            yield from _residual(f"decoder.up_blocks.{level}.resnets.{index}", width, outputs, None)
            width = outputs
        if level < len(channels) - 1:
            yield Layer(f"decoder.up_blocks.{level}.upsamplers.0.conv", "conv", width, width, 3)
    yield Layer("decoder.conv_norm_out", "norm", width, width)
    yield Layer("decoder.conv_out", "conv", width, config["out_channels"], 3)
    if config.get("use_quant_conv", True):
        yield Layer("quant_conv", "conv", 2 * latent, 2 * latent)
    if config.get("use_post_quant_conv", True):
        yield Layer("post_quant_conv", "conv", latent, latent)


def _vae_middle(path: str, width: int) -> Iterator[Layer]:
    yield from _residual(f"{path}.mid_block.resnets.0", width, width, None)
    yield Layer(f"{path}.mid_block.attentions.0.group_norm", "norm", width, width)
    for name in ("to_q", "to_k", "to_v", "to_out.0"):
        yield Layer(f"{path}.mid_block.attentions.0.{name}", "linear", width, width)
    yield from _residual(f"{path}.mid_block.resnets.1", width, width, None)


# -- CLIPTextModel, CLIPTextModelWithProjection --------------------------------------------------------------------


def _text_encoder(config: Mapping[str, Any]) -> Iterator[Layer]:
    width, inner = config["hidden_size"], config["intermediate_size"]
    positions = config.get("max_position_embeddings", 77)
    yield Layer("embeddings.token_embedding", "embedding", config["vocab_size"], width, bias=False)
    yield Layer("embeddings.position_embedding", "embedding", positions, width, bias=False)
    for index in range(config["num_hidden_layers"]):
        block = f"encoder.layers.{index}"
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            yield Layer(f"{block}.self_attn.{name}", "linear", width, width, group="text")
        yield Layer(f"{block}.layer_norm1", "norm", width, width)
        yield Layer(f"{block}.mlp.fc1", "linear", width, inner, group="text")
        yield Layer(f"{block}.mlp.fc2", "linear", inner, width, group="text")
        yield Layer(f"{block}.layer_norm2", "norm", width, width)
    yield Layer("final_layer_norm", "norm", width, width)
    if "CLIPTextModelWithProjection" in (config.get("architectures") or ()):
        yield Layer("text_projection", "linear", width, config["projection_dim"], bias=False)
