"""Passes over clustered features, and the check that a detector equals its formula image by image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from openood_dream.postprocessors.base import Pass, Postprocessor
from openood_dream.postprocessors.known import POSTPROCESSORS
from openood_dream.postprocessors.settings import PostprocessorSettings

CLASSES, DIM = 5, 12


@pytest.fixture
def head() -> nn.Linear:
    """The classifier."""
    return nn.Linear(DIM, CLASSES).requires_grad_(False)


@pytest.fixture
def splits(head: nn.Linear) -> dict[str, Pass]:
    """Passes over training, validation and test images whose features cluster around their classes."""
    centres = 3 * torch.randn(CLASSES, DIM).abs()

    def a_pass(count: int) -> Pass:
        labels = torch.arange(count) % CLASSES
        features = (centres[labels] + torch.randn(count, DIM)).relu()
        return Pass(head(features), features, labels)

    head.weight.copy_(centres / centres.norm(dim=1, keepdim=True))
    return {"train": a_pass(200), "val": a_pass(60), "test": a_pass(40)}


@pytest.fixture
def fitted(splits: dict[str, Pass], head: nn.Linear) -> Callable[..., Any]:
    """Makes a detector of given hyperparameters that has learned from the passes."""

    def make(name: str, **args: Any) -> Postprocessor:
        cls = POSTPROCESSORS[name]
        detector = cls(cls.arguments(PostprocessorSettings(name=name, postprocessor_args=args)))
        detector.fit(splits.__getitem__, head)
        return detector

    return make


@pytest.fixture
def equals(fitted: Callable[..., Any], splits: dict[str, Pass], head: nn.Linear) -> Callable[..., None]:
    """Checks that a detector's confidence is `formula(row, splits, head)` of each test image, and changes no pass."""

    def check(name: str, formula: Callable[[Pass, dict[str, Pass], nn.Linear], float], **args: Any) -> None:
        before = {split: one.features.clone() for split, one in splits.items()}
        test = splits["test"]
        conf = fitted(name, **args).confidence(test)
        rows = [Pass(test.logits[i], test.features[i], test.labels[i]) for i in range(len(test.labels))]
        expected = torch.tensor([float(formula(row, splits, head)) for row in rows], dtype=torch.float64)
        assert conf.shape == (len(test.labels),)
        torch.testing.assert_close(conf.double(), expected, rtol=2e-3, atol=2e-3)
        assert all(torch.equal(one.features, before[split]) for split, one in splits.items())

    return check
