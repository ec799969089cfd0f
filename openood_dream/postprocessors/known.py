"""All detectors: each module registers its own."""

from openood_dream.postprocessors import (  # noqa: F401
    features,
    likelihood,
    logits,
    neighbours,
    openmax,
    perturbed,
    principal,
    regret,
    shaped,
)
from openood_dream.postprocessors.base import POSTPROCESSORS, check_fits, find_postprocessor

__all__ = ["POSTPROCESSORS", "check_fits", "find_postprocessor"]
