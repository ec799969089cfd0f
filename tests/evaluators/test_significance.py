"""Intervals and p-values: what slow loops over resamples give."""

from __future__ import annotations

import numpy as np
import pytest

from openood_dream.evaluators import significance
from openood_dream.evaluators.metrics import compute_metrics


def by_loops(id_conf, ood_conf, ids, oods) -> tuple[list[float], list[float]]:
    """AUROC and FPR@95 of resamples that are written out image by image."""
    found = []
    for w, v in zip(ids, oods):
        a, b = np.repeat(id_conf, w), np.repeat(ood_conf, v)
        label = np.repeat([0, -1], [len(a), len(b)])
        auroc = compute_metrics(np.concatenate([a, b]), label, np.zeros(len(label)))[1]
        threshold = next(t for t in np.sort(b) if np.mean(b <= t) >= 0.95)
        found.append((auroc, np.mean(a <= threshold)))
    return tuple(zip(*found))


@pytest.mark.parametrize("sizes", [(40, 30), (1, 1), (3, 200), (301, 2)])
@pytest.mark.parametrize("decimals", [0, 1, 8])
def test_slow_loops_with_ties_and_infinities(sizes, decimals):
    rng = np.random.default_rng()
    id_conf, ood_conf = rng.normal(1, 1, sizes[0]).round(decimals), rng.normal(0, 1, sizes[1]).round(decimals)
    if sizes[0] > 30:
        id_conf[:2], ood_conf[:1] = [np.inf, -np.inf], -np.inf
    ids, oods = significance.counts("a", sizes[0], 70), significance.counts("b", sizes[1], 70)
    found, expected = (
        significance.resampled_metrics(id_conf, ood_conf, ids, oods),
        by_loops(id_conf, ood_conf, ids, oods),
    )
    np.testing.assert_allclose(found[0], expected[0], atol=1e-12)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-12)


def test_resamples_are_the_same_for_every_run():
    drawn = significance.counts("digits", 300, 50)
    assert (drawn.sum(1) == 300).all() and (drawn == significance.counts("digits", 300, 50)).all()
    assert (drawn != significance.counts("noise", 300, 50)).any()
    assert (significance.counts("few", 1, 5) == 1).all()


def test_group_means_in_percent():
    rng = np.random.default_rng()
    conf, label = rng.normal(1, 1, 90), rng.integers(0, 3, 90)
    pred = np.where(rng.random(90) < 0.8, label, 3)
    sets = {"a": rng.normal(0, 1, 50), "b": rng.normal(-1, 1, 70)}
    found = significance.draws("x", (pred, conf, label), {"near": sets}, 20)
    ids = significance.counts("x", 90, 20)
    both = [
        significance.resampled_metrics(conf, scores, ids, significance.counts(n, len(scores), 20))
        for n, scores in sets.items()
    ]
    np.testing.assert_allclose(found["near_auroc"], 50 * (both[0][0] + both[1][0]))
    np.testing.assert_allclose(found["near_fpr95"], 50 * (both[0][1] + both[1][1]))
    np.testing.assert_allclose(found["id_acc"], [100 * np.repeat(pred == label, w).mean() for w in ids])
    assert "id_acc" not in significance.draws("x", (np.full(90, -1), conf, label), {"near": sets}, 20)


def test_interval_of_a_binomial():
    hits = np.random.default_rng(0).random(2000) < 0.9
    pred, label = hits.astype(int), np.ones(2000, int)
    low, high = significance.interval(significance.draws("x", (pred, np.zeros(2000), label), {})["id_acc"])
    share = hits.mean()
    half = 196 * (share * (1 - share) / 2000) ** 0.5
    assert low == pytest.approx(100 * share - half, abs=0.25) and high == pytest.approx(100 * share + half, abs=0.25)


def test_p_values():
    assert significance.p_value(np.zeros(100)) == 1
    assert significance.p_value(np.ones(999)) == significance.p_value(-np.ones(999)) == pytest.approx(0.002)
    assert significance.p_value(np.r_[np.ones(980), -np.ones(19)]) == pytest.approx(0.04)
    assert significance.p_value(np.random.default_rng(0).normal(0, 1, 999)) > 0.5


def test_false_alarms():
    """Two methods that are equally good differ with p < 0.05 about once in twenty times."""
    rng, called = np.random.default_rng(7), 0
    for trial in range(200):
        id_conf, ood_conf = rng.normal(1, 1, (2, 120)), rng.normal(0, 1, (2, 120))
        ids, oods = significance.counts(f"i{trial}", 120, 200), significance.counts(f"o{trial}", 120, 200)
        first, second = (significance.resampled_metrics(a, b, ids, oods)[0] for a, b in zip(id_conf, ood_conf))
        called += significance.p_value(first - second) < significance.LEVEL
    assert called <= 22
