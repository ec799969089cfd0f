"""ID images that drawing starts from: noised to a strength and denoised under an outlier's embedding (SDEdit, Meng et al. 2022).

What a small generator cannot draw, layout, camera and texture, stays real.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from openood_dream.datasets.images import ImageList
from openood_dream.dream.generator.training import unit_images


@dataclass(frozen=True)
class Starts:
    """ID training images with their embeddings, of which each image that is drawn gets one of its class.

    Args:
        images: the ID training images, without augmentation.
        rows: which of them there are, numbers in the list (N,).
        labels: their classes (N,).
        embeddings: their unit embeddings in the space (N, m).
        anchors: T(y) (C, m).
    """

    images: ImageList
    rows: torch.Tensor
    labels: torch.Tensor
    embeddings: torch.Tensor
    anchors: torch.Tensor

    @property
    def identity(self) -> dict[str, Any]:
        """What decides about them, besides the space that the outliers are of."""
        return {"train": self.images.identity, "transform": self.images.transform.test_identity}

    def pick(self, labels: torch.Tensor, seeds: Sequence[int]) -> np.ndarray:
        """Picks a start for each of B images, by its class and its noise seed alone.

        Args:
            labels: class labels (B,).
            seeds: noise seeds.

        Returns:
            Numbers below N (B,).

        Raises:
            ValueError: there is no ID image of a class.
        """
        found = []
        for label, seed in zip(labels.tolist(), seeds, strict=True):
            own = (self.labels == label).nonzero().flatten()
            if not len(own):
                raise ValueError(f"there is no ID training image of class {label} to start from")
            found.append(int(own[np.random.default_rng([seed, 1]).integers(len(own))]))
        return np.array(found)

    def pixels(self, picked: np.ndarray, size: int) -> torch.Tensor:
        """The picked images (B, 3, size, size), in [-1, 1]."""
        return unit_images(self.images.at_size(size), self.rows[torch.from_numpy(picked)])

    def tokens(self, picked: np.ndarray) -> torch.Tensor:
        """The picked images' own class tokens ||T(y)|| h(x) (B, m), under which the generator draws their like."""
        chosen = torch.from_numpy(picked)
        norms = self.anchors.norm(dim=1)[self.labels[chosen]].unsqueeze(1)
        return F.normalize(self.embeddings[chosen], dim=1) * norms

    def names(self, picked: np.ndarray) -> list[str]:
        """The files of the picked images, as their list names them."""
        return [self.images.rows[int(row)][0] for row in self.rows[torch.from_numpy(picked)]]
