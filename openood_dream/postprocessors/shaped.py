"""Detectors that take the energy of logits from features, or a classifier, that were changed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from pytorch_ood.detector import DICE, EnergyBased
from pytorch_ood.detector.ash import ash_b
from pytorch_ood.detector.scale import scale
from torch import nn

from openood_dream.postprocessors.base import Pass, Postprocessor, postprocessor
from openood_dream.postprocessors.features import classifier
from openood_dream.postprocessors.settings import (
    ASHArguments,
    DiceArguments,
    ReActArguments,
    ScaleArguments,
    VRAArguments,
)


class Shaped(Postprocessor):
    """Minus the energy of the classifier's logits for changed features."""

    def fit(self, split: Callable[[str], Pass], head: nn.Linear | None) -> None:
        """Keeps the classifier.

        Args:
            split: gives passes over in-distribution images.
            head: the network's classifier.
        """
        self.head = classifier(head)

    def shape(self, features: torch.Tensor) -> torch.Tensor:
        """Features (N, D) as the classifier is to see them."""
        raise NotImplementedError

    def logits(self, images: Pass) -> torch.Tensor:
        """Logits (N, C) of the changed features of a pass over images."""
        with torch.inference_mode():
            return self.head(self.shape(images.features))

    def confidence(self, images: Pass) -> torch.Tensor:
        """log sum_c exp(f_c) of the changed logits, (N,), of a pass over images."""
        return -EnergyBased.score(self.logits(images))

    def prediction(self, images: Pass) -> torch.Tensor:
        """The class of each image (N,) by the changed logits."""
        return self.logits(images).argmax(1)


@postprocessor("react", ReActArguments)
class ReAct(Shaped):
    """Features above a percentile of all validation features are clipped.

    Source: Sun, Guo & Li, ReAct: Out-of-distribution Detection With Rectified Activations, NeurIPS 2021.
    """

    sweep = ("percentile",)

    def fit(self, split: Callable[[str], Pass], head: nn.Linear | None) -> None:
        """Finds the threshold.

        Args:
            split: gives the pass over "val".
            head: the network's classifier.
        """
        super().fit(split, head)
        self.threshold = float(np.percentile(split("val").features.numpy(), self.args.percentile))

    def shape(self, features: torch.Tensor) -> torch.Tensor:
        """min(z, threshold) of features (N, D)."""
        return features.clip(max=self.threshold)


@postprocessor("vra", VRAArguments)
class VRA(Shaped):
    """Features outside two percentiles of all validation features are clipped; pytorch-ood's are per feature.

    Source: Xu et al., VRA: Variational Rectified Activation for Out-of-distribution Detection, NeurIPS 2023.
    """

    sweep = ("percentile_high", "percentile_low")

    def fit(self, split: Callable[[str], Pass], head: nn.Linear | None) -> None:
        """Finds the thresholds.

        Args:
            split: gives the pass over "val".
            head: the network's classifier.
        """
        super().fit(split, head)
        limits = [self.args.percentile_low, self.args.percentile_high]
        self.low, self.high = map(float, np.percentile(split("val").features.numpy(), limits))

    def shape(self, features: torch.Tensor) -> torch.Tensor:
        """min(max(z, low), high) of features (N, D)."""
        return features.clip(self.low, self.high)


@postprocessor("ash", ASHArguments)
class ASH(Shaped):
    """ASH-B: the largest features of an image share the sum of all, the others are 0.

    Source: Djurisic et al., Extremely Simple Activation Shaping for Out-of-Distribution Detection, ICLR 2023, Alg. 2.
    """

    sweep = ("percentile",)

    def shape(self, features: torch.Tensor) -> torch.Tensor:
        """Features (N, D) binarised."""
        return ash_b(features[:, :, None, None], self.args.percentile / 100)[:, :, 0, 0]


@postprocessor("scale", ScaleArguments)
class Scale(Shaped):
    """Features times exp(sum of all / sum of the largest).

    Source: Xu et al., Scaling for Training Time and Post-hoc Out-of-distribution Detection Enhancement, ICLR 2024.
    """

    sweep = ("percentile",)

    def shape(self, features: torch.Tensor) -> torch.Tensor:
        """Features (N, D) scaled, each image by its own factor."""
        return scale(features[:, :, None, None], self.args.percentile / 100)[:, :, 0, 0]


@postprocessor("dice", DiceArguments)
class Dice(Shaped):
    """Only the classifier's weights whose mean contribution is above a percentile are used.

    It has no `sweep`: OpenOOD's search over p goes on using the weights of the first one.

    Source: Sun & Li, DICE: Leveraging Sparsification for Out-of-Distribution Detection, ECCV 2022.
    """

    def fit(self, split: Callable[[str], Pass], head: nn.Linear | None) -> None:
        """Finds the weights that are used.

        Args:
            split: gives the pass over "train".
            head: the network's classifier.
        """
        head, train = classifier(head), split("train")
        self.detector = DICE(None, head.weight, head.bias, self.args.p / 100).fit_features(train.features, train.labels)

    def logits(self, images: Pass) -> torch.Tensor:
        """Logits (N, C) by the used weights of a pass over images."""
        return F.linear(images.features, self.detector.masked_w, self.detector.bias)
