"""What the generative models have in common."""

from __future__ import annotations

import torch
from torch import nn


class DensityModel(nn.Module):
    """A model of images of integers 0 to 255 with a likelihood, in nats.

    Attributes:
        channels: channels of an image.
        size: pixels a side.
    """

    channels: int
    size: int

    def bound(self, x: torch.Tensor) -> torch.Tensor:
        """log p(x), or a bound from below with fresh draws, (B,): what training raises.

        Args:
            x: integers 0 to 255, (B, channels, size, size).
        """
        raise NotImplementedError

    def draw_noise(self, generator: torch.Generator) -> torch.Tensor | None:
        """The draws that `log_prob` shares among images, on the CPU; None where the likelihood needs none."""
        raise NotImplementedError

    def log_prob(self, x: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
        """log p(x), or a bound from below, (B,): what scores images.

        Args:
            x: integers 0 to 255, (B, channels, size, size).
            noise: of `draw_noise`, on the device of x.
        """
        raise NotImplementedError

    def sample(self, count: int) -> torch.Tensor:
        """Draws images (count, channels, size, size), uint8; call it in evaluation mode."""
        raise NotImplementedError


def scaled(x: torch.Tensor) -> torch.Tensor:
    """Integers 0 to 255 as floats in [-1, 1]."""
    return x / 127.5 - 1
