"""k-NN outliers (DREAM-OOD, Du et al., NeurIPS 2023) and inliers (DREAM-ID)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from openood_dream.dream.samplers.base import Sampler, sampler
from openood_dream.dream.settings import KNNSettings
from openood_dream.sampling.knn import Index, sample_outliers


@sampler("knn", KNNSettings)
class KNN(Sampler[KNNSettings]):
    """Outliers: the farthest of Gaussian candidates around the farthest embeddings of a class."""

    @property
    def identity(self) -> dict[str, Any]:
        """All settings; `multiple` only where sigma is found by it."""
        return self.settings.model_dump(exclude=set() if self.settings.sigma == "auto" else {"multiple"})

    def check_counts(self, counts: Sequence[int], names: Sequence[str]) -> None:
        super().check_counts(counts, names)
        few = min(range(len(counts)), key=counts.__getitem__)
        if self.settings.select > counts[few]:
            raise self.settings.error(
                "select",
                f"{self.settings.select} boundary points of class {names[few]!r}, which has {counts[few]} embeddings; "
                f"lower select {self.remedy}",
            )

    def sample(
        self, z: Tensor, label: int, anchors: Tensor, temperature: float, index: Index | None = None
    ) -> dict[str, Tensor]:
        s = self.settings
        return sample_outliers(
            z,
            k=s.k,
            sigma=s.sigma,
            multiple=s.multiple,
            select=s.select,
            n_boundary=s.n_boundary,
            n_draws=s.n_draws,
            keep=s.keep,
            rounds=s.rounds,
            selection=s.selection,
            inliers=self.keeps_class,
            seed=s.seed,
            label=label,
            index=index,
        )


@sampler("inlier", KNNSettings)
class Inlier(KNN):
    """Inliers: the nearest of Gaussian candidates around the nearest embeddings of a class."""

    keeps_class = True
