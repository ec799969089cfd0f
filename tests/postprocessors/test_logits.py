"""Detectors on logits equal their formulas, computed image by image on fresh random features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from openood_dream.postprocessors.base import Pass


def softmax(logits) -> np.ndarray:
    e = np.exp(np.asarray(logits, dtype=np.float64) - np.max(np.asarray(logits)))
    return e / e.sum()


def msp(row, splits, head):
    return softmax(row.logits).max()


def mls(row, splits, head):
    return float(row.logits.max())


def ebo(row, splits, head):
    return 2 * float(np.log(np.exp(np.asarray(row.logits, dtype=np.float64) / 2).sum()))


def gen(row, splits, head):
    p = np.sort(softmax(row.logits))[-3:]
    return -sum(x**0.2 * (1 - x) ** 0.2 for x in p)


def klm(row, splits, head):
    p, val = softmax(row.logits), splits["val"]
    predicted = [int(logits.argmax()) for logits in val.logits]
    divergences = []
    for label in range(head.out_features):
        mine = [softmax(logits) for logits, y in zip(val.logits, predicted) if y == label]
        q = np.mean(mine, axis=0) if mine else np.eye(head.out_features)[label]
        with np.errstate(divide="ignore"):
            divergences.append(sum(p * np.log(p / q)))
    return -min(divergences)


ARGS = {"ebo": {"temperature": 2}, "gen": {"gamma": 0.2, "M": 3}}


@pytest.mark.parametrize("formula", [msp, mls, ebo, gen, klm], ids=lambda formula: formula.__name__)
def test_formula(formula, equals):
    equals(formula.__name__, formula, **ARGS.get(formula.__name__, {}))


def test_klm_of_a_class_that_no_image_is_taken_for(splits, head, equals):
    val = splits["val"]
    kept = val.logits.argmax(1) != 2
    splits["val"] = Pass(val.logits[kept], val.features[kept], val.labels[kept])
    equals("klm", klm)


def test_predictions_are_the_networks(fitted, splits):
    assert torch.equal(fitted("msp").prediction(splits["test"]), splits["test"].logits.argmax(1))


def test_temperature_is_on_its_way_to_the_best(fitted, splits):
    val, test = splits["val"], splits["test"]
    val.logits.mul_(3)  # too sure of itself: the best temperature is above the first one
    found = fitted("temperature_scaling")
    likelihoods = {t: -F.cross_entropy(val.logits / t, val.labels) for t in torch.arange(0.5, 30, 0.1)}
    best = max(likelihoods, key=lambda t: likelihoods[t])
    t = float(found.temperature)
    assert abs(t - float(best)) < abs(1.5 - float(best))
    assert -F.cross_entropy(val.logits / t, val.labels) > -F.cross_entropy(val.logits / 1.5, val.labels)
    expected = [softmax(row.numpy() / t).max() for row in test.logits]
    np.testing.assert_allclose(found.confidence(test), expected, rtol=1e-5)
