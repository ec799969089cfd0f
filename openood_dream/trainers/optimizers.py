"""Optimisers and schedules of the learning rate, by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from openood_dream.datasets.settings import OptimizerSettings

LEAST_RATE = 1e-6  # where a falling learning rate ends
HALVED_EVERY = 30  # epochs


def make_optimizer(parameters: list[Any], options: OptimizerSettings) -> Optimizer:
    """torch's optimiser of the name `optimizer.name`.

    Args:
        parameters: parameters, or groups of them with a rate of their own.
        options: the section `optimizer`; `momentum` is Nesterov's, or the first beta of Adam and AdamW.
    """
    if options.name == "sgd":
        return torch.optim.SGD(
            parameters, options.lr, momentum=options.momentum, weight_decay=options.weight_decay, nesterov=True
        )
    cls = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[options.name]
    return cls(parameters, options.lr, betas=(options.momentum, 0.999), weight_decay=options.weight_decay)


def make_schedule(optimizer: Optimizer, options: OptimizerSettings, steps: int) -> LambdaLR:
    """The schedule of the name `optimizer.schedule`, which takes a step with the optimiser.

    Args:
        optimizer: whose learning rates it sets.
        options: the section `optimizer`.
        steps: of the whole training.
    """
    if options.schedule == "halving":
        epoch = steps // options.num_epochs  # steps of one
        return LambdaLR(optimizer, lambda step: 0.5 ** (step // (HALVED_EVERY * epoch)))
    share, least = SCHEDULES[options.schedule], LEAST_RATE / options.lr
    return LambdaLR(optimizer, lambda step: share(step / steps, least))


def cosine(progress: float, least: float) -> float:
    """The share of the first rate after `progress` of all steps (0 to 1): half a cosine down to `least` (OpenOOD)."""
    return least + (1 - least) * 0.5 * (1 + math.cos(math.pi * progress))


def linear(progress: float, least: float) -> float:
    """The share of the first rate after `progress` of all steps (0 to 1): a line down to `least`."""
    return least + (1 - least) * (1 - progress)


def constant(progress: float, least: float) -> float:
    """The share of the first rate: all of it, whatever `progress` and `least`."""
    return 1.0


SCHEDULES: dict[str, Callable[[float, float], float]] = {"cosine": cosine, "linear": linear, "constant": constant}
