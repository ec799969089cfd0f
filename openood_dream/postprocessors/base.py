"""What detectors have in common, and the registry that `postprocessor.name` chooses from.

Their numbers are OpenOOD's. They are computed by pytorch-ood where the two agree to 0.01 in every cell of ood.csv, and
written out here otherwise; a name whose numbers cannot be made to agree is not offered.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn
from torch.utils.data import DataLoader

from openood_dream import plugins
from openood_dream.config.schema import Section
from openood_dream.config.tree import plain
from openood_dream.errors import check_name
from openood_dream.networks.settings import GENERATIVE_SETTINGS
from openood_dream.postprocessors.settings import ARGUMENTS, NoArguments, PostprocessorSettings


@dataclass(frozen=True)
class Pass:
    """What one pass of a network over N images gives, on the CPU.

    Attributes:
        logits: (N, C).
        features: (N, D), what the classifier sees.
        labels: (N,).
        batch: images per batch by the set's own section, for what goes by whole batches; None where it does not say it.
    """

    logits: torch.Tensor
    features: torch.Tensor
    labels: torch.Tensor
    batch: int | None = None

    @cached_property
    def broken(self) -> int | None:
        """The first image with a logit or a feature that is not finite, if any."""
        bad = ~(self.logits.isfinite().all(1) & self.features.isfinite().all(1))
        return int(bad.nonzero()[0]) if bad.any() else None


@dataclass(frozen=True)
class Images:
    """A data set and the network, for a detector that runs the network itself.

    Attributes:
        net: the network.
        loader: its images, in the order of their list.
        device: where the network is to run.
        dataset: `dataset.name`, the name of the ID data.
    """

    net: nn.Module
    loader: DataLoader
    device: torch.device
    dataset: str = ""

    @property
    def labels(self) -> torch.Tensor:
        """The labels (N,) of the images."""
        return self.loader.dataset.labels  # type: ignore[attr-defined]


class Postprocessor:
    """Scores images; the larger its confidence, the more an image is taken for in-distribution.

    Attributes:
        name: as registered.
        Arguments: the model of its hyperparameters, as registered.
        sweep: those of them that a search on validation data may choose, in OpenOOD's order.
        runs_network: whether it runs the network itself (for gradients, inner layers or likelihoods), and so gets
            Images wherever others get a Pass.
        generative: whether it scores generative networks, and no classifier.
    """

    name: ClassVar[str]
    Arguments: ClassVar[type[Section]]
    sweep: ClassVar[tuple[str, ...]] = ()
    runs_network: ClassVar[bool] = False
    generative: ClassVar[bool] = False

    def __init__(self, args: Section) -> None:
        """Makes a detector that is not fitted yet.

        Args:
            args: its hyperparameters, of the class `Arguments`.
        """
        self.args: Any = args

    @classmethod
    def arguments(cls, settings: PostprocessorSettings, **given: Any) -> Section:
        """The detector's hyperparameters.

        Args:
            settings: its `postprocessor_args` are taken; those of other detectors, which a config underneath may have
                left, are not looked at.
            given: hyperparameters that take the place of those.

        Returns:
            A section of the class `Arguments`.

        Raises:
            InputError: a hyperparameter is unknown, or its value impossible.
        """
        own = cls.Arguments.model_fields
        others = {name for other in POSTPROCESSORS.values() for name in other.Arguments.model_fields if name not in own}
        values = {**(settings.postprocessor_args or {}), **given}
        values = {name: plain(value) for name, value in values.items() if name not in others}
        return settings.below("postprocessor_args", cls.Arguments, values)

    def fit(self, split: Callable[[str], Any], head: nn.Linear | None) -> None:
        """Learns from in-distribution images; a detector that has nothing to learn keeps this.

        Args:
            split: gives the Pass (or Images) of "train" or "val", without augmentation.
            head: the network's classifier; None for a generative network, which has none.

        Raises:
            InputError: the hyperparameters do not fit the images or the network.
        """

    def confidence(self, images: Any) -> torch.Tensor:
        """Scores images.

        Args:
            images: the Pass (or Images) of N images.

        Returns:
            One number for each image, (N,).
        """
        raise NotImplementedError

    def prediction(self, images: Any) -> torch.Tensor:
        """The class of each image, (N,); -1 for all where the network knows no classes."""
        return images.logits.argmax(1)


POSTPROCESSORS: dict[str, type[Postprocessor]] = {}

Detector = TypeVar("Detector", bound=type[Postprocessor])


def postprocessor(name: str, arguments: type[Section] = NoArguments) -> Callable[[Detector], Detector]:
    """Registers a detector.

    Args:
        name: the value of `postprocessor.name` that chooses it.
        arguments: the model of its hyperparameters.

    Returns:
        A decorator of its class.
    """

    def register(cls: Detector) -> Detector:
        plugins.add(POSTPROCESSORS, "postprocessor", name, cls, ARGUMENTS, arguments)
        cls.name, cls.Arguments = name, arguments
        return cls

    return register


def find_postprocessor(settings: PostprocessorSettings, network: str | None) -> type[Postprocessor]:
    """The class of the detector that a config chooses.

    Args:
        settings: name and hyperparameters.
        network: `network.name`, or None where there is no network yet.

    Raises:
        InputError: the name is unknown, the detector is not for this network, or its hyperparameters are impossible.
    """
    check_name(settings.where("name"), settings.name, POSTPROCESSORS)
    check_fits(settings, network)
    POSTPROCESSORS[settings.name].arguments(settings)
    return POSTPROCESSORS[settings.name]


def check_fits(settings: PostprocessorSettings, network: str | None) -> None:
    """Checks that a detector of generative networks scores such a network, and any other a classifier.

    Args:
        settings: the name of the detector, which need not be one of ours.
        network: `network.name`, or None where there is no network yet.

    Raises:
        InputError: they do not fit.
    """
    generative = settings.name in POSTPROCESSORS and POSTPROCESSORS[settings.name].generative
    if network is not None and generative != (network in GENERATIVE_SETTINGS):
        kind = "generative networks" if generative else "classifiers"
        raise settings.error("name", f"{settings.name} scores {kind}, and network.name is {network!r}")
