"""Outlier embeddings beyond the boundary of a class, found by walking out of it (BOOD, Liao et al., ICML 2025)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Crossing(NamedTuple):
    """Where embeddings ended that walked out of their class.

    Attributes:
        embeddings: unit embeddings (N, m) beyond the crossing.
        steps: steps (N,) that the crossing took; 0 for an embedding that the classifier gives another class to begin
            with, -1 for one that is still in its class after the last step.
        target: class (N,) crossed into, or -1.
        margin: by how much the cosine with that class was the larger one at the crossing (N,); 0 where nothing crossed.
    """

    embeddings: Tensor
    steps: Tensor
    target: Tensor
    margin: Tensor


def cross_boundary(
    z: Tensor,
    labels: Tensor,
    anchors: Tensor,
    temperature: float = 0.1,
    step_size: float = 0.03,
    extra_steps: int = 2,
    max_steps: int = 100,
) -> Crossing:
    """Walks embeddings uphill on the cross-entropy of their class, and out of it.

    A step is z <- z + a sign(grad CE(f(z), y)), f the cosine classifier of the anchors (BOOD). Its length on the unit
    sphere does not depend on the width m: a is step_size / sqrt(m). The paper's a = 0.015 is for embeddings of the
    encoder's own length; on unit ones of 768 numbers it is a step of 0.42, and all crossings take 1 to 5 of them.

    Args:
        z: unit embeddings (N, m).
        labels: their classes (N,).
        anchors: the classes' anchors (C, m), of any length.
        temperature: t of the classifier's softmax.
        step_size: length of a step.
        extra_steps: steps beyond the crossing.
        max_steps: steps after which an embedding is given up.

    Returns:
        Where they ended.

    Raises:
        ValueError: there are fewer than two anchors.
    """
    if len(anchors) < 2:
        raise ValueError("boundary crossing needs two classes or more; choose another method")
    directions = F.normalize(anchors, dim=1)
    z, own = z.clone(), F.one_hot(labels, len(anchors)).bool()
    steps = torch.full_like(labels, -1)
    target = torch.full_like(labels, -1)
    margin = z.new_zeros(len(z))
    length = step_size / math.sqrt(z.shape[1])
    beyond = torch.zeros_like(labels)
    walking = torch.arange(len(z), device=z.device)
    for step in range(max_steps + extra_steps + 1):
        x, y = F.normalize(z[walking], dim=1), labels[walking]
        cosines = x @ directions.T
        guess = cosines.argmax(1)
        crosses = (steps[walking] < 0) & (guess != y)
        steps[walking[crosses]], target[walking[crosses]] = step, guess[crosses]
        lead = cosines.gather(1, guess[:, None])[:, 0] - cosines.gather(1, y[:, None])[:, 0]
        margin[walking[crosses]] = lead[crosses]
        crossed = steps[walking] >= 0
        go = torch.where(crossed, beyond[walking] < extra_steps, torch.tensor(step < max_steps, device=z.device))
        beyond[walking[crossed]] += 1
        walking, x, cosines = walking[go], x[go], cosines[go]
        if not len(walking):
            break
        # The gradient is (1 - p_y) / (t |z|) times this. Softmax over the other classes is p_j / (1 - p_y), and so the
        # sign is right even where p_y rounds to 1.
        pull = (cosines / temperature).masked_fill(own[walking], -math.inf).softmax(1) - own[walking].to(x.dtype)
        uphill = pull @ directions - (pull * cosines).sum(1, keepdim=True) * x
        z[walking] += length * uphill.sign()
    return Crossing(F.normalize(z, dim=1), steps, target, margin)


def soonest(steps: Tensor, margin: Tensor, fraction: float) -> Tensor:
    """The embeddings of a class that cross its boundary soonest, in the fewest steps first.

    Args:
        steps: the steps (N,) of each embedding, as `cross_boundary` returns them.
        margin: its margin (N,); of those that take as many steps, the one with the larger margin crossed sooner.
        fraction: the share of all N embeddings that is wanted.

    Returns:
        Their rows; what is still tied goes to the lower one. Fewer than the share where fewer cross: those that start
        outside of their class (0) or never leave it (-1) do not.
    """
    order = margin.argsort(descending=True, stable=True)
    order = order[steps[order].argsort(stable=True)]
    return order[steps[order] > 0][: math.ceil(fraction * len(steps))]
