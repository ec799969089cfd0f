"""How much of a difference is chance: bootstrap intervals and paired tests over the images of the test sets.

A resample draws, of each test set, as many images as it has, with replacement. All runs get the same resamples, so the
difference of two methods is taken on the same images each time. What the seeds of training change is not in it: the
standard deviation over seeds says that.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from functools import lru_cache

import numpy as np

RESAMPLES = 1000
LEVEL = 0.05
BLOCK = 64  # resamples at a time, so that their counts stay in the processor's cache


@lru_cache(maxsize=32)  # of the sets of a benchmark, which all its runs share
def counts(name: str, images: int, resamples: int = RESAMPLES) -> np.ndarray:
    """How often each resample draws each image, (resamples, images); always the same for a set's name and size."""
    rng = np.random.default_rng([zlib.crc32(name.encode()), images])
    drawn = np.empty((resamples, images), np.uint8 if images > 255 else np.uint16)  # nobody is drawn 256 times of more
    for row in drawn:
        row[:] = np.bincount(rng.integers(images, size=images), minlength=images)
    drawn.flags.writeable = False
    return drawn


def resampled(inside: np.ndarray, outside: np.ndarray, ids: np.ndarray, oods: np.ndarray) -> tuple[np.ndarray, ...]:
    """AUROC and FPR@95 of each resample, as fractions (B,), of ID confidences (N,) and OOD ones (M,).

    `ids` (B, N) and `oods` (B, M) are `counts`. AUROC is the share of pairs (ID, OOD) in which ID is the more confident,
    ties counted half; FPR@95 is the share of ID images lost at the strictest threshold that finds 95 % of the OOD images.
    One sort serves all resamples.
    """
    known, unknown = np.argsort(inside, kind="stable"), np.argsort(outside, kind="stable")
    ranked, asked = inside[known], outside[unknown]
    below, upto = (np.searchsorted(ranked, asked, side) for side in ("left", "right"))
    last = np.searchsorted(asked, asked, "right") - 1  # an image's threshold takes all that are tied with it
    auroc, fpr = np.empty(len(ids)), np.empty(len(ids))
    for start in range(0, len(ids), BLOCK):
        rows = slice(start, start + BLOCK)
        weights, found = ids[rows].take(known, axis=1), oods[rows].take(unknown, axis=1)
        lost = np.zeros((len(weights), len(inside) + 1), np.int32)  # ID images below each place in the order
        np.cumsum(weights, axis=1, out=lost[:, 1:])
        less = (lost.take(below, axis=1) + lost.take(upto, axis=1)).astype(np.float64)
        auroc[rows] = 1 - np.einsum("bm,bm->b", less, found) / (2 * len(inside) * len(outside))
        enough = found.cumsum(axis=1, dtype=np.int32) / len(outside) >= 0.95
        fpr[rows] = lost[np.arange(len(lost)), upto[last[enough.argmax(axis=1)]]] / len(inside)
    return auroc, fpr


def draws(
    name: str,
    inside: tuple[np.ndarray, ...],
    groups: Mapping[str, Mapping[str, np.ndarray]],
    resamples: int = RESAMPLES,
) -> dict[str, np.ndarray]:
    """The metrics of a run in each resample, in percent (B,): `<group>_auroc`, `<group>_fpr95` and `id_acc`.

    `inside` holds predictions, confidences and labels of the ID test set called `name`, `groups` the confidences of OOD
    sets, {"near": {set: (M,)}, ...}; a group's metrics are the means over its sets. A network without classes has no id_acc.
    """
    pred, conf, label = inside
    ids = counts(name, len(conf), resamples)
    found = {} if (pred == -1).all() else {"id_acc": 100 * ids[:, pred == label].sum(1) / len(conf)}
    for group, sets in groups.items():
        both = [resampled(conf, scores, ids, counts(set_, len(scores), resamples)) for set_, scores in sets.items()]
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
