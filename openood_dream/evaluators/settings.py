"""Settings of the evaluation: the section `evaluator`, in OpenOOD's form."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from openood_dream.config.schema import HostSection


class EvaluatorSettings(HostSection):
    """`evaluator`: how metrics are computed."""

    section = "evaluator"
    HOST_KEYS = ("test_pix", "use_react")
    HOST_NAMES = ("base", "ood", "fsood", "ad", "arpl", "ece", "mos", "osr", "patch")

    name: str | None = Field(None, description="OpenOOD's evaluator")
    ood_scheme: Literal["ood", "fsood"] = Field("ood", description="ood; fsood counts covariate-shifted images as ID")
    passes: bool = Field(True, description="whether logits and features are kept on disk, for the next detector")
