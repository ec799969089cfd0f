"""What the first lines of a report say: differences of the same seeds, and what few seeds allow to say of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from finished_runs import scores, write_csv, write_run
from scipy import stats

from openood_dream.reports.gains import comparisons, decimals, shown_detector
from openood_dream.reports.runs import collect

BASE, DREAM = (90.0, 91.5, 92.0), (92.0, 93.0, 94.5)


def write(root, method, values, outlier_data="none", **more):
    for seed, near in enumerate(values):
        folder = write_run(root, method, seed, rows=scores(near, acc=97.0 - seed), outlier_data=outlier_data, **more)
        write_csv(folder / "csid.csv", [[name, "-", "-", "-", "-", f"{near - 40}"] for name in ("turned", "csid")])


def test_gains_are_those_of_a_paired_t_test_over_seeds(tmp_path):
    write(tmp_path, "base", BASE)
    write(tmp_path, "dream_ood", DREAM, "imagined (knn)")
    (found,) = comparisons(collect([tmp_path]))
    gain, expected = found.gains["near_auroc"], stats.ttest_rel(DREAM, BASE)
    low, high = expected.confidence_interval(0.95)
    assert (found.method, found.detector, found.seeds) == ("dream_ood", "ebo", [0, 1, 2])
    assert gain.base == pytest.approx(np.mean(BASE)) and gain.mean == pytest.approx(2)
    assert (gain.mean - gain.halfwidth, gain.mean + gain.halfwidth) == pytest.approx((low, high))
    assert gain.p == pytest.approx(expected.pvalue) and gain.better is True
    assert found.gains["csid_acc"].mean == pytest.approx(2) and found.gains["near_fpr95"].better is True
    assert found.gains["id_acc"][2:] == (0, 0, 1) and found.gains["id_acc"].better is None


def test_one_seed_has_no_interval_and_no_verdict(tmp_path):
    write(tmp_path, "base", BASE[:1])
    write(tmp_path, "dream_ood", DREAM[:1], "imagined (knn)")
    gain = comparisons(collect([tmp_path]))[0].gains["near_auroc"]
    assert gain.mean == pytest.approx(2) and math.isnan(gain.halfwidth) and math.isnan(gain.p) and gain.better is None


def test_seeds_that_one_of_both_lacks_do_not_count(tmp_path):
    write(tmp_path, "base", BASE)
    write(tmp_path, "dream_ood", DREAM[:2], "imagined (knn)")
    (found,) = comparisons(collect([tmp_path]))
    assert found.seeds == [0, 1] and found.gains["near_auroc"].base == pytest.approx(90.75)


def test_imagined_come_first_then_oe_and_nothing_else(tmp_path):
    write(tmp_path, "base", BASE)
    write(tmp_path, "oe", DREAM, "train_aux")
    write(tmp_path, "bood", DREAM, "imagined (boundary)")
    write(tmp_path, "dream_ood", DREAM, "imagined (knn)")
    write(tmp_path, "vos", DREAM)
    assert [one.method for one in comparisons(collect([tmp_path]))] == ["dream_ood", "bood", "oe"]


@pytest.mark.parametrize("other", [{"network__name": "wrn"}, {"dataset__name": "cifar10"}])
def test_nothing_is_said_of_runs_that_cannot_be_compared(tmp_path, other):
    write(tmp_path, "base", BASE)
    write(tmp_path, "dream_ood", DREAM, "imagined (knn)", **other)
    assert comparisons(collect([tmp_path])) == []


def test_without_base_nothing_is_said(tmp_path):
    write(tmp_path, "dream_ood", DREAM, "imagined (knn)")
    assert comparisons(collect([tmp_path])) == []


def test_wide_intervals_have_few_decimals():
    assert [decimals(width) for width in (30, 10, 3, 0.3, math.nan)] == [0, 0, 1, 2, 1]


def test_the_detector_of_first_lines():
    assert shown_detector(["msp", "ebo"]) == "ebo" and shown_detector(["knn", "msp"]) == "knn"
