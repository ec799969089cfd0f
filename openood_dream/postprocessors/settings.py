"""Settings of detectors: the section `postprocessor`, in OpenOOD's form."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from openood_dream.config.schema import HostSection, Name


class PostprocessorSettings(HostSection):
    """`postprocessor`: which detector scores images."""

    section = "postprocessor"

    name: Name = Field(description="the detector")
    APS_mode: bool = Field(False, description="whether hyperparameters are searched on the validation sets")
    postprocessor_args: dict[str, Any] | None = Field(None, description="the detector's hyperparameters")
    postprocessor_sweep: dict[str, Any] | None = Field(None, description="`<hyperparameter>_list`: values to search")

    @property
    def searches(self) -> bool:
        """Whether there is something to search on the validation sets."""
        return self.APS_mode and bool(self.postprocessor_sweep)
