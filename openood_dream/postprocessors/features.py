"""Detectors that look at features, the input of the classifier."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from pytorch_ood.detector import NCI
from sklearn.covariance import EmpiricalCovariance
from torch import nn

from openood_dream.errors import InputError
from openood_dream.postprocessors.base import Pass, Postprocessor, postprocessor
from openood_dream.postprocessors.settings import FDBDArguments, NCIArguments, SHEArguments


@postprocessor("mds")
class MDS(Postprocessor):
    """Minus the Mahalanobis distance to the nearest class mean, with one covariance for all classes.

    Source: Lee et al., A Simple Unified Framework for Detecting Out-of-Distribution Samples, NeurIPS 2018, Eq. 2.
    """

    def fit(self, split: Callable[[str], Pass], head: nn.Linear | None) -> None:
        """Takes class means (C, D) and the inverse covariance (D, D) of the training features.

        Args:
            split: gives the pass over "train".
            head: the network's classifier.

        Raises:
            InputError: a class has no training image.
        """
        train, classes = split("train"), classifier(head).out_features
        check_classes(self.name, train.labels.bincount(minlength=classes), "no training image")
        by_class = [train.features[train.labels == label] for label in range(classes)]
        self.means = torch.stack([features.mean(0) for features in by_class])
        # class after class, as in OpenOOD: the inverse turns the rounding of another order into other scores
        self.precision = precision(torch.cat([features - mean for features, mean in zip(by_class, self.means)]))

    def confidence(self, images: Pass) -> torch.Tensor:
        """-min_c (z - mean_c)' P (z - mean_c), (N,), of a pass over images."""
        return -torch.stack([mahalanobis(images.features - mean, self.precision) for mean in self.means]).amin(0)


@postprocessor("rmds")
class RMDS(MDS):
    """MDS relative to the distance to the mean of all training features, with their covariance.

    Source: Ren et al., A Simple Fix to Mahalanobis Distance for Improving Near-OOD Detection, 2021 (arXiv 2106.09022).
    """

    def fit(self, split: Callable[[str], Pass], head: nn.Linear | None) -> None:
        """Takes, beside what MDS takes, mean and covariance over all classes.

        Args:
            split: gives the pass over "train".
            head: the network's classifier.

        Raises:
            InputError: a class has no training image.
        """
        super().fit(split, head)
        features = split("train").features
        self.mean, self.background = features.mean(0), precision(features - features.mean(0))

    def confidence(self, images: Pass) -> torch.Tensor:
        """MDS plus (z - mean)' P (z - mean), (N,), of a pass over images."""
        return super().confidence(images) + mahalanobis(images.features - self.mean, self.background)


def precision(centred: torch.Tensor) -> torch.Tensor:
    """The inverse covariance (D, D) of (N, D); a pseudo-inverse, since networks have features that are always 0."""
    return torch.from_numpy(EmpiricalCovariance().fit(centred.numpy()).precision_).float()


def mahalanobis(centred: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """The squared Mahalanobis length of rows.

    Args:
        centred: (N, D).
        inverse: the inverse covariance (D, D).

    Returns:
        x' P x of each row, (N,).
    """
    return torch.cat([(part @ inverse @ part.T).diag() for part in centred.split(128)])


@postprocessor("she", SHEArguments)
class SHE(Postprocessor):
    """Similarity to the mean feature of the training images that are rightly taken for the predicted class.

    Source: Zhang et al., Out-of-Distribution Detection based on In-Distribution Data Patterns Memorization with Modern
    Hopfield Energy, ICLR 2023.
    """

    def fit(self, split: Callable[[str], Pass], head: nn.Linear | None) -> None:
        """Takes the mean features (C, D).

        Args:
            split: gives the pass over "train".
            head: the network's classifier.

        Raises:
            InputError: no training image of a class is classified rightly.
        """
        train, classes = split("train"), classifier(head).out_features
        right = train.logits.argmax(1) == train.labels
        counts = train.labels[right].bincount(minlength=classes)
        check_classes(self.name, counts, "no training image that the network rightly predicts; train it for longer")
        self.patterns = torch.stack(
            [train.features[right & (train.labels == label)].mean(0) for label in range(classes)]
        )

    def confidence(self, images: Pass) -> torch.Tensor:
        """z . pattern_c of the predicted class c, (N,), of a pass over images."""
        return (images.features * self.patterns[images.logits.argmax(1)]).sum(1)


def classifier(head: nn.Linear | None) -> nn.Linear:
    """The classifier of a network; ValueError where it has none."""
    if head is None:
        raise ValueError("the network has no linear classifier (get_fc_layer)")
    return head


def weight_and_bias(head: nn.Linear | None) -> tuple[np.ndarray, np.ndarray]:
    """Weight (C, D) and bias (C,) of a network's classifier; ValueError where it has none."""
    layer = classifier(head)
    return layer.weight.detach().numpy(), layer.bias.detach().numpy()


def check_classes(detector: str, counts: torch.Tensor, none: str) -> None:
    """Checks that there are training images of every class.

    Args:
        detector: its name.
        counts: images of each class, (C,).
        none: what there is of a class whose count is 0, such as "no training image".

    Raises:
        InputError: a count is 0.
    """
    if not counts.all():
        empty = int((counts == 0).nonzero()[0])
        raise InputError(f"{detector}: class {empty} has {none}, or choose another postprocessor")


@postprocessor("gradnorm")
class GradNorm(Postprocessor):
    """L1 norm of the gradient, with respect to the classifier's weight, of the cross-entropy to all ones.

    The gradient is the outer product of C softmax - 1 and the feature, so its norm is the product of theirs.

    Source: Huang, Geng & Li, On the Importance of Gradients for Detecting Distributional Shifts, NeurIPS 2021, Eq. 8.
    """

    def confidence(self, images: Pass) -> torch.Tensor:
        """|C p - 1|_1 |z|_1, (N,), of a pass over images."""
        p = images.logits.softmax(1)
        return (p.shape[1] * p - 1).abs().sum(1) * images.features.abs().sum(1)


@postprocessor("fdbd", FDBDArguments)
class FDBD(Postprocessor):
    """Sum of the distances to the decision boundaries, by the distance to the training mean or the feature's length.

    pytorch-ood has the first of the two alone.

    Source: Liu & Qin, Fast Decision Boundary based Out-of-Distribution Detector, ICML 2024.
    """

    sweep = ("distance_as_normalizer",)

    def fit(self, split: Callable[[str], Pass], head: nn.Linear | None) -> None:
        """Takes the distances (C, C) of the classifier's weights, and the mean training feature (D,).

        Args:
            split: gives the pass over "train".
            head: the network's classifier.
        """
        weight = weight_and_bias(head)[0]
        gaps = np.stack([np.linalg.norm(weight - row, axis=1) for row in weight]).astype(np.float64)
        np.fill_diagonal(gaps, 1)
        self.gaps = torch.from_numpy(gaps)
        mean = torch.from_numpy(split("train").features.numpy().mean(0))  # NumPy's sum, in whose order torch's is not
        self.centre = mean * self.args.distance_as_normalizer

    def confidence(self, images: Pass) -> torch.Tensor:
        """sum_c (f_max - f_c) / |w_max - w_c| / |z - centre|, (N,), of a pass over images."""
        values, predicted = images.logits.max(1)
        distances = ((values[:, None] - images.logits) / self.gaps[predicted]).sum(1)
        return distances / (images.features - self.centre).norm(dim=1)


@postprocessor("nci", NCIArguments)
class NCIDistance(Postprocessor):
    """Closeness of the centred feature to the predicted class's weight, plus alpha times the feature's L1 norm.

    Source: Liu & Qin, Detecting Out-of-Distribution through the Lens of Neural Collapse, CVPR 2025.
    """

    sweep = ("alpha",)

    def fit(self, split: Callable[[str], Pass], head: nn.Linear | None) -> None:
        """Takes the mean training feature (D,).

        Args:
            split: gives the pass over "train".
            head: the network's classifier.
        """
        self.detector = NCI(None, classifier(head), self.args.alpha).fit_features(split("train").features)

    def confidence(self, images: Pass) -> torch.Tensor:
        """w_c . (z - mean) / |z - mean| + alpha |z|_1 of the predicted class c, (N,), of a pass over images."""
        return -self.detector.predict_features(images.features)
