"""The VAE: its likelihood is one of 256 values, and its bounds are in the order that theory gives them."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import kl_divergence

from openood_dream.networks.generative.vae import VAE, prior


@pytest.fixture
def model() -> VAE:
    """A VAE whose output depends on its latents, though untrained."""
    torch.manual_seed(0)
    model = VAE(2, 8, latent=3, width=4).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (3, 2, 8, 8), dtype=torch.uint8)


def test_probabilities_sum_to_one(model):
    z = torch.randn(1, 3).expand(256, -1)
    x = torch.randint(0, 256, (1, 2, 8, 8)).repeat(256, 1, 1, 1)
    x[:, 1, 3, 5] = torch.arange(256)
    with torch.no_grad():
        each, rest = model.likelihood(x, z), model.logits(model.decoder(z[:1, :, None, None]))
    own = rest[0, 3, 5, 1].log_softmax(0)
    without = each - own  # log probability of all other subpixels
    assert torch.allclose(without, without[0], atol=1e-3)
    assert own.exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_likelihood_by_a_slow_loop(model, images):
    z = torch.randn(3, 3)
    with torch.no_grad():
        logits = model.logits(model.decoder(z[:, :, None, None])).log_softmax(-1)
        found = model.likelihood(images, z)
    for b in range(3):
        slow = sum(
            logits[b, i, j, c, images[b, c, i, j].item()].item() for c in range(2) for i in range(8) for j in range(8)
        )
        assert found[b].item() == pytest.approx(slow, abs=1e-2)


def test_importance_bound_rises_with_samples(model, images):
    """On the same draws, the mean bound of small groups is never above that of larger ones."""
    noise, bounds = torch.randn(200, 3), {}
    with torch.no_grad():
        q = model.posterior(images)
        for size in (1, 4, 20, 200):
            groups = [model.importance_bound(images, q, part) for part in noise.split(size)]
            bounds[size] = torch.stack(groups).mean(0)
        elbo = torch.stack([model.bound(images) for _ in range(100)]).mean(0)
    for small, large in ((1, 4), (4, 20), (20, 200)):
        assert (bounds[large] >= bounds[small] - 1e-3).all()
        assert bounds[large].mean() > bounds[small].mean()
    assert (bounds[200] > elbo).all()
    assert (bounds[1] - elbo).abs().max() < 0.2 * (bounds[200] - elbo).max() + 5  # both estimate the ELBO


def test_elbo_is_likelihood_less_divergence(model, images):
    q = model.posterior(images)
    torch.manual_seed(1)
    z = q.rsample()
    torch.manual_seed(1)
    expected = model.likelihood(images, z) - kl_divergence(q, prior(q)).sum(1)
    assert torch.allclose(model.bound(images), expected, atol=1e-3)


def test_gradients_do_not_depend_on_at_once(model, images, monkeypatch):
    def gradients(few: int) -> list[torch.Tensor]:
        monkeypatch.setattr(model, "at_once", lambda device: few)
        torch.manual_seed(2)
        return torch.autograd.grad(model.bound(images).sum(), list(model.parameters()))

    for one, all_ in zip(gradients(1), gradients(3)):
        assert torch.allclose(one, all_, rtol=1e-3, atol=1e-3)


def test_samples_are_images(model):
    drawn = model.sample(4)
    assert drawn.shape == (4, 2, 8, 8) and drawn.dtype == torch.uint8 and drawn.unique().numel() > 50


@pytest.mark.parametrize("channels, size, width, count", [(1, 8, 4, 1), (3, 8, 5, 7), (4, 16, 8, 3)])
def test_the_last_layer_by_parity_is_the_layer(channels, size, width, count):
    model = VAE(channels, size, latent=6, width=width).eval()
    torch.nn.init.normal_(model.last.weight, std=0.3)
    x, z = torch.randint(0, 256, (count, channels, size, size)).float(), torch.randn(count, 6)
    with torch.no_grad():
        hidden = model.decoder(z[:, :, None, None])
        slow, fast = model._likelihood(x, hidden), model.likelihood(x, z)
    torch.testing.assert_close(fast, slow, rtol=1e-6, atol=1e-3)
    z.requires_grad_()
    model.likelihood(x, z).sum().backward()  # with a gradient it is the layer itself
    assert z.grad.abs().sum() > 0
