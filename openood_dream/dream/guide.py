"""Guidance away from ID while an image is drawn (GOOD, Gao et al., NeurIPS 2025): the maths, without pipelines.

The clean image that a denoising step predicts goes through an ID classifier. The latents are moved so that the log partition function
of its logits falls ("image"), or the distance of its features to the k-th nearest ID feature rises ("feature").
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def kth_distance(features: Tensor, bank: Tensor, k: int) -> Tensor:
    """The distance of unit features to the k-th nearest of others, with gradients.

    Args:
        features: (B, D).
        bank: unit features of ID images (N, D).
        k: which neighbour, in 1..N.

    Returns:
        Euclidean distances (B,).
    """
    cosines = (features @ bank.T).topk(k, dim=1).values[:, -1]
    return (2 - 2 * cosines).clamp(min=1e-12).sqrt()


def push(latents: Tensor, gradient: Tensor, share: float) -> Tensor:
    """Moves latents along a gradient, each sample by itself.

    Args:
        latents: (B, ...).
        gradient: of the same shape, along which something rises.
        share: the length of the move, as a share of the sample's own length; 0 moves nothing.

    Returns:
        Latents of the same shape; those whose gradient is zero stay.
    """
    axes = tuple(range(1, latents.ndim))
    lengths = [x.float().square().sum(axes, keepdim=True).sqrt() for x in (latents, gradient)]
    move = gradient.float() * (share * lengths[0] / lengths[1].clamp(min=torch.finfo(torch.float32).tiny))
    return latents + move.to(latents.dtype)


def clean(scheduler: Any, output: Tensor, step: Tensor, sample: Tensor) -> Tensor:
    """The clean latents that a denoising step predicts.

    Args:
        scheduler: of diffusers, right after its `step`.
        output: what the network predicts: noise, v, the clean latents or a flow's velocity (B, ...).
        step: the time step.
        sample: the noisy latents that it was given (B, ...).

    Returns:
        Latents (B, ...), float32.
    """
    output, sample = output.float(), sample.float()
    name, kind = type(scheduler).__name__, scheduler.config.get("prediction_type")
    if kind == "sample":
        return output
    if "FlowMatch" in name or kind == "flow_prediction":
        return sample - float(scheduler.sigmas[scheduler.step_index - 1]) * output
    if "Euler" in name:
        sigma = float(scheduler.sigmas[scheduler.step_index - 1])  # noisy latents are x + sigma * noise
        if kind == "epsilon":
            return sample - sigma * output
        return (sample - sigma * (sigma**2 + 1) ** 0.5 * output) / (sigma**2 + 1)
    alpha = float(scheduler.alphas_cumprod[int(step)])
    signal, noise = alpha**0.5, (1 - alpha) ** 0.5
    return (sample - noise * output) / signal if kind == "epsilon" else signal * sample - noise * output


def gradient_of(score: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The gradient of a score of each sample, within `torch.inference_mode` too.

    Args:
        score: gives (B,) of (B, ...), each sample's of itself alone.
        x: where (B, ...).

    Returns:
        The gradient (B, ...), float32.
    """
    with torch.inference_mode(False), torch.enable_grad():
        x = x.clone().float().requires_grad_()
        (found,) = torch.autograd.grad(score(x).sum(), x)
    return found
