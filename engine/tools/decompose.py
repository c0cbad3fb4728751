"""Low-rank form of a change: singular values, how many to keep, and the LoRA tensors that hold them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from engine.tools.adapters import Adapter
from engine.tools.effect import change
from engine.tools.names import is_convolution, kernel_of
from engine.tools.precision import cast, cast_exactly
from knowledge.answers import PlainError


@dataclass(frozen=True)
class Singular:
    """ΔW = U · diag(values) · V, values falling; U [out, n], V [n, in × kernel].

    `whole`: ‖ΔW‖² where the values are only the first of all.
    """

    left: Tensor
    values: Tensor
    right: Tensor
    whole: float | None = None

    @property
    def energy(self) -> float:
        """‖ΔW‖², the sum of all squared values."""
        return float(self.values.double().square().sum()) if self.whole is None else self.whole

    def kept_energy(self, rank: int) -> float:
        return float(self.values[:rank].double().square().sum())


@dataclass(frozen=True)
class Keep:
    """How much of each layer to keep: at most `rank` values, and as few as hold these shares (None: no limit).

    `values_share` is of the sum of the singular values; `norm_share` of the Frobenius norm, so 0.99 leaves an error of
    √(1 − 0.99²) = 14 %. `ranks` gives single layers or blocks a rank of their own, by a piece of their name.
    """

    rank: int | None = None
    values_share: float | None = None
    norm_share: float | None = None
    ranks: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.rank is None and self.values_share is None and self.norm_share is None and not self.ranks:
            raise PlainError("Say how much to keep: --rank 16, --values 0.9 or --norm 0.99.", 2)

    def most(self, *names: str) -> int | None:
        """The rank that this layer cannot exceed, where it does not take all the values to tell; None otherwise."""
        own = next((rank for piece, rank in self.ranks.items() if any(piece in name for name in names)), None)
        shares = self.values_share is not None or self.norm_share is not None
        return own if own is not None else None if shares else self.rank

    def rank_of(self, values: Tensor, *names: str) -> int:
        """How many of these falling singular values to keep; at least 1, and never one that is zero."""
        own = next((rank for piece, rank in self.ranks.items() if any(piece in name for name in names)), None)
        cap = own if own is not None else self.rank
        nonzero = int((values > values[0] * 1e-7).sum()) if len(values) and values[0] > 0 else 1
        limits = [nonzero] if cap is None else [nonzero, cap]
        if own is None and self.values_share is not None:
            limits.append(_first_reaching(values.double().cumsum(0), self.values_share))
        if own is None and self.norm_share is not None:
            limits.append(_first_reaching(values.double().square().cumsum(0), self.norm_share**2))
        return max(1, min(limits))


def _first_reaching(running: Tensor, share: float) -> int:
    """How many entries of a running sum it takes to reach a share of its end."""
    return int((running < running[-1] * share * (1 - 1e-12)).sum()) + 1


def singular(matrix: Tensor) -> Singular:
    """The singular values of a dense matrix, in float32 unless it comes in float64, or only that can hold them.

    Raises PlainError for numbers so large or so uneven that they have none.
    """
    for precision in dict.fromkeys((matrix.dtype if matrix.dtype == torch.float64 else torch.float32, torch.float64)):
        try:
            return Singular(*torch.linalg.svd(matrix.to(precision), full_matrices=False))
        except LinAlgError:
            continue
    raise PlainError("The weights of a layer are too large to be decomposed; the file is damaged.")


OVERSAMPLING = 16
POWER_ITERATIONS = 4


def leading(matrix: Tensor, rank: int | None) -> Singular:
    """The first `rank` singular values of a dense matrix; all of them where that is no less work.

    By a random projection with subspace iteration, Halko, Martinsson and Tropp 2011 (arXiv:0909.4061), algorithm 4.4:
    for rank 64 of 1280 × 1280 about a tenth of the time of all values. The sample is always the same one.
    """
    size = min(matrix.shape) if rank is None else rank + OVERSAMPLING
    if rank is None or 4 * size > min(matrix.shape):
        return singular(matrix)
    matrix = matrix.float()
    sample = torch.randn(matrix.shape[1], size, generator=torch.Generator().manual_seed(0))
    basis = torch.linalg.qr(matrix @ sample).Q
    for _ in range(POWER_ITERATIONS):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis).Q).Q
    inner = singular(basis.T @ matrix)
    whole = float(matrix.double().square().sum())
    return Singular(basis @ inner.left[:, :rank], inner.values[:rank], inner.right[:rank], whole)


def singular_of_product(up: Tensor, down: Tensor) -> Singular:
    """The singular values of up @ down, without multiplying it out: two QR decompositions and an SVD of rank size."""
    up, down = up.double(), down.double()
    if min(up.shape[0], down.shape[1]) <= up.shape[1]:
        return singular(up @ down)
    left, upper = torch.linalg.qr(up)
    right, lower = torch.linalg.qr(down.T)
    inner = singular(upper @ lower.T)
    return Singular(left @ inner.left, inner.values, inner.right @ right.T)


def direction(adapter: Adapter) -> Adapter:
    """The adapter without DoRA's magnitude: what stays low-rank of it."""
    parts = {part: name for part, name in adapter.parts.items() if part != "dora_scale"}
    return dataclasses.replace(adapter, parts=parts)


def singular_of(adapter: Adapter, weight: Tensor | None = None, most: int | None = None) -> Singular:
    """The singular values of an adapter's ΔW (of its direction, for DoRA); of a dense one only the first `most`."""
    plain = direction(adapter)
    if plain.algorithm in ("lora", "locon") and "mid" not in plain:
        return singular_of_product(plain["up"].flatten(1) * plain.scale, plain["down"].flatten(1))
    return leading(change(plain, weight), most)


def kernel_shape(adapter: Adapter, family: str) -> tuple[int, ...]:
    """The kernel of the layer an adapter belongs to: () for linear layers, (3, 3) or (1, 1) for convolutions."""
    for part in ("mid", "down", "hada_t1", "lokr_t2", "lokr_w2", "diff"):
        if part in adapter and len(adapter.shape(part)) == 4:
            return adapter.shape(part)[2:]
    if "up" in adapter and len(adapter.shape("up")) == 2:
        return ()
    name = adapter.canonical or ""
    return (kernel_of(name),) * 2 if is_convolution(name, family) else ()


def lora_matrices(
    found: Singular, rank: int, kernel: tuple[int, ...], alpha: float | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """lora_up, lora_down and alpha that hold the first `rank` values; both matrices share the values' square roots.

    Shared, so that neither leaves the range of half precision. alpha None means alpha = rank.
    """
    stored = cast_exactly(torch.tensor(float(rank) if alpha is None else alpha), dtype)
    if kernel and found.right.shape[1] % math.prod(kernel):
        raise PlainError(
            f"A layer with {found.right.shape[1]} inputs is no convolution of {' × '.join(map(str, kernel))}: the file "
            "is damaged, or for a model that is not known here."
        )
    alpha = float(stored)
    root = (found.values[:rank] * (rank / alpha)).sqrt()
    up = found.left[:, :rank] * root
    down = root[:, None] * found.right[:rank]
    if kernel:
        up = up.reshape(*up.shape, *(1 for _ in kernel))
        down = down.reshape(rank, -1, *kernel)
    return cast(up, dtype).contiguous(), cast(down, dtype).contiguous(), stored


def error_of(found: Singular, up: Tensor, down: Tensor, scale: float) -> float:
    """‖ΔW − scale · up · down‖ / ‖ΔW‖ of a LoRA made of the first values, its rounding counted.

    What the rank leaves out is orthogonal to what it keeps and to all of the rounding that is not of second order.
    """
    rank = down.shape[0]
    rounding = distance(
        found.left[:, :rank] * found.values[:rank], found.right[:rank], up.flatten(1).double() * scale, down.flatten(1)
    )
    left_out = max(0.0, found.energy - found.kept_energy(rank))
    return math.sqrt((left_out + rounding**2) / found.energy) if found.energy > 0 else 0.0


def distance(left: Tensor, right: Tensor, up: Tensor, down: Tensor) -> float:
    """‖left · right − up · down‖ in float64, from matrices as small as the ranks."""
    columns, rows = torch.cat([left.double(), -up.double()], 1), torch.cat([right.double(), down.double()])
    return float(((columns.T @ columns) * (rows @ rows.T)).sum().clamp(min=0).sqrt())


def share(kept: float, whole: float) -> float:
    """√(kept / whole): how much of a Frobenius norm is left; 1 when there was nothing to keep."""
    return math.sqrt(min(1.0, kept / whole)) if whole > 0 else 1.0
