"""How a batch of training images is augmented; random numbers are drawn on the CPU, so that every device has the same."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from openood_dream.device import copied


def random_crop(pixels: Tensor, padding: int, border: str = "black") -> Tensor:
    """Shifts each image by its own random number of pixels.

    Args:
        pixels: (B, C, H, W).
        padding: the largest shift to each side; less than a side where the border is a mirror.
        border: what comes into sight: black, or mirror, the image reflected at its outermost pixels.

    Returns:
        (B, C, H, W).
    """
    batch, _, height, width = pixels.shape
    black = border == "black"
    padded = torch.nn.functional.pad(pixels, (padding,) * 4) if black else pixels
    # drawn on the CPU, so that every device has the same shifts
    top, left = copied(torch.randint(0, 2 * padding + 1, (2, batch, 1)), pixels.device)
    rows, columns = (start + torch.arange(size, device=pixels.device) for start, size in ((top, height), (left, width)))
    if not black:
        rows, columns = (_reflected(places - padding, size) for places, size in ((rows, height), (columns, width)))
    every = torch.arange(batch, device=pixels.device).view(-1, 1, 1)
    picked = padded[every, :, rows.unsqueeze(2), columns.unsqueeze(1)]
    return picked.permute(0, 3, 1, 2)


def _reflected(places: Tensor, size: int) -> Tensor:
    """Places in a row of `size` pixels that stands before a mirror at either end."""
    places = places.abs()
    return size - 1 - (size - 1 - places).abs()


def random_flip(pixels: Tensor) -> Tensor:
    """Each image of (B, C, H, W), mirrored left to right with probability one half."""
    return flipped(pixels, torch.rand(len(pixels), 1, 1, 1) < 0.5)


def flipped(pixels: Tensor, mirrored: Tensor) -> Tensor:
    """Mirrors some images left to right.

    Args:
        pixels: the images (B, C, H, W).
        mirrored: which of them, (B,).
    """
    return torch.where(copied(mirrored.view(-1, 1, 1, 1), pixels.device), pixels.flip(3), pixels)


def simclr_views(size: int, least: float, interpolation: InterpolationMode, flip: bool) -> transforms.Compose:
    """SimCLR's augmentation of an image, as CIDER and NPOS take it (uint8 (3, S, S) -> uint8 (3, size, size)).

    Args:
        size: pixels a side.
        least: the smallest share of an image that is cut out.
        interpolation: how the cut is resized.
        flip: whether half of the images are mirrored.
    """
    jitter = transforms.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(size, (least, 1.0), interpolation=interpolation, antialias=True),
            *([transforms.RandomHorizontalFlip()] if flip else []),
            transforms.RandomApply([jitter], p=0.8),
            transforms.RandomGrayscale(p=0.2),
        ]
    )
