"""OpenMax: the Weibull fit against numbers drawn from one, and its probabilities image by image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import weibull_min

from openood_dream.errors import InputError
from openood_dream.postprocessors.base import Pass
from openood_dream.postprocessors.openmax import fit_weibull


def test_weibull_of_draws():
    draws = weibull_min.rvs(2.5, scale=3, size=20000, random_state=0)
    found = fit_weibull(draws)  # of numbers moved by less than 1, the smallest draw being nearly 0
    shape, _, scale = weibull_min.fit(draws - draws.min() + 1, floc=0)
    assert found.shape == pytest.approx(shape, rel=1e-4) and found.scale == pytest.approx(scale, rel=1e-4)
    q = np.quantile(draws, [0, 0.3, 0.99])
    np.testing.assert_allclose(found.cdf(q), weibull_min.cdf(q - draws.min() + 1, shape, scale=scale), atol=1e-4)
    assert found.cdf(np.array([draws.min() - 2])) == 0


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e3])
def test_weibull_of_any_length(unit):
    tail = unit * np.array([3.0, 3.1, 3.5, 4.2, 6.0])
    found = fit_weibull(tail)
    assert 0 < found.scale < np.inf and 0 < found.shape < np.inf
    assert 0 <= found.cdf(tail[:1])[0] < found.cdf(tail[-1:])[0] <= 1


def slow(row, splits, head):
    """The probability of the unknown class, one class after the other."""
    train, logits = splits["train"], row.logits.double().numpy()
    lowered, unknown = logits.copy(), 0.0
    for rank, label in enumerate(sorted(range(len(logits)), key=lambda c: -logits[c])[:3]):
        mine = [f.double().numpy() for f, y in zip(train.logits, train.labels) if int(f.argmax()) == int(y) == label]
        mean = np.mean(mine, axis=0)
        tail = np.sort([np.linalg.norm(one - mean) for one in mine])[-20:]
        shape, _, scale = weibull_min.fit(tail - tail[0] + 1, floc=0)
        far = weibull_min.cdf(np.linalg.norm(logits - mean) - tail[0] + 1, shape, scale=scale)
        lowered[label] = logits[label] * (1 - far * (3 - rank) / 3)
        unknown += logits[label] - lowered[label]
    return -np.exp(unknown) / (np.exp(lowered).sum() + np.exp(unknown))


def test_formula(equals):
    equals("openmax", slow)


def test_predictions_below_ninety_percent_are_the_last_class(fitted, splits):
    found = fitted("openmax")
    p = found.probabilities(splits["test"])
    expected = [int(row.argmax()) if row.max() >= 0.9 else 4 for row in p]
    assert found.prediction(splits["test"]).tolist() == expected and len(set(expected)) > 1


def test_large_logits_are_no_overflow(fitted, splits):
    found = fitted("openmax")
    far = Pass(1e4 * splits["test"].logits, splits["test"].features, splits["test"].labels)
    assert torch.isfinite(found.confidence(far)).all()


def test_class_with_one_image(splits, fitted):
    train = splits["train"]
    kept = (train.labels != 2) | (torch.arange(len(train.labels)) == 2)
    splits["train"] = Pass(train.logits[kept], train.features[kept], train.labels[kept])
    with pytest.raises(InputError, match="^openmax: class 2 has too few"):
        fitted("openmax")
