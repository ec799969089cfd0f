"""Search for the nearest rows: by faiss where it is installed, else exactly by torch."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import torch

from openood_dream.sampling.blocks import blocks

try:
    faiss: Any = import_module("faiss")
except ImportError:  # an optional extra
    faiss = None

SHARE = 16  # this part of a bank counts for a block, whose products then take 512 MiB


class ExactIndex:
    """What is used of faiss's flat indexes, by torch in float64, on the CPU or a GPU.

    Args:
        width: numbers in a row.
        inner: whether the largest inner products are searched, instead of the smallest distances.
        device: where the rows are kept and searched.
    """

    def __init__(self, width: int, inner: bool = False, device: torch.device | str = "cpu") -> None:
        self.inner = inner
        self.rows = torch.empty(0, width, dtype=torch.float64, device=device)

    def add(self, rows: np.ndarray) -> None:
        """Keeps rows (n, m), float32."""
        self.rows = torch.cat([self.rows, torch.from_numpy(rows).to(self.rows)])

    def search(self, x: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best rows of each query, best first.

        Args:
            x: queries (n, m), float32.
            k: how many, at most as many as there are rows.

        Returns:
            Squared distances, or inner products, (n, k), and which rows they are (n, k).
        """
        squares = self.rows.square().sum(1)
        values, places = [], []
        for part in blocks(len(x), max(len(self.rows) // SHARE, self.rows.shape[1], 1)):
            some = torch.from_numpy(x[part]).to(self.rows)
            if self.inner:
                value, place = (some @ self.rows.T).topk(k, dim=1)
            else:
                # |x|^2 is the same for all rows, so it has no say in which are nearest
                near = torch.addmm(squares, some, self.rows.T, alpha=-2).topk(k, dim=1, largest=False)
                value, place = (near.values + some.square().sum(1, keepdim=True)).clamp(min=0), near.indices
            values.append(value.float().cpu())
            places.append(place.cpu())
        return torch.cat(values).numpy(), torch.cat(places).numpy()


def flat_index(width: int, inner: bool = False) -> Any:
    """An empty index on the CPU that compares a query with every row.

    Args:
        width: numbers in a row.
        inner: whether the largest inner products are searched, instead of the smallest distances.

    Returns:
        An index of faiss's, or an `ExactIndex`.
    """
    if faiss is None:
        return ExactIndex(width, inner)
    return faiss.IndexFlatIP(width) if inner else faiss.IndexFlatL2(width)
