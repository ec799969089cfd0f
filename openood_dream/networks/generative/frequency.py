"""The high-frequency channel of frequency-regularized learning (FRL; Cai & Li, WACV 2023, Sec. 3.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torchvision.transforms.functional import gaussian_blur

from openood_dream.datasets.images import LUMA


def grey(pixels: torch.Tensor) -> torch.Tensor:
    """The luma (B, 1, S, S) of integers 0 to 255 (B, 3, S, S), unrounded; one channel stays as it is."""
    if pixels.shape[1] == 1:
        return pixels.float()
    return torch.einsum("bchw,c->bhw", pixels.float(), torch.tensor(LUMA, device=pixels.device)).unsqueeze(1)


def high_frequency(pixels: torch.Tensor, blur: str = "mirror") -> torch.Tensor:
    """x_H = (grey - GaussianBlur5x5(grey) + 1) / 2 of images in [0, 1], here from and to integers 0 to 255.

    Args:
        pixels: integers 0 to 255, (B, C, S, S).
        blur: mirror: sigma 1.1, and the image reflected at its edges; published: [1 4 6 4 1] / 16 along rows and columns,
            and black beyond the edges, which draws a bright frame into every channel.

    Returns:
        uint8 (B, 1, S, S).
    """
    y = grey(pixels)
    blurred = gaussian_blur(y, [5, 5]) if blur == "mirror" else _published(y)
    return ((y - blurred + 255) / 2).round().to(torch.uint8)


def _published(y: torch.Tensor) -> torch.Tensor:
    """The blur of the public code, of (B, 1, S, S)."""
    kernel = torch.tensor([1.0, 4, 6, 4, 1], device=y.device) / 16
    return F.conv2d(y, torch.outer(kernel, kernel)[None, None], padding=2)


def with_high_frequency(pixels: torch.Tensor, blur: str = "mirror") -> torch.Tensor:
    """(x, x_H): images with the high-frequency channel as the last one.

    Args:
        pixels: uint8 (B, C, S, S).
        blur: as of `high_frequency`.
    """
    return torch.cat([pixels, high_frequency(pixels, blur)], dim=1)
