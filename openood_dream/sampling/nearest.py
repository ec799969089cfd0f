"""The distance to the k-th nearest row of a bank, exact at the price of a product in the rows' own number format.

Distances in float32 leave a few rows in question, those within round-off of the k-th; only these are measured in float64.
How many they are has to be known, so that a GPU would be waited for: there all is measured in float64.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from openood_dream.sampling.blocks import blocks

AT_HAND = frozenset({"cpu"})  # devices whose numbers can be read without waiting


def kth_distance(x: Tensor, bank: Tensor, k: int) -> Tensor:
    """Euclidean distance from points to their k-th nearest row of a bank.

    Args:
        x: the points (n, m), in any number format.
        bank: the rows (N, m), likewise.
        k: which nearest row counts, in 1..N.

    Returns:
        The distances (n,), float64: by subtracting the two rows, so that duplicates are exactly 0 apart.
    """
    out = x.new_empty(len(x), dtype=torch.float64)
    at_hand = bank.device.type in AT_HAND
    rows = bank if at_hand else bank.double()
    squares = rows.square().sum(1)
    for part in blocks(len(x), max(bank.shape)):
        out[part] = (_of_some if at_hand else _wide)(x[part], rows, squares, k)
    return out


def _wide(x: Tensor, bank: Tensor, squares: Tensor, k: int) -> Tensor:
    """The same for points whose products with a bank in float64 fit into memory, without reading any number."""
    some = x.double()
    kth = torch.addmm(squares, some, bank.T, alpha=-2).topk(k, dim=1, largest=False).indices[:, -1]
    return (some - bank[kth]).norm(dim=1)


def _of_some(x: Tensor, bank: Tensor, squares: Tensor, k: int) -> Tensor:
    """The same for points whose products with the bank fit into memory."""
    near = x.to(bank)
    # |x|^2 is the same for all rows, so it has no say in which one is the k-th
    gaps = torch.addmm(squares, near, bank.T, alpha=-2)
    middle = kth_smallest(gaps, k)
    longest = squares.max()
    # each gap is off by `room` at most, the k-th of them too; the term of x is its own rounding to the bank's format
    room = roundoff(bank, bank.shape[1]) * (2 * near.norm(dim=1, keepdim=True) * longest.sqrt() + longest)
    # not <=, so that what cannot be computed is in question
    doubtful = ~((gaps - middle).abs_() > 2 * room)
    below = ((gaps < middle) & ~doubtful).sum(1)
    points, rows = doubtful.nonzero(as_tuple=True)
    distance = x.new_empty(len(points), dtype=torch.float64)
    for part in blocks(len(points), bank.shape[1]):
        distance[part] = (x[points[part]].double() - bank[rows[part]].double()).norm(dim=1)
    order = distance.argsort(stable=True)
    order = order[points[order].argsort(stable=True)]
    counts = doubtful.sum(1)
    starts = counts.cumsum(0) - counts
    return distance[order[starts + (k - 1 - below)]]


def kth_smallest(values: Tensor, k: int) -> Tensor:
    """The k-th smallest number along the last dimension; what is no number counts as the largest.

    Args:
        values: (..., N), of at least one dimension.
        k: which, in 1..N.

    Returns:
        The numbers (..., 1).
    """
    if values.device.type == "cpu":  # several times as fast as torch's
        return torch.from_numpy(np.partition(values.numpy(), k - 1, axis=-1)[..., k - 1 : k])
    return values.kthvalue(k, dim=-1, keepdim=True).values


def roundoff(like: Tensor, terms: int) -> float:
    """The largest relative error of a dot product of so many terms, at the matmul precision that torch is set to.

    Args:
        like: has the number format of its factors.
        terms: how many.
    """
    inputs = {"highest": 0.0, "high": 2.0**-10, "medium": 2.0**-7}[torch.get_float32_matmul_precision()]
    # 64 more for what is done with the product: sums in a tree, a few products, rounding a distance
    return (terms + 64) * torch.finfo(like.dtype).eps / 2 + inputs
