"""k-NN outliers (DREAM-OOD, Du et al., NeurIPS 2023) and inliers (DREAM-ID)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from torch import Tensor

from openood_dream.config.schema import not_more
from openood_dream.dream.samplers.base import OutlierSettings, Sampler, sampler
from openood_dream.sampling.knn import Index, sample_outliers


class KNNSettings(OutlierSettings):
    """`dream.outliers` with method knn or inlier: DREAM-OOD, Sec. 3.2."""

    method: Literal["knn", "inlier"] = Field("knn", description="the sampler")
    sigma: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
        0.07, description="standard deviation of the Gaussian draws; auto: found for each class, by multiple"
    )
    multiple: float = Field(
        1.1, gt=0, description="sigma auto: median distance of the kept, over the 99th percentile of ID distances"
    )
    select: int = Field(
        50, ge=1, description="boundary points of a class: its farthest embeddings, or nearest with method inlier"
    )
    n_boundary: int = Field(50, ge=1, description="boundary points used in a round")
    n_draws: int = Field(1500, ge=1, description="Gaussian draws around each boundary point")
    keep: int = Field(2, ge=1, description="candidates kept per boundary point and round")
    rounds: int = Field(100, ge=1, description="repetitions with fresh draws")
    selection: Literal["far", "random"] = Field(
        "far", description="which candidates are kept; far: the farthest, and the nearest with method inlier"
    )

    @model_validator(mode="after")
    def _counts(self) -> KNNSettings:
        return not_more(self, ("keep", "n_draws"), ("n_boundary", "select"))


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
