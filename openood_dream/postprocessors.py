"""Detectors by OpenOOD's names, on the logits and features of one pass, with OpenOOD's numbers.

They are pytorch-ood's where those agree with OpenOOD's to 0.01 in every cell of ood.csv, else written out here; a
name whose numbers cannot be made to agree is not offered. Confidence is larger for in-distribution images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import faiss
import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from pytorch_ood.detector import DICE, NCI, EnergyBased, MaxLogit, MaxSoftmax, ViM
from pytorch_ood.detector.ash import ash_b
from pytorch_ood.detector.scale import scale
from scipy.special import rel_entr
from sklearn.covariance import EmpiricalCovariance
from torch import nn
from torch.utils.data import DataLoader

from openood_dream.config import GENERATIVE_SETTINGS, Config, InputError, Section, check_name, origin, plain, validated


@dataclass(frozen=True)
class Pass:
    """What one pass of a network over a data set gives: logits (N, C), features (N, D), labels (N,), on the CPU."""

    logits: torch.Tensor
    features: torch.Tensor
    labels: torch.Tensor

    @cached_property
    def broken(self) -> int | None:
        """The first image whose logits or features are not numbers, if any."""
        bad = self.logits.isnan().any(1) | self.features.isnan().any(1)
        return int(bad.nonzero()[0]) if bad.any() else None


@dataclass(frozen=True)
class Images:
    """A data set and the network, for a detector that runs the network itself; `loader` keeps the order of the list."""

    net: nn.Module
    loader: DataLoader
    device: torch.device

    @property
    def labels(self) -> torch.Tensor:
        return self.loader.dataset.labels


class Postprocessor:
    """Scores images; `sweep` names the arguments that a search on validation data may choose, in OpenOOD's order.

    A class with `runs_network`, for gradients, inner layers or likelihoods, gets Images wherever others get a Pass.
    """

    class Arguments(Section):
        """What `postprocessor_args` may hold; nothing."""

    name: str  # as registered
    sweep: tuple[str, ...] = ()
    runs_network = False
    generative = False  # whether it scores generative networks, and no classifier

    def __init__(self, args: Section) -> None:
        self.args: Any = args

    @classmethod
    def arguments(cls, config: dict, **given: Any) -> Section:
        """The config's `postprocessor_args`, those `given` in their place; InputError where they cannot be.

        Those of other detectors, which a config underneath may have left, are not looked at.
        """
        own = cls.Arguments.model_fields
        others = {name for other in POSTPROCESSORS.values() for name in other.Arguments.model_fields if name not in own}
        values = {**(config["postprocessor"].get("postprocessor_args") or {}), **given}
        values = {name: value for name, value in values.items() if name not in others}
        return validated(config, "postprocessor.postprocessor_args", cls.Arguments, plain(values))

    def fit(self, split: Callable[[str], Pass], head: nn.Linear | None) -> None:
        """Learns from the pass of an ID split ("train" or "val", without augmentation) and the network's classifier.

        A network without a classifier (a generative model) has no `head`.
        """

    def confidence(self, images: Pass) -> torch.Tensor:
        """One number per image, (N,)."""
        raise NotImplementedError

    def prediction(self, images: Pass) -> torch.Tensor:
        """The class of each image, (N,); -1 for all where the network knows no classes."""
        return images.logits.argmax(1)


POSTPROCESSORS: dict[str, type[Postprocessor]] = {}


def postprocessor(name: str) -> Callable[[type[Postprocessor]], type[Postprocessor]]:
    """Registers a detector under the name that `postprocessor.name` uses."""

    def register(cls: type[Postprocessor]) -> type[Postprocessor]:
        POSTPROCESSORS[name], cls.name = cls, name
        return cls

    return register


def find_postprocessor(config: Config) -> type[Postprocessor]:
    """The class of `postprocessor.name`; InputError for an unknown name, one that is not for this network, or bad arguments."""
    name, where = (config.postprocessor or {}).get("name"), origin(config, "postprocessor.name")
    check_name("postprocessor.name", name, POSTPROCESSORS, where)
    check_fits(config)
    POSTPROCESSORS[name].arguments(config)
    return POSTPROCESSORS[name]


def check_fits(config: Config) -> None:
    """Raises InputError where the postprocessor is for generative networks and the network is none, or the reverse."""
    name, network = config.postprocessor.name, (config.network or {}).get("name")
    generative = name in POSTPROCESSORS and POSTPROCESSORS[name].generative
    if network is not None and generative != (network in GENERATIVE_SETTINGS):
        where, kind = (
            origin(config, "postprocessor.name"),
            "generative networks" if generative else "classifiers",
        )
        raise InputError(f"{where}: postprocessor.name: {name} scores {kind}, and network.name is {network!r}")


# ----------------------------------------------------------------------------------------------------------- logits


@postprocessor("msp")
class MSP(Postprocessor):
    """Maximum softmax probability."""

    def confidence(self, images: Pass) -> torch.Tensor:
        return -MaxSoftmax.score(images.logits)


@postprocessor("mls")
class MLS(Postprocessor):
    """Maximum logit."""

    def confidence(self, images: Pass) -> torch.Tensor:
        return -MaxLogit.score(images.logits)


@postprocessor("ebo")
class EBO(Postprocessor):
    """Energy score at `temperature`."""

    class Arguments(Section):
        temperature: float = Field(1, gt=0)

    sweep = ("temperature",)

    def confidence(self, images: Pass) -> torch.Tensor:
        return -EnergyBased.score(images.logits, t=self.args.temperature)


@postprocessor("gen")
class GEN(Postprocessor):
    """Minus the generalised entropy sum p^gamma (1 - p)^gamma of the M largest probabilities.

    pytorch-ood's keeps probabilities away from 0 and 1, which puts confident images in another order.
    """

    class Arguments(Section):
        gamma: float = Field(0.1, gt=0)
        M: int = Field(100, ge=1)

    sweep = ("gamma", "M")

    def confidence(self, images: Pass) -> torch.Tensor:
        gamma = self.args.gamma
        p = images.logits.softmax(1).sort(1).values[:, -self.args.M :]
        return -(p**gamma * (1 - p) ** gamma).sum(1)


@postprocessor("klm")
class KLM(Postprocessor):
    """Minus the smallest KL divergence to the mean prediction of the validation images that are taken for a class.

    A class that no validation image is taken for has the one-hot prediction, where pytorch-ood has none.
    """

    def fit(self, split: Callable[[str], Pass], head: nn.Linear) -> None:
        p, predicted = split("val").logits.softmax(1), split("val").logits.argmax(1)
        means = [p[predicted == label].mean(0).numpy() for label in range(p.shape[1])]
        empty = [bool(np.isnan(mean).any()) for mean in means]
        self.means = np.array(
            [one if bare else mean for one, bare, mean in zip(np.eye(len(means)), empty, means, strict=True)]
        )

    def confidence(self, images: Pass) -> torch.Tensor:
        p = images.logits.softmax(1).numpy().astype(self.means.dtype)
        p, means = p / p.sum(1, keepdims=True), self.means / self.means.sum(1, keepdims=True)
        return -torch.from_numpy(np.min([rel_entr(p, mean).sum(1) for mean in means], axis=0))


# --------------------------------------------------------------------------------------------------------- features


@postprocessor("knn")
class KNN(Postprocessor):
    """Minus the squared distance to the K-th nearest normalised training feature.

    With faiss, as in OpenOOD: in tight clusters its rounding decides the order.
    """

    class Arguments(Section):
        K: int = Field(50, ge=1)

    sweep = ("K",)

    def fit(self, split: Callable[[str], Pass], head: nn.Linear) -> None:
        bank, self.K = unit(split("train").features), self.args.K
        if self.K > len(bank):
            raise InputError(
                f"postprocessor.postprocessor_args.K: expected 1 to {len(bank)} (training images), got {self.K}"
            )
        self.index = faiss.IndexFlatL2(bank.shape[1])
        self.index.add(bank)

    def confidence(self, images: Pass) -> torch.Tensor:
        distances, _ = self.index.search(unit(images.features), self.K)
        return -torch.from_numpy(distances[:, -1])


def unit(features: torch.Tensor) -> np.ndarray:
    """Features (N, D) of length 1, plus OpenOOD's 1e-10."""
    return (features / features.norm(dim=1, keepdim=True)).numpy() + np.float32(1e-10)


@postprocessor("vim")
class VIM(Postprocessor):
    """Energy minus the virtual logit: the residual outside the `dim` principal directions of training features."""

    class Arguments(Section):
        dim: int = Field(256, ge=0)

    sweep = ("dim",)

    def fit(self, split: Callable[[str], Pass], head: nn.Linear) -> None:
        train, dim = split("train"), self.args.dim
        if dim >= train.features.shape[1]:
            raise InputError(
                "postprocessor.postprocessor_args.dim: expected less than the "
                f"{train.features.shape[1]} features of the network, got {dim}"
            )
        self.detector = ViM(None, dim, head.weight, head.bias).fit_features(train.features, train.labels)

    def confidence(self, images: Pass) -> torch.Tensor:
        return -self.detector.predict_features(images.features)


@postprocessor("mds")
class MDS(Postprocessor):
    """Minus the Mahalanobis distance to the nearest class mean, with one covariance for all classes."""

    def fit(self, split: Callable[[str], Pass], head: nn.Linear) -> None:
        train = split("train")
        _every_class(self.name, train.labels.bincount(minlength=head.out_features), "no training image")
        self.means = torch.stack([train.features[train.labels == label].mean(0) for label in range(head.out_features)])
        self.precision = precision(train.features - self.means[train.labels])

    def confidence(self, images: Pass) -> torch.Tensor:
        return -torch.stack([mahalanobis(images.features - mean, self.precision) for mean in self.means]).amin(0)


@postprocessor("rmds")
class RMDS(MDS):
    """MDS relative to the distance to the mean of all training features, with their covariance."""

    def fit(self, split: Callable[[str], Pass], head: nn.Linear) -> None:
        super().fit(split, head)
        features = split("train").features
        self.mean, self.background = features.mean(0), precision(features - features.mean(0))

    def confidence(self, images: Pass) -> torch.Tensor:
        return super().confidence(images) + mahalanobis(images.features - self.mean, self.background)


def precision(centred: torch.Tensor) -> torch.Tensor:
    """The inverse covariance (D, D) of (N, D); a pseudo-inverse, since networks have features that are always 0."""
    return torch.from_numpy(EmpiricalCovariance().fit(centred.numpy()).precision_).float()


def mahalanobis(centred: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """x' P x of each row, (N,)."""
    return ((centred @ inverse) * centred).sum(1)


@postprocessor("she")
class SHE(Postprocessor):
    """Similarity to the mean feature of the training images that are rightly taken for the predicted class."""

    class Arguments(Section):
        metric: Literal["inner_product"] = "inner_product"

    def fit(self, split: Callable[[str], Pass], head: nn.Linear) -> None:
        train = split("train")
        right = train.logits.argmax(1) == train.labels
        counts = train.labels[right].bincount(minlength=head.out_features)
        _every_class(self.name, counts, "no training image that the network rightly predicts; train it for longer")
        self.patterns = torch.stack(
            [train.features[right & (train.labels == label)].mean(0) for label in range(head.out_features)]
        )

    def confidence(self, images: Pass) -> torch.Tensor:
        return (images.features * self.patterns[images.logits.argmax(1)]).sum(1)


def _every_class(name: str, counts: torch.Tensor, none: str) -> None:
    """Raises InputError for a class of which there is `none`, `counts` (C,) says."""
    if not counts.all():
        raise InputError(f"{name}: class {int((counts == 0).nonzero()[0])} has {none}, or choose another postprocessor")


@postprocessor("gradnorm")
class GradNorm(Postprocessor):
    """L1 norm of the gradient, with respect to the classifier's weight, of the cross-entropy to all ones.

    It is the outer product of C softmax - 1 and the feature, so its norm is the product of theirs.
    """

    def confidence(self, images: Pass) -> torch.Tensor:
        p = images.logits.softmax(1)
        return (p.shape[1] * p - 1).abs().sum(1) * images.features.abs().sum(1)


@postprocessor("fdbd")
class FDBD(Postprocessor):
    """Sum of the distances to the decision boundaries, by the distance to the training mean or by the feature's length.

    pytorch-ood has the first of the two alone.
    """

    class Arguments(Section):
        distance_as_normalizer: bool = True

    sweep = ("distance_as_normalizer",)

    def fit(self, split: Callable[[str], Pass], head: nn.Linear) -> None:
        weight = head.weight.detach().double()
        self.gaps = (weight[:, None] - weight).norm(dim=2).fill_diagonal_(1)
        self.centre = split("train").features.mean(0) * self.args.distance_as_normalizer

    def confidence(self, images: Pass) -> torch.Tensor:
        values, predicted = images.logits.max(1)
        return ((values[:, None] - images.logits) / self.gaps[predicted]).sum(1) / (images.features - self.centre).norm(
            dim=1
        )


@postprocessor("nci")
class NCIDistance(Postprocessor):
    """Closeness of the centred feature to the predicted class's weight, plus alpha times the feature's L1 norm."""

    class Arguments(Section):
        alpha: float = Field(0.0001, ge=0)

    sweep = ("alpha",)

    def fit(self, split: Callable[[str], Pass], head: nn.Linear) -> None:
        self.detector = NCI(None, head, self.args.alpha).fit_features(split("train").features)

    def confidence(self, images: Pass) -> torch.Tensor:
        return -self.detector.predict_features(images.features)


# -------------------------------------------------------------------------------------------------- shaped features


class Shaped(Postprocessor):
    """The energy of logits that are not quite the network's."""

    def fit(self, split: Callable[[str], Pass], head: nn.Linear) -> None:
        self.head = head

    def shape(self, features: torch.Tensor) -> torch.Tensor:
        """Features (N, D) as the classifier is to see them."""
        raise NotImplementedError

    def logits(self, images: Pass) -> torch.Tensor:
        with torch.inference_mode():
            return self.head(self.shape(images.features))

    def confidence(self, images: Pass) -> torch.Tensor:
        return -EnergyBased.score(self.logits(images))

    def prediction(self, images: Pass) -> torch.Tensor:
        return self.logits(images).argmax(1)


@postprocessor("react")
class ReAct(Shaped):
    """Features above a percentile of all validation features are clipped."""

    class Arguments(Section):
        percentile: float = Field(90, ge=0, le=100)

    sweep = ("percentile",)

    def fit(self, split: Callable[[str], Pass], head: nn.Linear) -> None:
        super().fit(split, head)
        self.threshold = float(np.percentile(split("val").features.numpy(), self.args.percentile))

    def shape(self, features: torch.Tensor) -> torch.Tensor:
        return features.clip(max=self.threshold)


@postprocessor("vra")
class VRA(Shaped):
    """Features outside two percentiles of all validation features are clipped; pytorch-ood's are per feature."""

    class Arguments(Section):
        percentile_low: float = Field(10, ge=0, le=100)
        percentile_high: float = Field(90, ge=0, le=100)

    sweep = ("percentile_high", "percentile_low")

    def fit(self, split: Callable[[str], Pass], head: nn.Linear) -> None:
        super().fit(split, head)
        limits = [self.args.percentile_low, self.args.percentile_high]
        self.low, self.high = map(float, np.percentile(split("val").features.numpy(), limits))

    def shape(self, features: torch.Tensor) -> torch.Tensor:
        return features.clip(self.low, self.high)


@postprocessor("ash")
class ASH(Shaped):
    """ASH-B: the largest features of an image share the sum of all, the others are 0."""

    class Arguments(Section):
        percentile: float = Field(90, ge=0, lt=100)

    sweep = ("percentile",)

    def shape(self, features: torch.Tensor) -> torch.Tensor:
        return ash_b(features[:, :, None, None], self.args.percentile / 100)[:, :, 0, 0]


@postprocessor("scale")
class Scale(Shaped):
    """Features times exp(sum of all / sum of the largest)."""

    class Arguments(Section):
        percentile: float = Field(85, ge=0, lt=100)

    sweep = ("percentile",)

    def shape(self, features: torch.Tensor) -> torch.Tensor:
        return scale(features[:, :, None, None], self.args.percentile / 100)[:, :, 0, 0]


@postprocessor("dice")
class Dice(Shaped):
    """Only the classifier's weights whose mean contribution is above a percentile are used.

    No `sweep`: OpenOOD's search over p goes on using the weights of the first one.
    """

    class Arguments(Section):
        p: float = Field(90, ge=0, le=100)

    def fit(self, split: Callable[[str], Pass], head: nn.Linear) -> None:
        train = split("train")
        self.detector = DICE(None, head.weight, head.bias, self.args.p / 100).fit_features(train.features, train.labels)

    def logits(self, images: Pass) -> torch.Tensor:
        return F.linear(images.features, self.detector.masked_w, self.detector.bias)
