"""How much of a difference is chance: bootstrap intervals and paired tests over the images of the test sets.

A resample draws, of each test set, as many images as it has, with replacement. All runs get the same resamples, so the
difference of two methods is taken on the same images each time. What the seeds of training change is not in it: the
standard deviation over seeds says that, and the t-interval of a mean over seeds, which is wide where they are few.

Source: Efron & Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13 (percentile intervals); Student, The Probable
Error of a Mean, Biometrika 1908 (t-intervals).
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from scipy import special

RESAMPLES = 1000
LEVEL = 0.05
BLOCK = 64  # resamples at a time, so that their counts stay in the processor's cache


@lru_cache(maxsize=32)  # of the sets of a benchmark, which all its runs share
def counts(name: str, images: int, resamples: int = RESAMPLES) -> np.ndarray:
    """How often each resample draws each image; always the same for a set's name and size.

    Args:
        name: the data set.
        images: how many it has.
        resamples: how many resamples.

    Returns:
        Integers (resamples, images), read-only; each row sums to `images`.
    """
    rng = np.random.default_rng([zlib.crc32(name.encode()), images])
    drawn = np.empty((resamples, images), np.uint8 if images > 255 else np.uint16)  # nobody is drawn 256 times of more
    for row in drawn:
        row[:] = np.bincount(rng.integers(images, size=images), minlength=images)
    drawn.flags.writeable = False
    return drawn


def resampled_metrics(
    id_conf: np.ndarray, ood_conf: np.ndarray, id_counts: np.ndarray, ood_counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """AUROC and FPR@95 of each resample; one sort serves all.

    AUROC is the share of pairs (ID, OOD) in which ID is the more confident, ties counted half; FPR@95 is the share of ID
    images lost at the strictest threshold that finds 95 % of the OOD images.

    Args:
        id_conf: confidences of the ID images (N,).
        ood_conf: confidences of the OOD images (M,).
        id_counts: `counts` of the ID images (B, N).
        ood_counts: `counts` of the OOD images (B, M).

    Returns:
        AUROC and FPR@95 as fractions, (B,) each.
    """
    id_order, ood_order = np.argsort(id_conf, kind="stable"), np.argsort(ood_conf, kind="stable")
    id_sorted, ood_sorted = id_conf[id_order], ood_conf[ood_order]
    below = np.searchsorted(id_sorted, ood_sorted, "left")
    upto = np.searchsorted(id_sorted, ood_sorted, "right")
    last = np.searchsorted(ood_sorted, ood_sorted, "right") - 1  # an image's threshold takes all that are tied with it
    auroc, fpr = np.empty(len(id_counts)), np.empty(len(id_counts))
    for start in range(0, len(id_counts), BLOCK):
        rows = slice(start, start + BLOCK)
        weights, found = id_counts[rows].take(id_order, axis=1), ood_counts[rows].take(ood_order, axis=1)
        lost = np.zeros((len(weights), len(id_conf) + 1), np.int32)  # ID images below each place in the order
        np.cumsum(weights, axis=1, out=lost[:, 1:])
        less = (lost.take(below, axis=1) + lost.take(upto, axis=1)).astype(np.float64)
        auroc[rows] = 1 - np.einsum("bm,bm->b", less, found) / (2 * len(id_conf) * len(ood_conf))
        enough = found.cumsum(axis=1, dtype=np.int32) / len(ood_conf) >= 0.95
        fpr[rows] = lost[np.arange(len(lost)), upto[last[enough.argmax(axis=1)]]] / len(id_conf)
    return auroc, fpr


def draws(
    name: str,
    id_scores: tuple[np.ndarray, np.ndarray, np.ndarray],
    groups: Mapping[str, Mapping[str, np.ndarray]],
    resamples: int = RESAMPLES,
) -> dict[str, np.ndarray]:
    """The metrics of a run in each resample.

    Args:
        name: the ID test set.
        id_scores: predictions, confidences and labels of its images, (N,) each.
        groups: confidences of OOD sets by group and name, {"near": {set: (M,)}, ...}.
        resamples: how many resamples, B.

    Returns:
        `<group>_auroc` and `<group>_fpr95`, the means over a group's sets, and `id_acc`, in percent, (B,) each; a network
        that knows no classes has no id_acc.
    """
    pred, conf, label = id_scores
    ids = counts(name, len(conf), resamples)
    found = {} if (pred == -1).all() else {"id_acc": 100 * ids[:, pred == label].sum(1) / len(conf)}
    for group, sets in groups.items():
        both = [
            resampled_metrics(conf, ood_conf, ids, counts(set_name, len(ood_conf), resamples))
            for set_name, ood_conf in sets.items()
        ]
        found[f"{group}_auroc"], found[f"{group}_fpr95"] = 100 * np.mean(both, axis=0)
    return found


def interval(values: np.ndarray) -> tuple[float, float]:
    """The bounds between which 95 % of the resamples lie."""
    low, high = np.percentile(values, (50 * LEVEL, 100 - 50 * LEVEL))
    return float(low), float(high)


def p_value(differences: np.ndarray) -> float:
    """Two-sided: twice the share of resamples (B,) in which a difference has the rarer sign; 1 where it is always 0."""
    above, below = np.sum(differences >= 0), np.sum(differences <= 0)
    return float(min(1.0, 2 * (min(above, below) + 1) / (len(differences) + 1)))


def t_halfwidth(deviation: float, count: int) -> float:
    """Half the width of the 95 % t-interval of a mean.

    Args:
        deviation: the sample standard deviation of the values, such as a metric of each seed.
        count: how many values there are.

    Returns:
        The distance of the interval's ends from the mean; NaN where one value alone says nothing of the others.
    """
    if count < 2:
        return float("nan")
    return float(special.stdtrit(count - 1, 1 - LEVEL / 2) * deviation / np.sqrt(count))


def t_p_value(differences: np.ndarray) -> float:
    """Two-sided p-value of Student's t-test that a mean difference is 0.

    Args:
        differences: of pairs, such as of two methods with each seed (N,).

    Returns:
        The p-value; NaN for one difference, 1 where all are 0, and 0 where all are the same and not 0.
    """
    count, mean = len(differences), float(np.mean(differences))
    if count < 2:
        return float("nan")
    deviation = float(np.std(differences, ddof=1))
    if deviation == 0:
        return float(mean == 0)
    return float(2 * special.stdtr(count - 1, -abs(mean) / deviation * np.sqrt(count)))
