"""Detectors by OpenOOD's names; each module registers its own."""

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
