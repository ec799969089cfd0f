"""A pipeline's autoencoder, of whichever kind: images to its latents and back."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from openood_dream.dream.placing import drawing_device


def of_videos(vae: Any) -> bool:
    """Whether an autoencoder takes videos, of which an image is one frame.

    Args:
        vae: the autoencoder.
    """
    return hasattr(vae.config, "z_dim")


def encoded_by(vae: Any, images: Tensor) -> Tensor:
    """The latents of images in the autoencoder's own scale: means, where it gives distributions.

    Args:
        vae: the autoencoder.
        images: (B, 3, S, S) in [-1, 1], in its number format and on its device.

    Returns:
        Latents (B, c, h, w), of videos (B, c, 1, h, w).
    """
    found = vae.encode(images.unsqueeze(2) if of_videos(vae) else images)
    return found.latent_dist.mean if hasattr(found, "latent_dist") else found.latent


@torch.no_grad()
def rebuilt(pipeline: DiffusionPipeline, images: Tensor) -> Tensor:
    """What a pipeline's autoencoder makes of images.

    Args:
        pipeline: has the autoencoder, which computes in float32, since half precision has losses of its own.
        images: (B, 3, S, S) in [-1, 1].

    Returns:
        Images of the same shape in [-1, 1], float32 on the pipeline's device.
    """
    vae = pipeline.vae
    dtype = vae.dtype
    if dtype is not torch.float32:
        vae.float()
    found = vae.decode(encoded_by(vae, images.to(drawing_device(pipeline), torch.float32)), return_dict=False)[0]
    if dtype is not torch.float32:
        vae.to(dtype)
    return (found[:, :, 0] if of_videos(vae) else found).clamp(-1, 1)
