"""What a network is in sd-scripts (network_module, network_args) and in ours, both ways."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from knowledge.blocks import numbers
from knowledge.config import CONV_ALGORITHMS, CONVOLUTIONS_TOO, Algorithm, Family, NetworkSettings, fields, value_of
from knowledge.families import family_facts
from knowledge.formats.translation import Translation
from knowledge.formats.values import as_bool, as_number
from knowledge.formats.vocabulary import facts_of
from knowledge.parameters import parameters

if TYPE_CHECKING:
    from knowledge.formats.export import Writing

DIALECT = "kohya"
DEFAULT_RANK = 4
LARGEST_RANK = 1024
WHOLE = "So large a rank means whole matrices in LoKr; the largest here does the same."
UNSCALED = "Whole matrices are not scaled there, whatever alpha says; here alpha is the rank for that."
MODULES: dict[str, Algorithm] = {
    "": "lora",
    "networks.lora": "lora",
    "networks.lora_fa": "lora",
    "networks.dylora": "dylora",
    "networks.loha": "loha",
    "networks.lokr": "lokr",
}
LYCORIS: dict[str, Algorithm] = {
    "lora": "lora", "locon": "lora", "loha": "loha", "lokr": "lokr", "glora": "glora", "diag-oft": "oft",
    "boft": "boft", "ia3": "ia3", "full": "full", "dylora": "dylora",
}  # fmt: skip
"""The name of an algorithm in LyCORIS → ours; LoRA on convolutions is LoCon here."""
WITHOUT_CONVOLUTIONS = {"attn-mlp", "attn-only", "unet-transformer-only"}
"""LyCORIS presets that leave the convolutions of the residual blocks alone."""
ATTENTION_ONLY = {"attn-mlp": False, "attn-only": True}
"""LyCORIS presets that choose the layers which are chosen here, and whether these are attention alone."""
BLOCK_SIZES = {"networks.dylora": ("unit", 1)}
"""What DyLoRA's block size is called in a module, and its default there; in LyCORIS block_size, 4."""
OF_BLOCKS = {
    "block_dims": "network.block_ranks",
    "block_alphas": "network.block_alphas",
    "conv_block_dims": "network.conv_block_ranks",
    "conv_block_alphas": "network.conv_block_alphas",
}
RATES_OF_BLOCKS = {"down_lr_weight": (12, 9), "mid_lr_weight": (1, 3), "up_lr_weight": (12, 9)}
"""How many blocks each list is for, in SD 1.x and in SDXL."""
CURVES: dict[str, Callable[[float], float]] = {
    "cosine": lambda share: math.sin(math.pi * (1 - share) / 2),
    "sine": lambda share: math.sin(math.pi * share / 2),
    "linear": lambda share: share,
    "reverse_linear": lambda share: 1 - share,
    "zeros": lambda share: 0.0,
}
"""A factor by the block's place among those of its list, 0 to 1; "sine+.25" adds a quarter to each."""
NOT_READ = {
    "network_args.factor": ("lokr", "Only LoKr reads it."),
    "network_args.full_matrix": ("lokr", "Only LoKr reads it."),
    "network_args.block_size": ("dylora", "Only DyLoRA reads it."),
    "network_args.unit": ("dylora", "Only DyLoRA reads it."),
}


# -- in ---------------------------------------------------------------------------------------------------------------


def read_network(job: Translation, beside: Path | None) -> None:
    """The network that these options make."""
    module = str(job.get("network_module", ""))
    arguments = {key: value for key, value in job.source.items() if key.startswith("network_args.")}
    algorithm = str(arguments.get("network_args.algo", "lora")).lower().strip("\"'")
    preset = str(arguments.get("network_args.preset", "full"))
    lycoris = module.startswith("lycoris")
    conv_rank = as_number(arguments.get("network_args.conv_dim"))
    ours: str | None = LYCORIS.get(algorithm) if lycoris else MODULES.get(module)
    # LyCORIS gives convolutions the rank of the other layers unless it is told otherwise.
    convolutions = bool(conv_rank) or (lycoris and conv_rank is None)
    convolutions = convolutions and not (lycoris and preset in WITHOUT_CONVOLUTIONS)
    if ours == "lora" and as_bool(arguments.get("network_args.dora_wd")):
        ours = "dora"
    if ours == "lora" and convolutions:
        ours = "locon"
    _say_algorithm(job, module, algorithm, ours, lycoris)
    _say_convolutions(job, ours, convolutions, lycoris)
    if ours == "lokr" and "network_args.factor" not in job.source:
        job.implied["network.lokr_factor"] = -1
    if ours == "dylora":
        name, default = BLOCK_SIZES.get(module, ("block_size", 4))
        if f"network_args.{name}" not in job.source:
            job.implied["network.dylora_block_size"] = default
    for key, (reader, why) in NOT_READ.items():
        if key in job.source and ours != reader:
            job.no_effect(key, why)
    _say_rank(job, ours)
    _say_blocks(job, module)
    if as_number(job.get("network_dropout")) == 0:
        job.mapped("network_dropout", "network.dropout", 0.0)
    _say_parts(job)


def _say_algorithm(job: Translation, module: str, algorithm: str, ours: str | None, lycoris: bool) -> None:
    told = "network_args.algo" if "network_args.algo" in job.source else "network_module"
    if "network_module" in job.source:
        if told == "network_module":
            otherwise = f'It trains a network of "{module}". A plain LoRA is trained here.'
            job.mapped_if_known(told, "network.algorithm", ours, otherwise)
        else:
            job.no_effect("network_module", "It says where the algorithm is found; its name stands beside it.")
    if told == "network_args.algo":
        if ours is None:
            job.unsupported(told, f'It trains the algorithm "{algorithm}". A plain LoRA is trained here.')
        elif ours in (LYCORIS.get(algorithm), "dora"):
            job.mapped(told, "network.algorithm", ours)
        else:
            job.changed(told, "network.algorithm", ours, "It adapts the convolutions too.")
    if "network_args.dora_wd" in job.source:
        if as_bool(job.source["network_args.dora_wd"]) and ours == "dora":
            why = "DoRA over the inputs, which ComfyUI renders right; LyCORIS' own default is over the outputs."
            job.changed("network_args.dora_wd", "network.algorithm", "dora", why)
        elif as_bool(job.source["network_args.dora_wd"]):
            why = f"DoRA on top of {algorithm}. It is trained without; DoRA on plain LoRA would be network.algorithm."
            job.unsupported("network_args.dora_wd", why)
        else:
            job.no_effect("network_args.dora_wd", "It is switched off there.")
    if lycoris and str(job.get("network_args.preset")) in ATTENTION_ONLY:
        job.mapped("network_args.preset", "network.attention_only", ATTENTION_ONLY[job.get("network_args.preset")])
    if "network_args.preset" in job.source and not job.done("network_args.preset"):
        why = "It chooses the layers. Here: attention and feed-forward layers, and the convolutions where asked for."
        job.unsupported("network_args.preset", why)


def _say_convolutions(job: Translation, ours: str | None, convolutions: bool, lycoris: bool) -> None:
    adapted = convolutions and ours in CONVOLUTIONS_TOO | CONV_ALGORITHMS
    if adapted and ours not in CONV_ALGORITHMS:
        job.implied["network.convolutions"] = True
    for key, name in (
        ("network_args.conv_dim", "network.conv_rank"),
        ("network_args.conv_alpha", "network.conv_alpha"),
    ):
        if key in job.source and adapted and as_number(job.source[key]):
            _take_capped(job, key, name, ours)
        elif key in job.source and convolutions and as_number(job.source[key]) and ours is not None:
            job.unsupported(key, f"It adapts the 3×3 convolutions with {ours}, which is not offered here.")
        elif key in job.source:
            job.no_effect(key, "No convolutions are trained.")
    if adapted:
        rank, alpha = job.get("network_dim", DEFAULT_RANK), job.get("network_alpha", 1.0)
        if not job.done("network_args.conv_dim") and lycoris:
            job.implied["network.conv_rank"] = min(LARGEST_RANK, int(as_number(rank) or DEFAULT_RANK))
        if not job.done("network_args.conv_alpha"):
            job.implied["network.conv_alpha"] = _alpha_beside(rank, alpha) if lycoris else 1.0


def _alpha_beside(rank: Any, alpha: Any) -> float:
    """The alpha of convolutions that have the rank of the other layers; of whole matrices, what scales nothing."""
    whole = (as_number(rank) or DEFAULT_RANK) > LARGEST_RANK
    return float(LARGEST_RANK) if whole else as_number(alpha) or 1.0


def _take_capped(job: Translation, key: str, name: str, ours: str | None) -> None:
    """Rank or alpha of convolutions; so large a rank means whole matrices in LoKr, which are not scaled."""
    rank = as_number(job.source.get("network_args.conv_dim")) or 0
    if ours != "lokr" or rank <= LARGEST_RANK:
        job.mapped(key, name, job.source[key])
    else:
        value = LARGEST_RANK if name == "network.conv_rank" else float(LARGEST_RANK)
        job.changed(key, name, value, WHOLE if name == "network.conv_rank" else UNSCALED)


def _say_rank(job: Translation, ours: str | None) -> None:
    rank, alpha = as_number(job.get("network_dim")), as_number(job.get("network_alpha"))
    if rank is not None and rank > LARGEST_RANK and ours == "lokr":
        job.changed("network_dim", "network.rank", LARGEST_RANK, WHOLE)
    if alpha == 0:
        why = "0 means the same as the rank there."
        job.changed("network_alpha", "network.alpha", float(rank or DEFAULT_RANK), why)
    elif alpha is not None and rank is not None and rank > LARGEST_RANK:
        job.changed(
            "network_alpha", "network.alpha", _alpha_beside(rank, alpha), "It keeps its proportion to the rank."
        )


def _say_blocks(job: Translation, module: str) -> None:
    """Ranks, alphas and rates of blocks, which networks.lora alone reads."""
    keys = [f"network_args.{name}" for name in (*OF_BLOCKS, *RATES_OF_BLOCKS, "block_lr_zero_threshold")]
    present = [key for key in keys if key in job.source]
    if module not in ("networks.lora", ""):
        for key in present:
            job.no_effect(key, f"{module} does not read it.")
        return
    rank = as_number(job.get("network_dim", DEFAULT_RANK))
    for name, ours in OF_BLOCKS.items():
        key = f"network_args.{name}"
        if key not in job.source:
            continue
        listed = _listed(job.source[key])
        if name == "block_dims" and {as_number(each) for each in listed.split(",")} == {rank}:
            job.no_effect(key, "Every block has the network's rank anyway.")
        else:
            job.mapped(key, ours, listed)
    sdxl = job.values.get("base_model.family", job.implied.get("base_model.family")) == "sdxl"
    given = [name for name in RATES_OF_BLOCKS if f"network_args.{name}" in job.source]
    if given:
        rates: list[float] = []
        try:
            for name, counts in RATES_OF_BLOCKS.items():
                rates += _rates_of(_listed(job.source.get(f"network_args.{name}", "")), counts[sdxl])
        except ValueError:
            for name in given:
                job.unsupported(f"network_args.{name}", "It is neither a list of numbers nor one of its curves.")
            return
        rates = [1.0, *rates, 1.0] if sdxl else rates
        text = ",".join(map(plain, rates))
        for name in given:
            job.changed(f"network_args.{name}", "network.block_rates", text, "One list for all blocks.")
    key = "network_args.block_lr_zero_threshold"
    if key in job.source:
        job.mapped(key, "network.block_rate_threshold", as_number(job.source[key]) or 0.0)


def plain(number: float) -> str:
    """The number as one writes it, without a fraction that it does not have."""
    return str(int(number)) if number == int(number) else str(number)


def _listed(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value).strip("\"' ")


def _rates_of(text: str, count: int) -> list[float]:
    """The factors of a list for so many blocks; what is missing is 1, as there."""
    word, _, more = text.partition("+")
    if word in CURVES:
        added = as_number(more or 0) or 0.0
        return [CURVES[word](place / max(1, count - 1)) + added for place in range(count)]
    given = [float(part) for part in text.split(",") if part.strip()]
    if not all(map(math.isfinite, given)):
        raise ValueError(text)
    return (given + [1.0] * count)[:count]


def _say_parts(job: Translation) -> None:
    for key, other in (
        ("network_train_unet_only", "network.train_text_encoder"),
        ("network_train_text_encoder_only", "network.train_unet"),
    ):
        if key not in job.source:
            continue
        if job.on("network_train_unet_only") or job.on("network_train_text_encoder_only"):
            job.mapped(key, other, not job.on(key))
        else:
            job.no_effect(key, "It is switched off there.")


# -- out --------------------------------------------------------------------------------------------------------------


def write_network(job: Writing) -> None:
    """The options that make this network there."""
    algorithm, network = job.value("network.algorithm"), job.config.network
    arguments: list[str] = []
    attention_only = job.value("network.attention_only")
    if algorithm in ("lora", "locon") and not attention_only:
        job.options["network_module"] = "networks.lora"
    elif algorithm == "dylora":
        job.options["network_module"] = "networks.dylora"
        arguments.append(f"unit={job.value('network.dylora_block_size')}")
        if attention_only:
            job.lose("network.attention_only", "Its DyLoRA adapts feed-forward layers too.")
    else:
        job.options["network_module"] = "lycoris.kohya"
        theirs = {ours: name for name, ours in LYCORIS.items()} | {"dora": "lora"}
        arguments += [f"algo={theirs[algorithm]}", f"preset={'attn-only' if attention_only else 'attn-mlp'}"]
        if network.convolutions:
            why = "LyCORIS' presets with convolutions stop at these models there; it adapts the other layers alone."
            job.lose("network.convolutions", why)
    if algorithm == "dora":
        arguments += ["dora_wd=True", "wd_on_output=False"]
    if network.adapts_convolutions and job.options["network_module"] != "lycoris.kohya":
        arguments += [f"conv_dim={job.value('network.conv_rank')}", f"conv_alpha={job.value('network.conv_alpha')}"]
    if algorithm == "lokr":
        arguments.append(f"factor={job.value('network.lokr_factor')}")
        if job.value("network.lokr_full_matrix"):
            arguments.append("full_matrix=True")
    job.done |= {"network.convolutions", "network.conv_rank", "network.conv_alpha", "network.lokr_factor"}
    job.done |= {"network.lokr_full_matrix", "network.dylora_block_size"}
    arguments += _arguments_of_blocks(job)
    known = facts_of("sd_scripts")["network_args"]
    for name in [name for name in fields() if "folders" not in name and name not in job.done]:
        for key in parameters()[name].names.get(DIALECT, ()):
            if key in known and value_of(job.config, name) != fields()[name].default:
                arguments.append(f"{key}={job.value(name)}")
                break
    if arguments:
        job.options["network_args"] = arguments
    job.options["network_dim"], job.options["network_alpha"] = job.value("network.rank"), job.value("network.alpha")
    unet, text = job.value("network.train_unet"), job.value("network.train_text_encoder")
    if not text:
        job.options["network_train_unet_only"] = True
    if not unet:
        job.options["network_train_text_encoder_only"] = True


def _arguments_of_blocks(job: Writing) -> list[str]:
    """Ranks, alphas and rates of blocks as networks.lora reads them."""
    names = [*OF_BLOCKS.values(), "network.block_rates", "network.block_rate_threshold"]
    job.done |= set(names)
    if job.options["network_module"] != "networks.lora":
        for name in names:
            if job.value(name):
                job.lose(name, "Its module for this algorithm knows no blocks.")
        return []
    given = arguments_of_blocks(job.config.network, job.config.base_model.family)
    return [f"{name}={value}" for name, value in given.items()]


def arguments_of_blocks(network: NetworkSettings, family: Family) -> dict[str, str]:
    """The arguments of networks.lora that say what each block is given; empty where all are alike."""
    written = {
        theirs: getattr(network, ours.removeprefix("network.")).replace(" ", "") for theirs, ours in OF_BLOCKS.items()
    }
    written = {name: value for name, value in written.items() if value}
    if written and not network.block_ranks:  # it reads none of the others without this one
        written["block_dims"] = ",".join([str(network.rank)] * family_facts(family).blocks)
    rates = [plain(rate) for rate in numbers(network.block_rates)]
    if rates:
        sdxl = family == "sdxl"
        rates = rates[1:-1] if sdxl else rates
        for name, counts in RATES_OF_BLOCKS.items():
            written[name] = ",".join(rates[: counts[sdxl]])
            rates = rates[counts[sdxl] :]
        written["block_lr_zero_threshold"] = plain(network.block_rate_threshold)
    return written
