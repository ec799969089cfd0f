"""The newest features of each class, in one tensor."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from openood_dream.config.schema import Section


class ClassQueue(nn.Module):
    """The newest features of each class, as buffers, so that a checkpoint holds them.

    Args:
        classes: number of classes C.
        size: features kept of each class.
        width: numbers in a feature, D.
    """

    rows: torch.Tensor  # (C, size, D)
    taken: torch.Tensor  # (C,), how many features each class ever got

    def __init__(self, classes: int, size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(classes, size, width))
        self.register_buffer("taken", torch.zeros(classes, dtype=torch.long))
        self._full = False

    @torch.no_grad()
    def push(self, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Puts features in the place of the oldest ones of their class.

        Args:
            features: (B, D).
            labels: (B,), the class of each.

        Returns:
            The features (B, D) that had those places; zero where the queue was not full yet.

        Raises:
            ValueError: a batch that may have more features of a class than fit.
        """
        size = self.rows.shape[1]
        if len(labels) > size:
            raise ValueError(f"{size} features of a class for batches of {len(labels)}; raise it")
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


def remember(queue: ClassQueue, features: torch.Tensor, labels: torch.Tensor, settings: Section) -> None:
    """Puts features into a trainer's queue.

    Args:
        queue: the queue, which is changed.
        features: (B, D).
        labels: (B,), the class of each.
        settings: those that `sample_number`, the queue's size, comes from.

    Raises:
        InputError: the queue is smaller than the batch.
    """
    try:
        queue.push(features, labels)
    except ValueError as error:
        raise settings.error("sample_number", str(error)) from None
