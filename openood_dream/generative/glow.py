"""GLOW (Kingma & Dhariwal, NeurIPS 2018): invertible layers from an image to Gaussian noise, over several scales."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributions import Normal


class Glow(nn.Module):
    """`levels` times: squeeze, `steps` steps of flow, and half of the channels split off.

    For images (B, channels, size, size) with size divisible by 2^levels; `width` is that of the coupling networks.
    """

    def __init__(self, channels: int, size: int, *, levels: int = 3, steps: int = 32, width: int = 512) -> None:
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
        """Latents of floats (B, channels, size, size), one a level, and log p(x) (B,): the density, in nats."""
        latents, log_p = [], x.new_zeros(len(x))
        for level, (steps, prior) in enumerate(zip(self.levels, self.priors)):
            x = F.pixel_unshuffle(x, 2)
            for step in steps:
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
            x = self.up(x, level)
        return x

    def up(self, x: torch.Tensor, level: int) -> torch.Tensor:
        """What came into a level, of what came out of its last step."""
        for step in reversed(self.levels[level]):
            x = step.inverse(x)
        return F.pixel_shuffle(x, 2)

    def bound(self, x: torch.Tensor) -> torch.Tensor:
        """log p(x) of integers from below: the density of x plus uniform noise, in bins of width 1/256."""
        return self.log_prob(x, torch.rand(x.shape, device=x.device))

    def draw_noise(self, generator: torch.Generator) -> torch.Tensor:
        return torch.rand(1, self.channels, self.size, self.size, generator=generator)

    def log_prob(self, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """log p(x) from below with the dequantisation noise `noise` in [0, 1)."""
        _, density = self.encode((x + noise) / 256 - 0.5)
        return density - math.log(256) * x[0].numel()

    @torch.no_grad()
    def sample(self, count: int) -> torch.Tensor:
        """Images (count, channels, size, size), uint8, drawn from the model."""
        size = self.size // 2 ** len(self.levels)
        x = torch.zeros(count, self.priors[-1].channels, size, size, device=next(self.parameters()).device)
        for level in reversed(range(len(self.levels))):
            p = self.priors[level](x)
            z = p.mean + p.stddev * torch.randn_like(p.mean)
            x = self.up(z if level == len(self.levels) - 1 else torch.cat([x, z], dim=1), level)
        return ((x + 0.5) * 256).floor().clamp(0, 255).to(torch.uint8)


class Step(nn.Module):
    """One step of flow: actnorm, invertible 1x1 convolution, affine coupling (Sec. 3)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.norm, self.mix, self.couple = ActNorm(channels), Invertible1x1(channels), Coupling(channels, width)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The image and log |det| of the Jacobian, (B,) or a scalar for all."""
        total = 0.0
        for layer in (self.norm, self.mix, self.couple):
            x, log_det = layer(x)
            total = total + log_det
        return x, total

    def inverse(self, y: torch.Tensor) -> torch.Tensor:
        return self.norm.inverse(self.mix.inverse(self.couple.inverse(y)))


class ActNorm(nn.Module):
    """Scale and shift of each channel; the first batch it is trained on sets them to mean 0 and deviation 1 (Sec. 3.1)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.log_scale = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.register_buffer("initialised", torch.tensor(False))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.training and not self.initialised:
            with torch.no_grad():
                self.shift.copy_(-over_processes(x.mean((0, 2, 3), keepdim=True)))
                variance = over_processes((x + self.shift).square().mean((0, 2, 3), keepdim=True))
                self.log_scale.copy_(-variance.sqrt().clamp(min=1e-6).log())
                self.initialised.fill_(True)
        return (x + self.shift) * self.log_scale.exp(), self.log_scale.sum() * x[0, 0].numel()

    def inverse(self, y: torch.Tensor) -> torch.Tensor:
        return y * (-self.log_scale).exp() - self.shift


def over_processes(mean: torch.Tensor) -> torch.Tensor:
    """The mean over all processes that train together, so that each begins with the same model."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(mean)
        mean /= dist.get_world_size()
    return mean


class Invertible1x1(nn.Module):
    """A 1x1 convolution by W = P L (U + diag(s)), whose log-determinant is a sum (Sec. 3.2)."""

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
        lower, upper = self.factors()
        return F.conv2d(x, (self.permutation @ lower @ upper)[:, :, None, None]), self.log_s.sum() * x[0, 0].numel()

    def inverse(self, y: torch.Tensor) -> torch.Tensor:
        lower, upper = self.factors()
        x = self.permutation.T @ y.flatten(2)
        x = torch.linalg.solve_triangular(lower, x, upper=False, unitriangular=True)
        return torch.linalg.solve_triangular(upper, x, upper=True).view_as(y)


class Coupling(nn.Module):
    """The second half of the channels, scaled and shifted by what a network makes of the first (Sec. 3.3)."""

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
        raw, shift = self.network(kept).chunk(2, dim=1)
        return F.logsigmoid(raw + 2), shift

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        kept, changed = x.chunk(2, dim=1)
        log_scale, shift = self.scale_and_shift(kept)
        return torch.cat([kept, (changed + shift) * log_scale.exp()], dim=1), log_scale.sum((1, 2, 3))

    def inverse(self, y: torch.Tensor) -> torch.Tensor:
        kept, changed = y.chunk(2, dim=1)
        log_scale, shift = self.scale_and_shift(kept)
        return torch.cat([kept, changed * (-log_scale).exp() - shift], dim=1)


class Prior(nn.Module):
    """A Gaussian of each latent: learned for each channel, or computed from the `given` channels that stay (Sec. 3.6)."""

    def __init__(self, channels: int, given: int) -> None:
        super().__init__()
        self.channels = channels
        self.network = ZeroConv(given, 2 * channels) if given else None
        self.constant = None if given else nn.Parameter(torch.zeros(1, 2 * channels, 1, 1))

    def forward(self, x: torch.Tensor) -> Normal:
        raw = self.network(x) if self.network else self.constant.expand(len(x), -1, *x.shape[2:])
        mean, log_deviation = raw.chunk(2, dim=1)
        return Normal(mean, log_deviation.exp(), validate_args=False)


class ZeroConv(nn.Module):
    """A 3x3 convolution that starts at zero, with a learned factor exp(3 s) for each channel of its output."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, 3, padding=1)
        nn.init.zeros_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)
        self.log_factor = nn.Parameter(torch.zeros(1, out, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x) * (3 * self.log_factor).exp()
