"""Families of pipelines, each in a file of its own that registers it."""

from openood_dream.dream.families import stable_diffusion, stable_diffusion_xl

__all__ = ["stable_diffusion", "stable_diffusion_xl"]
