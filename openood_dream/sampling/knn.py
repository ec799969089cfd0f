"""Outlier and inlier embeddings around the images of a class, by k-NN distance.

Names as in DREAM-OOD (Du et al., NeurIPS 2023, Sec. 3.2): z are unit embeddings, a *boundary point* is an embedding far
from its class, *draws* are Gaussian vectors g, a *candidate* is v = normalise(z_b + sigma g), and d_k(v, Z) is the
distance from v to the k-th nearest row of Z, the *bank*.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from openood_dream.sampling.blocks import blocks
from openood_dream.sampling.nearest import kth_distance
from openood_dream.sampling.pruning import contenders
from openood_dream.sampling.search import ExactIndex, faiss, flat_index

IVF_FROM = 200_000  # rows of a bank from which an exact search over all classes takes too long
TRAINED_ON = (
    64  # rows that a cell of that search is found from; all of a million would take half an hour, and more memory
)
REACH = 256  # how many times as long as an embedding, or as short, the draws of an automatic sigma may be

# ------------------------------------------------------------------------------------------------------ distances


@dataclass(frozen=True)
class Index:
    """The embeddings of all classes, on the CPU, in an index.

    The index is exact up to round-off below IVF_FROM rows, and without faiss always. From there on faiss looks into the
    nearest sixteenth of its cells only, so that a distance is exact or a little too large.

    Args:
        rows: the embeddings (N, m).
        index: the index that holds them, faiss's where that is installed.
        off: how far the squared length of a row is from 1, at most.
    """

    rows: Tensor
    index: Any
    off: float

    @classmethod
    def of(cls, rows: Tensor, device: torch.device) -> Index:
        """The index of some embeddings.

        Args:
            rows: the embeddings (N, m), float32 on the CPU.
            device: where to search: on a GPU unless faiss is installed and was built without it.

        Raises:
            ValueError: a row is zero or not finite.
        """
        check_rows("bank", rows)
        if faiss is None:
            exact = ExactIndex(rows.shape[1], device=device if device.type == "cuda" else "cpu")
            exact.add(rows.numpy())
            return cls(rows, exact, _off_unit(rows))
        index = flat_index(rows.shape[1])
        if len(rows) >= IVF_FROM:
            index = faiss.IndexIVFFlat(index, rows.shape[1], int(4 * math.sqrt(len(rows))), faiss.METRIC_L2)
            index.nprobe = math.ceil(index.nlist / 16)
        if device.type == "cuda" and hasattr(faiss, "StandardGpuResources"):  # else faiss knows the CPU alone
            index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), device.index or 0, index)
        if not index.is_trained:
            some = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[: TRAINED_ON * index.nlist]
            index.train(rows[some.sort().values].numpy())
        index.add(rows.numpy())
        return cls(rows, index, _off_unit(rows))

    def distance(self, x: Tensor, k: int) -> Tensor:
        """d_k of embeddings, measured to the neighbour that the index finds to be the k-th.

        Args:
            x: the embeddings (n, m).
            k: which nearest neighbour counts.

        Returns:
            The distances (n,).
        """
        out = x.new_empty(len(x))
        for part in blocks(len(x), max(k, x.shape[1])):
            some = x[part].float().cpu()
            kth = torch.from_numpy(self.index.search(some.numpy(), k)[1][:, -1])
            short = (kth < 0).nonzero()[:, 0]  # the cells that were looked into hold fewer than k rows
            if len(short):
                # not by search parameters: faiss.contrib.torch_utils, which OpenOOD imports, does not let them through
                nprobe, self.index.nprobe = self.index.nprobe, self.index.nlist
                kth[short] = torch.from_numpy(self.index.search(some[short].numpy(), k)[1][:, -1])
                self.index.nprobe = nprobe
            out[part] = (some.double() - self.rows[kth].double()).norm(dim=1).to(x)
        return out


def knn_distance(x: Tensor, bank: Tensor | Index, k: int) -> Tensor:
    """Euclidean distance from embeddings to their k-th nearest row of a bank.

    An embedding that is in the bank counts as its own first neighbour.

    Args:
        x: the embeddings (n, m).
        bank: rows (N, m), or an index of them.
        k: which nearest neighbour counts.

    Returns:
        The distances (n,), computed in float64 and rounded to the type of x.

    Raises:
        ValueError: k is not in 1..N, the widths differ, or a row is zero or not finite.
    """
    rows = bank.rows if isinstance(bank, Index) else bank
    check_rows("x", x)
    if bank is not x and not isinstance(bank, Index):  # which was checked when it was made
        check_rows("bank", rows)
    if x.shape[1] != rows.shape[1]:
        raise ValueError(
            f"x has {x.shape[1]} dimensions and the bank {rows.shape[1]}; embed both with the same network"
        )
    _check_k(k, len(rows))
    if isinstance(bank, Index):
        return bank.distance(x, k)
    return kth_distance(x, bank, k).to(x.dtype)


def check_rows(name: str, rows: Tensor) -> None:
    """Checks that embeddings can be measured.

    Args:
        name: what the embeddings are called in the message.
        rows: the embeddings (N, m).

    Raises:
        ValueError: there are none, or a row is zero or not finite.
    """
    if rows.ndim != 2 or not rows.numel():
        raise ValueError(f"{name} has shape {tuple(rows.shape)}; expected one embedding per row")
    length = rows.norm(dim=1)
    bad = (~(length.isfinite() & (length > 0))).nonzero()
    if len(bad):
        row = int(bad[0])
        what = "is zero" if length[row] == 0 else "is not finite"
        raise ValueError(f"{name}: row {row} {what} ({len(bad)} such rows of {len(rows)}); embed its image again")


def _off_unit(rows: Tensor) -> float:
    """How far the squared length of a row is from 1, at most."""
    return max(float((rows[part].square().sum(1) - 1).abs().max()) for part in blocks(*rows.shape))


def _check_k(k: int, count: int) -> None:
    if not 1 <= k <= count:
        raise ValueError(f"k={k} is not in 1..{count}, the number of embeddings; lower k or embed more images")


# ----------------------------------------------------------------------------------------------------- the algorithm


def boundary_points(
    z: Tensor, k: int, select: int, largest: bool = True, bank: Tensor | Index | None = None
) -> tuple[Tensor, Tensor]:
    """The embeddings farthest from the bank (step 1 of DREAM-OOD, Sec. 3.2), or nearest to it (DREAM-ID).

    Args:
        z: unit embeddings (N, m).
        k: which nearest neighbour measures the distance.
        select: how many are wanted.
        largest: the farthest, farthest first; else the nearest, nearest first. Ties go to the lower row.
        bank: rows, or an index of them, to measure the distance to; z where none is given.

    Returns:
        Rows of z (select,) and their distances d_k (select,).

    Raises:
        ValueError: select is not in 1..N, and as `knn_distance` does.
    """
    if not 1 <= select <= len(z):
        raise ValueError(
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
    selection: str = "far",
    index: Index | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """For each boundary point the candidates with the largest d_k (steps 2 and 3 of DREAM-OOD, Sec. 3.2).

    Args:
        z: unit embeddings (N, m) of the class.
        boundary: rows of z (B,), the boundary points.
        k: which nearest neighbour measures the distance.
        sigma: standard deviation of the draws.
        draws: normal vectors (R, m), the same for all boundary points.
        keep: candidates kept per boundary point.
        selection: "far" keeps the farthest, farthest first; "near" the nearest, nearest first (DREAM-ID); "random" any,
            as DREAM-OOD's public code does in effect. Ties go to the lower draw.
        index: the bank where it is more than z; it must hold the rows of z.
        generator: CPU generator of the random selection.

    Returns:
        Rows of draws (B, keep), unit candidates (B, keep, m) and their d_k (B, keep).

    Raises:
        ValueError: k, sigma, keep or selection is out of range.
    """
    _check_k(k, len(z) if index is None else len(index.rows))
    _check_round(sigma, keep, len(draws), selection)
    centres = z[boundary]
    every = torch.arange(len(centres), device=z.device)
    measure = partial(_candidate_distance, centres, z if index is None else index, k, sigma, draws)
    if selection == "random":
        rows = torch.rand(len(centres), len(draws), generator=generator).topk(keep).indices.flatten().to(z.device)
        points = every.repeat_interleave(keep)
    elif index is None or (selection == "far" and k <= len(z)):
        points, rows = _pruned(z, boundary, k, sigma, draws, keep, selection == "far", index)
    else:
        points = every.repeat_interleave(len(draws))
        rows = torch.arange(len(draws), device=z.device).repeat(len(centres))
    distance = measure(points, rows)
    order = _ranked(points, rows, distance, selection != "near")
    starts = torch.searchsorted(points[order].contiguous(), every)
    kept = order[starts[:, None] + torch.arange(keep, device=z.device)]
    vectors = F.normalize(centres[:, None] + sigma * draws[rows[kept]], dim=2)
    return rows[kept], vectors, distance[kept]


def _check_round(sigma: float, keep: int, draws: int, selection: str) -> None:
    if not 1 <= keep <= draws:
        raise ValueError(f"keep={keep} is not in 1..{draws}, the number of draws; lower keep or raise n_draws")
    if not 0 < sigma < math.inf:
        raise ValueError(f"sigma={sigma} is not a positive number")
    if selection not in ("far", "near", "random"):
        raise ValueError(f"selection={selection!r} is unknown; expected 'far', 'near' or 'random'")


def _pruned(
    z: Tensor, boundary: Tensor, k: int, sigma: float, draws: Tensor, keep: int, farthest: bool, index: Index | None
) -> tuple[Tensor, Tensor]:
    """The (boundary point, draw) pairs that may be among the best of their point."""
    off = _off_unit(z) if index is None else index.off
    found = []
    # where the class is so large that (draws, z) does not fit, the best of all draws are among the blocks' best
    for block in blocks(len(draws), len(z)):
        some = draws[block]
        measure = None if index is None else partial(_candidate_distance, z[boundary], index, k, sigma, some)
        points, rows = contenders(boundary, z, k, sigma, some, keep, farthest, off, measure)
        found.append((points, rows + block.start))
    points, rows = (torch.cat(part) for part in zip(*found, strict=True))
    return points, rows


def _ranked(points: Tensor, rows: Tensor, distance: Tensor, farthest: bool) -> Tensor:
    """The order of candidates by boundary point, then by distance, then by draw."""
    order = rows.argsort(stable=True)
    order = order[distance[order].argsort(descending=farthest, stable=True)]
    return order[points[order].argsort(stable=True)]


def _candidate_distance(
    centres: Tensor, bank: Tensor | Index, k: int, sigma: float, draws: Tensor, points: Tensor, rows: Tensor
) -> Tensor:
    """d_k (P,) of the candidates (points[i], rows[i]), computed in float64 and rounded to the type of the centres."""
    out = centres.new_empty(len(points))
    if isinstance(bank, Index):
        for part in blocks(len(points), centres.shape[1]):
            out[part] = bank.distance(F.normalize(centres[points[part]] + sigma * draws[rows[part]], dim=1), k)
        return out
    start = centres.double()
    for part in blocks(len(points), max(bank.shape)):
        candidates = F.normalize(start[points[part]] + sigma * draws[rows[part]].double(), dim=1)
        out[part] = kth_distance(candidates, bank, k).to(out.dtype)
    return out


# -------------------------------------------------------------------------------------------------------- one class


def sample_outliers(
    z: Tensor,
    *,
    k: int = 300,
    sigma: float | Literal["auto"] = 0.07,
    multiple: float = 1.1,
    select: int = 50,
    n_boundary: int = 50,
    n_draws: int = 1500,
    keep: int = 2,
    rounds: int = 100,
    selection: Literal["far", "random"] = "far",
    inliers: bool = False,
    seed: int = 0,
    label: int = 0,
    index: Index | None = None,
) -> dict[str, Tensor]:
    """Outliers, or inliers, of one class: DREAM-OOD, Sec. 3.2 (DREAM-ID for inliers), with its numbers as defaults.

    Args:
        z: unit embeddings (N, m) of the class.
        k: which nearest neighbour measures the distance.
        sigma: standard deviation of the draws; "auto" finds the one that `multiple` describes.
        multiple: with sigma "auto", the median d_k of what is kept, over the 99th percentile of d_k of z.
        select: boundary points of the class.
        n_boundary: boundary points used in a round.
        n_draws: draws of a round.
        keep: candidates kept per boundary point and round.
        rounds: repetitions with fresh draws.
        selection: which candidates are kept: the "far" ones (with `inliers` the near ones), or "random" ones.
        inliers: whether boundary points are the nearest embeddings instead of the farthest, and candidates likewise.
        seed: seed of the draws.
        label: the class, which has draws of its own.
        index: the embeddings of all classes, z among them, where distances are to count all of them.

    Returns:
        Columns of M = rounds * n_boundary * keep rows: unit `embeddings` (M, m); `boundary`, rows of z; `distance`, their
        d_k; `seed` and `draw`: an embedding is the draw-th of the normal vectors of that seed, times sigma, added to its
        boundary point and normalised. And the scalar `sigma`.

    Raises:
        ValueError: a number is out of range, or no sigma gives the `multiple`.
    """
    edge, _ = boundary_points(z, k, select, not inliers, index)
    rule = "random" if selection == "random" else "near" if inliers else "far"
    around = _Rounds(z, edge, k, n_boundary, n_draws, keep, rule, index)
    if sigma == "auto":
        goal = multiple * knn_distance(z, z if index is None else index, k).double().quantile(0.99).item()
        sigma = _choose_sigma(around, goal, multiple, round_seed(seed, label, 0))
    parts = [around.sample(sigma, round_seed(seed, label, number)) for number in range(rounds)]
    found = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return found | {"sigma": torch.tensor(sigma, dtype=torch.float64)}


def round_seed(seed: int, label: int, number: int) -> int:
    """The seed of the draws of a round.

    Args:
        seed: the seed of all.
        label: the class.
        number: which of its rounds.
    """
    return int.from_bytes(sha256(f"{seed}/{label}/{number}".encode()).digest()[:6], "big")


@dataclass(frozen=True)
class _Rounds:
    """The rounds around the boundary points z[edge] of a class; fields are arguments of `sample_outliers`."""

    z: Tensor
    edge: Tensor
    k: int
    n_boundary: int
    n_draws: int
    keep: int
    selection: str
    index: Index | None

    def sample(self, sigma: float, seed: int) -> dict[str, Tensor]:
        """What a round keeps around `n_boundary` of the boundary points, as columns."""
        # drawn on the CPU, so that every device has the same draws
        generator = torch.Generator().manual_seed(seed)
        draws = torch.randn(self.n_draws, self.z.shape[1], generator=generator).to(self.z)
        order = torch.randperm(len(self.edge), generator=generator)[: self.n_boundary]
        points = self.edge[order.to(self.edge.device)]
        draw, vectors, distance = sample_round(
            self.z, points, self.k, sigma, draws, self.keep, self.selection, self.index, generator
        )
        return {
            "embeddings": vectors.flatten(0, 1),
            "boundary": points.repeat_interleave(self.keep),
            "distance": distance.flatten(),
            "seed": torch.full_like(draw.flatten(), seed),
            "draw": draw.flatten(),
        }


def _choose_sigma(around: _Rounds, goal: float, multiple: float, seed: int) -> float:
    """The sigma whose kept candidates have a median d_k of `goal`, by bisection to a tenth of a percent on one round.

    ValueError where no sigma does: the nearest candidates are about as far as their boundary points, the farthest about
    orthogonal to them.
    """

    def kept(sigma: float) -> float:
        return around.sample(sigma, seed)["distance"].median().item()

    # from draws about as long as an embedding, in steps of four either way until the goal is between two of them
    low = high = start = 1 / math.sqrt(around.z.shape[1])
    nearest = farthest = kept(start)
    while nearest >= goal and low > start / REACH:
        low, high = low / 4, low
        nearest = kept(low)
    while farthest <= goal and high < start * REACH:
        low, high = high, 4 * high
        farthest = kept(high)
    if not nearest < goal < farthest:
        had = f"{nearest:.4g} or more" if goal <= nearest else f"{farthest:.4g} or less"
        raise ValueError(
            f"sigma auto: multiple {multiple:g} asks for a distance of {goal:.4g}, candidates have {had}; "
            "change multiple, or give sigma a number"
        )
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if kept(middle) < goal else (low, middle)
    return math.sqrt(low * high)
