"""Optimisers and schedules of the learning rate, by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from openood_dream.datasets.settings import OptimizerSettings

LEAST_RATE = 1e-6  # where a falling learning rate ends
HALVED_EVERY = 30  # epochs
FALL = 0.999995  # of an exponential schedule, a step (PixelCNN++)
PEAK = 0.23  # share of the steps after which a triangle falls
AVERAGED_EVERY = 5  # steps


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
    return cls(parameters, options.lr, betas=(options.momentum, options.second_beta), weight_decay=options.weight_decay)


def make_schedule(optimizer: Optimizer, options: OptimizerSettings, steps: int) -> LambdaLR:
    """The schedule of the name `optimizer.schedule`, which takes a step with the optimiser.

    Args:
        optimizer: whose learning rates it sets.
        options: the section `optimizer`.
        steps: of the whole training.
    """
    epoch = steps / options.num_epochs  # steps of one
    rise = options.warm_up * epoch
    least = LEAST_RATE / options.lr

    def share(step: int) -> float:
        if options.schedule == "halving":
            return 0.5 ** (step // (HALVED_EVERY * round(epoch)))
        if options.schedule == "exponential":
            return FALL**step
        return SCHEDULES[options.schedule](step / steps, least)

    return LambdaLR(optimizer, lambda step: share(step) * (min(1.0, (step + 1) / rise) if rise else 1.0))


def triangle(progress: float, least: float) -> float:
    """The share of the first rate after `progress` of all steps (0 to 1): from 0.2 to 1 at 0.23, then to 0.07 (Jordan).

    It ends there, whatever `least`.
    """
    return 0.2 + 0.8 * progress / PEAK if progress < PEAK else 1 - 0.93 * (progress - PEAK) / (1 - PEAK)


def cosine(progress: float, least: float) -> float:
    """The share of the first rate after `progress` of all steps (0 to 1): half a cosine down to `least` (OpenOOD)."""
    return least + (1 - least) * 0.5 * (1 + math.cos(math.pi * progress))


def linear(progress: float, least: float) -> float:
    """The share of the first rate after `progress` of all steps (0 to 1): a line down to `least`."""
    return least + (1 - least) * (1 - progress)


def constant(progress: float, least: float) -> float:
    """The share of the first rate: all of it, whatever `progress` and `least`."""
    return 1.0


SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "cosine": cosine,
    "linear": linear,
    "constant": constant,
    "triangle": triangle,
}


def groups(net: nn.Module, options: OptimizerSettings) -> list[dict[str, Any]]:
    """A network's parameters in groups: biases of batch normalisation have `optimizer.shift_factor` times the rate.

    Their weight decay is as much less, so that it is the same in a step. With `optimizer.trunk_lr` the last layer is a
    group of its own, and that is the rate of all others.

    Args:
        net: the network; with `trunk_lr` a classifier in OpenOOD's protocol.
        options: the section `optimizer`.

    Raises:
        InputError: the network has no last layer that could have a rate of its own.
    """
    last = _last_layer(net, options)
    layers = [layer for layer in net.modules() if isinstance(layer, nn.BatchNorm2d)]
    shifts = [layer.bias for layer in layers if layer.bias is not None]
    known = set(map(id, [*shifts, *last]))
    others = [parameter for parameter in net.parameters() if parameter.requires_grad and id(parameter) not in known]
    factor, rate = options.shift_factor, options.trunk_lr or options.lr
    own = {"params": shifts, "lr": rate * factor, "weight_decay": options.weight_decay / factor}
    return [{"params": others, "lr": rate}, *([own] if shifts else []), *([{"params": last}] if last else [])]


def _last_layer(net: nn.Module, options: OptimizerSettings) -> list[nn.Parameter]:
    """The parameters of the last layer where it has a rate of its own, else none."""
    if options.trunk_lr is None:
        return []
    if not hasattr(net, "get_fc_layer"):
        raise options.error("trunk_lr", "the network has no last layer that tells it from a trunk; leave it out")
    return list(cast(Any, net).get_fc_layer().parameters())


class Lookahead(nn.Module):
    """Draws weights to their running mean, ever less as the training goes on (Jordan, after Zhang et al., 2019).

    Args:
        net: the network on its device, whose parameters and statistics are averaged.
        steps: of the whole training.
    """

    done: torch.Tensor

    def __init__(self, net: nn.Module, steps: int) -> None:
        super().__init__()
        self.steps, self._net = steps, [net]  # in a list, so that it is no part of this
        self.mean = nn.ParameterList(
            [nn.Parameter(one.detach().clone(), requires_grad=False) for one in self._tensors()]
        )
        self.register_buffer("done", torch.zeros((), dtype=torch.long))  # it stays on the CPU, where reading is free

    def _tensors(self) -> list[torch.Tensor]:
        return [one for one in self._net[0].state_dict().values() if one.dtype.is_floating_point]

    @torch.no_grad()
    def step(self) -> None:
        """Counts a step of the optimiser, and averages after some of them."""
        self.done += 1
        done = int(self.done)
        if done % AVERAGED_EVERY and done != self.steps:
            return
        decay = 1.0 if done == self.steps else 0.95**AVERAGED_EVERY * (done / self.steps) ** 3
        now, mean = self._tensors(), list(self.mean)
        if decay < 1:
            torch._foreach_lerp_(mean, now, 1 - decay)
        torch._foreach_copy_(now, mean)


def running_mean(net: nn.Module, share: float) -> AveragedModel:
    """The running mean of a network's weights, which is what is validated and saved in their place.

    Args:
        net: the network, on its device; its statistics are taken as they are.
        share: of the mean that a step leaves.
    """
    mean = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(share))
    mean.n_averaged += 1  # the mean begins with the first weights, which count as those of a step
    return mean
