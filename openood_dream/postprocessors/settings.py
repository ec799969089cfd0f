"""Settings of detectors: the section `postprocessor`, in OpenOOD's form, and the hyperparameters of each detector."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from openood_dream.config.schema import HostSection, Name, Section


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


class Arguments(Section):
    """`postprocessor.postprocessor_args`: the hyperparameters of a detector."""

    section = "postprocessor.postprocessor_args"


class EBOArguments(Arguments):
    """`postprocessor.postprocessor_args` of ebo."""

    temperature: float = Field(1, gt=0, description="temperature T of the energy")


class GENArguments(Arguments):
    """`postprocessor.postprocessor_args` of gen."""

    gamma: float = Field(0.1, gt=0, description="exponent of the entropy")
    M: int = Field(100, ge=1, description="how many of the largest probabilities are looked at")


class SHEArguments(Arguments):
    """`postprocessor.postprocessor_args` of she."""

    metric: Literal["inner_product"] = Field("inner_product", description="similarity of feature and pattern")


class FDBDArguments(Arguments):
    """`postprocessor.postprocessor_args` of fdbd."""

    distance_as_normalizer: bool = Field(
        True, description="whether to divide by the distance to the training mean, not by the feature's length"
    )


class NCIArguments(Arguments):
    """`postprocessor.postprocessor_args` of nci."""

    alpha: float = Field(0.0001, ge=0, description="weight of the feature's L1 norm")


class KNNArguments(Arguments):
    """`postprocessor.postprocessor_args` of knn."""

    K: int = Field(50, ge=1, description="which of the nearest training features counts")


class NNGuideArguments(Arguments):
    """`postprocessor.postprocessor_args` of nnguide."""

    alpha: float = Field(0.01, gt=0, le=1, description="share of the training images that are kept, the first ones")
    K: int = Field(100, ge=1, description="how many of the most similar kept images count")


class RelationArguments(Arguments):
    """`postprocessor.postprocessor_args` of relation."""

    pow: float = Field(1, gt=0, description="exponent of a relation")


class PrincipalArguments(Arguments):
    """`postprocessor.postprocessor_args` of vim and residual."""

    dim: int = Field(256, ge=0, description="dimensions of the principal space")


class ODINArguments(Arguments):
    """`postprocessor.postprocessor_args` of odin."""

    temperature: float = Field(1000, gt=0, description="temperature T of the softmax")
    noise: float = Field(0.0014, ge=0, description="step along the gradient's sign, in pixels of 0 to 1")


class ReActArguments(Arguments):
    """`postprocessor.postprocessor_args` of react."""

    percentile: float = Field(90, ge=0, le=100, description="percentile of all validation features to clip at")


class VRAArguments(Arguments):
    """`postprocessor.postprocessor_args` of vra."""

    percentile_low: float = Field(10, ge=0, le=100, description="percentile of all validation features below")
    percentile_high: float = Field(90, ge=0, le=100, description="percentile of all validation features above")


class ASHArguments(Arguments):
    """`postprocessor.postprocessor_args` of ash."""

    percentile: float = Field(90, ge=0, lt=100, description="share of an image's features that become 0, in percent")


class ScaleArguments(Arguments):
    """`postprocessor.postprocessor_args` of scale."""

    percentile: float = Field(85, ge=0, lt=100, description="share of features that are not the largest, in percent")


class DiceArguments(Arguments):
    """`postprocessor.postprocessor_args` of dice."""

    p: float = Field(90, ge=0, le=100, description="share of the classifier's weights that become 0, in percent")


class LikelihoodArguments(Arguments):
    """`postprocessor.postprocessor_args` of likelihood."""

    cache_dir: str = Field(description="folder that keeps likelihoods, regrets and code lengths")


class CodeArguments(LikelihoodArguments):
    """`postprocessor.postprocessor_args` of input_complexity and frl."""

    units: Literal["bits", "nats"] = Field(
        "bits",
        description="of the likelihood beside the code length in bits; nats: as the public code of FRL mixes them",
    )


class RegretArguments(LikelihoodArguments):
    """`postprocessor.postprocessor_args` of likelihood_regret, with the numbers of the public code."""

    steps: int = Field(100, ge=1, description="steps of Adam that improve an image's encoder")
    lr: float = Field(2e-4, gt=0, description="learning rate of Adam")
    samples: int = Field(1000, ge=1, description="importance samples of the bound")


class RegretZArguments(LikelihoodArguments):
    """`postprocessor.postprocessor_args` of likelihood_regret_z."""

    steps: int = Field(100, ge=1, description="steps of Adam that improve an image's posterior")
    lr: float = Field(0.05, gt=0, description="learning rate of Adam")
    samples: int = Field(20, ge=1, description="importance samples of the bound")


class NoArguments(Arguments):
    """`postprocessor.postprocessor_args` of a detector without hyperparameters."""


# the hyperparameters of each detector by its name, for whoever does without the detectors, which need torch
ARGUMENTS: dict[str, type[Section]] = {
    "msp": NoArguments,
    "mls": NoArguments,
    "temperature_scaling": NoArguments,
    "ebo": EBOArguments,
    "gen": GENArguments,
    "klm": NoArguments,
    "odin": ODINArguments,
    "mds": NoArguments,
    "rmds": NoArguments,
    "she": SHEArguments,
    "gradnorm": NoArguments,
    "fdbd": FDBDArguments,
    "nci": NCIArguments,
    "knn": KNNArguments,
    "nnguide": NNGuideArguments,
    "relation": RelationArguments,
    "vim": PrincipalArguments,
    "residual": PrincipalArguments,
    "openmax": NoArguments,
    "react": ReActArguments,
    "vra": VRAArguments,
    "ash": ASHArguments,
    "scale": ScaleArguments,
    "dice": DiceArguments,
    "likelihood": LikelihoodArguments,
    "input_complexity": CodeArguments,
    "frl": CodeArguments,
    "likelihood_regret": RegretArguments,
    "likelihood_regret_z": RegretZArguments,
}
