"""`lora-wizard tools resize`, `convert`, `merge` and `extract`: new network files out of others."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from knowledge.answers import PlainError, printable
from knowledge.families import family_facts
from wizard import words
from wizard.file_commands import FILE, as_json, may_write, may_write_network, overwrite, print_json, say, shown, watched

if TYPE_CHECKING:
    from engine.tools.decompose import Keep
    from engine.tools.resize import Resized, Weights

EXACT = 1e-6
"""Relative errors below this are float32's own."""
PRECISION = click.Choice(["fp32", "fp16", "bf16"])

output = click.option("-o", "--output", type=FILE, required=True, help="Where the result goes.")
precision = click.option("--precision", type=PRECISION, help="Number format of the result; the input's if not given.")
base_option = click.option(
    "--base", type=FILE, help="The base model, for algorithms whose effect depends on it (DoRA …)."
)


def keep_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say how much of each layer to keep."""
    for option in (
        click.option(
            "--rank-of",
            "ranks",
            multiple=True,
            metavar="PART=N",
            help="A block's or layer's own rank, by a piece of its name: \"UNet down 0=4\".",
        ),
        click.option(
            "--norm", type=click.FloatRange(0, 1, min_open=True), help="Share of each layer's ‖ΔW‖, e.g. 0.99."
        ),
        click.option(
            "--values", type=click.FloatRange(0, 1, min_open=True), help="Share of the sum of singular values."
        ),
        click.option("--rank", type=click.IntRange(1, 4096), help="At most this rank."),
    ):
        command = option(command)
    return command


def keep_from(rank: int | None, values: float | None, norm: float | None, ranks: tuple[str, ...]) -> Keep:
    """The limits that the options name. Raises PlainError for a --rank-of that is not PART=N."""
    from engine.tools.decompose import Keep

    named = {}
    for item in ranks:
        part, _, number = item.rpartition("=")
        if not part or not number.isdigit() or int(number) < 1:
            raise PlainError(f'--rank-of {item!r} is not of the form PART=N, for example "UNet down 0=4".', 2)
        named[part] = int(number)
    return Keep(rank, values, norm, named)


@click.command()
@click.argument("file", type=FILE)
@output
@keep_options
@click.option(
    "--alpha", type=click.FloatRange(0, min_open=True), help="Alpha of the result; alpha / rank stays if not given."
)
@precision
@base_option
@overwrite
@as_json
def resize(
    file: Path,
    output: Path,
    rank: int | None,
    values: float | None,
    norm: float | None,
    ranks: tuple[str, ...],
    alpha: float | None,
    precision: str | None,
    base: Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Make a LoRA smaller: keep the strongest directions of every layer. Other algorithms become plain LoRA.

    Example: lora-wizard tools resize big.safetensors --norm 0.99 --rank 32 -o small.safetensors
    """
    may_write_network(output, overwrite)
    from engine.tools.adapters import adapters
    from engine.tools.files import open_tensors
    from engine.tools.headers import PRECISIONS
    from engine.tools.inspect import family_of
    from engine.tools.resize import resize as resized
    from engine.tools.writing import save_tensors

    keep = keep_from(rank, values, norm, ranks)
    tensors = open_tensors(file)
    found = adapters(tensors)
    with watched(f"Resizing {file.name}", as_json) as progress:
        result = resized(
            found,
            keep,
            family=family_of(tensors, found),
            alpha=alpha,
            dtype=PRECISIONS.get(precision or ""),
            weights=base_weights(base),
            progress=progress,
        )
    save_tensors(output, result.tensors, _network_metadata(dict(tensors.metadata), result))
    _show_resized(result, file, output, as_json)


@click.command()
@click.argument("file", type=FILE)
@output
@click.option(
    "--names", type=click.Choice(["sd-scripts", "diffusers-paths", "peft"]), help="Whose names the layers get."
)
@precision
@keep_options
@base_option
@overwrite
@as_json
def convert(
    file: Path,
    output: Path,
    names: str | None,
    precision: str | None,
    rank: int | None,
    values: float | None,
    norm: float | None,
    ranks: tuple[str, ...],
    base: Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Other names or precision; LoHa, LoKr, DoRA … as plain LoRA; pickles as safetensors.

    --names sd-scripts is what every program reads; diffusers-paths has kohya's form and diffusers' blocks; peft is
    diffusers' own, and little else reads it. With --rank, --norm or --values every layer becomes plain LoRA, and the
    error is told. Without any of these, a file of any kind (a whole checkpoint as well) is copied as safetensors.

    Example: lora-wizard tools convert old.pt --names sd-scripts --precision fp16 -o new.safetensors
    """
    may_write_network(output, overwrite)
    from engine.tools.adapters import adapters, is_network
    from engine.tools.convert import convert as converted
    from engine.tools.convert import copied
    from engine.tools.files import LoadedTensors, open_tensors
    from engine.tools.headers import PRECISIONS
    from engine.tools.inspect import family_of
    from engine.tools.merge import Weighted, combine
    from engine.tools.writing import save_tensors

    tensors = open_tensors(file)
    dtype = PRECISIONS.get(precision or "")
    limited = _limited(rank, values, norm, ranks)
    document: dict[str, Any] = {"output": str(output), "names": names or "as they were", "error": 0.0}
    if names is None and not limited:
        with watched(f"Converting {file.name}", as_json) as progress:
            rounding = copied(tensors, output, dtype, hashes=is_network(tensors), progress=progress)
        _show_converted(document | {"rounding": rounding}, output, None, as_json)
        return
    found, metadata, result = adapters(tensors), dict(tensors.metadata), None
    family = family_of(tensors, found)
    if limited:
        with watched(f"Decomposing {file.name}", as_json) as progress:
            result = combine(
                [Weighted(found)],
                keep=keep_from(rank, values, norm, ranks),
                family=family,
                dtype=dtype or next(iter(found.values())).dtype,
                weights=base_weights(base),
                progress=progress,
            )
        metadata = _network_metadata(metadata, result)
        found = adapters(LoadedTensors(result.tensors, metadata, str(file)))
        document["error"] = result.error
    naming: Any = names or "sd-scripts"
    renamed = converted(found, metadata, naming, family, dtype)
    save_tensors(output, renamed.tensors, renamed.metadata)
    document |= {"family": family, "names": naming, "rounding": renamed.rounding}
    _show_converted(document | {"kept_unknown_names": list(renamed.unknown)}, output, result, as_json)


def _show_converted(document: dict[str, Any], output: Path, result: Resized | None, as_json: bool) -> None:
    if as_json:
        print_json(document | {"bytes": output.stat().st_size})
        return
    say(f"[good]✓[/] {shown(output)}   [quiet]{words.size(output.stat().st_size)}[/]")
    if result is not None:
        low, high = result.ranks
        say(f"  plain LoRA, rank {low if low == high else f'{low} to {high}'}; {_lost(result)}")
    if document["rounding"] > EXACT:
        say(f"  rounded by {document['rounding']:.2g} of what the weights are (‖written − before‖ / ‖before‖)")
    elif result is None:
        say("  every weight kept its value")
    unknown = document.get("kept_unknown_names", ())
    if unknown:
        say(f"  [warning]![/] {words.count(len(unknown), 'layer')} of no Stable Diffusion model kept their names.")


@click.command()
@click.argument("files", type=FILE, nargs=-1, required=True)
@output
@click.option("-w", "--weight", "weights", type=float, multiple=True, help="Strength of each file, in their order.")
@click.option("--text-weight", "text_weights", type=float, multiple=True, help="The same for their text encoders.")
@click.option("--into", type=FILE, help="A base model (file or folder): write it with the LoRAs built in.")
@keep_options
@precision
@base_option
@overwrite
@as_json
def merge(
    files: tuple[Path, ...],
    output: Path,
    weights: tuple[float, ...],
    text_weights: tuple[float, ...],
    into: Path | None,
    rank: int | None,
    values: float | None,
    norm: float | None,
    ranks: tuple[str, ...],
    precision: str | None,
    base: Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Several LoRAs into one, or into a base model.

    Without --rank, --norm or --values the ranks are laid side by side: exact but for rounding, and as large as all the
    files together.

    \b
    Examples: lora-wizard tools merge a.safetensors b.safetensors -w 0.8 -w 0.5 -o both.safetensors
              lora-wizard tools merge a.safetensors --into sdxl.safetensors -o sdxl-a.safetensors
    """
    limited = _limited(rank, values, norm, ranks)
    if into is None:
        may_write_network(output, overwrite)
    elif limited or precision or base:
        raise PlainError(
            "--into changes the base model's own weights, so ranks, --precision and --base do not go with it.", 2
        )
    else:
        (may_write if os.path.isdir(into) else may_write_network)(output, overwrite)  # noqa: PTH112
    for name, given in (("--weight", weights), ("--text-weight", text_weights)):
        if given and len(given) != len(files):
            raise PlainError(
                f"{name} is given {words.count(len(given), 'time')} for {words.count(len(files), 'file')}; "
                "give it once for each file.",
                2,
            )
    from engine.tools.adapters import adapters
    from engine.tools.checkpoints import Checkpoint
    from engine.tools.files import open_tensors
    from engine.tools.headers import PRECISIONS
    from engine.tools.inspect import family_of
    from engine.tools.merge import Weighted, combine, merge_into
    from engine.tools.writing import save_tensors

    opened = [open_tensors(file) for file in files]
    found = [adapters(tensors) for tensors in opened]
    strengths = weights or (1.0,) * len(files)
    texts: tuple[float | None, ...] = text_weights or (None,) * len(files)
    networks = [Weighted(*one) for one in zip(found, strengths, texts, strict=True)]
    if into is not None:
        checkpoint = Checkpoint(into)
        if output.exists() and output.samefile(into):
            raise PlainError("The result would replace the base model itself; choose another --output.", 2)
        with watched(f"Merging into {into.name}", as_json) as progress:
            merged = merge_into(checkpoint, networks, output, progress)
        if as_json:
            print_json({"output": str(output), "layers": merged.layers, "layers_without_place": list(merged.homeless)})
            return
        say(f"[good]✓[/] {shown(output)}   [quiet]{words.count(merged.layers, 'layer')} changed, exactly[/]")
        if merged.homeless:
            say(
                f"  [warning]![/] {words.count(len(merged.homeless), 'layer')} found no place in it, first "
                f"{printable(merged.homeless[0], 120)}"
            )
        return
    family = family_of(opened[0], found[0])
    dtype = PRECISIONS[precision] if precision else next(iter(found[0].values())).dtype
    with watched(f"Merging {words.count(len(files), 'file')}", as_json) as progress:
        result = combine(
            networks,
            keep=keep_from(rank, values, norm, ranks) if limited else None,
            family=family,
            dtype=dtype,
            weights=base_weights(base),
            progress=progress,
        )
    recipe = "; ".join(f"{file.name} × {strength:g}" for file, strength in zip(files, strengths, strict=True))
    metadata = _network_metadata(_loading_only(dict(opened[0].metadata)), result)
    save_tensors(output, result.tensors, metadata | {"modelspec.merged_from": recipe, "modelspec.title": output.stem})
    _show_resized(result, None, output, as_json)


@click.command()
@click.argument("base", type=FILE)
@click.argument("tuned", type=FILE)
@output
@keep_options
@click.option("--conv-rank", type=click.IntRange(1, 4096), help="Extract the 3×3 convolutions too, with this rank.")
@click.option("--precision", type=PRECISION, default="fp16", show_default=True, help="Number format of the result.")
@overwrite
@as_json
def extract(
    base: Path,
    tuned: Path,
    output: Path,
    rank: int | None,
    values: float | None,
    norm: float | None,
    ranks: tuple[str, ...],
    conv_rank: int | None,
    precision: str,
    overwrite: bool,
    as_json: bool,
) -> None:
    """The difference between two checkpoints as a LoRA.

    TUNED is what BASE became by fine-tuning or merging; each is a single file or a diffusers folder.

    Example: lora-wizard tools extract sdxl.safetensors mine.safetensors --rank 64 -o mine-lora.safetensors
    """
    may_write_network(output, overwrite)
    from engine.tools.checkpoints import Checkpoint
    from engine.tools.headers import PRECISIONS
    from engine.tools.merge import extract as extracted
    from engine.tools.writing import save_tensors

    keep = keep_from(rank, values, norm, ranks)
    first, second = Checkpoint(base), Checkpoint(tuned)
    with watched("Comparing", as_json) as progress:
        result = extracted(first, second, keep, conv_rank=conv_rank, dtype=PRECISIONS[precision], progress=progress)
    version = family_facts(first.family).base_model_version
    metadata = {"ss_base_model_version": version, "ss_v2": str(first.family == "sd2")}
    save_tensors(output, result.network.tensors, _network_metadata(metadata, result.network))
    if as_json:
        document = _resized_document(result.network, output) | {"reach": result.reach, "kept_of_all": result.kept}
        print_json(document)
        return
    _show_resized(result.network, None, output, False)
    say(
        f"  It holds {result.kept:.1%} of the whole difference ‖tuned − base‖; {result.reach:.1%} lies in "
        "layers that a LoRA reaches."
    )


def base_weights(base: Path | None) -> Weights:
    from engine.tools.checkpoints import Checkpoint
    from engine.tools.resize import no_base

    return Checkpoint(base).weight if base is not None else no_base


def _loading_only(metadata: dict[str, str]) -> dict[str, str]:
    from engine.tools.metadata import stripped

    return stripped(metadata)


def _limited(*limits: Any) -> bool:
    return any(limit not in (None, ()) for limit in limits)


def _network_metadata(metadata: dict[str, str], result: Resized) -> dict[str, str]:
    """The metadata with rank, alpha and module of what was written; a mixture is called Dynamic, as sd-scripts does.

    What was said of alphas in other places is of the weights before.
    """
    from engine.tools.convert import ALPHAS

    stale = ("ss_network_args", "lora_adapter_metadata", ALPHAS)
    low, high = result.ranks
    rank = str(low) if low == high else "Dynamic"
    alphas = {float(tensor) for name, tensor in result.tensors.items() if name.endswith(".alpha")}
    written = f"{alphas.pop():g}" if len(alphas) == 1 else "Dynamic"
    stated = {"ss_network_module": "networks.lora", "ss_network_dim": rank, "ss_network_alpha": written}
    return {name: value for name, value in metadata.items() if name not in stale} | stated


def _resized_document(result: Resized, output: Path) -> dict[str, Any]:
    return {
        "output": str(output),
        "bytes": output.stat().st_size,
        "rank": list(result.ranks),
        "kept": result.kept,
        "error": result.error,
        "layers": [asdict(layer) for layer in result.layers],
    }


def _show_resized(result: Resized, before: Path | None, output: Path, as_json: bool) -> None:
    if as_json:
        print_json(_resized_document(result, output))
        return
    low, high = result.ranks
    sizes = f"{words.size(before.stat().st_size)} → " if before else ""
    say(f"[good]✓[/] {shown(output)}   [quiet]{sizes}{words.size(output.stat().st_size)}[/]")
    rank = low if low == high else f"{low} to {high}"
    say(f"  {words.count(len(result.layers), 'layer')}, rank {rank}; {_lost(result)}")
    if result.kept < 1 - EXACT:
        worst = min(result.layers, key=lambda layer: layer.kept)
        say(f"  [quiet]weakest: {printable(worst.module, 120)} keeps {worst.kept:.1%}[/]")


def _lost(result: Resized) -> str:
    """How near the result is to what it was made of, rounding to its precision counted."""
    if result.error < EXACT:
        return "nothing lost"
    if result.kept > 1 - EXACT:
        return f"nothing lost but by rounding, {result.error:.2g} of ‖ΔW‖"
    return f"keeps {result.kept:.2%} of ‖ΔW‖, error {result.error:.2%}"
