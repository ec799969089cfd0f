"""Settings of the evaluation: the section `evaluator`, in OpenOOD's form."""

from __future__ import annotations

from pydantic import Field

from openood_dream.config.schema import HostSection


class EvaluatorSettings(HostSection):
    """`evaluator`: how metrics are computed."""

    section = "evaluator"

    name: str | None = Field(None, description="OpenOOD's evaluator")
    ood_scheme: str = Field("ood", description="ood; fsood counts covariate-shifted images as ID")
