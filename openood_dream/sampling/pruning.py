"""Which candidates of a round can be among the best, found without measuring all of them.

On unit vectors the farther candidate is the one whose k-th largest cosine with the bank is smaller, and cosines need no
candidates: <z_b + sigma g, z_j> = <z_b, z_j> + sigma <g, z_j>. So one product of draws and bank serves all boundary
points, and a pair is dropped by a bound from mean and variance, or by counting, with room for round-off.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from openood_dream.sampling.blocks import blocks
from openood_dream.sampling.nearest import kth_smallest, roundoff

Measure = Callable[[Tensor, Tensor], Tensor]


class _Cosines(NamedTuple):
    """The cosine of candidate (b, r) with row j of the bank is (gram[b, j] + shift[r, j]) / length[b, r], all three over sigma.

    Where the nearest candidates are looked for all signs are turned: the k-th largest of x is minus the
    (N - k + 1)-th largest of -x. `rank` is which of the largest counts, `slack` the round-off of a cosine.
    """

    gram: Tensor  # (B, N)
    shift: Tensor  # (R, N)
    length: Tensor  # (B, R)
    slack: Tensor  # (B, R)
    rank: int


def contenders(
    boundary: Tensor,
    z: Tensor,
    k: int,
    sigma: float,
    draws: Tensor,
    keep: int,
    farthest: bool,
    off: float,
    measure: Measure | None = None,
) -> tuple[Tensor, Tensor]:
    """The (boundary point, draw) pairs that may be among the best of their point; no other pair can be.

    Args:
        boundary: rows of z (B,), the boundary points.
        z: unit embeddings (N, m) of the class, the bank unless `measure` is given.
        k: which nearest neighbour measures the distance.
        sigma: standard deviation of the draws.
        draws: normal vectors (R, m).
        keep: how many candidates of each point are kept.
        farthest: whether the farthest are kept, or the nearest.
        off: how far the squared length of a row of the bank is from 1, at most.
        measure: d_k (P,) of the pairs (points (P,), draws (P,)), where the bank holds more than z; a pair is then
            dropped for its cosines with z alone, since more rows only make them larger.

    Returns:
        Points (P,) and draws (P,) of the pairs, ordered by point.
    """
    cosines = _cosines(boundary, z, k, sigma, draws, farthest, off)
    mean, std = _moments(cosines)
    size, rank = len(z), cosines.rank
    level = (_cut(cosines, mean, std, min(keep, len(draws)), measure) + cosines.slack).mul_(cosines.length)
    # N - rank + 1 of N numbers are at most the rank-th largest, so it is at least this far below their mean or nearer
    bound = mean.sub_(std, alpha=math.sqrt((rank - 1) / (size - rank + 1)))
    possible = ~(bound > level)  # not <=, so that what cannot be computed is kept
    points, rows = possible.nonzero(as_tuple=True)
    level = level[points, rows]
    each = possible.sum(1).tolist()
    # point by point, so that its cosines with the bank need no copy for each pair, in one buffer, since fresh memory
    # costs more than what is done in it; gt_ leaves ones and zeros
    buffer, above = cosines.shift.new_empty(max(each, default=0), size), []
    for b, (some, bar) in enumerate(zip(rows.split(each), level.split(each), strict=True)):
        values = torch.index_select(cosines.shift, 0, some, out=buffer[: len(some)])
        above.append(values.add_(cosines.gram[b]).gt_(bar[:, None]).sum(1))
    alive = torch.cat(above) < rank
    return points[alive], rows[alive]


def _cosines(boundary: Tensor, z: Tensor, k: int, sigma: float, draws: Tensor, farthest: bool, off: float) -> _Cosines:
    """The parts that all cosines of a round are made of."""
    size, width = z.shape
    sign, rank = (1, k) if farthest else (-1, size - k + 1)
    centres = z[boundary]
    shift = draws @ z.T
    along = shift.T[boundary]  # of each draw on each boundary point, (B, R)
    spread = draws.norm(dim=1)  # (R,)
    length = (
        (centres.square().sum(1, keepdim=True) / sigma**2 + (2 / sigma) * along + spread.square()).clamp_min(0).sqrt()
    )
    length = length.clamp_min(torch.finfo(length.dtype).tiny)
    # rows that are unit only nearly shift the order by distance against that by cosine
    slack = ((1 / sigma + spread) / length).square().mul_(4 * roundoff(z, width)).add_(off)
    return _Cosines((centres @ z.T).mul_(sign / sigma), shift if farthest else shift.neg_(), length, slack, rank)


def _moments(cosines: _Cosines) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (B, R) of every candidate's cosines with the bank, times `length`."""
    gram, shift, size = cosines.gram, cosines.shift, cosines.gram.shape[1]
    gram_mean, shift_mean = gram.mean(1, keepdim=True), shift.mean(1)
    free = gram - gram_mean
    gram_var, shift_square = (
        free.square().mean(1, keepdim=True),
        torch.linalg.vector_norm(shift, dim=1).square_().div_(size),
    )
    var = (free @ shift.T).mul_(2 / size).sub_(2 * free.mean(1, keepdim=True) * shift_mean)
    room = 1 + roundoff(gram, size)  # the root of a variance near 0 magnifies its round-off
    var += room * gram_var + (room * shift_square - shift_mean.square())
    return gram_mean + shift_mean, var.clamp_min_(0).sqrt_()


def _cut(cosines: _Cosines, mean: Tensor, std: Tensor, keep: int, measure: Measure | None) -> Tensor:
    """The cosine (B, 1) that a pair has to beat: that of the few that look best, were cosines normally distributed."""
    gram, shift, rank, size = cosines.gram, cosines.shift, cosines.rank, cosines.gram.shape[1]
    quantile = float(torch.special.ndtri(torch.tensor(1 - (rank - 0.5) / size, dtype=torch.float64)))
    best = (mean + quantile * std).div_(cosines.length).topk(min(len(shift), keep + 2), dim=1, largest=False).indices
    cosine = torch.empty_like(best, dtype=mean.dtype)
    for part in blocks(len(best), best.shape[1] * size):
        values = shift[best[part]].add_(gram[part, None])
        cosine[part] = kth_smallest(values, size - rank + 1)[..., 0]
    cosine /= cosines.length.gather(1, best)
    if measure is not None:
        points = torch.arange(len(best), device=best.device).repeat_interleave(best.shape[1])
        distance = measure(points, best.flatten())
        cosine = cosine.maximum(1 - distance.square().view_as(best) / 2)  # a faiss index may overlook rows of z
    return (cosine + cosines.slack.gather(1, best)).topk(keep, dim=1, largest=False).values[:, -1:]
