"""What every sampler of outlier embeddings has in common, and the registry of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from torch import Tensor

from openood_dream import plugins
from openood_dream.dream.settings import SAMPLER_SETTINGS, OutlierSettings
from openood_dream.sampling.knn import Index

SettingsT = TypeVar("SettingsT", bound=OutlierSettings)


class Sampler(ABC, Generic[SettingsT]):
    """Finds outlier embeddings of one class at a time.

    Args:
        settings: the settings that its decorator names.
    """

    Settings: ClassVar[type[OutlierSettings]]
    remedy: ClassVar[str] = "or raise dream.space.per_class (and have as many training images)"
    draws: ClassVar[bool] = True  # whether it draws random numbers, so that the seed has a say
    keeps_class: ClassVar[bool] = False  # whether what it finds still belongs to the class: inliers

    def __init__(self, settings: SettingsT) -> None:
        self.settings = settings

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that have a say in what is found."""
        return self.settings.model_dump(exclude=None if self.draws else {"seed"})

    def check_counts(self, counts: Sequence[int], names: Sequence[str]) -> None:
        """Checks that the classes have enough embeddings.

        Args:
            counts: embeddings of each class.
            names: the classes.

        Raises:
            InputError: k is not below the number of embeddings that it counts in.
        """
        few = int(np.argmin(counts))
        bank, whose = counts[few], f"class {names[few]!r}"
        if self.settings.neighbours == "all":
            bank, whose = sum(counts), "all classes together"
        if self.settings.k >= bank:
            text = f"{self.settings.k} is not below {bank}, the number of embeddings of {whose}; lower k {self.remedy}"
            raise self.settings.error("k", text)

    def learn(self, z: Tensor, labels: Tensor, folder: Path) -> None:  # noqa: B027 (most learn nothing)
        """Learns from the embeddings of all classes, before the first class is sampled.

        Args:
            z: unit embeddings (N, m).
            labels: their classes (N,).
            folder: the stage's, where what was learned is kept, so that an interrupted run goes on with it.

        Raises:
            ValueError: nothing can be learned with these settings; the message says why.
        """

    @abstractmethod
    def sample(
        self, z: Tensor, label: int, anchors: Tensor, temperature: float, index: Index | None = None
    ) -> dict[str, Tensor]:
        """Outliers of one class.

        Args:
            z: unit embeddings (N, m) of the class.
            label: the class.
            anchors: the anchors of all classes (C, m).
            temperature: t of the cosine classifier that the space was trained with.
            index: the embeddings of all classes where distances count all of them.

        Returns:
            Columns of M rows: unit `embeddings` (M, m); `boundary`, the rows of z that they come from; `distance`, their
            d_k. Where it has them also `seed` and `draw`, `steps` and `target`, and of all of z `all_steps` and
            `all_target` (N,); and scalars that the manifest then has of the class: outliers.SCALARS.

        Raises:
            ValueError: nothing can be found with these settings; the message says why.
        """


SAMPLERS: dict[str, type[Sampler[Any]]] = {}

SamplerT = TypeVar("SamplerT", bound=type[Sampler[Any]])


def sampler(name: str, settings: type[OutlierSettings]) -> Callable[[SamplerT], SamplerT]:
    """Registers a class of samplers.

    Args:
        name: its name, the value of `dream.outliers.method`.
        settings: the model of the keys that `dream.outliers` then has.

    Returns:
        A decorator.
    """

    def register(cls: SamplerT) -> SamplerT:
        cls.Settings = settings
        plugins.add(SAMPLERS, "sampler", name, cls, SAMPLER_SETTINGS, settings)
        return cls

    return register


def get_sampler(settings: OutlierSettings) -> Sampler[Any]:
    """The sampler that settings describe."""
    return SAMPLERS[settings.method](settings)
