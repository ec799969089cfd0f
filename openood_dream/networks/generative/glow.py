"""GLOW (Kingma & Dhariwal, NeurIPS 2018): invertible layers from an image to Gaussian noise, over several scales."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributions import Normal

from openood_dream.networks.generative.base import DensityModel


class Glow(DensityModel):
    """`levels` times: squeeze, `steps` steps of flow, and half of the channels split off.

    Source: Kingma & Dhariwal, NeurIPS 2018, Sec. 3.
    """

    def __init__(self, channels: int, size: int, *, levels: int = 3, steps: int = 32, width: int = 512) -> None:
        """Builds the model with new weights.

        Args:
            channels: channels of the images.
            size: pixels a side, divisible by 2^levels.
            levels: scales, each of half the size of the one before.
            steps: steps of flow a level.
            width: channels of the coupling networks.
        """
        super().__init__()
        self.channels, self.size = channels, size
        self.levels, self.priors = nn.ModuleList(), nn.ModuleList()
        for level in range(levels):
            channels *= 4
            self.levels.append(nn.ModuleList(Step(channels, width) for _ in range(steps)))
            last = level == levels - 1
            channels //= 1 if last else 2
            self.priors.append(Prior(channels, given=0 if last else channels))

    def encode(self, x: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Latents and density of floats.

        Args:
            x: (B, channels, size, size).

        Returns:
            Latents, one tensor a level, and the log-density in nats (B,).
        """
        latents, log_p = [], x.new_zeros(len(x))
        for level, (steps, prior) in enumerate(zip(self.levels, self.priors)):
            x = F.pixel_unshuffle(x, 2)
            for step in cast(nn.ModuleList, steps):
                x, log_det = step(x)
                log_p = log_p + log_det
            x, z = (x, x) if level == len(self.levels) - 1 else x.chunk(2, dim=1)
            latents.append(z)
            log_p = log_p + prior(x).log_prob(z).sum((1, 2, 3))
        return latents, log_p

    def decode(self, latents: list[torch.Tensor]) -> torch.Tensor:
        """The floats that `encode` maps to these latents."""
        x = latents[-1]
        for level in reversed(range(len(self.levels))):
            if level < len(self.levels) - 1:
                x = torch.cat([x, latents[level]], dim=1)
            x = self._up(x, level)
        return x

    def _up(self, x: torch.Tensor, level: int) -> torch.Tensor:
        """The input of a level, from the output `x` of its last step."""
        steps: Any = self.levels[level]
        for step in reversed(steps):
            x = step.inverse(x)
        return F.pixel_shuffle(x, 2)

    def bound(self, x: torch.Tensor) -> torch.Tensor:
        """log p(x) of integers (B, channels, size, size) from below, with fresh dequantisation noise, in nats (B,)."""
        return self.log_prob(x, torch.rand(x.shape, device=x.device))

    def draw_noise(self, generator: torch.Generator) -> torch.Tensor:
        """Dequantisation noise in [0, 1), (1, channels, size, size)."""
        return torch.rand(1, self.channels, self.size, self.size, generator=generator)

    def log_prob(self, x: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
        """log p(x) from below: the density of x plus noise, in bins of width 1/256.

        Args:
            x: integers 0 to 255, (B, channels, size, size).
            noise: dequantisation noise in [0, 1), of the same shape or (1, channels, size, size).

        Returns:
            Nats, (B,).
        """
        assert noise is not None  # noqa: S101 # nosec B101 (draw_noise never returns None)
        _, density = self.encode((x + noise) / 256 - 0.5)
        return density - math.log(256) * x[0].numel()

    @torch.no_grad()
    def sample(self, count: int) -> torch.Tensor:
        """Draws images (count, channels, size, size), uint8; call it in evaluation mode."""
        size, last = self.size // 2 ** len(self.levels), cast(Prior, self.priors[-1])
        x = torch.zeros(count, last.channels, size, size, device=next(self.parameters()).device)
        for level in reversed(range(len(self.levels))):
            p = self.priors[level](x)
            z = p.mean + p.stddev * torch.randn_like(p.mean)
            x = self._up(z if level == len(self.levels) - 1 else torch.cat([x, z], dim=1), level)
        return ((x + 0.5) * 256).floor().clamp(0, 255).to(torch.uint8)


class Step(nn.Module):
    """One step of flow: actnorm, invertible 1x1 convolution, affine coupling (Sec. 3).

    Args:
        channels: channels of the image.
        width: channels of the coupling network.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.norm, self.mix, self.couple = ActNorm(channels), Invertible1x1(channels), Coupling(channels, width)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The result of an image x (B, channels, S, S), and log |det| of the Jacobian, (B,)."""
        total = x.new_zeros(())
        for layer in (self.norm, self.mix, self.couple):
            x, log_det = layer(x)
            total = total + log_det
        return x, total

    def inverse(self, y: torch.Tensor) -> torch.Tensor:
        """The x that `forward` takes to y."""
        return self.norm.inverse(self.mix.inverse(self.couple.inverse(y)))


class ActNorm(nn.Module):
    """Scale and shift of each channel; the first batch it is trained on gets mean 0 and deviation 1 (Sec. 3.1).

    Args:
        channels: channels of the image.
    """

    initialised: torch.Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.log_scale = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.register_buffer("initialised", torch.tensor(False))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The result of an image x, and log |det| of the Jacobian, a scalar for all images."""
        if self.training and not self.initialised:
            with torch.no_grad():  # over all processes, so that each begins with the same model
                self.shift.copy_(-mean_over_processes(x.mean((0, 2, 3), keepdim=True)))
                variance = mean_over_processes((x + self.shift).square().mean((0, 2, 3), keepdim=True))
                self.log_scale.copy_(-variance.sqrt().clamp(min=1e-6).log())
                self.initialised.fill_(True)
        return (x + self.shift) * self.log_scale.exp(), self.log_scale.sum() * x[0, 0].numel()

    def inverse(self, y: torch.Tensor) -> torch.Tensor:
        """The x that `forward` takes to y."""
        return y * (-self.log_scale).exp() - self.shift


def mean_over_processes(mean: torch.Tensor) -> torch.Tensor:
    """The mean of a tensor over all processes that train together; a process on its own keeps it as it is."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(mean)
        mean /= dist.get_world_size()
    return mean


class Invertible1x1(nn.Module):
    """A 1x1 convolution by W = P L (U + diag(s)), whose log-determinant is a sum (Sec. 3.2).

    Args:
        channels: channels of the image; W starts as a random rotation of them.
    """

    permutation: torch.Tensor
    sign: torch.Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        rotation = torch.linalg.qr(torch.randn(channels, channels)).Q
        permutation, lower, upper = torch.linalg.lu(rotation)
        self.lower, self.upper = nn.Parameter(lower), nn.Parameter(upper)
        self.log_s = nn.Parameter(upper.diag().abs().log())
        self.register_buffer("permutation", permutation)
        self.register_buffer("sign", upper.diag().sign())

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """L with ones on its diagonal, and U + diag(s)."""
        lower = self.lower.tril(-1) + torch.eye(len(self.lower), device=self.lower.device)
        return lower, self.upper.triu(1) + (self.sign * self.log_s.exp()).diag()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The result of an image x, and log |det| of the Jacobian, a scalar for all images."""
        lower, upper = self.factors()
        return F.conv2d(x, (self.permutation @ lower @ upper)[:, :, None, None]), self.log_s.sum() * x[0, 0].numel()

    def inverse(self, y: torch.Tensor) -> torch.Tensor:
        """The x that `forward` takes to y."""
        lower, upper = self.factors()
        x = self.permutation.T @ y.flatten(2)
        x = torch.linalg.solve_triangular(lower, x, upper=False, unitriangular=True)
        return torch.linalg.solve_triangular(upper, x, upper=True).view_as(y)


class Coupling(nn.Module):
    """The second half of the channels, scaled and shifted by what a network makes of the first (Sec. 3.3).

    Args:
        channels: channels of the image, an even number.
        width: channels of the network.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Conv2d(channels // 2, width, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 1),
            nn.ReLU(inplace=True),
            ZeroConv(width, channels),
        )

    def scale_and_shift(self, kept: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """log of the scale, and the shift, of the second half, from the first half `kept`."""
        raw, shift = self.network(kept).chunk(2, dim=1)
        return F.logsigmoid(raw + 2), shift

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The result of an image x (B, channels, S, S), and log |det| of the Jacobian, (B,)."""
        kept, changed = x.chunk(2, dim=1)
        log_scale, shift = self.scale_and_shift(kept)
        return torch.cat([kept, (changed + shift) * log_scale.exp()], dim=1), log_scale.sum((1, 2, 3))

    def inverse(self, y: torch.Tensor) -> torch.Tensor:
        """The x that `forward` takes to y."""
        kept, changed = y.chunk(2, dim=1)
        log_scale, shift = self.scale_and_shift(kept)
        return torch.cat([kept, changed * (-log_scale).exp() - shift], dim=1)


class Prior(nn.Module):
    """A Gaussian of each latent: learned for each channel, or computed from the channels that stay (Sec. 3.6).

    Args:
        channels: channels of the latent.
        given: channels that stay, from which mean and deviation are computed; 0: they are learned.
    """

    def __init__(self, channels: int, given: int) -> None:
        super().__init__()
        self.channels = channels
        self.network = ZeroConv(given, 2 * channels) if given else None
        self.constant: Any = None if given else nn.Parameter(torch.zeros(1, 2 * channels, 1, 1))

    def forward(self, x: torch.Tensor) -> Normal:
        """The Gaussian of the latent at this level, given what stays, x (B, given, S, S)."""
        raw = self.network(x) if self.network is not None else self.constant.expand(len(x), -1, *x.shape[2:])
        mean, log_deviation = raw.chunk(2, dim=1)
        return Normal(mean, log_deviation.exp(), validate_args=False)


class ZeroConv(nn.Module):
    """A 3x3 convolution that starts at zero, with a learned factor exp(3 s) for each channel of its output.

    Args:
        channels: channels of the input.
        out: channels of the output.
    """

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, 3, padding=1)
        nn.init.zeros_(self.conv.weight)
        nn.init.zeros_(cast(torch.Tensor, self.conv.bias))
        self.log_factor = nn.Parameter(torch.zeros(1, out, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The result (B, out, S, S) of x (B, channels, S, S)."""
        return self.conv(x) * (3 * self.log_factor).exp()
