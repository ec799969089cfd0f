"""Phase 2a: outlier and inlier embeddings around the images of each class, by k-NN distance or by boundary crossing.

Names as in DREAM-OOD (Du et al., NeurIPS 2023, Sec. 3.2) and BOOD (Liao et al., ICML 2025): z are unit embeddings, a
*boundary point* is an embedding far from its class, *draws* are Gaussian vectors g, a *candidate* is
v = normalise(z_b + sigma g), and d_k(v, Z) is the distance from v to the k-th nearest row of Z, the *bank*.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from openood_dream.config import InputError

BLOCK = 1 << 22  # elements of the largest temporary; float64 at that size is 32 MiB


# ------------------------------------------------------------------------------------------------------ distances


def knn_distance(x: Tensor, bank: Tensor, k: int) -> Tensor:
    """Euclidean distance (n,) from each row of x (n, m) to its k-th nearest row of bank (N, m).

    A row of x that is in the bank counts as its own first neighbour. Raises InputError where k is not in 1..N, the
    widths differ, or a row is zero or not finite.
    """
    _check_rows("x", x)
    if bank is not x:
        _check_rows("bank", bank)
    if x.shape[1] != bank.shape[1]:
        raise InputError(
            f"x has {x.shape[1]} dimensions and the bank {bank.shape[1]}; embed both with the same network"
        )
    if not 1 <= k <= len(bank):
        raise InputError(f"k={k} is not in 1..{len(bank)}, the number of embeddings; lower k or embed more images")
    wide = bank.double()
    squares = wide.square().sum(1)
    out = x.new_empty(len(x))
    for rows in _blocks(len(x), max(bank.shape)):
        part = x[rows].double()
        # |x|^2 is the same for all neighbours, so it has no say in which one is the k-th
        kth = torch.addmm(squares, part, wide.T, alpha=-2).topk(k, dim=1, largest=False).indices[:, -1]
        # subtracting the two rows, rather than expanding the square, makes duplicates exactly 0 apart
        out[rows] = (part - wide[kth]).norm(dim=1).to(x.dtype)
    return out


def _blocks(rows: int, width: int) -> Iterable[slice]:
    """Slices of `rows` rows such that a slice `width` wide has at most BLOCK elements."""
    step = max(1, BLOCK // width)
    return (slice(start, start + step) for start in range(0, rows, step))


def _check_rows(name: str, rows: Tensor) -> None:
    if rows.ndim != 2 or not rows.numel():
        raise InputError(f"{name} has shape {tuple(rows.shape)}; expected one embedding per row")
    length = rows.norm(dim=1)
    bad = (~(length.isfinite() & (length > 0))).nonzero()
    if len(bad):
        row = int(bad[0])
        what = "is zero" if length[row] == 0 else "is not finite"
        raise InputError(f"{name}: row {row} {what} ({len(bad)} such rows of {len(rows)}); embed its image again")


def _check_unit(name: str, rows: Tensor) -> None:
    _check_rows(name, rows)
    off = (rows.norm(dim=1) - 1).abs()
    if off.max() > 1e-3:
        row = int(off.argmax())
        raise InputError(
            f"{name}: row {row} has norm {rows[row].norm():.4g}; expected unit rows, so normalise them first"
        )


# ---------------------------------------------------------------------------------------------- k-NN outliers, inliers


def boundary_points(
    z: Tensor, k: int, select: int, largest: bool = True, bank: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Indices and distances d_k (select,) of the embeddings z (N, m) farthest from the bank, farthest first (step 1).

    Nearest first where not `largest` (DREAM-ID). Ties go to the lower index; the bank is z where none is given. Raises
    InputError as knn_distance does, and where select is not in 1..N. Source: DREAM-OOD, Sec. 3.2.
    """
    if not 1 <= select <= len(z):
        raise InputError(
            f"select={select} is not in 1..{len(z)}, the number of embeddings; lower it or embed more images"
        )
    distance, index = knn_distance(z, z if bank is None else bank, k).sort(descending=largest, stable=True)
    return index[:select], distance[:select]


def sample_round(
    z: Tensor,
    boundary: Tensor,
    k: int,
    sigma: float,
    draws: Tensor,
    keep: int,
    farthest: bool = True,
    selection: str = "knn",
    bank: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """For each boundary point z[boundary] (B,), the `keep` candidates with the largest d_k to the bank (steps 2 and 3).

    Returns indices into draws (B, keep), unit candidates (B, keep, m) and their d_k (B, keep), farthest first (nearest
    first, and nearest kept, where not `farthest`); ties in d_k go to the lower draw. `selection="random"` keeps
    uniformly random candidates drawn with the CPU `generator`, as the public code does in effect. z and the bank (z
    where none is given) have unit rows, draws are (R, m). Raises InputError for k, sigma or keep out of range.
    Source: DREAM-OOD, Sec. 3.2.
    """
    bank = z if bank is None else bank
    if not 1 <= k <= len(bank):
        raise InputError(f"k={k} is not in 1..{len(bank)}, the number of embeddings; lower k or embed more images")
    if not 1 <= keep <= len(draws):
        raise InputError(f"keep={keep} is not in 1..{len(draws)}, the number of draws; lower keep or raise n_draws")
    if not 0 < sigma < math.inf:
        raise InputError(f"sigma={sigma} is not a positive number")
    centres = z[boundary]
    if selection == "random":
        rows = torch.rand(len(centres), len(draws), generator=generator).topk(keep).indices.flatten().to(z.device)
        points = torch.arange(len(centres), device=z.device).repeat_interleave(keep)
    elif selection == "knn":
        # where the bank is so large that (draws, bank) does not fit, the best of all draws are the best of the blocks' best
        parts = [
            (points, rows + block.start)
            for block in _blocks(len(draws), len(bank))
            for points, rows in [_contenders(centres, bank, k, sigma, draws[block], keep, farthest)]
        ]
        points, rows = (torch.cat(part) for part in zip(*parts, strict=True))
    else:
        raise InputError(f"selection={selection!r} is unknown; expected 'knn' or 'random'")
    distance = _candidate_distance(centres, bank, k, sigma, draws, points, rows)
    order = _ranked(points, rows, distance, farthest)
    starts = torch.searchsorted(points[order].contiguous(), torch.arange(len(centres), device=z.device))
    kept = order[starts[:, None] + torch.arange(keep, device=z.device)]
    vectors = F.normalize(centres[:, None] + sigma * draws[rows[kept]], dim=2)
    return rows[kept], vectors, distance[kept]


def _ranked(points: Tensor, rows: Tensor, distance: Tensor, farthest: bool) -> Tensor:
    """The order of candidates by boundary point, then by distance, then by draw."""
    order = rows.argsort(stable=True)
    order = order[distance[order].argsort(descending=farthest, stable=True)]
    return order[points[order].argsort(stable=True)]


def _contenders(
    centres: Tensor, bank: Tensor, k: int, sigma: float, draws: Tensor, keep: int, farthest: bool
) -> tuple[Tensor, Tensor]:
    """The (boundary point, draw) pairs that may be among the `keep` best of their point; no other pair can be.

    On unit vectors the farther candidate is the one whose k-th largest cosine with the bank is smaller, and cosines
    need no candidates: <z_b + sigma g, z_j> = <z_b, z_j> + sigma <g, z_j>. So one product of draws and bank serves all
    boundary points, and a pair is dropped by a bound from mean and variance, or by counting, with room for round-off.
    """
    size, width = bank.shape
    # nearest is farthest with the signs turned: the k-th largest of x is minus the (N - k + 1)-th largest of -x
    sign, rank = (1, k) if farthest else (-1, size - k + 1)
    gram = sign * (centres @ bank.T)  # (B, N)
    shift = (draws @ bank.T).mul_(sign * sigma)  # (R, N)
    spread = sigma * draws.norm(dim=1)  # (R,)
    length = (
        (centres.square().sum(1, keepdim=True) + 2 * sigma * (centres @ draws.T) + spread.square()).clamp_min(0).sqrt()
    )
    length = length.clamp_min(torch.finfo(length.dtype).tiny)  # (B, R)
    # round-off of a cosine; rows that are unit only nearly shift the order by distance against that by cosine
    off = (bank.square().sum(1) - 1).abs().max()
    slack = ((1 + spread) / length).square().mul_(_roundoff(width)).add_(off)

    gram_mean, shift_mean = gram.mean(1, keepdim=True), shift.mean(1, keepdim=True)
    gram_free, shift_free = gram - gram_mean, shift - shift_mean
    gram_var, shift_var = gram_free.square().mean(1, keepdim=True), shift_free.square().mean(1)
    mean = (gram_mean + shift_mean.T) / length
    room = _roundoff(width) * (gram_var + shift_var)  # or the root of a variance near 0 is off by the root of round-off
    std = (gram_var + shift_var + (2 / size) * (gram_free @ shift_free.T) + room).clamp_min(0).sqrt() / length

    # the few that look best, as if cosines were normally distributed, set the cosine that the others have to beat
    quantile = float(torch.special.ndtri(torch.tensor(1 - (rank - 0.5) / size, dtype=torch.float64)))
    keep = min(keep, len(draws))
    best = (mean + quantile * std).topk(min(len(draws), keep + 4), dim=1, largest=False).indices
    cosine = torch.empty_like(best, dtype=mean.dtype)
    for part in _blocks(len(best), best.shape[1] * size):
        values = shift[best[part]].add_(gram[part, None])
        cosine[part] = values.topk(rank, dim=2, sorted=False).values.amin(2)
    cosine = cosine / length.gather(1, best) + slack.gather(1, best)
    cut = cosine.topk(keep, dim=1, largest=False).values[:, -1:]  # (B, 1)

    # N - rank + 1 of N numbers are at most the rank-th largest, so it is at least this far below their mean or nearer
    bound = mean - math.sqrt((rank - 1) / (size - rank + 1)) * std - slack
    points, rows = (bound <= cut).nonzero(as_tuple=True)
    level = (cut + slack).mul_(length)[points, rows]
    above = torch.empty_like(level)
    for part in _blocks(len(points), 4 * size):
        cosines = shift[rows[part]].add_(gram[points[part]])
        above[part] = cosines.gt_(level[part, None]).sum(1)  # gt_ leaves ones and zeros of the cosines' own type
    alive = above < rank
    return points[alive], rows[alive]


def _roundoff(width: int) -> float:
    """The relative error of a float32 dot product of `width` terms, at the matmul precision that torch is set to."""
    inputs = {"highest": 0.0, "high": 2.0**-10, "medium": 2.0**-7}[torch.get_float32_matmul_precision()]
    return 2 * math.sqrt(width) * 2.0**-23 + inputs


def _candidate_distance(
    centres: Tensor, bank: Tensor, k: int, sigma: float, draws: Tensor, points: Tensor, rows: Tensor
) -> Tensor:
    """d_k of the candidates (points[i], rows[i]), computed in float64 and rounded to the type of the bank."""
    wide, start = bank.double(), centres.double()
    squares, gram = wide.square().sum(1), start @ wide.T
    out = bank.new_empty(len(points))
    for part in _blocks(len(points), max(bank.shape)):
        used, place = rows[part].unique(return_inverse=True)
        step = sigma * draws[used].double()
        shift, b = step @ wide.T, points[part]
        length = (start[b] + step[place]).norm(dim=1, keepdim=True)
        square = squares + 1 - 2 * (gram[b] + shift[place]) / length
        out[part] = square.topk(k, dim=1, largest=False).values[:, -1].clamp_min(0).sqrt().to(bank.dtype)
    return out
