"""The newest features of each class, in one tensor."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from openood_dream.config import InputError


class ClassQueue(nn.Module):
    """The newest `size` features of each class, `rows` (C, size, D); buffers, so that a checkpoint holds them."""

    def __init__(self, classes: int, size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(classes, size, width))
        self.register_buffer("taken", torch.zeros(classes, dtype=torch.long))  # how many features each class ever got
        self._full = False

    @torch.no_grad()
    def push(self, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Puts features (B, D) of class `labels` (B,) in the place of the oldest ones of their class, which it returns.

        What is returned is zero where the queue was not full yet. Raises InputError for more features than fit.
        """
        size = self.rows.shape[1]
        if len(labels) > size:
            raise InputError(
                f"trainer: sample_number: {size} features of a class for batches of {len(labels)}; raise it"
            )
        own = F.one_hot(labels, len(self.rows))
        place = (own.cumsum(0) * own).sum(1) - 1 + self.taken[labels]  # earlier ones of the batch come first
        old = self.rows[labels, place % size]
        self.rows[labels, place % size] = features.to(self.rows.dtype)
        self.taken += own.sum(0)
        return old

    def full(self) -> bool:
        """Whether every class has as many features as it can hold."""
        self._full = self._full or bool((self.taken >= self.rows.shape[1]).all())
        return self._full
