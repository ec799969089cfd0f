"""PixelCNN++ (Salimans et al., ICLR 2017): each pixel from those above and to the left of it."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from openood_dream.networks.generative.base import DensityModel, scaled

STAGES = 3  # resolutions: full, half, quarter


class PixelCNNpp(DensityModel):
    """Two streams of gated residual blocks, down to a quarter of the size and up again with shortcuts (Sec. 2.3, 2.4).

    The stream `u` sees the rows above a pixel, `v` also what is left of it.
    """

    def __init__(
        self,
        channels: int,
        size: int,
        *,
        resnets: int = 5,
        filters: int = 160,
        mixtures: int = 10,
        dropout: float = 0.5,
    ) -> None:
        """Builds the model with new weights.

        Args:
            channels: channels of the images.
            size: pixels a side, divisible by 4.
            resnets: gated blocks at each size, down and up.
            filters: channels within the network.
            mixtures: logistics in the mixture of a pixel.
            dropout: dropout in the gated blocks.
        """
        super().__init__()
        self.channels, self.size, self.mixtures = channels, size, mixtures
        self.first_u = Down(channels + 1, filters, (2, 3))
        self.first_v = nn.ModuleList([Down(channels + 1, filters, (1, 3)), DownRight(channels + 1, filters, (2, 1))])
        self.down = nn.ModuleList(
            nn.ModuleList(Pair(filters, dropout, shortcut=0) for _ in range(resnets)) for _ in range(STAGES)
        )
        self.up = nn.ModuleList(
            nn.ModuleList(Pair(filters, dropout, shortcut=filters) for _ in range(resnets + (stage > 0)))
            for stage in range(STAGES)
        )
        strides = range(STAGES - 1)
        self.halve_u = nn.ModuleList(Down(filters, filters, (2, 3), stride=2) for _ in strides)
        self.halve_v = nn.ModuleList(DownRight(filters, filters, (2, 2), stride=2) for _ in strides)
        self.double_u = nn.ModuleList(Doubled(filters, (2, 3)) for _ in strides)
        self.double_v = nn.ModuleList(Doubled(filters, (2, 2)) for _ in strides)
        numbers = 1 + 2 * channels + channels * (channels - 1) // 2
        self.last = weight_norm(nn.Conv2d(filters, numbers * mixtures, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The mixture's numbers (B, S, S, mixtures, 1 + 2C + C(C-1)/2) of integers 0 to 255 (B, C, S, S)."""
        x = F.pad(scaled(x), (0, 0, 0, 0, 0, 1), value=1.0)  # a channel of ones tells the image from its padding
        u = shift_down(self.first_u(x))
        v = shift_down(self.first_v[0](x)) + shift_right(self.first_v[1](x))
        passed = [(u, v)]
        for stage, pairs in enumerate(self.down):
            for pair in cast(nn.ModuleList, pairs):
                u, v = pair(u, v)
                passed.append((u, v))
            if stage < STAGES - 1:
                u, v = self.halve_u[stage](u), self.halve_v[stage](v)
                passed.append((u, v))
        u, v = passed.pop()
        for stage, pairs in enumerate(self.up):
            for pair in cast(nn.ModuleList, pairs):
                u, v = pair(u, v, passed.pop())
            if stage < STAGES - 1:
                u, v = self.double_u[stage](u), self.double_v[stage](v)
        return self.last(F.elu(v)).permute(0, 2, 3, 1).unflatten(3, (self.mixtures, -1)).float()

    def bound(self, x: torch.Tensor) -> torch.Tensor:
        """log p(x) of integers 0 to 255 (B, C, S, S), exactly, in nats (B,)."""
        return log_mixture(scaled(x), self(x)).sum((1, 2))

    def draw_noise(self, generator: torch.Generator) -> None:
        """None: its likelihood needs no draws."""

    def log_prob(self, x: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        """The same as `bound` of x; `noise` is not used."""
        return self.bound(x)

    @torch.no_grad()
    def sample(self, count: int) -> torch.Tensor:
        """Draws images (count, channels, size, size), uint8, pixel by pixel; call it in evaluation mode."""
        device = next(self.parameters()).device
        x = torch.zeros(count, self.channels, self.size, self.size, dtype=torch.uint8, device=device)
        for row in range(self.size):
            for column in range(self.size):
                x[:, :, row, column] = draw_pixel(self(x)[:, row, column], self.channels)
        return x


# ------------------------------------------------------------------------------- the discretised mixture of logistics


def split_numbers(numbers: torch.Tensor, channels: int) -> tuple[torch.Tensor, ...]:
    """The parameters of the mixture of logistics.

    Args:
        numbers: the network's output (..., M, 1 + 2C + C(C-1)/2).
        channels: C.

    Returns:
        Log weights (..., M), means and log scales (..., M, C), and coefficients (..., M, C, C) below the diagonal.
    """
    weights, means, log_scales, rest = numbers.split([1, channels, channels, channels * (channels - 1) // 2], dim=-1)
    coefficients = rest.new_zeros(*rest.shape[:-1], channels, channels)
    row, column = torch.tril_indices(channels, channels, -1)
    coefficients[..., row, column] = rest.tanh()
    return weights.squeeze(-1).log_softmax(-1), means, log_scales.clamp(min=-7), coefficients


def log_logistic_bin(x: torch.Tensor, mean: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
    """log of a logistic's mass in the bin of width 2/255 around a value; the outer bins reach to infinity (Eq. 2).

    Args:
        x: values in [-1, 1].
        mean: the logistic's mean.
        log_scale: log of its scale.

    Returns:
        Nats; all four have shapes that fit each other.
    """
    # sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - e^(b-a)) loses no digits in the tails
    inverse_scale = (-log_scale).exp()
    upper, lower = (x - mean + 1 / 255) * inverse_scale, (x - mean - 1 / 255) * inverse_scale
    middle = F.logsigmoid(upper) + F.logsigmoid(-lower) + torch.log(-torch.expm1(-2 / 255 * inverse_scale))
    return torch.where(x < -0.999, F.logsigmoid(upper), torch.where(x > 0.999, F.logsigmoid(-lower), middle))


def log_mixture(x: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """log p of each pixel; the mean of a channel is linear in the channels before it (Eq. 3).

    Args:
        x: images in [-1, 1], (B, C, S, S).
        numbers: the network's output (B, S, S, M, 1 + 2C + C(C-1)/2).

    Returns:
        Nats, (B, S, S).
    """
    weights, means, log_scales, coefficients = split_numbers(numbers, x.shape[1])
    x = x.permute(0, 2, 3, 1).unsqueeze(3)  # (B, S, S, 1, C)
    means = means + (coefficients @ x.unsqueeze(-1)).squeeze(-1)
    return torch.logsumexp(weights + log_logistic_bin(x, means, log_scales).sum(-1), dim=-1)


def draw_pixel(numbers: torch.Tensor, channels: int) -> torch.Tensor:
    """Draws one pixel of each image, one channel after the other.

    Args:
        numbers: the network's output for the pixel (B, M, 1 + 2C + C(C-1)/2).
        channels: C.

    Returns:
        Integers 0 to 255, (B, C), as floats.
    """
    weights, means, log_scales, coefficients = split_numbers(numbers, channels)
    chosen = torch.distributions.Categorical(logits=weights).sample()
    mean, log_scale, coefficient = (
        part[torch.arange(len(chosen)), chosen] for part in (means, log_scales, coefficients)
    )
    x = torch.zeros_like(mean)
    noise = torch.rand_like(mean).clamp(1e-5, 1 - 1e-5).logit()
    for c in range(channels):
        raw = mean[:, c] + (coefficient[:, c] * x).sum(1) + log_scale[:, c].exp() * noise[:, c]
        x[:, c] = ((raw.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
    return ((x + 1) * 127.5).round()


# ---------------------------------------------------------------------------------------------------------- the layers


def shift_down(x: torch.Tensor) -> torch.Tensor:
    """Rows (B, C, H, W) moved down by one, zeros in the first."""
    return F.pad(x, (0, 0, 1, -1))


def shift_right(x: torch.Tensor) -> torch.Tensor:
    """Columns (B, C, H, W) moved right by one, zeros in the first."""
    return F.pad(x, (1, -1))


class Down(nn.Module):
    """A convolution over a pixel, its neighbours to both sides, and the rows above.

    Args:
        channels: channels of the input.
        out: channels of the output.
        kernel: its height and width.
        stride: 2 halves the size.
    """

    def __init__(self, channels: int, out: int, kernel: tuple[int, int], stride: int = 1) -> None:
        super().__init__()
        self.padding = (kernel[1] // 2, kernel[1] // 2, kernel[0] - 1, 0)
        self.conv = weight_norm(nn.Conv2d(channels, out, kernel, stride))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The result (B, out, S / stride, S / stride) of x (B, channels, S, S)."""
        return self.conv(F.pad(x, self.padding))


class DownRight(Down):
    """A convolution over a pixel and what is above and to the left of it; arguments are those of `Down`."""

    def __init__(self, channels: int, out: int, kernel: tuple[int, int], stride: int = 1) -> None:
        super().__init__(channels, out, kernel, stride)
        self.padding = (kernel[1] - 1, 0, kernel[0] - 1, 0)


class Doubled(nn.Module):
    """A transposed convolution to twice the size, cut so that no pixel sees below itself, or of width 2, to its right.

    Args:
        channels: channels of input and output.
        kernel: its height and width.
    """

    def __init__(self, channels: int, kernel: tuple[int, int]) -> None:
        super().__init__()
        self.left = kernel[1] // 2 if kernel[1] % 2 else 0
        self.conv = weight_norm(nn.ConvTranspose2d(channels, channels, kernel, 2, output_padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The result (B, channels, 2S, 2S) of x (B, channels, S, S)."""
        return self.conv(x)[:, :, : 2 * x.shape[2], self.left : self.left + 2 * x.shape[3]]


class Pair(nn.Module):
    """A gated residual block of each stream; `v` takes from `u`, and on the way up both from their shortcuts.

    Args:
        filters: channels of each stream.
        dropout: dropout in the blocks.
        shortcut: channels of the shortcut of each stream; 0 on the way down.
    """

    def __init__(self, filters: int, dropout: float, shortcut: int) -> None:
        super().__init__()
        self.u = Gated(Down, (2, 3), filters, dropout, shortcut)
        self.v = Gated(DownRight, (2, 2), filters, dropout, filters + shortcut)

    def forward(
        self, u: torch.Tensor, v: torch.Tensor, shortcut: tuple[torch.Tensor, torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Both streams after the block.

        Args:
            u: the stream of the rows above, (B, filters, S, S).
            v: the stream that also sees what is left of a pixel, of the same shape.
            shortcut: both streams on the way down, at the same size.
        """
        u = self.u(u, shortcut and shortcut[0])
        return u, self.v(v, u if shortcut is None else torch.cat([u, shortcut[1]], dim=1))


class Gated(nn.Module):
    """x + a sigmoid(b), with (a, b) from two convolutions of x and a 1x1 convolution of another stream.

    Args:
        conv: the class of the convolutions.
        kernel: their height and width.
        filters: channels of x.
        dropout: dropout between the convolutions.
        other: channels of the other stream; 0 where there is none.
    """

    def __init__(self, conv: type[Down], kernel: tuple[int, int], filters: int, dropout: float, other: int) -> None:
        super().__init__()
        self.first, self.second = conv(2 * filters, filters, kernel), conv(2 * filters, 2 * filters, kernel)
        self.other = weight_norm(nn.Conv2d(2 * other, filters, 1)) if other else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
        """The block's output of x (B, filters, S, S) and the other stream (B, other, S, S)."""
        y = self.first(concat_elu(x))
        if self.other is not None and other is not None:
            y = y + self.other(concat_elu(other))
        a, b = self.second(self.dropout(concat_elu(y))).chunk(2, dim=1)
        return x + a * b.sigmoid()


def concat_elu(x: torch.Tensor) -> torch.Tensor:
    """ELU of x (B, C, H, W) and of -x, (B, 2C, H, W)."""
    return F.elu(torch.cat([x, -x], dim=1))
