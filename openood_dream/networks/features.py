"""The loop that runs networks over images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from openood_dream.datasets.images import Transform
from openood_dream.device import autocast

Network = Callable[[torch.Tensor], Any]  # images (B, 3, S, S) to a tensor or a tuple of tensors, each of B rows


def outputs(
    net: Network,
    loader: Iterable[dict[str, Any]],
    device: torch.device,
    *,
    desc: str = "",
    dtype: torch.dtype = torch.float32,
    bar: bool = True,
) -> Iterator[tuple[tuple[torch.Tensor, ...], torch.Tensor]]:
    """Runs a network over a loader, batch by batch, without gradients.

    Args:
        net: takes normalised images (B, 3, S, S) to a tensor, or a tuple of tensors, of B rows; a module is put on
            `device` and in evaluation mode.
        loader: gives batches with images as `data` and classes as `label`; it is iterated once.
        device: where the network runs.
        desc: what the progress bar is called.
        dtype: number format of the computation.
        bar: whether there is a progress bar.

    Yields:
        For each batch what the network returns, on the CPU, as a tuple, and the labels (B,).
    """
    if isinstance(net, nn.Module):
        net.to(device).eval()
    for batch in tqdm(loader, desc=desc, unit="batch", leave=False, delay=2, disable=not bar):
        with torch.inference_mode(), autocast(device, dtype):
            found = net(batch["data"].to(device))
            rows = tuple(part.cpu() for part in (found if isinstance(found, tuple) else (found,)))
        yield rows, batch["label"]


def embed(
    net: Network,
    loader: Iterable[dict[str, Any]],
    device: torch.device,
    *,
    desc: str = "",
    dtype: torch.dtype = torch.float32,
    bar: bool = True,
) -> tuple[torch.Tensor, ...]:
    """What a network returns for every image of a loader.

    Args:
        net: takes normalised images (B, 3, S, S) to a tensor, or a tuple of tensors, of B rows; a module is put on
            `device` and in evaluation mode.
        loader: gives batches with images as `data` and classes as `label`; it is iterated once.
        device: where the network runs.
        desc: what the progress bar is called.
        dtype: number format of the computation.
        bar: whether there is a progress bar.

    Returns:
        Each of the network's outputs for all N images, float32 on the CPU, (N, ...).
    """
    parts = [rows for rows, _ in outputs(net, loader, device, desc=desc, dtype=dtype, bar=bar)]
    return tuple(torch.cat(column).float() for column in zip(*parts))


def classify(net: nn.Module, images: torch.Tensor, transform: Transform, device: torch.device) -> torch.Tensor:
    """The logits of images that are in memory.

    Args:
        net: the classifier, whose logits come first where it returns more; it is put on `device` and in evaluation mode.
        images: uint8 (N, 3, S, S), of any size.
        transform: says to which size they are resized, and how they are normalised.
        device: where the network runs.

    Returns:
        Logits (N, C), float32 on the CPU.
    """

    def prepared() -> Iterator[dict[str, torch.Tensor]]:
        for part in images.split(256):
            labels = torch.full((len(part),), -1)
            if part.shape[-1] != transform.image_size:
                size = (transform.image_size,) * 2
                part = F.interpolate(part.float(), size, mode="bilinear", antialias=True, align_corners=False)
            yield {"data": transform.normalize(part), "label": labels}

    return embed(net, prepared(), device, bar=False)[0]


def accuracy(net: nn.Module, loader: DataLoader, device: torch.device, dtype: torch.dtype = torch.float32) -> float:
    """How often a classifier is right.

    Args:
        net: the classifier; it is put on `device` and in evaluation mode.
        loader: gives batches with images as `data` and classes as `label`; it is iterated once.
        device: where the network runs.
        dtype: number format of the computation.

    Returns:
        The share of the images whose label the network predicts, between 0 and 1.
    """
    hits = images = 0
    for (logits, *_), labels in outputs(net, loader, device, dtype=dtype, bar=False):
        hits += int((logits.argmax(1) == labels).sum())
        images += len(labels)
    return hits / images
