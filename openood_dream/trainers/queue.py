"""The newest features of each class, in one tensor, and whether what is made of them takes part in the training."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from openood_dream.config.schema import Section
from openood_dream.trainers.base import Plan


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
        # what `taken` is, kept here too, so that a GPU need not be asked for it; None: not known
        self._counted: np.ndarray | None = np.zeros(classes, dtype=np.int64)

    @torch.no_grad()
    def push(self, features: torch.Tensor, labels: torch.Tensor, known: torch.Tensor | None = None) -> torch.Tensor:
        """Puts features in the place of the oldest ones of their class.

        Args:
            features: (B, D).
            labels: (B,), the class of each.
            known: the same labels on the CPU; without them `full` has to ask the device.

        Returns:
            The features (B, D) that had those places; zero where the queue was not full yet.

        Raises:
            ValueError: a batch that may have more features of a class than fit.
        """
        size = self.rows.shape[1]
        if len(labels) > size:
            raise ValueError(f"{size} features of a class for batches of {len(labels)}; raise it")
        self._count(known)
        own = F.one_hot(labels, len(self.rows))
        place = (own.cumsum(0) * own).sum(1) - 1 + self.taken[labels]  # earlier ones of the batch come first
        old = self.rows[labels, place % size]
        self.rows[labels, place % size] = features.to(self.rows.dtype)
        self.taken += own.sum(0)
        return old

    def _count(self, labels: torch.Tensor | None) -> None:
        """Counts features that are about to be pushed, by their labels (B,) on the CPU where they are known."""
        if labels is None:
            self._counted = None
            return
        if self._counted is None:
            self._counted = self.taken.cpu().numpy().copy()
        self._counted += np.bincount(labels.numpy(), minlength=len(self._counted))

    def full(self) -> bool:
        """Whether every class has as many features as it can hold."""
        taken = self.taken.cpu().numpy() if self._counted is None else self._counted
        return bool((taken >= self.rows.shape[1]).all())

    def _load_from_state_dict(self, *args: Any, **options: Any) -> None:
        self._counted = None
        super()._load_from_state_dict(*args, **options)


def remember(
    queue: ClassQueue, features: torch.Tensor, labels: torch.Tensor, known: torch.Tensor, settings: Section
) -> None:
    """Puts features into a trainer's queue.

    Args:
        queue: the queue, which is changed.
        features: (B, D).
        labels: (B,), the class of each, on the device.
        known: the same labels where they came from.
        settings: those that `sample_number`, the queue's size, comes from.

    Raises:
        InputError: the queue is smaller than the batch.
    """
    try:
        queue.push(features, labels, known.cpu())
    except ValueError as error:
        raise settings.error("sample_number", str(error)) from None


class Participation(nn.Module):
    """In how many steps outliers took part, as buffers, so that a checkpoint holds them."""

    steps: torch.Tensor
    with_outliers: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("with_outliers", torch.zeros((), dtype=torch.long))

    def count(self, with_outliers: bool) -> None:
        """Counts a step; a GPU is not waited for."""
        self.steps += 1
        self.with_outliers += with_outliers

    def remarks(self, queue: ClassQueue, settings: Section, start: str, without: str) -> list[str]:
        """A line where outliers took part in less than half of the steps.

        Args:
            queue: the features that outliers are made of.
            settings: those with `sample_number`, the queue's size, and `start`.
            start: the key of the first epoch with outliers.
            without: what the training was without them.
        """
        used, steps, seen = int(self.with_outliers), int(self.steps), int(queue.taken.min())
        if 2 * used >= steps:
            return []
        return [
            f"outliers took part in {used} of {steps} steps{'' if used else f': trained as {without}'}; lower "
            f"{settings.key(start)} ({getattr(settings, start)}), or {settings.key('sample_number')} "
            f"({queue.rows.shape[1]}) where the smallest class has few images (it gave {seen} in all epochs)"
        ]


def check_queue(settings: Section, start: str, plan: Plan) -> None:
    """Checks, before anything is computed, that outliers can take part in a training.

    Args:
        settings: those with `sample_number`, the queue's size, and `start`.
        start: the key of the first epoch with outliers.
        plan: what the training is going to be.

    Raises:
        InputError: they begin after the last epoch, or the queue can never be full.
    """
    size, first = getattr(settings, "sample_number"), getattr(settings, start)  # noqa: B009 (of two models)
    if first > plan.epochs:
        text = f"expected at most optimizer.num_epochs, {plan.epochs}, got {first}: no epoch would have outliers"
        raise settings.error(start, text)
    if plan.batch_size is not None and size < plan.batch_size:
        text = f"expected at least the images in a step, {plan.batch_size} (dataset.train.batch_size), got {size}"
        raise settings.error("sample_number", text)
    if plan.smallest is not None and size > plan.smallest * plan.epochs:
        raise settings.error(
            "sample_number",
            f"expected at most {plan.smallest * plan.epochs}, which is what the smallest class of {plan.smallest} "
            f"images gives in optimizer.num_epochs, {plan.epochs}, got {size}: no step would have outliers",
        )
