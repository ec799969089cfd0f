"""k-NN sampling, slow and obvious: what the fast versions are compared with."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F


def slow_distance(v: np.ndarray, bank: np.ndarray, k: int) -> float:
    """d_k of one vector: all distances, sorted, the k-th."""
    return sorted(math.sqrt(sum((v - row) ** 2)) for row in bank)[k - 1]


def slow_round(
    z: torch.Tensor,
    boundary: torch.Tensor,
    k: int,
    sigma: float,
    draws: torch.Tensor,
    keep: int,
    farthest: bool,
    bank: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Steps 2 and 3 of DREAM-OOD with every candidate formed and measured: indices and distances (B, keep)."""
    z, draws, bank = (t.double().numpy() for t in (z, draws, bank))
    indices, distances = [], []
    for b in boundary.tolist():
        candidates = z[b] + sigma * draws
        candidates /= np.linalg.norm(candidates, axis=1, keepdims=True)
        between = np.linalg.norm(candidates[:, None] - bank, axis=2)
        # rounded, so that candidates that differ by less than a float32 can tell are ties
        d = np.sort(between, axis=1)[:, k - 1].astype(np.float32)
        order = sorted(range(len(draws)), key=lambda i: (-d[i] if farthest else d[i], i))[:keep]
        indices.append(order)
        distances.append(d[order])
    return torch.tensor(indices), torch.tensor(np.array(distances))


def unit(rows: int, width: int, generator: torch.Generator, distinct: int | None = None) -> torch.Tensor:
    """Random unit rows around a common direction, some of them duplicates where fewer are to be `distinct`."""
    z = F.normalize(torch.randn(width, generator=generator) + torch.randn(rows, width, generator=generator), dim=1)
    return z if distinct is None else z[torch.randint(distinct, (rows,), generator=generator)]
