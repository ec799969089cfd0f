"""Metrics are OpenOOD's numbers, and those of slow loops."""

from __future__ import annotations

import numpy as np
import pytest

from openood_dream.evaluators.metrics import METRICS, Scores, accuracy_rows, compute_metrics, metric_rows, write_rows
from openood_dream.openood import compat, registry


def example(id_conf, ood_conf, right=None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """conf, label and pred of ID confidences and OOD ones; `right` says which ID predictions are."""
    right = np.ones(len(id_conf), bool) if right is None else np.asarray(right)
    label = np.concatenate([np.zeros(len(id_conf), int), np.full(len(ood_conf), -1)])
    pred = np.where(np.append(right, label[len(id_conf) :] == 0), 0, 1)
    return np.concatenate([id_conf, ood_conf]).astype(float), label, pred


def metrics(*sides) -> dict[str, float]:
    return dict(zip(METRICS, compute_metrics(*example(*sides))))


def auroc_by_pairs(id_conf, ood_conf) -> float:
    """The share of (ID, OOD) pairs in which the ID image is the more confident; ties count half."""
    return float(np.mean([(a > b) + 0.5 * (a == b) for a in id_conf for b in ood_conf]))


def fpr95_by_thresholds(id_conf, ood_conf) -> float:
    """The share of ID images lost at the strictest threshold that finds at least 95 % of the OOD images."""
    for threshold in sorted({*id_conf, *ood_conf}):
        if np.mean(np.asarray(ood_conf) <= threshold) >= 0.95:
            return float(np.mean(np.asarray(id_conf) <= threshold))
    raise AssertionError


def area_by_trapezoids(positive, negative) -> float:
    """Area under precision over recall; positive is what scores at least a threshold. Precision is 1 at recall 0."""
    positive, negative = np.asarray(positive), np.asarray(negative)
    points = [(0.0, 1.0)]
    for threshold in sorted({*positive, *negative}, reverse=True):
        found, wrong = np.sum(positive >= threshold), np.sum(negative >= threshold)
        points.append((found / len(positive), found / (found + wrong)))
    return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in zip(points, points[1:]))


@pytest.mark.parametrize("shift", [-1.0, 0.0, 0.5, 2.0])
def test_slow_loops(shift):
    id_conf, ood_conf = np.random.default_rng().normal(shift, 1, 83), np.random.default_rng().normal(0, 1, 61)
    right = np.random.default_rng().random(83) < 0.7
    found = metrics(id_conf, ood_conf, right)
    assert found["AUROC"] == pytest.approx(auroc_by_pairs(id_conf, ood_conf))
    assert found["FPR@95"] == pytest.approx(fpr95_by_thresholds(id_conf, ood_conf))
    assert found["AUPR_IN"] == pytest.approx(area_by_trapezoids(id_conf, ood_conf))
    assert found["AUPR_OUT"] == pytest.approx(area_by_trapezoids(-ood_conf, -id_conf))
    assert found["ACC"] == pytest.approx(right.mean())


def test_ties_count_half():
    id_conf, ood_conf = np.random.default_rng().integers(0, 4, 50), np.random.default_rng().integers(-1, 3, 40)
    found = metrics(id_conf, ood_conf)
    assert found["AUROC"] == pytest.approx(auroc_by_pairs(id_conf, ood_conf))
    assert found["FPR@95"] == pytest.approx(fpr95_by_thresholds(id_conf, ood_conf))


def by_openood(conf, label, pred) -> list[float]:
    """FPR@95, AUROC, AUPR_IN, AUPR_OUT and ACC as OpenOOD's own function computes them."""
    if not compat.installed("openood"):
        pytest.skip(f"OpenOOD is not installed; {registry.INSTALL}")
    with compat.enabled():
        from openood.evaluators.metrics import compute_all_metrics
    return compute_all_metrics(conf, label, pred)


ADVERSARIAL = {
    "ties": ([1, 1, 2, 2, 3], [1, 2, 2, 2]),
    "all the same": ([5.0] * 7, [5.0] * 3),
    "one of each": ([1.0], [0.0]),
    "one of each, reversed": ([0.0], [1.0]),
    "one of each, the same": ([0.0], [0.0]),
    "one ID image": ([0.5], list(np.linspace(0, 1, 50))),
    "one OOD image": (list(np.linspace(0, 1, 50)), [0.5]),
    "next to each other": ([1.0, np.nextafter(1.0, 2)], [1.0, np.nextafter(1.0, 0)]),
    "huge and tiny": ([1e308, -1e308, 5e-324], [0.0, -5e-324, 1e308]),
}


@pytest.mark.openood
@pytest.mark.parametrize("case", ADVERSARIAL)
def test_openoods_on_adversarial_input(case):
    conf, label, pred = example(*ADVERSARIAL[case])
    assert compute_metrics(conf, label, pred).tolist() == by_openood(conf, label, pred)


@pytest.mark.openood
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_openoods_on_random_scores(kind):
    rng = np.random.default_rng()
    right = rng.random(300) < 0.8
    conf, label, pred = example(rng.normal(1, 1, 300).round(2), rng.normal(0, 1, 200).round(2), right)
    assert compute_metrics(conf.astype(kind), label, pred).tolist() == by_openood(conf.astype(kind), label, pred)


def test_infinite_scores_are_the_largest_and_smallest():
    rng = np.random.default_rng()
    id_conf, ood_conf = rng.normal(1, 1, 40), rng.normal(0, 1, 30)
    id_conf[:5], id_conf[5:8], ood_conf[:2], ood_conf[2:9] = np.inf, -np.inf, np.inf, -np.inf
    finite = [np.nan_to_num(side, posinf=99, neginf=-99) for side in (id_conf, ood_conf)]
    assert metrics(id_conf, ood_conf) == metrics(*finite)
    assert metrics(id_conf, ood_conf)["AUROC"] == pytest.approx(auroc_by_pairs(id_conf, ood_conf))


def test_constant_scores():
    found = metrics([3.0] * 30, [3.0] * 10)
    assert found["AUROC"] == 0.5 and found["FPR@95"] == 1.0 and found["ACC"] == 1.0


def test_separated_scores():
    id_conf, ood_conf = np.linspace(1, 2, 40), np.linspace(-1, 0, 30)
    best, worst = metrics(id_conf, ood_conf), metrics(ood_conf, id_conf)
    assert (best["FPR@95"], best["AUROC"], best["AUPR_IN"], best["AUPR_OUT"]) == pytest.approx((0, 1, 1, 1))
    assert (worst["FPR@95"], worst["AUROC"]) == pytest.approx((1, 0))


@pytest.mark.parametrize("guess", [-1, 0, 5])
def test_predictions_on_ood_images_do_not_count(guess):
    conf, label, pred = example([1.0, 2.0], [0.0, 0.5, 0.1], [True, False])
    assert compute_metrics(conf, label, np.where(label == -1, guess, pred))[-1] == 0.5


def scores(count: int, *, classes: bool = True) -> Scores:
    rng = np.random.default_rng()
    pred = rng.integers(0, 3, count) if classes else np.full(count, -1)
    return Scores(pred, rng.normal(0, 1, count), rng.integers(0, 3, count))


def test_rows_end_with_the_groups_mean():
    ood = {name: scores(20)._replace(label=np.full(20, -1)) for name in "abc"}
    rows = metric_rows(scores(30), {"near": {"a": ood["a"]}, "far": {"b": ood["b"], "c": ood["c"]}})
    assert [name for name, _ in rows] == ["a", "near", "b", "c", "far"]
    values = dict(rows)
    assert np.allclose(values["far"], (values["b"] + values["c"]) / 2) and np.allclose(values["near"], values["a"])


def test_networks_without_classes_have_no_accuracy():
    ood = scores(20, classes=False)._replace(label=np.full(20, -1))
    rows = metric_rows(scores(30, classes=False), {"near": {"a": ood}})
    assert all(np.isnan(values[-1]) and not np.isnan(values[:-1]).any() for _, values in rows)
    assert all(np.isnan(values).all() for _, values in accuracy_rows({"a": scores(9, classes=False)}))


def test_the_table(tmp_path):
    write_rows(tmp_path / "x.csv", [("a", np.array([0.5, 1, 0.1235, 0, np.nan]))])
    assert (
        tmp_path / "x.csv"
    ).read_text() == "dataset,FPR@95,AUROC,AUPR_IN,AUPR_OUT,ACC\na,50.00,100.00,12.35,0.00,-\n"
