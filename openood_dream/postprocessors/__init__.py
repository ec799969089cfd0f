"""Detectors by OpenOOD's names; each module registers its own."""

from openood_dream.postprocessors import features, likelihood, logits, regret, shaped  # noqa: F401
