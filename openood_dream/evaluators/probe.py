"""A linear probe of image statistics: can outliers be told from ID images without looking at what they show?

A network learns the easiest difference. Where spectrum, brightness or contrast give outliers away, it need not learn
their content, and images of the ID classes that are blurred or pale look like outliers to it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from openood_dream.datasets.images import LUMA
from openood_dream.evaluators.metrics import compute_metrics

FOLDS = 5
BANDS = 32  # of spatial frequency, at most
ROUNDING = 1 / 12  # power that rounding to whole numbers adds, without which a constant image has no logarithm
WARNING = 80.0  # AUROC in percent from which on a probe says that training looks at the wrong thing


class Statistics(NamedTuple):
    """What a probe knows of N images.

    Attributes:
        frequencies: the middle of each band of spatial frequency in cycles per pixel, (B,).
        spectra: log10 of the mean power in each band, (N, B).
        colours: means and standard deviations of the channels, (N, 6).
    """

    frequencies: np.ndarray
    spectra: np.ndarray
    colours: np.ndarray


def image_statistics(pixels: np.ndarray) -> Statistics:
    """Radially averaged log-spectrum of the luma, and mean and contrast of each channel.

    Args:
        pixels: uint8 (N, 3, S, S).

    Raises:
        ValueError: fewer than 2 pixels a side.
    """
    size = pixels.shape[-1]
    if size < 2:
        raise ValueError(f"images of {size} pixel a side have no spectrum; expected at least 2")
    luma = np.tensordot(pixels, np.array(LUMA), axes=(1, 0))
    power = np.abs(np.fft.fft2(luma)) ** 2 / size**2
    radius = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None])
    edges = np.linspace(0.5 / size, 0.5 + 0.5 / size, min(BANDS, size // 2) + 1)
    band = np.digitize(radius, edges) - 1  # -1 is the mean, and beyond the last one are the corners
    means = [power[:, band == number].mean(1) for number in range(len(edges) - 1)]
    values = pixels.reshape(len(pixels), 3, -1).astype(np.float64)
    colours = np.concatenate([values.mean(2), values.std(2)], axis=1)
    return Statistics((edges[:-1] + edges[1:]) / 2, np.log10(np.stack(means, axis=1) + ROUNDING), colours)


def probe(id_images: Statistics, outliers: Statistics) -> float:
    """How well a linear probe tells outliers from ID images, whatever the order of both.

    A logistic regression on standardised statistics is fitted to four fifths of both and judged on the last, in turn.

    Args:
        id_images: statistics of at least FOLDS ID images.
        outliers: statistics of at least FOLDS outliers, of the same size.

    Returns:
        The mean AUROC of the FOLDS parts in percent: 50 where it can't tell, 100 where each is told.

    Raises:
        ValueError: there are too few images.
    """
    sides = [_sorted_rows(np.concatenate([of.spectra, of.colours], axis=1)) for of in (id_images, outliers)]
    if min(map(len, sides)) < FOLDS:
        raise ValueError(f"{len(sides[0])} ID images and {len(sides[1])} outliers; expected at least {FOLDS} of both")
    x, label = np.concatenate(sides), np.repeat([0, -1], [len(side) for side in sides])
    found = []
    for train, test in StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(x, label):
        model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
        conf = model.fit(x[train], label[train]).decision_function(x[test])  # larger for label 0, ID
        found.append(compute_metrics(conf, label[test], label[test])[1])
    return 100 * float(np.mean(found))


def _sorted_rows(rows: np.ndarray) -> np.ndarray:
    """Rows (N, D) in an order that only they decide, rounded to what does not depend on how many are computed at once."""
    rows = rows.round(6)
    return rows[np.lexsort(rows.T[::-1])]
