"""Settings of the judging and of the filter, for settings.py and for what judges."""

from __future__ import annotations

from pydantic import Field

from openood_dream.config.schema import Name, Section


class QualitySettings(Section):
    """`dream.quality`: how imagined images are judged."""

    section = "dream.quality"

    checkpoint: Name | None = Field(
        None, description="a checkpoint of `network` as the judge; null: the cosine classifier of the space"
    )
    confidence: float = Field(0.95, gt=0, lt=1, description="from which confidence in its own class an image counts")
    k: int = Field(5, ge=1, description="which nearest ID training feature measures the distance")


class FilterSettings(Section):
    """`dream.filter`: which imagined images are not trained with; null and false: none for that reason."""

    section = "dream.filter"

    confidence: float | None = Field(
        None, gt=0, lt=1, description="outliers whose class is surer than this, inliers whose class is less sure"
    )
    distance: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="outliers whose feature is nearer to ID than this share of ID validation images"
        " is, inliers whose feature is farther",
    )
    duplicates: bool = Field(False, description="images that look like an earlier one")

    @property
    def active(self) -> bool:
        return self.confidence is not None or self.distance is not None or self.duplicates
