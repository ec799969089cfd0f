"""Settings of the guidance, for settings.py and for what guides."""

from __future__ import annotations

from pydantic import Field, model_validator

from openood_dream.config.schema import Section, rule


class GuideSettings(Section):
    """`dream.synthesis.guide`: gradients of an ID classifier that push images away from ID while they are drawn (GOOD)."""

    section = "dream.synthesis.guide"

    image: float = Field(
        0.0,
        ge=0,
        description="how far the log partition function of the logits pushes the latents, in shares of their length",
    )
    feature: float = Field(
        0.0, ge=0, description="how far the distance of the feature to ID features pushes them, in the same unit"
    )
    begin: float = Field(0.2, ge=0, lt=1, description="from which share of the steps on")
    end: float = Field(0.8, gt=0, le=1, description="up to which share of the steps")
    k: int = Field(5, ge=1, description="which nearest ID feature measures the distance")

    @model_validator(mode="after")
    def _steps(self) -> GuideSettings:
        rule(self.begin < self.end, f"expected begin < end, got {self.begin:g} and {self.end:g}", "begin", "end")
        return self

    @property
    def active(self) -> bool:
        return self.image > 0 or self.feature > 0
