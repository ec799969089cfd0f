"""Detectors that look at what principal components leave of features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.special import logsumexp
from sklearn.covariance import EmpiricalCovariance
from torch import nn

from openood_dream.postprocessors.base import Pass, Postprocessor, postprocessor
from openood_dream.postprocessors.features import weight_and_bias
from openood_dream.postprocessors.settings import PrincipalArguments


@postprocessor("vim", PrincipalArguments)
class VIM(Postprocessor):
    """Energy minus the virtual logit: the residual outside the principal space of the training features.

    Source: Wang et al., ViM: Out-Of-Distribution with Virtual-logit Matching, CVPR 2022, Eq. 6.
    """

    sweep = ("dim",)

    def fit(self, split: Callable[[str], Pass], head: nn.Linear | None) -> None:
        """Finds the principal space of the training features.

        Args:
            split: gives the pass over "train".
            head: the network's classifier.

        Raises:
            InputError: the principal space is to have all dimensions of the features.
        """
        train = split("train").features.numpy()
        check_dim(self.args, train.shape[1])
        self.weight, self.bias = weight_and_bias(head)
        self.rest = Rest(train, self.weight, self.bias, self.args.dim)
        largest = (train @ self.weight.T + self.bias).max(1)
        self.alpha = largest.mean() / self.rest.length(train).mean()

    def confidence(self, images: Pass) -> torch.Tensor:
        """log sum_c exp(f_c) - alpha |residual|, (N,), of a pass over images."""
        features = images.features.numpy()
        energy = logsumexp(features @ self.weight.T + self.bias, axis=1)
        return torch.from_numpy(energy - self.rest.length(features) * self.alpha)


@postprocessor("residual", PrincipalArguments)
class Residual(Postprocessor):
    """Minus the residual outside the principal space of the validation features, to which OpenOOD fits it.

    Source: Wang et al., ViM: Out-Of-Distribution with Virtual-logit Matching, CVPR 2022, Sec. 4.1.
    """

    def fit(self, split: Callable[[str], Pass], head: nn.Linear | None) -> None:
        """Finds the principal space.

        Args:
            split: gives the pass over "val".
            head: the network's classifier.

        Raises:
            InputError: the principal space is to have all dimensions of the features.
        """
        features = split("val").features.numpy()
        check_dim(self.args, features.shape[1])
        self.rest = Rest(features, *weight_and_bias(head), self.args.dim)

    def confidence(self, images: Pass) -> torch.Tensor:
        """-|residual|, (N,), of a pass over images."""
        return -torch.from_numpy(self.rest.length(images.features.numpy()))


class Rest:
    """What is left of features outside their principal space, around the point where all logits are 0.

    As OpenOOD computes it, in float32 and by a solver for matrices of any kind: where features depend on each other its
    vectors are not orthogonal, and scores differ by percents from those of a solver for symmetric ones.

    Args:
        features: (N, D).
        weight: of the classifier, (C, D).
        bias: of the classifier, (C,).
        dim: dimensions of the principal space.
    """

    def __init__(self, features: np.ndarray, weight: np.ndarray, bias: np.ndarray, dim: int) -> None:
        self.origin = -np.linalg.pinv(weight) @ bias
        covariance = EmpiricalCovariance(assume_centered=True).fit(features - self.origin).covariance_
        values, vectors = np.linalg.eig(covariance)
        self.vectors = np.ascontiguousarray(vectors[:, np.argsort(-values)[dim:]])

    def length(self, features: np.ndarray) -> np.ndarray:
        """The length of the residual of features (N, D), (N,)."""
        return np.linalg.norm((features - self.origin) @ self.vectors, axis=1)


def check_dim(args: Any, width: int) -> None:
    """Checks that a principal space leaves dimensions of the features.

    Args:
        args: hyperparameters with `dim`.
        width: the features' dimensions.

    Raises:
        InputError: it leaves none.
    """
    if args.dim >= width:
        raise args.error("dim", f"expected less than the {width} features of the network, got {args.dim}")
