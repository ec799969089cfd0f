"""What scoring by FRL costs against Likelihood Regret, on the same VAE: `make bench`, or `pytest benchmarks/bench_frl.py`.

The VAE sees 32x32 images and their high-frequency channel; its weights are random, which changes no cost. The published
procedure of Likelihood Regret scores one image at a time: 1,000 importance samples, 100 steps of Adam on a copy of the
encoder, and 1,000 importance samples again. The batched one improves the posteriors of all images together for 100
steps, and has 20 importance samples, as FRL's score has.
"""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import kl_divergence

from openood_dream.device import pick_device
from openood_dream.networks.generative.frequency import with_high_frequency
from openood_dream.networks.generative.network import Generative
from openood_dream.networks.generative.vae import VAE, prior
from openood_dream.networks.settings import VAENetwork
from openood_dream.postprocessors.likelihood import code_lengths, log_likelihood
from openood_dream.postprocessors.regret import regret

DEVICE = pick_device("auto")
SHAPES = {"small": {"latent": 64, "width": 16}, "paper": {"latent": 200, "width": 64}}


def network(size: str) -> Generative:
    torch.manual_seed(0)
    net = Generative(VAENetwork(name="vae", image_size=32, frequency=True, **SHAPES[size]))
    return net.to(DEVICE).eval()


def images(count: int) -> torch.Tensor:
    """Smooth images with some noise, (count, 3, 32, 32), uint8."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    smooth = F.interpolate(coarse, (32, 32), mode="bilinear")
    return (255 * (0.9 * smooth + 0.1 * torch.rand(count, 3, 32, 32, generator=generator))).to(torch.uint8)


def frl(net: Generative, x: torch.Tensor) -> torch.Tensor:
    """-S of each image, with 20 importance samples in one pass."""
    return log_likelihood(net, x, DEVICE) + code_lengths(x)


def batched_regret(net: Generative, x: torch.Tensor) -> torch.Tensor:
    both = with_high_frequency(x.to(DEVICE))
    noise = torch.randn(1000, net.model.latent, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    return regret(net.model, both, noise, steps=100, lr=2e-4)


def published_regret(net: Generative, x: torch.Tensor) -> torch.Tensor:
    """The regret of each image, one at a time, with the published numbers of steps and samples."""
    return torch.tensor([regret_of_one(net.model, with_high_frequency(one[None].to(DEVICE))) for one in x])


def regret_of_one(model: VAE, x: torch.Tensor) -> float:
    before = thousand_samples(model, x)
    own = copy.deepcopy(model)
    optimizer = torch.optim.Adam(own.encoder.parameters(), lr=2e-4, weight_decay=5e-5)
    for _ in range(100):
        q = own.posterior(x)
        loss = kl_divergence(q, prior(q)).sum() - model.likelihood(x, q.rsample()).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return thousand_samples(own, x) - before


@torch.no_grad()
def thousand_samples(model: VAE, x: torch.Tensor) -> float:
    """The importance-weighted bound of one image: five passes of 200 copies through encoder and decoder."""
    weights = []
    for _ in range(5):
        copies = x.expand(200, -1, -1, -1)
        q = model.posterior(copies)
        z = q.sample()
        logits = model.logits(model.decoder(z[:, :, None, None])).reshape(-1, 256)
        losses = F.cross_entropy(logits, copies.permute(0, 2, 3, 1).reshape(-1).long(), reduction="none")
        given_z = -losses.view(200, -1).sum(1)
        weights.append(given_z + (prior(q).log_prob(z) - q.log_prob(z)).sum(1))
    return (torch.cat(weights).logsumexp(0) - math.log(1000)).item()


@pytest.mark.parametrize("size, count", [("small", 3), ("paper", 1)])
def test_frl_against_the_published_likelihood_regret(against, benchmark, size, count):
    net, x = network(size), images(count)
    words = "Likelihood Regret as published, one image at a time"
    scores, regrets = against(
        lambda: frl(net, x), lambda: published_regret(net, x), words, wanted=147, reference_rounds=1, warmup=False
    )
    assert scores.isfinite().all() and regrets.isfinite().all()
    if benchmark.stats is not None:
        benchmark.extra_info["images_per_second"] = count / benchmark.stats.stats.min


@pytest.mark.parametrize("size, count", [("small", 16), ("paper", 8)])
def test_frl_against_batched_likelihood_regret(against, benchmark, size, count):
    net, x = network(size), images(count)
    words = "our Likelihood Regret, all images together"
    scores, regrets = against(
        lambda: frl(net, x), lambda: batched_regret(net, x), words, reference_rounds=1, warmup=False
    )
    assert scores.isfinite().all() and regrets.isfinite().all()
    if benchmark.stats is not None:
        benchmark.extra_info["images_per_second"] = count / benchmark.stats.stats.min


@pytest.mark.parametrize("size", SHAPES)
def test_the_last_layer_by_parity(against, size):
    """The likelihood of 40 latents, against the transposed convolution and its softmax one after the other."""
    model = network(size).model
    x = torch.randint(0, 256, (40, 4, 32, 32), generator=torch.Generator().manual_seed(0)).float().to(DEVICE)
    with torch.inference_mode():
        hidden = model.decoder(torch.randn(40, model.latent, 1, 1, device=DEVICE))
        few = model.at_once(x.device)

        def plain() -> torch.Tensor:
            return torch.cat([model._likelihood(*part) for part in zip(x.split(few), hidden.split(few))])

        found, expected = against(lambda: model._likelihood_by_parity(x, hidden), plain, "the layer, then the softmax")
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-2)
