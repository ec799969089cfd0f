"""The high-frequency channel of frequency-regularized learning (FRL; Cai & Li, WACV 2023, Sec. 3.1)."""

from __future__ import annotations

import torch
from torchvision.transforms.functional import gaussian_blur

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def grey(pixels: torch.Tensor) -> torch.Tensor:
    """The luma (B, 1, S, S) of integers 0 to 255 (B, 3, S, S), unrounded; one channel stays as it is."""
    if pixels.shape[1] == 1:
        return pixels.float()
    return torch.einsum("bchw,c->bhw", pixels.float(), torch.tensor(LUMA, device=pixels.device)).unsqueeze(1)


def high_frequency(pixels: torch.Tensor) -> torch.Tensor:
    """x_H = (grey - GaussianBlur5x5(grey) + 1) / 2 of images in [0, 1], here from and to integers 0 to 255 (B, 1, S, S).

    The blur has sigma 1.1 and mirrors the image at its edges, where zeros would draw a frame.
    """
    y = grey(pixels)
    return ((y - gaussian_blur(y, [5, 5]) + 255) / 2).round().to(torch.uint8)


def with_high_frequency(pixels: torch.Tensor) -> torch.Tensor:
    """(x, x_H): uint8 images (B, C, S, S) with the high-frequency channel as the last one."""
    return torch.cat([pixels, high_frequency(pixels)], dim=1)
