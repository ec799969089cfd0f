"""Generative networks so small that tests of several wings can train and score them."""

from __future__ import annotations

import torch

from openood_dream.networks.generative.network import Generative
from openood_dream.networks.settings import GENERATIVE_SETTINGS, GenerativeNetwork

SIZES = {
    "vae": {"latent": 8, "width": 8},
    "glow": {"levels": 2, "steps": 2, "width": 16},
    "pixelcnnpp": {"resnets": 1, "filters": 8, "mixtures": 2, "dropout": 0.0},
}


def settings(name: str, **keys) -> GenerativeNetwork:
    """Settings of a network for 8x8 grey digits, with other keys where given."""
    values = {"name": name, "image_size": 8, "channels": 1, "normalization_type": "digits", **SIZES[name]}
    return GENERATIVE_SETTINGS[name](**values | keys)


def network(name: str, **keys) -> Generative:
    """The network, always with the same weights."""
    torch.manual_seed(0)
    return Generative(settings(name, **keys))
