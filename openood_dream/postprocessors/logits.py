"""Detectors that look at logits alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from pytorch_ood.detector import EnergyBased, MaxLogit, MaxSoftmax
from scipy.special import rel_entr
from torch import nn

from openood_dream.postprocessors.base import Pass, Postprocessor, postprocessor
from openood_dream.postprocessors.settings import EBOArguments, GENArguments


@postprocessor("msp")
class MSP(Postprocessor):
    """Maximum softmax probability.

    Source: Hendrycks & Gimpel, A Baseline for Detecting Misclassified and Out-of-Distribution Examples, ICLR 2017.
    """

    def confidence(self, images: Pass) -> torch.Tensor:
        """max_c p_c, (N,), of a pass over images."""
        return -MaxSoftmax.score(images.logits)


@postprocessor("mls")
class MLS(Postprocessor):
    """Maximum logit.

    Source: Hendrycks et al., Scaling Out-of-Distribution Detection for Real-World Settings, ICML 2022.
    """

    def confidence(self, images: Pass) -> torch.Tensor:
        """max_c f_c, (N,), of a pass over images."""
        return -MaxLogit.score(images.logits)


@postprocessor("temperature_scaling")
class TemperatureScaling(Postprocessor):
    """Maximum softmax probability at the temperature that suits the validation images.

    As in OpenOOD fifty steps of L-BFGS with rate 0.01 from 1.5 look for it, which need not be enough.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, Sec. 4.2.
    """

    def fit(self, split: Callable[[str], Pass], head: nn.Linear | None) -> None:
        """Finds the temperature of a small cross-entropy.

        Args:
            split: gives the pass over "val".
            head: not used.
        """
        val, temperature = split("val"), torch.full((1,), 1.5, requires_grad=True)
        optimizer = torch.optim.LBFGS([temperature], lr=0.01, max_iter=50)

        def loss() -> torch.Tensor:
            optimizer.zero_grad()
            value = F.cross_entropy(val.logits / temperature, val.labels)
            value.backward()
            return value

        optimizer.step(loss)
        self.temperature = temperature.detach()

    def confidence(self, images: Pass) -> torch.Tensor:
        """max_c p_c of the logits by the temperature, (N,), of a pass over images."""
        return (images.logits / self.temperature).softmax(1).amax(1)


@postprocessor("ebo", EBOArguments)
class EBO(Postprocessor):
    """Minus the energy.

    Source: Liu et al., Energy-based Out-of-distribution Detection, NeurIPS 2020, Eq. 4.
    """

    sweep = ("temperature",)

    def confidence(self, images: Pass) -> torch.Tensor:
        """T log sum_c exp(f_c / T), (N,), of a pass over images."""
        return -EnergyBased.score(images.logits, t=self.args.temperature)


@postprocessor("gen", GENArguments)
class GEN(Postprocessor):
    """Minus the generalised entropy of the M largest probabilities.

    pytorch-ood's keeps probabilities away from 0 and 1, which puts confident images in another order.

    Source: Liu, Lochman & Zach, GEN: Pushing the Limits of Softmax-Based Out-of-Distribution Detection, CVPR 2023.
    """

    sweep = ("gamma", "M")

    def confidence(self, images: Pass) -> torch.Tensor:
        """-sum_c p_c^gamma (1 - p_c)^gamma over the M largest, (N,), of a pass over images."""
        gamma = self.args.gamma
        p = images.logits.softmax(1).sort(1).values[:, -self.args.M :]
        return -(p**gamma * (1 - p) ** gamma).sum(1)


@postprocessor("klm")
class KLM(Postprocessor):
    """Minus the smallest KL divergence to the mean prediction of the validation images that are taken for a class.

    A class that no validation image is taken for has the one-hot prediction, where pytorch-ood has none.

    Source: Hendrycks et al., Scaling Out-of-Distribution Detection for Real-World Settings, ICML 2022, Sec. 4.
    """

    def fit(self, split: Callable[[str], Pass], head: nn.Linear | None) -> None:
        """Takes the mean prediction (C, C) for each class.

        Args:
            split: gives the pass over "val".
            head: not used.
        """
        p, predicted = split("val").logits.softmax(1), split("val").logits.argmax(1)
        means = [p[predicted == label].mean(0).numpy() for label in range(p.shape[1])]
        one_hot = np.eye(len(means))
        self.means = np.array([one_hot[label] if np.isnan(mean).any() else mean for label, mean in enumerate(means)])

    def confidence(self, images: Pass) -> torch.Tensor:
        """-min_c KL(p || mean_c), (N,), of a pass over images."""
        p = images.logits.softmax(1).numpy().astype(self.means.dtype)
        p, means = p / p.sum(1, keepdims=True), self.means / self.means.sum(1, keepdims=True)
        return -torch.from_numpy(np.min([rel_entr(p, mean).sum(1) for mean in means], axis=0))
