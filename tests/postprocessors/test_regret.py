"""Likelihood Regret, as published and its variant, against images one at a time."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from small_generative import network
from torch.distributions import Normal, kl_divergence

from openood_dream.config.schema import validated
from openood_dream.errors import InputError
from openood_dream.networks.generative.vae import VAE, prior
from openood_dream.postprocessors import regret as scores
from openood_dream.postprocessors.known import POSTPROCESSORS

CPU = torch.device("cpu")


@pytest.fixture
def vae() -> VAE:
    """A VAE whose encoder is far from the best one."""
    model = network("vae").model.eval()
    torch.manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (5, 1, 8, 8), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)


def detector(name: str, cache, **arguments):
    cls = POSTPROCESSORS[name]
    return cls(validated(cls.Arguments, {"cache_dir": str(cache), **arguments}))


def slow_regret(model: VAE, x: torch.Tensor, noise: torch.Tensor, steps: int, lr: float) -> float:
    """As published, of one image (1, C, S, S): a copy of the model whose encoder is trained on."""
    own, generator = copy.deepcopy(model), torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(own.encoder.parameters(), lr, weight_decay=5e-5)
    for _ in range(steps):
        q = own.posterior(x)
        z = q.mean + q.stddev * torch.randn(1, model.latent, generator=generator)
        loss = kl_divergence(q, prior(q)).sum() - model.likelihood(x, z).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        after = own.importance_bound(x, own.posterior(x), noise)
        return (after - model.importance_bound(x, model.posterior(x), noise)).item()


def slow_regret_z(model: VAE, x: torch.Tensor, noise: torch.Tensor, steps: int, lr: float) -> float:
    """The variant, of one image (1, C, S, S), written with torch's own backward."""
    with torch.no_grad():
        start = model.posterior(x)
    mean = start.mean.clone().requires_grad_()
    log_variance = (2 * start.stddev.log()).clone().requires_grad_()
    optimizer, generator = torch.optim.Adam([mean, log_variance], lr), torch.Generator().manual_seed(1)
    for _ in range(steps):
        std = (log_variance / 2).exp()
        z = mean + std * torch.randn(1, model.latent, generator=generator)
        divergence = 0.5 * (mean**2 + std**2 - 1 - log_variance).sum()
        loss = divergence - model.likelihood(x, z).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        best = Normal(mean, (log_variance / 2).exp())
        return (model.importance_bound(x, best, noise) - model.importance_bound(x, start, noise)).item()


@pytest.mark.parametrize(
    "together, alone, lr", [(scores.regret, slow_regret, 0.02), (scores.regret_z, slow_regret_z, 0.2)]
)
def test_regret_of_many_images_together(vae, images, monkeypatch, together, alone, lr):
    monkeypatch.setattr(scores, "BYTES", 3 * 16 * sum(p.numel() for p in vae.encoder.parameters()))  # three at once
    noise = torch.randn(10, vae.latent)
    found = together(vae, images, noise, 12, lr)
    assert found.min() > 50  # there is something to gain
    for image, one in zip(images, found):
        assert one.item() == pytest.approx(alone(vae, image[None], noise, 12, lr), rel=0.01)


@pytest.mark.parametrize("together", [scores.regret, scores.regret_z])
def test_regret_without_a_step(vae, images, together):
    weights = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    assert together(vae, images, torch.randn(10, vae.latent), 0, 0.05).abs().max() < 0.01
    together(vae, images, torch.randn(4, vae.latent), 2, 0.05)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in vae.state_dict().items())


def test_many_samples_are_those_of_one_pass(vae, images):
    noise = torch.randn(250, vae.latent)
    with torch.no_grad():
        q = vae.posterior(images)
        torch.testing.assert_close(scores.many_samples(vae, images, q, noise), vae.importance_bound(images, q, noise))


def test_the_published_numbers():
    given = POSTPROCESSORS["likelihood_regret"].Arguments(cache_dir="x")
    assert (given.steps, given.lr, given.samples, scores.DECAY) == (100, 2e-4, 1000, 5e-5)


@pytest.mark.parametrize("name", ["likelihood_regret", "likelihood_regret_z"])
def test_regret_needs_a_vae(images, tmp_path, name):
    with pytest.raises(InputError, match=f"^postprocessor.name: {name} .*network.name vae"):
        detector(name, tmp_path).score(network("glow"), images, CPU)


@pytest.mark.parametrize("name", ["likelihood_regret", "likelihood_regret_z"])
def test_regrets_are_computed_once(images, tmp_path, name):
    net, calls = network("vae"), []

    def gain(model, x, noise, steps, lr):
        calls.append((steps, len(noise)))
        return x.double().mean((1, 2, 3))

    for steps in (2, 2, 3):
        one = detector(name, tmp_path, steps=steps, samples=7)
        one.gain = gain
        found = one.score(net, images, CPU)
    assert calls == [(2, 7), (3, 7)] and found.shape == (len(images),)
    assert found[0] == pytest.approx(-images[0].double().mean().item() / math.log(2))
