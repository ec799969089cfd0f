"""A variational autoencoder with a 256-way output for each subpixel, of DCGAN's shape (Likelihood Regret, Sec. 5)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Categorical, Normal, kl_divergence
from torch.utils.checkpoint import checkpoint

from openood_dream.networks.generative.base import DensityModel, scaled

# The rows of a 4x4 kernel of stride 2 and padding 1 that reach an even and an odd row of the output, in the order of the
# two input rows that they come from.
TAPS = ([3, 1], [2, 0])
PAIR = 2  # images whose logits are in the processor's cache at once


class VAE(DensityModel):
    """p(x|z) of 256 classes a subpixel, q(z|x) a Gaussian of diagonal covariance, p(z) a standard one.

    Source: Xiao et al., Likelihood Regret, NeurIPS 2020, Sec. 5; importance weighting: Burda et al., IWAE, ICLR 2016.
    """

    samples = 20  # importance samples of log_prob

    def __init__(self, channels: int, size: int, *, latent: int = 200, width: int = 64) -> None:
        """Builds the model with DCGAN's initial weights.

        Args:
            channels: channels of the images.
            size: pixels a side, a power of two from 8 on.
            latent: numbers in the latent vector z.
            width: channels at half of the size; they double at each further halving.
        """
        super().__init__()
        self.channels, self.size, self.latent = channels, size, latent
        widths = [width * 2**i for i in range(int(math.log2(size)) - 2)]  # the last one at 4x4
        down = [block(nn.Conv2d(a, b, 4, 2, 1, bias=False)) for a, b in zip([channels, *widths], widths)]
        up = [block(nn.ConvTranspose2d(b, a, 4, 2, 1, bias=False)) for a, b in zip(widths, widths[1:])]
        self.encoder = nn.Sequential(*down, nn.Conv2d(widths[-1], 2 * latent, 4))
        self.decoder = nn.Sequential(block(nn.ConvTranspose2d(latent, widths[-1], 4, bias=False)), *reversed(up))
        self.last = nn.ConvTranspose2d(widths[0], channels * 256, 4, 2, 1, bias=False)
        self.apply(initialise)
        self.to(memory_format=torch.channels_last)  # the 256 logits of a subpixel lie side by side

    def posterior(self, x: torch.Tensor) -> Normal:
        """q(z|x), with mean and deviation (B, latent), of images (B, channels, size, size)."""
        mean, log_variance = self.encoder(scaled(x)).flatten(1).float().chunk(2, dim=1)
        return Normal(mean, (log_variance / 2).exp(), validate_args=False)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits (B, S, S, channels, 256) of each subpixel's value, from the decoder's output `hidden`."""
        return self.last(hidden).permute(0, 2, 3, 1).unflatten(3, (self.channels, 256))

    def likelihood(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """log p(x|z); the logits, a thousand times as large as the images, exist for few images at once.

        Args:
            x: integers 0 to 255, (B, channels, size, size).
            z: latents (B, latent).

        Returns:
            Nats, (B,).
        """
        hidden, few = self.decoder(z[:, :, None, None]), self.at_once(x.device)
        if (
            not torch.is_grad_enabled()
            and hidden.dtype is torch.float32
            and not torch.is_autocast_enabled(x.device.type)
        ):
            return self._likelihood_by_parity(x, hidden)
        parts = zip(x.split(few), hidden.split(few))
        return torch.cat([checkpoint(self._likelihood, *part, use_reentrant=False) for part in parts])

    def _likelihood_by_parity(self, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """log p(x|z) (B,) of the decoder's output for z, without a gradient.

        A transposed convolution of stride 2 is four matrix products, one for each parity of the output's row and column,
        since a pixel sees 2x2 of the input. Each is followed at once by its softmax, while its logits, in one buffer
        that all share, are still in the processor's cache.
        """
        side, few = hidden.shape[2], PAIR if x.device.type == "cpu" else self.at_once(x.device)
        padded = F.pad(hidden, (1, 1, 1, 1)).permute(0, 2, 3, 1)  # (B, side + 2, side + 2, width)
        products = {(a, b): self._product(a, b) for a in (0, 1) for b in (0, 1)}
        buffer = hidden.new_empty(few * side * side, self.channels * 256)
        found = hidden.new_zeros(len(x))
        for start in range(0, len(x), few):
            part = slice(start, start + few)
            rows = padded[part]
            logits = buffer[: len(rows) * side * side]
            for (a, b), weight in products.items():
                seen = rows[:, a : a + side + 1, b : b + side + 1].unfold(1, 2, 1).unfold(2, 2, 1)
                patches = seen.permute(0, 1, 2, 4, 5, 3).reshape(len(logits), -1)  # (rows, 2 * 2 * width)
                torch.mm(patches, weight, out=logits)
                target = x[part, :, a::2, b::2].permute(0, 2, 3, 1).reshape(-1, 1).long()
                found[part] += log_categorical(logits.view(-1, 256), target).view(len(rows), -1).sum(1)
        return found

    def _product(self, a: int, b: int) -> torch.Tensor:
        """The matrix (2 * 2 * width, channels * 256) that gives the output's pixels of parity (a, b) from 2x2 inputs."""
        rows, columns = TAPS[a], TAPS[b]
        weight = self.last.weight[:, :, rows][:, :, :, columns]  # (width, channels * 256, 2, 2)
        return weight.permute(2, 3, 0, 1).reshape(-1, weight.shape[1]).contiguous()

    def _likelihood(self, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """log p(x|z) (B,) of the decoder's output for z."""
        target = x.permute(0, 2, 3, 1).reshape(-1, 1).long()
        return log_categorical(self.logits(hidden).reshape(-1, 256), target).float().view(len(x), -1).sum(1)

    def at_once(self, device: torch.device) -> int:
        """How many images' logits fit in a processor's cache, or in a GPU's memory."""
        limit = 16 * 2**20 if device.type == "cpu" else 4 * 2**30
        return max(1, limit // (4 * 256 * self.channels * self.size**2))

    def bound(self, x: torch.Tensor) -> torch.Tensor:
        """The ELBO with one draw of z for each image of x (B, channels, size, size), in nats (B,)."""
        q = self.posterior(x)
        return self.likelihood(x, q.rsample()) - kl_divergence(q, prior(q)).sum(1)

    def draw_noise(self, generator: torch.Generator) -> torch.Tensor:
        """Standard Gaussian draws of the latents, (samples, latent)."""
        return torch.randn(self.samples, self.latent, generator=generator)

    def log_prob(self, x: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
        """log p(x) from below by importance weighting, all draws in one pass (IWAE, Eq. 8).

        Args:
            x: integers 0 to 255, (B, channels, size, size).
            noise: standard Gaussian draws (K, latent).

        Returns:
            Nats, (B,).
        """
        assert noise is not None  # noqa: S101 # nosec B101 (draw_noise never returns None)
        return self.importance_bound(x, self.posterior(x), noise)

    def importance_bound(self, x: torch.Tensor, q: Normal, noise: torch.Tensor) -> torch.Tensor:
        """log mean_k p(x, z_k) / q(z_k) with z_k = mean + deviation * noise_k.

        Args:
            x: integers 0 to 255, (B, channels, size, size).
            q: the posterior of each image, (B, latent).
            noise: standard Gaussian draws (K, latent).

        Returns:
            Nats, (B,).
        """
        z = q.mean + q.stddev * noise.unsqueeze(1)  # (K, B, latent)
        given_z = self.likelihood(x.repeat(len(noise), 1, 1, 1), z.flatten(0, 1)).view(len(noise), -1)
        weights = given_z + (prior(q).log_prob(z) - q.log_prob(z)).sum(2)
        return torch.logsumexp(weights, dim=0) - math.log(len(noise))

    @torch.no_grad()
    def sample(self, count: int) -> torch.Tensor:
        """Draws images (count, channels, size, size), uint8; call it in evaluation mode."""
        z = torch.randn(count, self.latent, 1, 1, device=next(self.parameters()).device)
        logits = self.logits(self.decoder(z))
        return Categorical(logits=logits).sample().permute(0, 3, 1, 2).to(torch.uint8)


def log_categorical(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The log-probability of one class of each row.

    Args:
        logits: (N, C); where no gradient is wanted they are overwritten, to save memory.
        target: the classes, (N, 1).

    Returns:
        Nats, (N,).
    """
    if logits.requires_grad:
        return -F.cross_entropy(logits, target[:, 0], reduction="none")
    chosen, top = logits.gather(1, target), logits.amax(1, keepdim=True)
    return (chosen - top)[:, 0] - logits.sub_(top).exp_().sum(1).log()


def prior(q: Normal) -> Normal:
    """p(z), of the shape of a posterior."""
    return Normal(torch.zeros_like(q.mean), torch.ones_like(q.mean), validate_args=False)


def block(convolution: nn.Conv2d | nn.ConvTranspose2d) -> nn.Sequential:
    """A convolution with batch normalisation and ReLU."""
    return nn.Sequential(convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU(inplace=True))


def initialise(module: nn.Module) -> None:
    """DCGAN's start: small Gaussian weights."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1, 0.02)
