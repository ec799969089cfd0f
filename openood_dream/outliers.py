"""Phase 2a: outlier and inlier embeddings around the images of each class, by k-NN distance or by boundary crossing.

Names as in DREAM-OOD (Du et al., NeurIPS 2023, Sec. 3.2) and BOOD (Liao et al., ICML 2025): z are unit embeddings, a
*boundary point* is an embedding far from its class, *draws* are Gaussian vectors g, a *candidate* is
v = normalise(z_b + sigma g), and d_k(v, Z) is the distance from v to the k-th nearest row of Z, the *bank*.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from openood_dream import anchors as anchors_stage
from openood_dream import data, store
from openood_dream import space as space_stage
from openood_dream.config import Config, InputError, OutlierSettings, origin, settings
from openood_dream.networks import pick_device

BLOCK = 1 << 22  # elements of the largest temporary; float64 at that size is 32 MiB
IVF_FROM = 200_000  # rows of a bank from which an exact search over all classes takes too long
REACH = 256  # how many times as long as an embedding, or as short, the draws of an automatic sigma may be
QUANTILES = {"p5": 0.05, "p50": 0.5, "p95": 0.95, "p99": 0.99}


# ------------------------------------------------------------------------------------------------------ distances


def knn_distance(x: Tensor, bank: Tensor | Index, k: int) -> Tensor:
    """Euclidean distance (n,) from each row of x (n, m) to its k-th nearest row of bank (N, m).

    A row of x that is in the bank counts as its own first neighbour. Raises InputError where k is not in 1..N, the
    widths differ, or a row is zero or not finite.
    """
    rows = bank.rows if isinstance(bank, Index) else bank
    _check_rows("x", x)
    if rows is not x:
        _check_rows("bank", rows)
    if x.shape[1] != rows.shape[1]:
        raise InputError(
            f"x has {x.shape[1]} dimensions and the bank {rows.shape[1]}; embed both with the same network"
        )
    _check_k(k, len(rows))
    if isinstance(bank, Index):
        return bank.distance(x, k)
    wide = bank.double()
    squares = wide.square().sum(1)
    out = x.new_empty(len(x))
    for part in _blocks(len(x), max(bank.shape)):
        some = x[part].double()
        # |x|^2 is the same for all neighbours, so it has no say in which one is the k-th
        kth = torch.addmm(squares, some, wide.T, alpha=-2).topk(k, dim=1, largest=False).indices[:, -1]
        # subtracting the two rows, rather than expanding the square, makes duplicates exactly 0 apart
        out[part] = (some - wide[kth]).norm(dim=1).to(x.dtype)
    return out


@dataclass(frozen=True)
class Index:
    """The embeddings `rows` (N, m) of all classes, on the CPU, in a faiss index.

    The index is exact up to round-off below IVF_FROM rows. From there on it looks into the nearest sixteenth of its
    cells only, so that a distance is exact or a little too large.
    """

    rows: Tensor
    index: faiss.Index
    off: float  # how far the squared length of a row is from 1, at most

    @classmethod
    def of(cls, rows: Tensor, device: torch.device) -> Index:
        """The index of `rows` (N, m), on the GPU where the device is one and faiss was built for it."""
        index = faiss.IndexFlatL2(rows.shape[1])
        if len(rows) >= IVF_FROM:
            index = faiss.IndexIVFFlat(index, rows.shape[1], int(4 * math.sqrt(len(rows))), faiss.METRIC_L2)
            index.nprobe = math.ceil(index.nlist / 16)
        if device.type == "cuda" and hasattr(faiss, "index_cpu_to_gpus_list"):
            index = faiss.index_cpu_to_gpus_list(index, gpus=[device.index or 0])
        index.train(rows.numpy())
        index.add(rows.numpy())
        return cls(rows, index, _off_unit(rows))

    def distance(self, x: Tensor, k: int) -> Tensor:
        """d_k (n,) of each row of x (n, m), measured to the neighbour that faiss finds to be the k-th."""
        out = x.new_empty(len(x))
        for part in _blocks(len(x), max(k, x.shape[1])):
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


def _off_unit(rows: Tensor) -> float:
    return float((rows.square().sum(1) - 1).abs().max())


def _check_k(k: int, count: int) -> None:
    if not 1 <= k <= count:
        raise InputError(f"k={k} is not in 1..{count}, the number of embeddings; lower k or embed more images")


# ---------------------------------------------------------------------------------------------- k-NN outliers, inliers


def boundary_points(
    z: Tensor, k: int, select: int, largest: bool = True, bank: Tensor | Index | None = None
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
    selection: str = "far",
    index: Index | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """For each boundary point z[boundary] (B,), the `keep` candidates with the largest d_k (steps 2 and 3).

    Returns indices into draws (B, keep), unit candidates (B, keep, m) and their d_k (B, keep), farthest first; ties in
    d_k go to the lower draw. `selection="near"` keeps the nearest, nearest first (DREAM-ID), and `selection="random"`
    uniformly random candidates drawn with the CPU `generator`, as the public code does in effect. z has unit rows,
    draws are (R, m). The bank is z, or the rows of `index`, which must hold those of z. Raises InputError for k, sigma,
    keep or selection out of range. Source: DREAM-OOD, Sec. 3.2.
    """
    _check_k(k, len(z) if index is None else len(index.rows))
    if not 1 <= keep <= len(draws):
        raise InputError(f"keep={keep} is not in 1..{len(draws)}, the number of draws; lower keep or raise n_draws")
    if not 0 < sigma < math.inf:
        raise InputError(f"sigma={sigma} is not a positive number")
    if selection not in ("far", "near", "random"):
        raise InputError(f"selection={selection!r} is unknown; expected 'far', 'near' or 'random'")
    centres = z[boundary]
    every = torch.arange(len(centres), device=z.device)
    if selection == "random":
        rows = torch.rand(len(centres), len(draws), generator=generator).topk(keep).indices.flatten().to(z.device)
        points = every.repeat_interleave(keep)
    elif index is None or (selection == "far" and k <= len(z)):
        # where the class is so large that (draws, z) does not fit, the best of all draws are among the blocks' best
        parts = [
            (points, rows + block.start)
            for block in _blocks(len(draws), len(z))
            for points, rows in [_contenders(centres, z, k, sigma, draws[block], keep, selection == "far", index)]
        ]
        points, rows = (torch.cat(part) for part in zip(*parts, strict=True))
    else:
        points = every.repeat_interleave(len(draws))
        rows = torch.arange(len(draws), device=z.device).repeat(len(centres))
    distance = _candidate_distance(centres, z if index is None else index, k, sigma, draws, points, rows)
    order = _ranked(points, rows, distance, selection != "near")
    starts = torch.searchsorted(points[order].contiguous(), every)
    kept = order[starts[:, None] + torch.arange(keep, device=z.device)]
    vectors = F.normalize(centres[:, None] + sigma * draws[rows[kept]], dim=2)
    return rows[kept], vectors, distance[kept]


def _ranked(points: Tensor, rows: Tensor, distance: Tensor, farthest: bool) -> Tensor:
    """The order of candidates by boundary point, then by distance, then by draw."""
    order = rows.argsort(stable=True)
    order = order[distance[order].argsort(descending=farthest, stable=True)]
    return order[points[order].argsort(stable=True)]


def _contenders(
    centres: Tensor, z: Tensor, k: int, sigma: float, draws: Tensor, keep: int, farthest: bool, index: Index | None
) -> tuple[Tensor, Tensor]:
    """The (boundary point, draw) pairs that may be among the `keep` best of their point; no other pair can be.

    On unit vectors the farther candidate is the one whose k-th largest cosine with the bank is smaller, and cosines
    need no candidates: <z_b + sigma g, z_j> = <z_b, z_j> + sigma <g, z_j>. So one product of draws and bank serves all
    boundary points, and a pair is dropped by a bound from mean and variance, or by counting, with room for round-off.
    Where the bank is that of an index, a pair is dropped for its cosines with z alone: more rows only make them larger.
    """
    size, width = z.shape
    # nearest is farthest with the signs turned: the k-th largest of x is minus the (N - k + 1)-th largest of -x
    sign, rank = (1, k) if farthest else (-1, size - k + 1)
    gram = sign * (centres @ z.T)  # (B, N)
    shift = (draws @ z.T).mul_(sign * sigma)  # (R, N)
    spread = sigma * draws.norm(dim=1)  # (R,)
    length = (
        (centres.square().sum(1, keepdim=True) + 2 * sigma * (centres @ draws.T) + spread.square()).clamp_min(0).sqrt()
    )
    length = length.clamp_min(torch.finfo(length.dtype).tiny)  # (B, R)
    # round-off of a cosine; rows that are unit only nearly shift the order by distance against that by cosine
    off = _off_unit(z) if index is None else index.off
    slack = ((1 + spread) / length).square().mul_(4 * _roundoff(z, width)).add_(off)

    gram_mean, shift_mean = gram.mean(1, keepdim=True), shift.mean(1, keepdim=True)
    gram_free, shift_free = gram - gram_mean, shift - shift_mean
    gram_var, shift_var = gram_free.square().mean(1, keepdim=True), shift_free.square().mean(1)
    mean = (gram_mean + shift_mean.T) / length
    room = _roundoff(z, size) * (gram_var + shift_var)  # the root of a variance near 0 magnifies its round-off
    std = (gram_var + shift_var + (2 / size) * (gram_free @ shift_free.T) + room).clamp_min(0).sqrt() / length

    # the few that look best, as if cosines were normally distributed, set the cosine that the others have to beat
    quantile = float(torch.special.ndtri(torch.tensor(1 - (rank - 0.5) / size, dtype=torch.float64)))
    keep = min(keep, len(draws))
    best = (mean + quantile * std).topk(min(len(draws), keep + 4), dim=1, largest=False).indices
    cosine = torch.empty_like(best, dtype=mean.dtype)
    for part in _blocks(len(best), best.shape[1] * size):
        values = shift[best[part]].add_(gram[part, None])
        cosine[part] = values.topk(rank, dim=2, sorted=False).values.amin(2)
    cosine /= length.gather(1, best)
    if index is not None:
        points = torch.arange(len(best), device=z.device).repeat_interleave(best.shape[1])
        distance = _candidate_distance(centres, index, k, sigma, draws, points, best.flatten())
        cosine = cosine.maximum(1 - distance.square().view_as(best) / 2)  # a faiss index may overlook rows of z
    cut = (cosine + slack.gather(1, best)).topk(keep, dim=1, largest=False).values[:, -1:]  # (B, 1)

    # N - rank + 1 of N numbers are at most the rank-th largest, so it is at least this far below their mean or nearer
    bound = mean - math.sqrt((rank - 1) / (size - rank + 1)) * std - slack
    possible = ~(bound > cut)  # not <=, so that what cannot be computed is kept
    points, rows = possible.nonzero(as_tuple=True)
    level = (cut + slack).mul_(length)[points, rows]
    each = possible.sum(1).tolist()
    # point by point, so that its cosines with the bank need no copy for each pair; gt_ leaves ones and zeros
    above = torch.cat(
        [
            shift[some].add_(gram[b]).gt_(bar[:, None]).sum(1)
            for b, (some, bar) in enumerate(zip(rows.split(each), level.split(each), strict=True))
        ]
    )
    alive = above < rank
    return points[alive], rows[alive]


def _roundoff(like: Tensor, terms: int) -> float:
    """The largest relative error of a dot product of so many terms, at the matmul precision that torch is set to."""
    inputs = {"highest": 0.0, "high": 2.0**-10, "medium": 2.0**-7}[torch.get_float32_matmul_precision()]
    # 64 more for what is done with the product: sums in a tree, a few products, rounding a distance
    return (terms + 64) * torch.finfo(like.dtype).eps / 2 + inputs


def _candidate_distance(
    centres: Tensor, bank: Tensor | Index, k: int, sigma: float, draws: Tensor, points: Tensor, rows: Tensor
) -> Tensor:
    """d_k (P,) of the candidates (points[i], rows[i]), computed in float64 and rounded to the type of the centres."""
    out = centres.new_empty(len(points))
    if isinstance(bank, Index):
        for part in _blocks(len(points), centres.shape[1]):
            out[part] = bank.distance(F.normalize(centres[points[part]] + sigma * draws[rows[part]], dim=1), k)
        return out
    wide, start = bank.double(), centres.double()
    squares, gram = wide.square().sum(1), start @ wide.T
    for part in _blocks(len(points), max(bank.shape)):
        used, place = rows[part].unique(return_inverse=True)
        step = sigma * draws[used].double()
        shift, b = step @ wide.T, points[part]
        candidates = start[b] + step[place]
        length = candidates.norm(dim=1, keepdim=True)
        kth = (squares - 2 * (gram[b] + shift[place]) / length).topk(k, dim=1, largest=False).indices[:, -1]
        out[part] = (candidates / length - wide[kth]).norm(dim=1).to(out.dtype)
    return out


# --------------------------------------------------------------------------------------------------- boundary crossing


def cross_boundary(
    z: Tensor,
    labels: Tensor,
    anchors: Tensor,
    temperature: float,
    step_size: float,
    extra_steps: int,
    max_steps: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Walks each embedding z (N, m) of class `labels` (N,) uphill on its cross-entropy and out of its class.

    A step is z <- z + step_size sign(grad CE(f(z), y)), f the cosine classifier of the `anchors` (C, m). Returns the
    unit embeddings (N, m) `extra_steps` beyond the crossing, the steps (N,) that the crossing took, and the class (N,)
    crossed into. Steps are 0 for an embedding that f gives another class to begin with, and -1, like the class, for one
    that is still in its class after `max_steps`. Raises InputError for fewer than two anchors. Source: BOOD.
    """
    if len(anchors) < 2:
        raise InputError("boundary crossing needs two classes or more; choose another method")
    towards = F.normalize(anchors, dim=1)
    z, own = z.clone(), F.one_hot(labels, len(anchors)).bool()
    steps = torch.full_like(labels, -1)
    target = torch.full_like(labels, -1)
    beyond = torch.zeros_like(labels)
    walking = torch.arange(len(z), device=z.device)
    for step in range(max_steps + extra_steps + 1):
        x, y = F.normalize(z[walking], dim=1), labels[walking]
        cosines = x @ towards.T
        guess = cosines.argmax(1)
        crosses = (steps[walking] < 0) & (guess != y)
        steps[walking[crosses]], target[walking[crosses]] = step, guess[crosses]
        crossed = steps[walking] >= 0
        go = torch.where(crossed, beyond[walking] < extra_steps, torch.tensor(step < max_steps, device=z.device))
        beyond[walking[crossed]] += 1
        walking, x, y, cosines = walking[go], x[go], y[go], cosines[go]
        if not len(walking):
            break
        # The gradient is (1 - p_y) / (t |z|) times this. Softmax over the other classes is p_j / (1 - p_y), and so the
        # sign is right even where p_y rounds to 1.
        pull = (cosines / temperature).masked_fill(own[walking], -math.inf).softmax(1) - own[walking].to(x.dtype)
        uphill = pull @ towards - (pull * cosines).sum(1, keepdim=True) * x
        z[walking] += step_size * uphill.sign()
    return F.normalize(z, dim=1), steps, target


def soonest(steps: Tensor, fraction: float) -> Tensor:
    """The rows of the share of a class that crosses in the fewest `steps` (N,), fewest first; ties go to the lower row.

    Fewer where fewer cross: those that start outside of their class (0) or never leave it (-1) do not.
    """
    order = steps.argsort(stable=True)
    return order[steps[order] > 0][: math.ceil(fraction * len(steps))]


# ---------------------------------------------------------------------------------------------------------- one class


def round_seed(seed: int, label: int, number: int) -> int:
    """The seed of the draws of round `number` of class `label`."""
    return int.from_bytes(sha256(f"{seed}/{label}/{number}".encode()).digest()[:6], "big")


def _round(
    z: Tensor, edge: Tensor, sigma: float, seed: int, s: OutlierSettings, index: Index | None
) -> dict[str, Tensor]:
    """The kept candidates of one round around `n_boundary` of the boundary points z[edge], as columns of M rows."""
    # drawn on the CPU, so that every device has the same draws
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(s.n_draws, z.shape[1], generator=generator).to(z)
    points = edge[torch.randperm(len(edge), generator=generator)[: s.n_boundary].to(edge.device)]
    rule = "random" if s.selection == "random" else "near" if s.method == "inlier" else "far"
    draw, vectors, distance = sample_round(z, points, s.k, sigma, draws, s.keep, rule, index, generator)
    return {
        "embeddings": vectors.flatten(0, 1),
        "boundary": points.repeat_interleave(s.keep),
        "distance": distance.flatten(),
        "seed": torch.full_like(draw.flatten(), seed),
        "draw": draw.flatten(),
    }


def sample_class(z: Tensor, label: int, s: OutlierSettings, index: Index | None = None) -> dict[str, Tensor]:
    """Outliers, or inliers, of class `label` with unit embeddings z (N, m): all rounds, as columns of M rows.

    `embeddings` (M, m) are unit, `boundary` are rows of z; an embedding is the `draw`-th of the normal vectors of
    `seed`, times `sigma` (a scalar), added to its boundary point and normalised. Raises InputError as boundary_points,
    sample_round and choose_sigma do.
    """
    edge, _ = boundary_points(z, s.k, s.select, s.method != "inlier", index)
    sigma = choose_sigma(z, edge, label, s, index) if s.sigma == "auto" else s.sigma
    rounds = [_round(z, edge, sigma, round_seed(s.seed, label, number), s, index) for number in range(s.rounds)]
    found = {name: torch.cat([part[name] for part in rounds]) for name in rounds[0]}
    return found | {"sigma": torch.tensor(sigma, dtype=torch.float64)}


def choose_sigma(z: Tensor, edge: Tensor, label: int, s: OutlierSettings, index: Index | None = None) -> float:
    """The sigma whose kept candidates have a median d_k of `multiple` times the 99th percentile of d_k of z (N, m).

    By bisection, to a tenth of a percent, on the draws of the first round around z[edge]. Raises InputError where no
    sigma does: the nearest candidates are about as far as their boundary points, the farthest about orthogonal to them.
    """
    target = s.multiple * knn_distance(z, z if index is None else index, s.k).double().quantile(0.99).item()
    seed = round_seed(s.seed, label, 0)

    def kept(sigma: float) -> float:
        return _round(z, edge, sigma, seed, s, index)["distance"].median().item()

    # from draws about as long as an embedding, in steps of four either way until the target is between two of them
    low = high = start = 1 / math.sqrt(z.shape[1])
    nearest = farthest = kept(start)
    while nearest >= target and low > start / REACH:
        low, high = low / 4, low
        nearest = kept(low)
    while farthest <= target and high < start * REACH:
        low, high = high, 4 * high
        farthest = kept(high)
    if not nearest < target < farthest:
        had = f"{nearest:.4g} or more" if target <= nearest else f"{farthest:.4g} or less"
        raise InputError(
            f"sigma auto: multiple {s.multiple:g} asks for a distance of {target:.4g}, candidates have {had}; "
            "change multiple, or give sigma a number"
        )
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if kept(middle) < target else (low, middle)
    return math.sqrt(low * high)


def cross_class(
    z: Tensor, label: int, anchors: Tensor, temperature: float, s: OutlierSettings, index: Index | None = None
) -> dict[str, Tensor]:
    """Outliers of class `label` with unit embeddings z (N, m) beyond its boundary, as columns of M rows.

    `embeddings` (M, m) are unit, `boundary` are rows of z, and `all_steps` and `all_target` (N,) are cross_boundary's
    of all of z. Raises InputError where no embedding crosses.
    """
    labels = torch.full((len(z),), label, device=z.device)
    vectors, steps, target = cross_boundary(z, labels, anchors, temperature, s.step_size, s.extra_steps, s.max_steps)
    if not steps.any():
        raise InputError(
            f"none of {len(z)} embeddings is nearest to its own class, so that none can leave it; train the space for "
            "longer (dream.space.epochs)"
        )
    source = soonest(steps, s.fraction)
    if not len(source):
        raise InputError(
            f"none of {len(z)} embeddings crosses the boundary within {s.max_steps} steps of {s.step_size:g}; "
            "raise max_steps or step_size"
        )
    return {
        "embeddings": vectors[source],
        "boundary": source,
        "distance": knn_distance(vectors[source], z if index is None else index, s.k),
        "steps": steps[source],
        "target": target[source],
        "all_steps": steps,
        "all_target": target,
    }


def plain_class(
    z: Tensor, label: int, anchors: Tensor, s: OutlierSettings, index: Index | None = None
) -> dict[str, Tensor]:
    """The anchor of class `label` in the place of outliers, as columns of one row: images without outlier embeddings.

    `boundary` is the row of z (N, m) that is nearest to it.
    """
    towards = F.normalize(anchors[label : label + 1], dim=1)
    return {
        "embeddings": towards.clone(),
        "boundary": (z @ towards[0]).argmax()[None],
        "distance": knn_distance(towards, z if index is None else index, s.k),
        "sigma": torch.tensor(0.0, dtype=torch.float64),
    }


# ----------------------------------------------------------------------------------------------------------- the stage

WALK = {"step_size", "extra_steps", "max_steps", "fraction"}  # the settings of boundary crossing alone


def relevant(s: OutlierSettings) -> dict[str, Any]:
    """The settings that have a say in what is sampled."""
    if s.method == "plain":
        return s.model_dump(include={"method", "k", "neighbours"})
    if s.method == "boundary":
        return s.model_dump(include={"method", "k", "neighbours", *WALK})
    return s.model_dump(exclude=WALK if s.sigma == "auto" else {*WALK, "multiple"})


def run(config: Config) -> store.Artifact:
    """The outliers stage: `embeddings.safetensors` with `embeddings` (M, m), class by class and as long as the anchor
    of their class, so that they can take the place of its token, and `outliers.parquet` with a row for each.

    Its columns are class, boundary (the row of the boundary point, or of the embedding that crossed, in the space
    artifact), distance (d_k), steps and target (boundary crossing), seed and draw (the others). Boundary crossing
    writes `crossings.parquet` too: class, boundary, steps and target of every ID embedding. The manifest has a list of
    `classes` with the number of embeddings, sigma, and quantiles of d_k of ID embeddings and of those found. Raises
    InputError for settings that do not fit the embeddings, and for embeddings that cannot be used.
    """
    dream, names = settings(config, "dream"), data.class_names(config)
    s: OutlierSettings = dream.outliers
    if s.neighbours == "class":  # the rest can be said only of a space that is made
        _check_counts(config, s, [dream.space.per_class] * len(names), names)
    anchors_artifact, upstream = anchors_stage.run(config), space_stage.run(config)
    anchors, inside = anchors_stage.load(anchors_artifact), space_stage.load(upstream)
    _check_anchors_and_space(anchors, inside, names, anchors_artifact, upstream)
    _check_counts(config, s, inside["labels"].bincount().tolist(), names)
    inputs = {"space": upstream.hash, "outliers": relevant(s)}

    def make(folder: Path) -> dict[str, Any]:
        device = pick_device(config.device)
        if device.type == "mps":  # which has no float64
            device = torch.device("cpu")
        index = Index.of(inside["embeddings"], device) if s.neighbours == "all" else None
        todo = [label for label in range(len(names)) if not _shard(folder, label).exists()]
        done = len(names) - len(todo)
        with tqdm(total=len(names), initial=done, desc="outliers: sampling", unit="class") as bar:
            for label in todo:
                rows = (inside["labels"] == label).nonzero()[:, 0]
                z = inside["embeddings"][rows].to(device)
                try:
                    if s.method == "boundary":
                        found = cross_class(z, label, anchors.to(device), dream.space.temperature, s, index)
                    elif s.method == "plain":
                        found = plain_class(z, label, anchors.to(device), s, index)
                    else:
                        found = sample_class(z, label, s, index)
                except InputError as error:
                    raise InputError(f"{_where(config, '')}: class {names[label]!r}: {error}") from None
                found["embeddings"] *= anchors[label].norm()
                found["boundary"] = rows[found["boundary"].cpu()]
                found["id_distance"] = knn_distance(z, z if index is None else index, s.k)
                store.write_tensors(_shard(folder, label), rows=rows, **found)
                bar.update()
        return {"classes": _join(folder, names)}

    artifact = store.build(dream.cache_dir, "outliers", inputs, make)
    # only now that the manifest is there, so that an interruption costs one class at most
    shutil.rmtree(_shard(artifact.path, 0).parent, ignore_errors=True)
    return artifact


def load(artifact: store.Artifact) -> tuple[pd.DataFrame, Tensor]:
    """The table of an outliers artifact and its embeddings (M, m); of these only what is used is read into memory."""
    embeddings = store.read_tensors(artifact.path / "embeddings.safetensors")["embeddings"]
    return store.read_table(artifact.path / "outliers.parquet"), embeddings


def _where(config: Config, key: str) -> str:
    """The start of a message about a key of dream.outliers: who set it, and its name."""
    key = f"dream.outliers.{key}".rstrip(".")
    return f"{origin(config, key)}: {key}"


def _check_anchors_and_space(
    anchors: Tensor, inside: dict[str, Tensor], names: Sequence[str], made: store.Artifact, upstream: store.Artifact
) -> None:
    """Raises InputError where anchors and space do not fit each other, or a row of either cannot be used."""
    file, again = upstream.path / "embeddings.safetensors", "delete its folder and run again"
    z, labels = inside["embeddings"], inside["labels"]
    _check_rows(f"{made.path / 'anchors.safetensors'}: anchors", anchors)
    _check_rows(f"{file}: embeddings", z)
    if z.shape[1] != anchors.shape[1]:
        raise InputError(f"{file}: embeddings of {z.shape[1]} dimensions for anchors of {anchors.shape[1]}; {again}")
    off = (z.norm(dim=1) - 1).abs()
    if off.max() > 1e-3:
        row = int(off.argmax())
        raise InputError(f"{file}: embeddings: row {row} has norm {z[row].norm():.4g}, expected 1; {again}")
    absent = [label for label in range(len(anchors)) if not (labels == label).any()]
    if absent:
        raise InputError(
            f"{file}: no embedding of class {names[absent[0]]!r}: {len(anchors)} anchors, and embeddings of "
            f"{len(anchors) - len(absent)} classes; give every class of dream.class_names training images"
        )


def _check_counts(config: Config, s: OutlierSettings, counts: Sequence[int], names: Sequence[str]) -> None:
    """Raises InputError for a k or a select that a class has too few embeddings for."""
    few = int(np.argmin(counts))
    given, bank, whose = s.k, counts[few], f"class {names[few]!r}"
    if s.neighbours == "all":
        bank, whose = sum(counts), "all classes together"
    remedy = "or raise dream.space.per_class (and have as many training images)"
    if given >= bank:
        raise InputError(
            f"{_where(config, 'k')}: {given} is not below {bank}, the number of embeddings of {whose}; lower k {remedy}"
        )
    if s.method not in ("boundary", "plain") and s.select > counts[few]:
        raise InputError(
            f"{_where(config, 'select')}: {s.select} boundary points of class {names[few]!r}, which has {counts[few]} "
            f"embeddings; lower select {remedy}"
        )


def _shard(folder: Path, label: int) -> Path:
    """Where the result of one class lies until all are there. It depends on the config and the class alone."""
    return folder / "classes" / f"{label:06d}.safetensors"


def _join(folder: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    """Joins the classes' results to the files of the artifact, and returns what the manifest says of each class."""
    frames, crossings, classes = [], [], []
    for label, name in enumerate(names):
        found = store.read_tensors(_shard(folder, label))
        columns = {
            column: pd.array(found[column].numpy(), "Int64") if column in found else pd.NA
            for column in ("steps", "target", "seed", "draw")
        }
        frame = {"class": label, "boundary": found["boundary"].numpy(), "distance": found["distance"].numpy()}
        frames.append(pd.DataFrame(frame | columns).astype(dict.fromkeys(columns, "Int64")))
        about = {"name": name, "embeddings": len(found["boundary"])}
        if "sigma" in found:
            about["sigma"] = found["sigma"].item()
        else:
            steps, target = found["all_steps"].numpy(), found["all_target"].numpy()
            about["crossed"] = float(np.mean(steps > 0))
            frame = {"class": label, "boundary": found["rows"].numpy(), "steps": steps, "target": target}
            crossings.append(pd.DataFrame(frame))
        about |= {"id_distance": _quantiles(found["id_distance"]), "distance": _quantiles(found["distance"])}
        classes.append(about)
    table = pd.concat(frames, ignore_index=True)
    store.write_table(folder / "outliers.parquet", table)
    if crossings:
        store.write_table(folder / "crossings.parquet", pd.concat(crossings, ignore_index=True))
    store.join_tensors(
        folder / "embeddings.safetensors", "embeddings", [_shard(folder, label) for label in range(len(names))]
    )
    return classes


def _quantiles(distance: Tensor) -> dict[str, float]:
    values = np.quantile(distance.double().numpy(), list(QUANTILES.values()))
    return dict(zip(QUANTILES, values.tolist(), strict=True))
