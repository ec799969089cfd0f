"""Likelihood Regret of a VAE, as published and as a variant (Xiao, Yan & Amit, NeurIPS 2020)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch.distributions import Normal, kl_divergence
from torch.func import functional_call, vmap

from openood_dream.errors import InputError
from openood_dream.networks.generative.base import scaled
from openood_dream.networks.generative.network import Generative
from openood_dream.networks.generative.vae import VAE, prior
from openood_dream.postprocessors.base import postprocessor
from openood_dream.postprocessors.likelihood import LikelihoodScore, batched, digest
from openood_dream.postprocessors.settings import RegretArguments, RegretZArguments

DECAY = 5e-5  # weight decay of the public code
BYTES = 1 << 29  # of the encoders' copies, with their gradients and Adam's moments
SAMPLES_AT_ONCE = 100


def regret(model: VAE, x: torch.Tensor, noise: torch.Tensor, steps: int, lr: float) -> torch.Tensor:
    """How much an encoder of its own raises the bound of each image (Likelihood Regret, Eq. 6).

    A copy of the encoder's weights is improved for each image by Adam, all images together; the gain is that of the
    importance-weighted bound. Batch normalisation keeps its statistics.

    Args:
        model: the VAE, in evaluation mode.
        x: integers 0 to 255, (B, C, S, S).
        noise: standard Gaussian draws (K, latent) of the importance-weighted bound.
        steps: steps of Adam.
        lr: its learning rate.

    Returns:
        Nats, (B,).
    """
    copies = 16 * sum(parameter.numel() for parameter in model.encoder.parameters())  # bytes for one image
    return torch.cat([_regret(model, part, noise, steps, lr) for part in x.split(max(1, BYTES // copies))])


def _regret(model: VAE, x: torch.Tensor, noise: torch.Tensor, steps: int, lr: float) -> torch.Tensor:
    """The regret of as many images as have room for encoders of their own."""
    own = {
        name: parameter.detach().expand(len(x), *parameter.shape).clone().requires_grad_()
        for name, parameter in model.encoder.named_parameters()
    }

    def encoded(weights: dict[str, torch.Tensor], image: torch.Tensor) -> torch.Tensor:
        return functional_call(model.encoder, weights, (scaled(image[None]),)).flatten()

    def posterior() -> Normal:
        mean, log_variance = vmap(encoded)(own, x).float().chunk(2, dim=1)
        return Normal(mean, (log_variance / 2).exp(), validate_args=False)

    optimizer = torch.optim.Adam(own.values(), lr, weight_decay=DECAY)
    return _gain(model, x, noise, posterior, optimizer, steps)


def regret_z(model: VAE, x: torch.Tensor, noise: torch.Tensor, steps: int, lr: float) -> torch.Tensor:
    """As `regret`, of the posterior's mean and log variance in place of the encoder: a variant.

    Args:
        model: as there.
        x: as there.
        noise: as there.
        steps: as there.
        lr: as there.

    Returns:
        Nats, (B,).
    """
    with torch.no_grad():
        q = model.posterior(x)
    numbers = [q.mean.clone().requires_grad_(), (2 * q.stddev.log()).requires_grad_()]

    def posterior() -> Normal:
        return Normal(numbers[0], (numbers[1] / 2).exp(), validate_args=False)

    return _gain(model, x, noise, posterior, torch.optim.Adam(numbers, lr), steps)


def _gain(
    model: VAE,
    x: torch.Tensor,
    noise: torch.Tensor,
    posterior: Callable[[], Normal],
    optimizer: torch.optim.Optimizer,
    steps: int,
) -> torch.Tensor:
    """What some steps of an optimiser on the images' bounds gain in the importance-weighted one (B,), all together.

    `posterior` gives the posteriors of the images as the numbers that the optimiser moves have them.
    """
    with torch.no_grad():
        before = many_samples(model, x, model.posterior(x), noise)
    numbers, generator = optimizer.param_groups[0]["params"], torch.Generator().manual_seed(1)
    for _ in range(steps):
        q = posterior()
        z = q.mean + q.stddev * torch.randn(1, model.latent, generator=generator).to(x.device)
        bound = model.likelihood(x, z) - kl_divergence(q, prior(q)).sum(1)
        for number, gradient in zip(numbers, torch.autograd.grad(-bound.sum(), numbers)):
            number.grad = gradient
        optimizer.step()
    with torch.no_grad():
        return many_samples(model, x, posterior(), noise) - before


def many_samples(model: VAE, x: torch.Tensor, q: Normal, noise: torch.Tensor) -> torch.Tensor:
    """The importance-weighted bound with however many draws, some of them at once.

    Args:
        model: the VAE.
        x: integers 0 to 255, (B, C, S, S).
        q: the posterior of each image, (B, latent).
        noise: standard Gaussian draws (K, latent).

    Returns:
        Nats, (B,).
    """
    parts = [model.importance_bound(x, q, some) + math.log(len(some)) for some in noise.split(SAMPLES_AT_ONCE)]
    return torch.stack(parts).logsumexp(0) - math.log(len(noise))


@postprocessor("likelihood_regret", RegretArguments)
class LikelihoodRegret(LikelihoodScore):
    """Minus the regret of the encoder against one that is trained on for the image alone.

    Source: Xiao, Yan & Amit, Likelihood Regret: An Out-of-Distribution Detection Score For Variational Auto-encoder,
    NeurIPS 2020.
    """

    gain: Callable[..., torch.Tensor] = staticmethod(regret)

    def score(self, net: Generative, images: torch.Tensor, device: torch.device) -> torch.Tensor:
        """Minus the regret of `images` under `net`, a VAE that runs on `device`, in bits (N,)."""
        model = net.to(device).eval().model
        if not isinstance(model, VAE):
            raise InputError(f"postprocessor.name: {self.name} needs network.name vae, which has a posterior")
        vae, gain, steps, lr, samples = model, self.gain, self.args.steps, self.args.lr, self.args.samples
        noise = torch.randn(samples, vae.latent, generator=torch.Generator().manual_seed(0)).to(device)
        inputs = {"weights": digest(net.state_dict().values()), "steps": steps, "lr": lr, "samples": samples}
        make = functools.partial(batched, lambda x: -gain(vae, net.with_frequency(x), noise, steps, lr), images, device)
        return self._kept(self.name.replace("_", "-"), images, inputs, make)


@postprocessor("likelihood_regret_z", RegretZArguments)
class LikelihoodRegretZ(LikelihoodRegret):
    """Minus the regret of the encoder's posterior against that which is best for the image: a variant.

    Source: LR_Z of ROSE's code, after Xiao, Yan & Amit, Likelihood Regret, NeurIPS 2020.
    """

    gain = staticmethod(regret_z)
