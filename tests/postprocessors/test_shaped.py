"""Detectors on shaped features equal their formulas, computed image by image on fresh random features."""

from __future__ import annotations

import numpy as np
import pytest
import torch


def energy(logits) -> float:
    return float(np.log(np.exp(np.asarray(logits, dtype=np.float64)).sum()))


def react(row, splits, head):
    limit = float(np.percentile(splits["val"].features.numpy().ravel(), 80))
    return energy(head(torch.stack([min(x, torch.tensor(limit)) for x in row.features])))


def vra(row, splits, head):
    low, high = (float(np.percentile(splits["val"].features.numpy().ravel(), p)) for p in (20, 80))
    return energy(head(torch.tensor([min(max(float(x), low), high) for x in row.features])))


def largest(features, percentile) -> list[int]:
    count = len(features) - int(np.round(len(features) * percentile / 100))
    return sorted(range(len(features)), key=lambda i: -features[i])[:count]


def ash(row, splits, head):
    chosen = largest(row.features, 70)
    pruned = torch.zeros(len(row.features))
    pruned[chosen] = row.features.sum() / len(chosen)
    return energy(head(pruned))


def scale(row, splits, head):
    return energy(head(row.features * torch.exp(row.features.sum() / row.features[largest(row.features, 70)].sum())))


def dice(row, splits, head):
    contributions = splits["train"].features.mean(0) * head.weight
    kept = head.weight * (contributions > np.percentile(contributions.numpy(), 60))
    return energy(kept @ row.features + head.bias)


ARGS = {
    "react": {"percentile": 80},
    "vra": {"percentile_low": 20, "percentile_high": 80},
    "ash": {"percentile": 70},
    "scale": {"percentile": 70},
    "dice": {"p": 60},
}


@pytest.mark.parametrize("formula", [react, vra, ash, scale, dice], ids=lambda formula: formula.__name__)
def test_formula(formula, equals):
    equals(formula.__name__, formula, **ARGS[formula.__name__])


@pytest.mark.parametrize("name", ARGS)
def test_predictions_follow_the_shaped_features(name, splits, fitted):
    detector = fitted(name, **ARGS[name])
    assert torch.equal(detector.prediction(splits["test"]), detector.logits(splits["test"]).argmax(1))
