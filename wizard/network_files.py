"""`lora-wizard tools resize`, `convert`, `merge` and `extract`: new network files out of others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from knowledge.answers import PlainError
from wizard import words
from wizard.file_commands import FILE, as_json, may_write, overwrite, print_json, say, shown, watched

if TYPE_CHECKING:
    from engine.tools.decompose import Keep
    from engine.tools.resize import Resized, Weights

PRECISION = click.Choice(["fp32", "fp16", "bf16"])

output = click.option("-o", "--output", type=FILE, required=True, help="Where the result goes.")
precision = click.option("--precision", type=PRECISION, help="Number format of the result; the input's if not given.")
base_option = click.option(
    "--base", type=FILE, help="The base model, for algorithms whose effect depends on it (DoRA …)."
)


def keep_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say how much of each layer to keep."""
    for option in (
        click.option("--rank-of", "ranks", multiple=True, metavar="PART=N", help='E.g. "UNet down 0=4"; repeatable.'),
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
    may_write(output, overwrite)
    from engine.tools.adapters import adapters
    from engine.tools.files import PRECISIONS, open_tensors, save_tensors
    from engine.tools.inspect import family_of
    from engine.tools.resize import resize as resized

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
    save_tensors(output, result.tensors, _network_metadata(dict(tensors.metadata), result, alpha))
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
    """Give a LoRA other names or another precision, or turn LoHa, LoKr, DoRA … and pickles into plain LoRA safetensors.

    --names sd-scripts is what every program reads. With --rank, --norm or --values, algorithms that are not plain LoRA
    are decomposed, and the error is told.

    Example: lora-wizard tools convert old.pt --names sd-scripts --precision fp16 -o new.safetensors
    """
    may_write(output, overwrite)
    from engine.tools.adapters import adapters
    from engine.tools.convert import convert as converted
    from engine.tools.files import PRECISIONS, LoadedTensors, open_tensors, save_tensors
    from engine.tools.inspect import family_of
    from engine.tools.merge import Weighted, combine

    tensors = open_tensors(file)
    found = adapters(tensors)
    family = family_of(tensors, found)
    dtype = PRECISIONS.get(precision or "")
    metadata = dict(tensors.metadata)
    result = None
    if any(limit is not None for limit in (rank, values, norm)) or ranks:
        keep = keep_from(rank, values, norm, ranks)
        first = next(iter(found.values()))
        with watched(f"Decomposing {file.name}", as_json) as progress:
            result = combine(
                [Weighted(found)],
                keep=keep,
                family=family,
                dtype=dtype or first.dtype,
                weights=base_weights(base),
                progress=progress,
            )
        metadata = _network_metadata(metadata, result, None)
        found = adapters(LoadedTensors(result.tensors, metadata))
    naming: Any = names or ("sd-scripts" if result else None)
    if naming is None:
        outcome = {name: tensors[name] if dtype is None else _cast(tensors[name], dtype) for name in tensors}
        unknown: tuple[str, ...] = ()
    else:
        with_names = converted(found, metadata, naming, family, dtype)
        outcome, metadata, unknown = with_names.tensors, with_names.metadata, with_names.unknown
    save_tensors(output, outcome, metadata)
    document = {
        "output": str(output),
        "bytes": output.stat().st_size,
        "family": family,
        "names": naming or "as they were",
        "error": result.error if result else 0.0,
        "kept_unknown_names": list(unknown),
    }
    if as_json:
        print_json(document)
        return
    say(f"[good]✓[/] {shown(output)}   [quiet]{words.size(output.stat().st_size)}[/]")
    if result is not None:
        low, high = result.ranks
        say(f"  plain LoRA, rank {low if low == high else f'{low} to {high}'}; error {result.error:.2%} of ‖ΔW‖")
    if unknown:
        say(f"  [warning]![/] {words.count(len(unknown), 'layer')} of no Stable Diffusion model kept their names.")


def _cast(tensor: Any, dtype: Any) -> Any:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


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

    Without --rank, --norm or --values the ranks are laid side by side: exact, and as large as the files together.

    \b
    Examples: lora-wizard tools merge a.safetensors b.safetensors -w 0.8 -w 0.5 -o both.safetensors
              lora-wizard tools merge a.safetensors --into sdxl.safetensors -o sdxl-a.safetensors
    """
    may_write(output, overwrite)
    for name, given in (("--weight", weights), ("--text-weight", text_weights)):
        if given and len(given) != len(files):
            raise PlainError(
                f"{name} is given {len(given)} times for {len(files)} files; give it once for each file.", 2
            )
    from engine.tools.adapters import adapters
    from engine.tools.checkpoints import Checkpoint
    from engine.tools.files import PRECISIONS, open_tensors, save_tensors
    from engine.tools.inspect import family_of
    from engine.tools.merge import Weighted, combine, merge_into

    opened = [open_tensors(file) for file in files]
    found = [adapters(tensors) for tensors in opened]
    strengths = weights or (1.0,) * len(files)
    texts: tuple[float | None, ...] = text_weights or (None,) * len(files)
    networks = [Weighted(*one) for one in zip(found, strengths, texts, strict=True)]
    if into is not None:
        if output.resolve() == into.resolve():
            raise PlainError("The result would replace the base model itself; choose another --output.", 2)
        with watched(f"Merging into {into.name}", as_json) as progress:
            merged = merge_into(Checkpoint(into), networks, output, progress)
        if as_json:
            print_json({"output": str(output), "layers": merged.layers, "layers_without_place": list(merged.homeless)})
            return
        say(f"[good]✓[/] {shown(output)}   [quiet]{words.count(merged.layers, 'layer')} changed, exactly[/]")
        if merged.homeless:
            say(
                f"  [warning]![/] {words.count(len(merged.homeless), 'layer')} found no place in it, first "
                f"{merged.homeless[0]}"
            )
        return
    limited = any(limit is not None for limit in (rank, values, norm)) or bool(ranks)
    family = family_of(opened[0], found[0])
    dtype = PRECISIONS[precision] if precision else next(iter(found[0].values())).dtype
    with watched(f"Merging {len(files)} files", as_json) as progress:
        result = combine(
            networks,
            keep=keep_from(rank, values, norm, ranks) if limited else None,
            family=family,
            dtype=dtype,
            weights=base_weights(base),
            progress=progress,
        )
    recipe = "; ".join(f"{file.name} × {strength:g}" for file, strength in zip(files, strengths, strict=True))
    metadata = _network_metadata(_loading_only(dict(opened[0].metadata)), result, None)
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
    """The difference between two checkpoints as a LoRA: TUNED is what BASE became by fine-tuning or merging.

    Example: lora-wizard tools extract sdxl.safetensors my-finetune.safetensors --rank 64 -o finetune-lora.safetensors
    """
    may_write(output, overwrite)
    from engine.tools.checkpoints import Checkpoint
    from engine.tools.files import PRECISIONS, save_tensors
    from engine.tools.merge import extract as extracted

    keep = keep_from(rank, values, norm, ranks)
    first, second = Checkpoint(base), Checkpoint(tuned)
    with watched("Comparing", as_json) as progress:
        result = extracted(first, second, keep, conv_rank=conv_rank, dtype=PRECISIONS[precision], progress=progress)
    versions = {"sd15": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}
    metadata = {"ss_base_model_version": versions[first.family], "ss_v2": str(first.family == "sd2")}
    save_tensors(output, result.network.tensors, _network_metadata(metadata, result.network, None))
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


def _network_metadata(metadata: dict[str, str], result: Resized, alpha: float | None) -> dict[str, str]:
    """The metadata with rank, alpha and module of what was written; a mixture is called Dynamic, as sd-scripts does."""
    low, high = result.ranks
    rank = str(low) if low == high else "Dynamic"
    alphas = {float(tensor) for name, tensor in result.tensors.items() if name.endswith(".alpha")}
    written = f"{alphas.pop():g}" if len(alphas) == 1 else "Dynamic"
    stated = {"ss_network_module": "networks.lora", "ss_network_dim": rank, "ss_network_alpha": written}
    return {name: value for name, value in metadata.items() if name != "ss_network_args"} | stated


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
    exact = result.error < 1e-6
    said = "nothing lost" if exact else f"keeps {result.kept:.2%} of ‖ΔW‖, error {result.error:.2%}"
    say(f"  {words.count(len(result.layers), 'layer')}, rank {rank}; {said}")
    if not exact:
        worst = min(result.layers, key=lambda layer: layer.kept)
        say(f"  [quiet]weakest: {worst.module} keeps {worst.kept:.1%}[/]")
