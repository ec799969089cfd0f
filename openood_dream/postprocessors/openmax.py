"""OpenMax, with a Weibull fit of its own in the place of libmr."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import brentq
from torch import nn

from openood_dream.errors import InputError
from openood_dream.postprocessors.base import Pass, Postprocessor, postprocessor
from openood_dream.postprocessors.features import check_classes

TAIL = 20  # the largest distances of a class, to which its Weibull distribution is fitted
RANKS = 3  # classes whose logits are lowered
SURE = 0.9  # an image whose largest probability is less is taken for the last class, in OpenOOD's accuracy


@dataclass(frozen=True)
class Weibull:
    """Distribution of the largest distances, moved so that the smallest of them is 1.

    Attributes:
        scale: of the distribution.
        shape: of the distribution.
        smallest: the smallest of the distances.
    """

    scale: float
    shape: float
    smallest: float

    def cdf(self, distances: np.ndarray) -> np.ndarray:
        """The share of the fitted distances that are smaller than each of `distances`."""
        moved = np.maximum(distances - self.smallest + 1, 0)
        return 1 - np.exp(-((moved / self.scale) ** self.shape))


def fit_weibull(distances: np.ndarray) -> Weibull:
    """The most likely Weibull distribution of distances that are not all equal."""
    moved = distances.astype(np.float64) - distances.min() + 1
    x, log_x = moved / moved.max(), np.log(moved / moved.max())

    def slope(shape: float) -> float:
        """Rises in the shape, and is 0 at the most likely one."""
        powers = x**shape
        return (powers @ log_x) / powers.sum() - 1 / shape - log_x.mean()

    high = 1.0
    while slope(high) < 0:
        high *= 2
    shape = float(brentq(slope, 1e-6, high, xtol=1e-12))
    return Weibull(float(moved.max() * (x**shape).mean() ** (1 / shape)), shape, float(distances.min()))


@postprocessor("openmax")
class OpenMax(Postprocessor):
    """Minus the probability of an unknown class, whose logit is what the largest three lose by their distances.

    A class's distances are those between its mean logits and the logits of training images; OpenOOD's settings.

    Source: Bendale & Boult, Towards Open Set Deep Networks, CVPR 2016, Alg. 1 and 2.
    """

    def fit(self, split: Callable[[str], Pass], head: nn.Linear | None) -> None:
        """Takes each class's mean logits, and the distribution of its largest distances.

        Args:
            split: gives the pass over "train".
            head: not used.

        Raises:
            InputError: there are no two rightly predicted training images of a class with distances of their own.
        """
        train = split("train")
        classes = train.logits.shape[1]
        right = train.logits.argmax(1) == train.labels
        few = "no training image that the network rightly predicts; train it for longer"
        check_classes(self.name, train.labels[right].bincount(minlength=classes), few)
        logits = [train.logits[right & (train.labels == label)].numpy() for label in range(classes)]
        self.means = np.stack([of_class.mean(0) for of_class in logits])
        tails = [np.sort(distances(*pair))[-TAIL:] for pair in zip(logits, self.means)]
        for label, tail in enumerate(tails):
            if tail[0] == tail[-1]:
                text = f"class {label} has too few different training images that the network rightly predicts"
                raise InputError(f"{self.name}: {text}; train it for longer, or choose another postprocessor")
        self.weibulls = [fit_weibull(tail) for tail in tails]

    def probabilities(self, images: Pass) -> np.ndarray:
        """Of the classes and, last, the unknown one, (N, C + 1), of a pass over images."""
        logits = images.logits.numpy().astype(np.float64)
        far = [model.cdf(distances(images.logits.numpy(), mean)) for model, mean in zip(self.weibulls, self.means)]
        weights = np.zeros_like(logits)
        order = np.argsort(images.logits.numpy(), axis=1)[:, ::-1][:, :RANKS]
        np.put_along_axis(weights, order, (RANKS - np.arange(order.shape[1])[None, :]) / RANKS, axis=1)
        kept = logits * (1 - np.stack(far, axis=1) * weights)
        all_logits = np.concatenate([kept, (logits - kept).sum(1, keepdims=True)], axis=1)
        e = np.exp(all_logits - all_logits.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)

    def confidence(self, images: Pass) -> torch.Tensor:
        """-p_unknown, (N,), of a pass over images."""
        return -torch.from_numpy(self.probabilities(images)[:, -1].copy())

    def prediction(self, images: Pass) -> torch.Tensor:
        """The class of each image (N,): of the largest probability, C for unknown, and the last one below SURE."""
        p = self.probabilities(images)
        return torch.from_numpy(np.where(p.max(1) >= SURE, p.argmax(1), p.shape[1] - 2))


def distances(logits: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Euclidean distances between logits (N, C) and a class's mean logits (C,), (N,)."""
    return np.linalg.norm(logits - mean, axis=1)
