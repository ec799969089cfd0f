"""What training with outliers gains over base: differences of the same seeds, and what the seeds allow to say of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from openood_dream.evaluators import significance
from openood_dream.reports.columns import metrics_of
from openood_dream.reports.table import BASE
from openood_dream.reports.variants import VARIANT, variants

IMAGINED = "imagined"  # how outlier data begin that were imagined
WITH_REAL = "oe"  # the method that shows what real auxiliary images give
DETECTOR = "ebo"  # the detector that methods are compared with where they all have it


class Gain(NamedTuple):
    """What a method gains in a metric.

    Args:
        metric: a column of runs.collect.
        base: base's mean over the seeds, in percent.
        mean: the mean difference, in points of a percent.
        halfwidth: half the width of its 95 % t-interval over seeds; NaN for one seed.
        p: of a paired t-test over seeds; NaN for one seed.
    """

    metric: str
    base: float
    mean: float
    halfwidth: float
    p: float

    @property
    def larger(self) -> bool | None:
        """Whether the metric is larger than base's in more than chance: False for smaller, None where nobody can say."""
        return self.mean > 0 if self.p < significance.LEVEL else None

    @property
    def better(self) -> bool | None:
        """As `larger`, of what is wanted: an FPR@95 should be small."""
        return self.larger if self.larger is None or not self.metric.endswith("fpr95") else not self.larger

    @property
    def decimals(self) -> int:
        """How many decimals its interval allows to be shown: of 13 points' width none, of 0.2 two."""
        return decimals(self.halfwidth)


class Cost(NamedTuple):
    """What a method took.

    Args:
        imagining: seconds of all that it imagined, which its seeds share.
        training: seconds of the training of a seed, in the mean.
    """

    imagining: float
    training: float


class Comparison(NamedTuple):
    """A method beside base, with one detector.

    Args:
        method: its label.
        detector: the detector of both.
        outlier_data: what it learned from besides ID images.
        seeds: the seeds that both have.
        gains: by metric.
    """

    method: str
    detector: str
    outlier_data: str
    seeds: list[int]
    gains: dict[str, Gain]

    @property
    def imagined(self) -> bool:
        """Whether it learned from imagined images."""
        return self.outlier_data.startswith(IMAGINED)


def decimals(halfwidth: float) -> int:
    """How many decimals of a mean its interval allows to be shown.

    Args:
        halfwidth: half the width of the interval; NaN where there is none, which allows one decimal.
    """
    if math.isnan(halfwidth):
        return 1
    return 0 if halfwidth >= 10 else 1 if halfwidth >= 1 else 2


def shown_detector(names: Sequence[str]) -> str:
    """The detector that figures and first lines show: `ebo` where it is among the names, else the first."""
    return DETECTOR if DETECTOR in names else names[0]


def comparisons(runs: pd.DataFrame) -> list[Comparison]:
    """What first lines say: each method with imagined images beside base, then `oe`.

    Args:
        runs: runs.collect's rows; of several data sets or networks, or runs of a method that differ in more than their
            seed, nothing can be said.
    """
    base = runs[runs["method"] == BASE]
    if base.empty or runs["dataset"].nunique() > 1 or runs["network"].nunique() > 1:
        return []
    detector = shown_detector(list(dict.fromkeys(base["postprocessor"])))
    told = runs.assign(**{VARIANT: variants(runs)[0]})
    told = told[told["postprocessor"] == detector]
    plain = told.groupby("method").filter(lambda rows: not any(rows[VARIANT]))
    base = plain[plain["method"] == BASE].set_index("seed")
    others = {str(name): rows.set_index("seed") for name, rows in plain.groupby("method") if name != BASE}
    found = [
        _comparison(name, rows, base, detector) for name, rows in others.items() if set(rows.index) & set(base.index)
    ]
    wanted = [one for one in found if one.imagined or one.method == WITH_REAL]
    return sorted(wanted, key=lambda one: (not one.imagined, one.method != "dream_ood", one.method))


def _comparison(name: str, rows: pd.DataFrame, base: pd.DataFrame, detector: str) -> Comparison:
    seeds = sorted(set(rows.index) & set(base.index))
    gains = {}
    for metric in metrics_of(rows):
        before = base.loc[seeds, metric].to_numpy(float)
        differences = rows.loc[seeds, metric].to_numpy(float) - before
        if np.isnan(differences).any():  # a network without classes has no accuracy
            continue
        deviation = float(np.std(differences, ddof=1)) if len(seeds) > 1 else math.nan
        halfwidth = significance.t_halfwidth(deviation, len(seeds))
        p = significance.t_p_value(differences)
        gains[metric] = Gain(metric, float(before.mean()), float(differences.mean()), halfwidth, p)
    return Comparison(name, detector, str(rows["outlier_data"].iloc[0]), [int(seed) for seed in seeds], gains)
