"""Detectors that compare an image with training images, one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.special import logsumexp
from torch import nn

from openood_dream.postprocessors.base import Pass, Postprocessor, postprocessor
from openood_dream.postprocessors.settings import KNNArguments, NNGuideArguments, RelationArguments
from openood_dream.sampling.search import flat_index

CHUNK = 50  # images whose relations to all training images are in memory at a time


@postprocessor("knn", KNNArguments)
class KNN(Postprocessor):
    """Minus the squared distance to the K-th nearest normalised training feature.

    With faiss, where it is installed, as in OpenOOD: in tight clusters its rounding decides the order.

    Source: Sun et al., Out-of-Distribution Detection with Deep Nearest Neighbors, ICML 2022.
    """

    sweep = ("K",)

    def fit(self, split: Callable[[str], Pass], head: nn.Linear | None) -> None:
        """Keeps the training features.

        Args:
            split: gives the pass over "train".
            head: not used.

        Raises:
            InputError: there are fewer than K training images.
        """
        bank = unit(split("train").features)
        check_neighbours(self.args, len(bank), "training images")
        self.index = flat_index(bank.shape[1])
        self.index.add(bank)

    def confidence(self, images: Pass) -> torch.Tensor:
        """Minus the K-th smallest |z - z_i|^2, (N,), of a pass over images."""
        distances, _ = self.index.search(unit(images.features), self.args.K)
        return -torch.from_numpy(distances[:, -1])


def check_neighbours(args: Any, count: int, what: str) -> None:
    """Checks that there are K neighbours.

    Args:
        args: hyperparameters with `K`.
        count: how many neighbours there are.
        what: they are called in the message.

    Raises:
        InputError: there are fewer.
    """
    if args.K > count:
        raise args.error("K", f"expected 1 to {count} ({what}), got {args.K}")


def unit(features: torch.Tensor) -> np.ndarray:
    """Features (N, D) of length 1, plus OpenOOD's 1e-10; NumPy's norm, whose last digits are not torch's."""
    rows = features.numpy()
    return rows / np.linalg.norm(rows, axis=1, keepdims=True) + np.float32(1e-10)


@postprocessor("nnguide", NNGuideArguments)
class NNGuide(Postprocessor):
    """Energy times the mean similarity to the K most similar of the kept training images, each times its own energy.

    As in OpenOOD's evaluation_api the kept images are the first of the list, in whole batches; its pipelines shuffle it.

    Source: Park, Jung & Teoh, Nearest Neighbor Guidance for Out-of-Distribution Detection, ICCV 2023.
    """

    sweep = ("K",)

    def fit(self, split: Callable[[str], Pass], head: nn.Linear | None) -> None:
        """Keeps features of training images.

        Args:
            split: gives the pass over "train".
            head: not used.

        Raises:
            InputError: fewer than K training images are kept.
        """
        train = split("train")
        batch = train.batch or 1
        kept = min(batch * (int(len(train.labels) * self.args.alpha) // batch + 1), len(train.labels))
        check_neighbours(self.args, kept, f"training images that alpha {self.args.alpha:g} keeps")
        energies = logsumexp(train.logits[:kept].numpy(), axis=1)
        self.index = flat_index(train.features.shape[1], inner=True)
        self.index.add(unit(train.features[:kept]) * energies[:, None])

    def confidence(self, images: Pass) -> torch.Tensor:
        """Mean of the K largest <z, e_i z_i>, times log sum_c exp(f_c), (N,), of a pass over images."""
        similarities, _ = self.index.search(unit(images.features), self.args.K)
        return torch.from_numpy(similarities.mean(1) * logsumexp(images.logits.numpy(), axis=1))


@postprocessor("relation", RelationArguments)
class Relation(Postprocessor):
    """Sum of the relations to all training images: cosine of features times product of predictions, from 0.03 on.

    Source: Kim et al., Neural Relation Graph: A Unified Framework for Identifying Label Noise and Outlier Data, NeurIPS
    2023.
    """

    sweep = ("pow",)
    least = 0.03

    def fit(self, split: Callable[[str], Pass], head: nn.Linear | None) -> None:
        """Keeps features and predictions of the training images.

        Args:
            split: gives the pass over "train".
            head: not used.
        """
        train = split("train")
        self.features, self.p = of_length_one(train.features), train.logits.softmax(1)

    def confidence(self, images: Pass) -> torch.Tensor:
        """sum_i r_i^pow of r_i = max(0, cos(z, z_i)) p . p_i over all r_i > 0.03, (N,), of a pass over images."""
        parts = []
        for features, logits in zip(images.features.split(CHUNK), images.logits.split(CHUNK)):
            relations = (of_length_one(features) @ self.features.T).clamp(min=0) * (logits.softmax(1) @ self.p.T)
            parts.append(((relations > self.least) * relations**self.args.pow).sum(1))
        return torch.cat(parts)


def of_length_one(features: torch.Tensor) -> torch.Tensor:
    """Features (N, D) of length 1, and 0 where all are 0."""
    return features / ((features**2).sum(1, keepdim=True) + 1e-10).sqrt()
